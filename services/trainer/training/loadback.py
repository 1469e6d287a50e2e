"""The load-back gate: an adapter's file must do in plain diffusers what its factors do in a slot.

Guards against adapters whose keys are ignored on loading, or that have no effect, before anything is published.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from atelier.diffusion.adapter_file import FILE_NAME
from atelier.diffusion.base import Base
from atelier.diffusion.lowrank import Factors
from atelier.diffusion.slots import InferenceSlots, InferenceSlotsConfig
from atelier.errors import InternalError

# Largest difference, relative to the largest output. Measured on a CPU: below 1e-5.
_TOLERANCE = 1e-3


@torch.no_grad()
def check_load_back(base: Base, factors: Factors, contents: bytes, text: torch.Tensor) -> float:
    """Loads the file into a fresh UNet, always in float32, and compares with what a slot does.

    Args:
        factors: what was trained.
        contents: of the adapter file.
        text: embeddings [N, 77, width] to compare on.

    Returns:
        The largest difference to the slot bank's output, relative to the largest output.

    Raises:
        InternalError: a tensor was not loaded, the outputs differ, or the adapter does nothing.
    """
    fresh = UNet2DConditionModel.from_pretrained(base.path / "unet", dtype=torch.float32, local_files_only=True)
    fresh.to(base.device)
    inputs = _inputs(base, text)
    plain = fresh(*inputs).sample
    wanted = _output_with_slots(fresh, factors, inputs)
    _load_as_diffusers_does(fresh, contents)
    loaded = sum("lora_" in name for name, _ in fresh.named_parameters())
    if loaded != 2 * len(factors):
        _fail(f"diffusers loaded {loaded} of {2 * len(factors)} tensors")
    scale = wanted.abs().max()
    difference = ((fresh(*inputs).sample - wanted).abs().max() / scale).item()
    effect = ((wanted - plain).abs().max() / scale).item()
    if not difference <= _TOLERANCE:
        _fail(f"the file's output differs from the trained one by {difference:.2e}")
    if not effect > difference:
        _fail(f"the adapter changes the output by no more than rounding does: {effect:.2e}")
    return difference


def _output_with_slots(
    unet: UNet2DConditionModel, factors: Factors, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    rank = max(update.rank for update in factors.values())
    slots = InferenceSlots(unet, InferenceSlotsConfig(num_slots=2, max_rank=rank))
    slots.load(1, factors)
    with slots.bind(slots.gather([[(1, 1.0)]])):
        output: torch.Tensor = unet(*inputs).sample
    slots.close()
    return output


def _load_as_diffusers_does(unet: UNet2DConditionModel, contents: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / FILE_NAME).write_bytes(contents)
        state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
            folder, weight_name=FILE_NAME, return_lora_metadata=True
        )
    StableDiffusionPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=unet, metadata=metadata)


def _inputs(base: Base, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    size, channels = base.unet.config["sample_size"], base.unet.config["in_channels"]
    noise = torch.randn(len(text), channels, size, size, generator=torch.Generator("cpu").manual_seed(0))
    timesteps = torch.linspace(1, 999, len(text)).long()
    return noise.to(base.device), timesteps.to(base.device), text.float()


def _fail(description: str) -> None:
    raise InternalError(f"load-back check: {description}", reason="LOAD_BACK_FAILED")
