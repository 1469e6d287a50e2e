"""Drawing with plain diffusers, whoever made the adapter: the same pipeline, seeds, steps and guidance for all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel

from atelier.errors import FailedPreconditionError
from bench.methods.plan import NEW_WORD
from bench.methods.subjects import DRAWS, GUIDANCE, SEED, STEPS

LORA_FILE = "pytorch_lora_weights.safetensors"
EMBEDDINGS_FILES = "*embeds.safetensors", "*_emb.safetensors"
"""As textual inversion scripts and the advanced script name them."""


def load_pipeline(base: Path, adapter: Path | None) -> Any:
    """The base model with what an adapter's folder holds: a full UNet, or low-rank matrices; and learned embeddings.

    Raises:
        FailedPreconditionError: the folder holds nothing of it, or numbers that are not finite.
    """
    pipeline: Any = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    if adapter is not None:
        _load(pipeline, adapter)
    return pipeline


def draw(pipeline: Any, prompts: Sequence[str]) -> list[list[Image.Image]]:
    """DRAWS images of each prompt."""
    rows = []
    for prompt in prompts:
        generators = [torch.Generator().manual_seed(SEED + index) for index in range(DRAWS)]
        result = pipeline(
            prompt,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            num_images_per_prompt=DRAWS,
            generator=generators,
        )
        rows.append(result.images)
    return rows


def save_grid(rows: Sequence[Sequence[Image.Image]], path: Path) -> None:
    """One lossless picture of all images: a row for each prompt."""
    side = rows[0][0].width
    grid = Image.new("RGB", (side * len(rows[0]), side * len(rows)))
    for top, row in enumerate(rows):
        for left, image in enumerate(row):
            grid.paste(image, (left * side, top * side))
    grid.save(path)


def load_grid(path: Path, num_rows: int) -> list[list[Image.Image]]:
    """What `save_grid` saved."""
    grid = Image.open(path).convert("RGB")
    side = grid.height // num_rows
    return [
        [grid.crop((left, top, left + side, top + side)) for left in range(0, grid.width, side)]
        for top in range(0, grid.height, side)
    ]


def _load(pipeline: Any, adapter: Path) -> None:
    lora, embeddings = adapter / LORA_FILE, [path for name in EMBEDDINGS_FILES for path in adapter.glob(name)]
    full = adapter / "unet"
    if not (full.is_dir() or lora.is_file() or embeddings):
        raise FailedPreconditionError("the adapter's folder holds no weights", reason="ADAPTER_EMPTY")
    for path in [*full.glob("*.safetensors"), *adapter.glob("*.safetensors")]:
        _check_finite(path)
    if embeddings:
        vectors = next(iter(safetensors.torch.load_file(embeddings[0]).values())).float()
        pipeline.load_textual_inversion({NEW_WORD: vectors}, token=NEW_WORD)
    if full.is_dir():
        pipeline.unet = UNet2DConditionModel.from_pretrained(full, dtype=torch.float32, local_files_only=True)
        if (adapter / "text_encoder").is_dir():
            pipeline.text_encoder = CLIPTextModel.from_pretrained(
                adapter / "text_encoder", dtype=torch.float32, local_files_only=True
            )
    elif lora.is_file():
        pipeline.load_lora_weights(adapter, weight_name=LORA_FILE)


def _check_finite(path: Path) -> None:
    for name, value in safetensors.torch.load_file(path).items():
        if not value.isfinite().all():
            raise FailedPreconditionError(f"{name} is not finite", reason="ADAPTER_NOT_FINITE")
