"""What defaults and limits depend on, read from a base model's configuration files. Needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.diffusion.pipelines import FAMILY_OF_PIPELINE, Family
from atelier.errors import FailedPreconditionError

_SMALL_CHANNELS = 256
# A latent of stage C covers 42.67 pixels: 3 of them cover 128.
_CASCADE_SIZE_FACTOR = 128
_CASCADE_CHANNELS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFacts:
    """A base model's family and sizes.

    Sizes are in pixels: images have a multiple of `size_factor` a side, by default `default_size`. Small means a
    denoiser of at most 256 channels, as in `emoji-sd`.
    """

    family: Family
    size_factor: int
    default_size: int
    is_small: bool

    @classmethod
    def read(cls, path: Path) -> BaseFacts:
        """Of a diffusers folder.

        Raises:
            FailedPreconditionError: a pipeline of no supported family.
        """
        pipeline = _read(path / "model_index.json")["_class_name"]
        if pipeline not in FAMILY_OF_PIPELINE:
            raise FailedPreconditionError(
                f"base_model: {str(pipeline)[:64]!r} is none of {', '.join(FAMILY_OF_PIPELINE)}",
                reason="BASE_MODEL_NOT_SUPPORTED",
            )
        family = FAMILY_OF_PIPELINE[pipeline]
        if family == "stable-cascade":
            return cls._of_cascade(_read(path / "prior_prior" / "config.json"))
        return cls._of_unet(family, _read(path / "unet" / "config.json"), _read(path / "vae" / "config.json"))

    @classmethod
    def _of_unet(cls, family: Family, unet: dict[str, Any], vae: dict[str, Any]) -> BaseFacts:
        size_factor = 2 ** (len(vae["block_out_channels"]) - 1)
        return cls(
            family=family,
            size_factor=size_factor,
            default_size=unet["sample_size"] * size_factor,
            is_small=max(unet["block_out_channels"]) <= _SMALL_CHANNELS,
        )

    @classmethod
    def _of_cascade(cls, prior: dict[str, Any]) -> BaseFacts:
        """The prior's configuration has no image size: 1,024 pixels for models of published width, else the least."""
        channels = max(prior["block_out_channels"])
        return cls(
            family="stable-cascade",
            size_factor=_CASCADE_SIZE_FACTOR,
            default_size=1024 if channels >= _CASCADE_CHANNELS else _CASCADE_SIZE_FACTOR,
            is_small=channels <= _SMALL_CHANNELS,
        )


def _read(path: Path) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads(path.read_text())
    return contents
