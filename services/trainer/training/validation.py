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

# A glimpse, not an evaluation: training waits while they are drawn. Fewer prompts get more images each.
_IMAGES = 4


class Validations:
    """The scores of the validations so far, and a copy of the weights that did best, where `best` are published."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        config = evaluator.job.config
        self._keeps_best = config.publish_weights == "best" and evaluator.scorers is not None
        self._prompts = validation_prompts(evaluator.job)[:_IMAGES]
        self._per_prompt = _IMAGES // len(self._prompts)
        self._by_step: dict[int, Scores] = {}
        self.best_weights: dict[str, torch.Tensor] = {}

    @property
    def published_step(self) -> int | None:
        """The step of the best weights; None when the last are published."""
        return best_step(self._by_step) if self._by_step else None

    def validate(self, step: int) -> Previews:
        """Draws the previews of this step, scores them, and keeps the weights if they are the best.

        The previews are an image of each prompt, and a sheet of all that was drawn.
        """
        images = self._draw()
        if self._keeps_best:
            self._keep_if_best(step, images)
        rows = [images[i :: self._per_prompt] for i in range(self._per_prompt)]
        sheet = grid(
            [list(row) for row in rows],
            row_labels=[f"step {step}, seed + {i}" for i in range(len(rows))],
            column_labels=self._prompts,
        )
        pngs = [encode_png(image) for image in rows[0]]
        return Previews(step=step, prompts=(*self._prompts, ""), pngs=(*pngs, sheet))

    def finish(self, step: int) -> None:
        """Validates the last weights too, and puts the best in their place."""
        if not self._keeps_best:
            return
        if step not in self._by_step:
            self._keep_if_best(step, self._draw())
        for name, tensor in self._weights().items():
            tensor.data.copy_(self.best_weights[name])

    def state(self) -> dict[str, Any]:
        """The scores, for a checkpoint."""
        return {str(step): asdict(scores) for step, scores in self._by_step.items()}

    def restore(self, state: Mapping[str, Any], best_weights: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a checkpoint."""
        self._by_step = {int(step): Scores(**scores) for step, scores in state.items()}
        self.best_weights = dict(best_weights)

    def _draw(self) -> torch.Tensor:
        return self._evaluator.draw(self._prompts, self._per_prompt)

    def _keep_if_best(self, step: int, images: torch.Tensor) -> None:
        student = self._evaluator.student
        if step <= max(each.steps.start for each in student.trainables):
            return  # something has not begun to learn: such weights are no result
        self._by_step[step] = self._evaluator.score(images, self._prompts)
        if self.published_step == step:
            self.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in self._weights().items()}

    def _weights(self) -> dict[str, torch.Tensor]:
        student = self._evaluator.student
        return {**student.parameters(), **student.buffers()}
