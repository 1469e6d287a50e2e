"""Drawing and scoring, as a process of its own: `python -m bench.methods.scores` leaves images and `scores.json`.

Cosines of the embedded base's own CLIP (`emoji-clip`), image by image, so that the report can pair and resample them:

- `likeness` to the training images, and `clip_t` to the prompt with the class in place of the subject's name;
- for each neighbour, `clip_t` to its prompt, `leak`, which is its likeness to the training images, and `preserved`, the
  cosine to the image that the bare base draws of the same prompt with the same seed: 1 when nothing changed.

The likeness of a subject is CLIP-I, the mean cosine to its images. A style's images show other things than the prompts
ask for, so theirs is how far an image went from the base's image, with the same prompt and seed, in the direction in
which the training images differ from what the base draws of their captions (directional similarity, Gal et al. 2021):
0 is the base's style, 1 as far as the training images are on average.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from atelier.diffusion.base import load_base
from atelier.diffusion.scorer import ClipScorer
from bench.methods.ceiling import paste
from bench.methods.drawing import draw, load_grid, load_pipeline, save_grid
from bench.methods.layout import CAPTIONS_GRID, CEILING_GRID, CEILING_SCORES, CONTEXTS_GRID, NEIGHBOURS_GRID, SCORES
from bench.methods.subjects import BASE, FOX, SCORER, STYLE, Subject

Images = Sequence[Sequence[Image.Image]]


class Judge:
    """The scorer with a subject's training images.

    Args:
        captioned: for a style, what the base draws of the training captions, [image][draw].
    """

    def __init__(self, subject: Subject, captioned: Images | None) -> None:
        self._subject = subject
        base = load_base(BASE, device=torch.device("cpu"), dtype=torch.float32)
        self._scorer = ClipScorer(SCORER, base)
        self.training = [Image.open(path).convert("RGB") for path in subject.image_paths]
        self._references = self._embed([self.training])[0]
        self._shifts = None if captioned is None else self._references - self._embed(captioned).mean(dim=1)

    def contexts(self, images: Images, base_images: Images) -> dict[str, object]:
        """Likeness and CLIP-T, [context][draw]."""
        vectors = self._embed(images)
        return {
            "likeness": self._likeness(vectors, self._embed(base_images)),
            "clip_t": self._to_prompts(vectors, self._subject.prompts(self._subject.class_words)),
        }

    def neighbours(self, images: Images, base_images: Images) -> dict[str, dict[str, Sequence[Sequence[float]]]]:
        """CLIP-T, leak and cosine to the base's images by class, [prompt][draw]."""
        prompts = [prompt for prompts in self._subject.neighbours.values() for prompt in prompts]
        vectors, base_vectors = self._embed(images), self._embed(base_images)
        scores: Mapping[str, Sequence[Sequence[float]]] = {
            "clip_t": self._to_prompts(vectors, prompts),
            "leak": self._likeness(vectors, base_vectors),
            "preserved": (vectors * base_vectors).sum(dim=2).tolist(),
        }
        parted: dict[str, dict[str, Sequence[Sequence[float]]]] = {}
        first = 0
        for name, own in self._subject.neighbours.items():
            parted[name] = {key: values[first : first + len(own)] for key, values in scores.items()}
            first += len(own)
        return parted

    def training_likeness(self) -> float:
        """Of the training images, each judged by the others: what real images score."""
        count = len(self.training)
        others = [[other for other in range(count) if other != own] for own in range(count)]
        if self._shifts is None:
            cosines = self._references @ self._references.T
            return float(np.mean([float(cosines[own, rest].mean()) for own, rest in enumerate(others)]))
        shifts = self._shifts
        return float(np.mean([_share(shifts[own], shifts[rest].mean(dim=0)) for own, rest in enumerate(others)]))

    def _likeness(self, vectors: torch.Tensor, base_vectors: torch.Tensor) -> list[list[float]]:
        scores: list[list[float]]
        if self._shifts is None:
            scores = (vectors @ self._references.T).mean(dim=2).tolist()
        else:
            scores = _share(vectors - base_vectors, self._shifts.mean(dim=0)).tolist()
        return scores

    def _embed(self, images: Images) -> torch.Tensor:
        """Unit vectors [row, column, width]."""
        pixels = np.stack([np.asarray(image) for row in images for image in row])
        return self._scorer.embed_images(torch.from_numpy(pixels)).unflatten(0, (len(images), -1))

    def _to_prompts(self, vectors: torch.Tensor, prompts: Sequence[str]) -> list[list[float]]:
        scores: list[list[float]] = (vectors * self._scorer.embed_prompts(prompts)[:, None]).sum(dim=2).tolist()
        return scores


def _share(shift: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """How much of a shift [width] lies in other shifts [..., width]: 1 for the shift itself."""
    return shift @ whole / whole.square().sum()


@click.command()
@click.option("--subject", "subject_name", type=click.Choice([FOX.name, STYLE.name]), required=True)
@click.option("--word", required=True, help="The subject's name in the prompts.")
@click.option("--base", type=click.Path(path_type=Path), required=True, help="Float32 copy of the base model.")
@click.option(
    "--base-images", type=click.Path(path_type=Path), help="Folder of the bare base's images; its own for the base."
)
@click.option("--adapter", type=click.Path(path_type=Path))
@click.option("--threads", type=int, required=True)
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Gets images and scores.")
def main(
    subject_name: str,
    word: str,
    base: Path,
    base_images: Path | None,
    adapter: Path | None,
    threads: int,
    folder: Path,
) -> None:
    """Draws and scores one adapter, or the bare base and the ceiling when none is given."""
    torch.set_num_threads(threads)
    subject = next(subject for subject in (FOX, STYLE) if subject.name == subject_name)
    _draw(load_pipeline(base, adapter), subject, word, folder, with_captions=adapter is None)
    before = base_images or folder
    captions = before / CAPTIONS_GRID
    judge = Judge(subject, load_grid(captions, len(subject.captions)) if captions.is_file() else None)
    if adapter is None:
        _write_ceiling(judge, subject, folder)
    contexts = judge.contexts(*(load_grid(each / CONTEXTS_GRID, len(subject.contexts)) for each in (folder, before)))
    num_rows = sum(map(len, subject.neighbours.values()))
    neighbours = judge.neighbours(*(load_grid(each / NEIGHBOURS_GRID, num_rows) for each in (folder, before)))
    _write(folder / SCORES, {"protocol": subject.protocol, **contexts, "neighbours": neighbours})


def _draw(pipeline: Any, subject: Subject, word: str, folder: Path, *, with_captions: bool) -> None:
    save_grid(draw(pipeline, subject.prompts(word)), folder / CONTEXTS_GRID)
    prompts = [prompt for prompts in subject.neighbours.values() for prompt in prompts]
    save_grid(draw(pipeline, prompts), folder / NEIGHBOURS_GRID)
    if with_captions and not subject.class_words:
        save_grid(draw(pipeline, list(subject.captions.values())), folder / CAPTIONS_GRID)


def _write_ceiling(judge: Judge, subject: Subject, folder: Path) -> None:
    scores: dict[str, object] = {"training_likeness": judge.training_likeness()}
    if subject.class_words:
        pasted = [[paste(image, context) for image in judge.training] for context in subject.contexts]
        save_grid(pasted, folder / CEILING_GRID)
        scores |= judge.contexts(pasted, pasted)
    _write(folder / CEILING_SCORES, scores)


def _write(path: Path, content: Mapping[str, object]) -> None:
    making = path.with_suffix(".making")
    making.write_text(json.dumps(content))
    making.rename(path)


if __name__ == "__main__":
    main()
