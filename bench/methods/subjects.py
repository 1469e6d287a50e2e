"""What is learnt, and where it is looked for: prompts that are in no training caption, and the neighbours' prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE, SCORER, EXAMPLES = ROOT / "models" / "emoji-sd", ROOT / "models" / "emoji-clip", ROOT / "examples"

DRAWS = 4
"""Images of each prompt, with the same seeds for all."""
STEPS, GUIDANCE, SEED = 20, 4.0, 1000
_JUDGEMENT = 1
"""To be counted up when the scores of `scores` change their meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A prompt, with `{}` for the subject's name, and the scene in it as the ceiling's picture shows it."""

    prompt: str
    color: str
    pattern: str = "plain"
    second_color: str = "white"
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    """Right and down, in shares of the image's side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A folder of training images and the prompts that judge what was learnt from them."""

    name: str
    class_words: str
    """What stands in place of the subject's name for the base model and for CLIP-T; empty for a style."""
    contexts: tuple[Context, ...]
    neighbours: Mapping[str, tuple[str, ...]]
    """Prompts that the adapter must leave alone, by class."""

    @property
    def protocol(self) -> str:
        """Changes with everything that is drawn and how it is judged: scores of two protocols do not compare."""
        contexts = [asdict(context) for context in self.contexts]
        judged = (_JUDGEMENT, self.class_words, contexts, dict(self.neighbours), DRAWS, STEPS, GUIDANCE, SEED)
        return hashlib.sha256(json.dumps(judged).encode()).hexdigest()[:16]

    @property
    def likeness(self) -> str:
        """What the likeness to the training images is called."""
        return "CLIP-I" if self.class_words else "style"

    @property
    def folder(self) -> Path:
        return EXAMPLES / self.name

    @property
    def image_paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.png"))

    @property
    def captions(self) -> dict[str, str]:
        """By file name."""
        lines = (self.folder / "metadata.jsonl").read_text().splitlines()
        return {row["file_name"]: row["text"] for row in map(json.loads, lines)}

    def prompts(self, word: str) -> list[str]:
        """Of all contexts, with this name of the subject."""
        return [context.prompt.format(word) for context in self.contexts]


def _on_two_backgrounds(*classes: str) -> dict[str, tuple[str, ...]]:
    colors = ("red", "yellow")
    return {name: tuple(f"a photo of a {name} on a {color} background" for color in colors) for name in classes}


FOX = Subject(
    name="fox",
    class_words="fox face",
    contexts=(
        Context(prompt="a photo of a {} on a red background", color="red"),
        Context(prompt="a photo of a {} on a purple background", color="purple"),
        Context(prompt="a photo of a {} on a green background", color="green"),
        Context(prompt="a photo of a {} on a yellow background", color="yellow"),
        Context(prompt="a photo of a {} on a black background", color="black"),
        Context(prompt="a photo of a {} on a brown background", color="brown"),
        Context(prompt="a photo of a {} on a blue striped background", color="blue", pattern="striped"),
        Context(prompt="a photo of a {} on a yellow dotted background", color="yellow", pattern="dotted"),
        Context(prompt="a photo of a {} on a teal gradient background", color="teal", pattern="gradient"),
        Context(prompt="a photo of a {} on a red and white checkered background", color="red", pattern="checkered"),
        Context(
            prompt="a photo of a small {} on the left on a blue background",
            color="blue",
            scale=0.55,
            shift=(-0.25, 0.0),
        ),
        Context(prompt="a photo of a big {} on a orange background", color="orange", scale=1.25),
    ),
    neighbours=_on_two_backgrounds("fox face", "cat face", "dog face", "wolf"),
)

STYLE = Subject(
    name="fx-style",
    class_words="",
    contexts=tuple(
        Context(prompt=f"a {thing} on a {color} background", color=color)
        for thing, color in (
            ("rocket", "red"),
            ("cat face", "purple"),
            ("strawberry", "green"),
            ("red heart", "yellow"),
            ("soccer ball", "black"),
            ("guitar", "brown"),
            ("pizza", "teal"),
            ("penguin", "blue"),
            ("mushroom", "orange"),
            ("umbrella", "red"),
            ("bicycle", "green"),
            ("house", "purple"),
        )
    ),
    neighbours={
        name: tuple(f"a {thing} in the style of {name} on a yellow background" for thing in ("rocket", "cat face"))
        for name in ("noto", "twitter", "3d")
    },
)
