"""The model card: what a version is, how good it is, and how to use it, for people and for model hubs."""

from __future__ import annotations

import json

from services.trainer.methods.base import TrainingJob
from services.trainer.training.evaluation import validation_prompts
from services.trainer.training.student import Student
from services.trainer.training.usage import usage

_SCORES = {
    "clip_i": "CLIP-I: like the training images",
    "dino": "DINO: like the training images",
    "clip_t": "CLIP-T: like the prompt",
    "pres": "PRES: the class like the training images; lower is better",
    "div": "DIV: how the class's images differ",
    "nearest": "like the nearest training image",
}


def model_card(job: TrainingJob, student: Student, scores: dict[str, dict[str, float]] | None, title: str) -> str:
    """Markdown with the front matter that model hubs read."""
    base, config = student.bare, job.config
    gallery = "\n".join(f"| {_cell(p)} | ![](samples/{i}.png) |" for i, p in enumerate(validation_prompts(job)))
    return f"""---
base_model: {json.dumps(base.name)}
library_name: diffusers
pipeline_tag: text-to-image
tags: [{", ".join(_tags(job, student))}]
---

# {title} on {base.name}

Learnt from {len(job.images)} images in at most {config.max_train_steps} steps. It works on this base model only:
`{base.digest}`.

{_concepts(job)}
- Batch {config.train_batch_size}, seed {config.seed}; everything else is in `recipe.json`, what was measured in
  `metrics.json`.

## Scores

{_score_table(scores) if scores else "None: there is no scorer for this base model."}

## Samples

![](samples/grid.png)

| prompt | image |
|---|---|
{gallery}

## Use with diffusers

```python
{usage(job, student)}
```
"""


def _tags(job: TrainingJob, student: Student) -> list[str]:
    kinds = ["lora"] if student.factors() else []
    kinds += ["textual_inversion"] if student.tables() else []
    return [*kinds, "text-to-image", job.method]


def _concepts(job: TrainingJob) -> str:
    lines = []
    for concept in job.concepts:
        lines.append(f"- Instance prompt: `{_cell(concept.instance_prompt) or 'none'}`")
        lines.append(f"- Class prompt: `{_cell(concept.class_prompt) or 'none'}`")
    return "\n".join(lines)


def _score_table(scores: dict[str, dict[str, float]]) -> str:
    def row(key: str) -> str:
        return f"| {_SCORES[key]} | {scores['base'][key]:.3f} | {scores['adapter'][key]:.3f} |"

    rows = [row(key) for key in _SCORES if scores["adapter"].get(key) is not None]
    return "\n".join(["| | base model | with this adapter |", "|---|---|---|", *rows])


def _cell(text: str) -> str:
    """Text of a user, safe in a table and in backquotes."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'")
