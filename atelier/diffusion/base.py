"""Base models: loading a diffusers folder, and its text encoder and VAE as functions.

Supported is the Stable Diffusion family: `StableDiffusionPipeline` folders with a `UNet2DConditionModel`, one
`CLIPTextModel` and an `AutoencoderKL`, weights in safetensors. A loaded base is frozen; nothing here changes it.
Images are uint8 tensors [N, height, width, 3] throughout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from atelier.diffusion.digest import model_digest
from atelier.diffusion.schedulers import scheduler_names
from atelier.errors import InvalidArgumentError

_FAMILY = "StableDiffusionPipeline"
_CLASSES = {
    "unet": "UNet2DConditionModel",
    "text_encoder": "CLIPTextModel",
    "vae": "AutoencoderKL",
}
# Rows that go through the VAE or the text encoder at once: bounds memory, changes no result.
_CHUNK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base model, ready for use on one device."""

    name: str
    digest: str
    path: Path
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    device: torch.device
    dtype: torch.dtype

    @property
    def size_factor(self) -> int:
        """Widths and heights are multiples of this; one latent covers so many pixels a side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def default_size(self) -> int:
        """The side of the images that the model was trained on, in pixels."""
        return self.unet.config["sample_size"] * self.size_factor


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_base(path: Path, *, device: torch.device, dtype: torch.dtype, name: str | None = None) -> Base:
    """Loads a diffusers folder; its name is the folder's unless given.

    Raises:
        InvalidArgumentError: no such folder, an unsupported family or scheduler, or weights that are not safetensors.
    """
    assert device.type != "cpu" or dtype == torch.float32, "on a CPU the numbers are float32"
    _check_folder(path)
    scheduler_config = json.loads((path / "scheduler" / "scheduler_config.json").read_text())
    scheduler_names(scheduler_config)  # raises when its own is not supported

    def load(model_class: Any, part: str, **options: Any) -> Any:
        model = model_class.from_pretrained(path / part, use_safetensors=True, local_files_only=True, **options)
        return model.to(device).eval().requires_grad_(False)

    return Base(
        name=name or path.name,
        digest=model_digest(path),
        path=path,
        unet=load(UNet2DConditionModel, "unet", dtype=dtype),
        vae=load(AutoencoderKL, "vae", dtype=dtype),
        text_encoder=load(CLIPTextModel, "text_encoder", dtype=dtype),
        tokenizer=CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True),
        scheduler_config=scheduler_config,
        device=device,
        dtype=dtype,
    )


def _check_folder(path: Path) -> None:
    index_file = path / "model_index.json"
    if not index_file.is_file():
        _refuse(f"{path} is not a diffusers model folder: it has no model_index.json", "BASE_MODEL_NOT_FOUND")
    index = json.loads(index_file.read_text())
    if index.get("_class_name") != _FAMILY:
        _refuse(f"{path.name} is a {index.get('_class_name')}; supported is {_FAMILY}", "BASE_MODEL_NOT_SUPPORTED")
    for part, wanted in _CLASSES.items():
        found = (index.get(part) or [None, None])[1]
        if found != wanted:
            _refuse(f"{path.name}: its {part} is a {found}; supported is {wanted}", "BASE_MODEL_NOT_SUPPORTED")
        if not any((path / part).glob("*.safetensors")):
            _refuse(f"{path.name}: its {part} has no safetensors weights", "BASE_MODEL_NOT_SAFETENSORS")


def _refuse(description: str, reason: str) -> NoReturn:
    raise InvalidArgumentError("base_model", description, reason=reason)


@torch.no_grad()
def encode_prompts(base: Base, prompts: Sequence[str]) -> torch.Tensor:
    """Text embeddings [N, 77, width] for cross-attention. Text past the encoder's window has no effect."""
    tokens = base.tokenizer(
        list(prompts),
        padding="max_length",
        max_length=base.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids = tokens.input_ids.to(base.device)
    return torch.cat([base.text_encoder(chunk).last_hidden_state for chunk in ids.split(_CHUNK)])


@torch.no_grad()
def encode_images(base: Base, images: torch.Tensor) -> torch.Tensor:
    """Latents [N, channels, height / factor, width / factor], scaled as the UNet wants them.

    They are the most likely ones of the VAE's distribution, not a draw from it, so they can be cached.
    """
    pixels = images.permute(0, 3, 1, 2).to(device=base.device, dtype=base.dtype) / 127.5 - 1
    latents = torch.cat([base.vae.encode(chunk).latent_dist.mode() for chunk in pixels.split(_CHUNK)])
    return latents * base.vae.config["scaling_factor"]


@torch.no_grad()
def decode_latents(base: Base, latents: torch.Tensor) -> torch.Tensor:
    """Images on the CPU, of latents as `encode_images` gives them."""
    latents = latents.to(base.dtype) / base.vae.config["scaling_factor"]
    pixels = torch.cat([base.vae.decode(chunk).sample for chunk in latents.split(_CHUNK)]).float()
    pixels = (pixels / 2 + 0.5).clamp(0, 1)
    return (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
