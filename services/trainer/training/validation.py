"""Validation while a job trains: previews for whoever watches, and which weights were best so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from atelier.diffusion.images import encode_png
from services.trainer.methods.base import Previews, Scores
from services.trainer.training.evaluation import Evaluator, validation_prompts
from services.trainer.training.sample_grid import grid
from services.trainer.training.selection import best_step

# A glimpse, not an evaluation: training waits while they are drawn.
_MAX_PROMPTS = 4


class Validations:
    """The scores of the validations so far, and a copy of the weights that did best, where `best` are published."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        config = evaluator.job.config
        self._keeps_best = config.publish_weights == "best" and evaluator.scorers is not None
        self._base: Scores | None = None
        self._by_step: dict[int, Scores] = {}
        self.best_weights: dict[str, torch.Tensor] = {}

    @property
    def published_step(self) -> int | None:
        """The step of the best weights; None when the last are published."""
        return best_step(self._base, self._by_step) if self._base and self._by_step else None

    def validate(self, step: int) -> Previews:
        """Draws the previews of this step, scores them, and keeps the weights if they are the best."""
        prompts = validation_prompts(self._evaluator.job)[:_MAX_PROMPTS]
        images = self._evaluator.draw(prompts, 1)
        if self._keeps_best:
            self._keep_if_best(step, prompts, images)
        pngs = [encode_png(image) for image in images]
        sheet = grid([list(images)], row_labels=[f"step {step}"], column_labels=prompts)
        return Previews(step=step, prompts=(*prompts, ""), pngs=(*pngs, sheet))

    def finish(self, step: int) -> None:
        """Validates the last weights too, and puts the best in their place."""
        if not self._keeps_best:
            return
        if step not in self._by_step:
            prompts = validation_prompts(self._evaluator.job)[:_MAX_PROMPTS]
            self._keep_if_best(step, prompts, self._evaluator.draw(prompts, 1))
        for name, tensor in self._weights().items():
            tensor.data.copy_(self.best_weights[name])

    def state(self) -> dict[str, Any]:
        """The scores, for a checkpoint."""
        return {
            "base": asdict(self._base) if self._base else None,
            "by_step": {str(step): asdict(scores) for step, scores in self._by_step.items()},
        }

    def restore(self, state: Mapping[str, Any], best_weights: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a checkpoint."""
        self._base = Scores(**state["base"]) if state["base"] else None
        self._by_step = {int(step): Scores(**scores) for step, scores in state["by_step"].items()}
        self.best_weights = dict(best_weights)

    def _keep_if_best(self, step: int, prompts: list[str], images: torch.Tensor) -> None:
        evaluator = self._evaluator
        if self._base is None:
            self._base = evaluator.score(evaluator.draw_bare(evaluator.class_words(prompts), 1), prompts)
        self._by_step[step] = evaluator.score(images, prompts)
        if self.published_step == step:
            self.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in self._weights().items()}

    def _weights(self) -> dict[str, torch.Tensor]:
        student = self._evaluator.student
        return {**student.parameters(), **student.buffers()}
