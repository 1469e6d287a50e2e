"""Which examples a step sees: every one once an epoch, in an order that only seed and epoch decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.trainer.training.config import TrainingConfig
from services.trainer.training.examples import Example
from services.trainer.training.noise import seeded_generator

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Examples of one latent shape: latents [n, ...], a prompt for each, sizes [n, 6], masks [n, height, width]."""

    latents: torch.Tensor
    prompts: list[str]
    sizes: torch.Tensor
    masks: torch.Tensor


def draw_rows(examples: Sequence[Example], config: TrainingConfig, index: int) -> list[Rows]:
    """The batch of this index, counted over all steps: one `Rows` for each latent shape in it."""
    shapes = [tuple(example.latents.shape[1:]) for example in examples]
    order = epoch_order(shapes, config.train_batch_size, config.seed, index)
    generator = seeded_generator(config.seed, "variants", index)
    chosen = [(examples[i], int(torch.randint(len(examples[i].latents), (), generator=generator))) for i in order]
    by_shape: dict[Shape, list[tuple[Example, int]]] = {}
    for example, variant in chosen:
        by_shape.setdefault(tuple(example.latents.shape[1:]), []).append((example, variant))
    return [_rows(same) for same in by_shape.values()]


def _rows(chosen: Sequence[tuple[Example, int]]) -> Rows:
    latents = torch.stack([example.latents[variant] for example, variant in chosen])
    whole = torch.ones(latents.shape[2:], device=latents.device)
    masks = [whole if example.masks is None else example.masks[variant] for example, variant in chosen]
    return Rows(
        latents=latents,
        prompts=[example.prompt for example, _ in chosen],
        sizes=torch.stack([example.sizes[variant] for example, variant in chosen]),
        masks=torch.stack(masks),
    )


def epoch_order(shapes: Sequence[Shape], batch_size: int, seed: int, index: int) -> list[int]:
    """Which examples make up a batch.

    An epoch goes through the shapes one after the other, so that few batches hold more than one. Batches are always
    full: one that reaches the end of an epoch goes on with the next.

    Args:
        shapes: of the examples' latents.
    """
    count = len(shapes)
    positions = range(index * batch_size, (index + 1) * batch_size)
    orders = {epoch: _one_epoch(shapes, seed, epoch) for epoch in {position // count for position in positions}}
    return [orders[position // count][position % count] for position in positions]


def _one_epoch(shapes: Sequence[Shape], seed: int, epoch: int) -> list[int]:
    shuffled = torch.randperm(len(shapes), generator=seeded_generator(seed, "order", epoch)).tolist()
    turn = {shape: i for i, shape in enumerate(dict.fromkeys(shapes[i] for i in shuffled))}
    return sorted(shuffled, key=lambda i: turn[shapes[i]])  # a stable sort: shuffled within each shape
