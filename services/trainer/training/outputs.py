"""What is published beside the weights: model card, recipe, metrics and samples."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from atelier import __version__
from atelier.diffusion.base import Base
from atelier.diffusion.images import encode_png
from services.trainer.methods.base import TrainingJob
from services.trainer.training.evaluation import Evaluation, validation_prompts
from services.trainer.training.model_card import model_card
from services.trainer.training.sample_grid import grid
from services.trainer.training.student import Student

_LIBRARIES = ("diffusers", "transformers", "safetensors", "peft")


def describing_files(
    job: TrainingJob, student: Student, evaluation: Evaluation, measured: dict[str, Any], title: str
) -> dict[str, bytes]:
    """All files but the weights, by path.

    Args:
        measured: what else was measured, for `metrics.json`.
        title: the method's name for humans.
    """
    scores = asdict(evaluation.scores) if evaluation.scores else None
    samples = {f"samples/{i}.png": encode_png(image) for i, image in enumerate(evaluation.samples)}
    rows = {student.bare.name: evaluation.base_samples, title: evaluation.samples}
    drawn = {label: list(images) for label, images in rows.items() if images is not None}
    sheet = grid(list(drawn.values()), row_labels=list(drawn), column_labels=validation_prompts(job))
    return {
        "README.md": model_card(job, student, scores, title).encode(),
        "recipe.json": _json(recipe(job, student.bare)),
        "metrics.json": _json({"evaluation": scores, **measured}),
        "samples/grid.png": sheet,
        **samples,
    }


def recipe(job: TrainingJob, base: Base) -> dict[str, Any]:
    """What was trained and how, with the versions of the code that did it.

    Constant in that code, and so not named one by one: the loss's form, the order and noise of the steps as drawn from
    the seed, and the preparation of images.
    """
    return {
        "method": job.method,
        "config": asdict(job.config),
        "base_model": {"model": base.name, "digest": base.digest, "family": base.family},
        "dataset_digest": job.dataset_digest,
        "concepts": [
            {
                "instance_prompt": concept.instance_prompt,
                "class_prompt": concept.class_prompt,
                "placeholder_token": concept.placeholder_token,
                "repeats": concept.repeats,
                "images": [{"path": image.path, "caption": image.caption} for image in concept.images],
            }
            for concept in job.concepts
        ],
        "validation_prompts": validation_prompts(job),
        "versions": {
            "atelier": __version__,
            **{library: version(library) for library in _LIBRARIES},
            "torch": torch.__version__,
        },
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
