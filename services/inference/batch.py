"""One denoising step of many requests: their rows side by side in one pass of the UNet.

Each row has its own timestep, text and adapters. What stays the same while the same tracks go on together, their
text and their adapters' factors, is gathered once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch

from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.diffusion.slots import Group, InferenceSlots
from services.inference.generation import Track


class Batch:
    """Tracks of equal latent size, each with the slots and weights that act on all of its rows."""

    def __init__(self, base: StableDiffusion, bank: InferenceSlots, members: Sequence[tuple[Track, Group]]) -> None:
        self.tracks = [track for track, _ in members]
        self._base = base
        self._bank = bank
        self._context = torch.cat([track.context for track in self.tracks])
        # The bank wants groups of equally many rows: the largest size that divides every track.
        rows_a_group = gcd(*(track.rows for track in self.tracks))
        groups = [group for track, group in members for _ in range(track.rows // rows_a_group)]
        self._binding = bank.gather(groups)

    @property
    def rows(self) -> int:
        """Rows of all tracks."""
        return self._context.shape[0]

    def step(self) -> None:
        """Takes every track one step further."""
        samples, timesteps = zip(*(track.inputs() for track in self.tracks), strict=True)
        sample = torch.cat(samples).to(self._base.dtype)
        with self._bank.bind(self._binding):
            prediction = self._base.unet(sample, torch.cat(timesteps), self._context).sample.float()
        for track, part in zip(self.tracks, prediction.split([track.rows for track in self.tracks]), strict=True):
            track.advance(part)
        if self._base.device.type == "cuda":
            torch.cuda.synchronize(self._base.device)  # progress, timings and cancellation speak of done work
