"""Drawing and scoring, as a process of its own: `python -m bench.methods.scores` leaves images and `scores.json`.

Cosines of the embedded base's own CLIP (`emoji-clip`), image by image, so that the report can pair and resample them:

- `clip_i` to the training images (mean), `clip_t` to the prompt with the class in place of the subject's name;
- for each neighbour, `clip_t` to its prompt, `leak` to the training images, and `preserved` to the image that the bare
  base draws of the same prompt with the same seed: 1 when the adapter changed nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from atelier.diffusion.base import load_base
from atelier.diffusion.scorer import ClipScorer
from bench.methods.ceiling import paste
from bench.methods.drawing import draw, load_grid, load_pipeline, save_grid
from bench.methods.layout import CEILING_GRID, CEILING_SCORES, CONTEXTS_GRID, NEIGHBOURS_GRID, SCORES
from bench.methods.subjects import BASE, FOX, SCORER, STYLE, Subject

Images = Sequence[Sequence[Image.Image]]


class Judge:
    """The scorer with a subject's training images."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        base = load_base(BASE, device=torch.device("cpu"), dtype=torch.float32)
        self._scorer = ClipScorer(SCORER, base)
        self.training = [Image.open(path).convert("RGB") for path in subject.image_paths]
        self._references = self._embed([self.training])[0]

    def contexts(self, images: Images) -> dict[str, object]:
        """CLIP-I and CLIP-T, [context][draw]."""
        vectors = self._embed(images)
        return {
            "clip_i": self._to_training(vectors),
            "clip_t": self._to_prompts(vectors, self._subject.prompts(self._subject.class_words)),
        }

    def neighbours(self, images: Images, base_images: Images) -> dict[str, object]:
        """CLIP-T, leak and likeness to the base's images by class, [prompt][draw]."""
        prompts = [prompt for prompts in self._subject.neighbours.values() for prompt in prompts]
        vectors, base_vectors = self._embed(images), self._embed(base_images)
        scores: Mapping[str, Sequence[object]] = {
            "clip_t": self._to_prompts(vectors, prompts),
            "leak": self._to_training(vectors),
            "preserved": (vectors * base_vectors).sum(dim=2).tolist(),
        }
        parted: dict[str, object] = {}
        first = 0
        for name, own in self._subject.neighbours.items():
            parted[name] = {key: values[first : first + len(own)] for key, values in scores.items()}
            first += len(own)
        return parted

    def among_training(self) -> float:
        """Mean cosine of the training images to each other."""
        cosines = self._references @ self._references.T
        count = len(cosines)
        return float((cosines.sum() - count) / (count * (count - 1)))

    def _embed(self, images: Images) -> torch.Tensor:
        """Unit vectors [row, column, width]."""
        pixels = np.stack([np.asarray(image) for row in images for image in row])
        return self._scorer.embed_images(torch.from_numpy(pixels)).unflatten(0, (len(images), -1))

    def _to_training(self, vectors: torch.Tensor) -> list[list[float]]:
        scores: list[list[float]] = (vectors @ self._references.T).mean(dim=2).tolist()
        return scores

    def _to_prompts(self, vectors: torch.Tensor, prompts: Sequence[str]) -> list[list[float]]:
        scores: list[list[float]] = (vectors * self._scorer.embed_prompts(prompts)[:, None]).sum(dim=2).tolist()
        return scores


@click.command()
@click.option("--subject", "subject_name", type=click.Choice([FOX.name, STYLE.name]), required=True)
@click.option("--word", required=True, help="The subject's name in the prompts.")
@click.option("--base", type=click.Path(path_type=Path), required=True, help="Float32 copy of the base model.")
@click.option("--base-images", type=click.Path(path_type=Path), help="Folder of the bare base's images.")
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
    judge = Judge(subject)
    pipeline = load_pipeline(base, adapter)
    images = draw(pipeline, subject.prompts(word))
    neighbours = draw(pipeline, [prompt for prompts in subject.neighbours.values() for prompt in prompts])
    save_grid(images, folder / CONTEXTS_GRID)
    save_grid(neighbours, folder / NEIGHBOURS_GRID)
    before = load_grid(base_images / NEIGHBOURS_GRID, len(neighbours)) if base_images else neighbours
    _write(folder / SCORES, {**judge.contexts(images), "neighbours": judge.neighbours(neighbours, before)})
    if adapter is None:
        _write_ceiling(judge, subject, folder)


def _write_ceiling(judge: Judge, subject: Subject, folder: Path) -> None:
    scores: dict[str, object] = {"clip_i_among_training": judge.among_training()}
    if subject.class_words:
        pasted = [[paste(image, context) for image in judge.training] for context in subject.contexts]
        save_grid(pasted, folder / CEILING_GRID)
        scores |= judge.contexts(pasted)
    _write(folder / CEILING_SCORES, scores)


def _write(path: Path, content: Mapping[str, object]) -> None:
    making = path.with_suffix(".making")
    making.write_text(json.dumps(content))
    making.rename(path)


if __name__ == "__main__":
    main()
