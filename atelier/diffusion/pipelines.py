"""The families of base models, by the class of their pipeline in `model_index.json`. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Family = Literal["stable-diffusion", "stable-diffusion-xl", "stable-cascade"]
FAMILY_OF_PIPELINE: Mapping[str, Family] = {
    "StableDiffusionPipeline": "stable-diffusion",
    "StableDiffusionXLPipeline": "stable-diffusion-xl",
    "StableCascadeCombinedPipeline": "stable-cascade",
}
