"""The files of a finished adapter: weights, model card, recipe, metrics and samples."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from atelier import __version__
from atelier.diffusion.adapter_file import FILE_NAME
from atelier.diffusion.base import Base
from atelier.diffusion.images import encode_png
from services.trainer.methods.base import TrainingJob
from services.trainer.training.evaluation import Evaluation, validation_prompts

_LIBRARIES = ("diffusers", "transformers", "safetensors")


def adapter_files(
    job: TrainingJob, base: Base, weights: bytes, evaluation: Evaluation, measured: dict[str, Any], title: str
) -> dict[str, bytes]:
    """All files by path.

    Args:
        weights: the adapter file's contents.
        measured: what else was measured, for `metrics.json`.
        title: the method's name for humans.
    """
    scores = asdict(evaluation.scores) if evaluation.scores else None
    samples = {f"samples/{i}.png": encode_png(image) for i, image in enumerate(evaluation.samples)}
    return {
        FILE_NAME: weights,
        "README.md": model_card(job, base, scores, title).encode(),
        "recipe.json": _json(recipe(job, base)),
        "metrics.json": _json({"evaluation": scores, **measured}),
        **samples,
    }


def recipe(job: TrainingJob, base: Base) -> dict[str, Any]:
    """What was trained and how, with the versions of the code that did it.

    Constant in that code, and so not named one by one: the optimizer (AdamW) and its betas, the loss's form, the order
    and noise of the steps as drawn from the seed, and the preparation of images.
    """
    return {
        "method": job.method,
        "config": asdict(job.config),
        "base_model": {"model": base.name, "digest": base.digest},
        "dataset": {
            "digest": job.dataset_digest,
            "images": [{"path": image.path, "caption": image.caption} for image in job.images],
        },
        "instance_prompt": job.instance_prompt,
        "class_prompt": job.class_prompt,
        "validation_prompts": validation_prompts(job),
        "versions": {
            "atelier": __version__,
            **{library: version(library) for library in _LIBRARIES},
            "torch": torch.__version__,
        },
    }


def model_card(job: TrainingJob, base: Base, scores: dict[str, dict[str, float]] | None, title: str) -> str:
    """Markdown with the front matter that model hubs read."""
    prompts = validation_prompts(job)
    gallery = "\n".join(f"| {_cell(prompt)} | ![](samples/{i}.png) |" for i, prompt in enumerate(prompts))
    size = job.config.resolution
    return f"""---
base_model: {json.dumps(base.name)}
library_name: diffusers
pipeline_tag: text-to-image
tags: [lora, text-to-image, {job.method}]
---

# {title} on {base.name}

Learnt from {len(job.images)} images in {job.config.max_train_steps} steps. It works on this base model only:
`{base.digest}`.

- Instance prompt: `{_cell(job.instance_prompt) or "none"}`
- Class prompt: `{_cell(job.class_prompt) or "none"}`
- Rank {job.config.rank} on layers `{job.config.lora_layers}`, learning rate {job.config.learning_rate:g},
  batch {job.config.train_batch_size}, seed {job.config.seed}; everything else is in `recipe.json`.

## Scores

{_score_table(scores) if scores else "None: there is no scorer for this base model."}

## Samples

| prompt | image |
|---|---|
{gallery}

## Use with diffusers

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("PATH/TO/{base.name}")
pipeline.load_lora_weights("PATH/TO/THIS/FOLDER", weight_name="{FILE_NAME}")
image = pipeline({json.dumps(prompts[0])}, width={size}, height={size}, guidance_scale=4.0).images[0]
```
"""


def _score_table(scores: dict[str, dict[str, float]]) -> str:
    return f"""| | CLIP-I (to the training images) | CLIP-T (to the prompt) |
|---|---|---|
| base model | {scores["base"]["clip_i"]:.3f} | {scores["base"]["clip_t"]:.3f} |
| with this adapter | {scores["adapter"]["clip_i"]:.3f} | {scores["adapter"]["clip_t"]:.3f} |"""


def _cell(text: str) -> str:
    """Text of a user, safe in a table and in backquotes."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
