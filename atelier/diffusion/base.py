"""Base models: what every family of them offers, and loading one from a diffusers folder.

A loaded base is frozen and shared; nothing here changes it. What is personal acts on it from outside, through hooks
that are bound for the length of a call: low-rank updates (`slots`) and learned words (`words`).
Images are uint8 tensors [N, height, width, 3] throughout.
"""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn
from transformers import CLIPTokenizer

from atelier.diffusion.conditioning import Conditioning
from atelier.diffusion.digest import model_digest
from atelier.diffusion.pipelines import FAMILY_OF_PIPELINE, Family
from atelier.errors import InvalidArgumentError

# Where each family is.
_FAMILIES: Mapping[Family, str] = {
    "stable-diffusion": "stable_diffusion.StableDiffusion",
    "stable-diffusion-xl": "stable_diffusion_xl.StableDiffusionXL",
    "stable-cascade": "stable_cascade.StableCascade",
}
# Rows that go through a text encoder at once: bounds memory, changes no result.
_CHUNK = 16
# The same for what works on pixels.
_CHUNK_PIXELS = 2**16


def pixel_chunk(width: int, height: int) -> int:
    """How many images of this size go through an autoencoder at once."""
    return max(1, _CHUNK_PIXELS // (width * height))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTower:
    """One text encoder of a base model, with its tokenizer."""

    component: str
    """Its name in the pipeline, such as `text_encoder_2`: the prefix of its keys in adapter files."""
    embeds_key: str
    """The key of its vectors in `learned_embeds.safetensors`: `clip_l` or `clip_g`."""
    tokenizer: CLIPTokenizer
    model: Any


class Words(Protocol):
    """Words that a base's tokenizers do not know: see `words.LearnedWords`."""

    def expand(self, prompt: str) -> str:
        """The prompt with the words' own tokens in their place."""
        ...

    def tokenizer(self, tower: TextTower) -> CLIPTokenizer:
        """The tower's tokenizer, with the tokens added."""
        ...

    def spliced(self) -> AbstractContextManager[None]:
        """Puts the words' vectors where their tokens are, for every forward of the towers inside."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Base(ABC):
    """A base model on one device: text in, latents to images and back, and one prediction of its denoiser."""

    family: ClassVar[str]
    denoiser_name: ClassVar[str] = "unet"
    """Prefix of the denoiser's keys in adapter files."""

    name: str
    digest: str
    path: Path
    denoiser: Any
    towers: tuple[TextTower, ...]
    scheduler_config: dict[str, Any]
    device: torch.device
    dtype: torch.dtype

    @classmethod
    @abstractmethod
    def load(cls, path: Path, *, device: torch.device, dtype: torch.dtype, name: str) -> Self:
        """Loads a folder whose pipeline is of this family."""

    @property
    @abstractmethod
    def size_factor(self) -> int:
        """Widths and heights in pixels are multiples of this."""

    @property
    @abstractmethod
    def default_size(self) -> int:
        """The side of the images that the model was trained on, in pixels."""

    @abstractmethod
    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of an image of so many pixels."""

    @abstractmethod
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Latents [N, channels, height, width] as the denoiser wants them; without a random draw, so cacheable."""

    @abstractmethod
    def decode_latents(self, latents: torch.Tensor, conditioning: Conditioning, seeds: Sequence[int]) -> torch.Tensor:
        """Images on the CPU. Families with a decoder that draws use the prompt's conditioning and the seeds."""

    @abstractmethod
    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The denoiser's output for rows of noisy latents at their timesteps [N]; gradients flow."""

    @abstractmethod
    def denoise(
        self,
        latents: torch.Tensor,
        conditioning: Conditioning,
        negative: Conditioning,
        *,
        steps: int,
        guidance_scale: float,
        scheduler: str,
        seeds: Sequence[int],
        before_step: Callable[[], None],
    ) -> torch.Tensor:
        """Latents of images out of noise, with classifier-free guidance where the scale is above 1."""

    @abstractmethod
    def _encode_tokens(self, ids: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor]) -> Conditioning:
        """Conditioning of token ids [N, window] by tower component."""

    def encode_prompts(self, prompts: Sequence[str], words: Words | None = None) -> Conditioning:
        """Conditioning of prompts, one row each. Text past the encoder's window has no effect. Gradients flow."""
        ids, masks = {}, {}
        expanded = [words.expand(prompt) for prompt in prompts] if words else list(prompts)
        for tower in self.towers:
            tokenizer = words.tokenizer(tower) if words else tower.tokenizer
            tokens = tokenizer(
                expanded,
                padding="max_length",
                max_length=tower.tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            ids[tower.component] = tokens.input_ids.to(self.device)
            masks[tower.component] = tokens.attention_mask.to(self.device)
        with words.spliced() if words else nullcontext():
            return Conditioning.cat(
                [self._encode_tokens(_rows(ids, i), _rows(masks, i)) for i in range(0, len(prompts), _CHUNK)]
            )

    def encode_distinct(self, prompts: Sequence[str], words: Words | None = None) -> Conditioning:
        """As `encode_prompts`, each distinct prompt once."""
        distinct = list(dict.fromkeys(prompts))
        return self.encode_prompts(distinct, words).rows([distinct.index(prompt) for prompt in prompts])

    def encode_negative(self, prompt: str, words: Words | None = None) -> Conditioning:
        """Conditioning, one row, of what guidance leads away from; empty means nothing in particular."""
        return self.encode_prompts([prompt], words)

    def part_of(self, component: str) -> str:
        """A component's name among the parts of the pipeline."""
        return component

    def load_pipeline(self, path: Path | None = None) -> Any:
        """A fresh pipeline of plain diffusers: of this base, or of a changed copy of its folder at `path`."""
        pipeline = DiffusionPipeline.from_pretrained(
            path or self.path, dtype=self.dtype, local_files_only=True, use_safetensors=True, **self._pipeline_options
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self.device)

    @property
    def _pipeline_options(self) -> dict[str, Any]:
        return {}

    def components(self) -> dict[str, nn.Module]:
        """The models that adapters may act on, by the prefix of their keys."""
        return {self.denoiser_name: self.denoiser, **{tower.component: tower.model for tower in self.towers}}


def _rows(tensors: Mapping[str, torch.Tensor], start: int) -> dict[str, torch.Tensor]:
    return {name: tensor[start : start + _CHUNK] for name, tensor in tensors.items()}


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_base(path: Path, *, device: torch.device, dtype: torch.dtype, name: str | None = None) -> Base:
    """Loads a diffusers folder; its name is the folder's unless given.

    Raises:
        InvalidArgumentError: no such folder, an unsupported family or scheduler, or weights that are not safetensors.
    """
    return family_of(path).load(path, device=device, dtype=dtype, name=name or path.name)


def family_of(path: Path) -> type[Base]:
    """The family of a diffusers folder, by its pipeline's class; nothing is loaded.

    Raises:
        InvalidArgumentError: no such folder, or a pipeline of no supported family.
    """
    index_file = path / "model_index.json"
    if not index_file.is_file():
        refuse(f"{path} is not a diffusers model folder: it has no model_index.json", "BASE_MODEL_NOT_FOUND")
    class_name = json.loads(index_file.read_text()).get("_class_name")
    if class_name not in FAMILY_OF_PIPELINE:
        supported = ", ".join(FAMILY_OF_PIPELINE)
        refuse(f"{path.name} is a {class_name}; supported are {supported}", "BASE_MODEL_NOT_SUPPORTED")
    module, _, name = _FAMILIES[FAMILY_OF_PIPELINE[class_name]].partition(".")
    family: type[Base] = getattr(importlib.import_module(f"atelier.diffusion.families.{module}"), name)
    return family


def check_parts(path: Path, parts: Mapping[str, str]) -> None:
    """Refuses a folder whose parts are of other classes than these, or without safetensors weights."""
    index = json.loads((path / "model_index.json").read_text())
    for part, wanted in parts.items():
        found = (index.get(part) or [None, None])[1]
        if found != wanted:
            refuse(f"{path.name}: its {part} is a {found}; supported is {wanted}", "BASE_MODEL_NOT_SUPPORTED")
        if not any((path / part).glob("*.safetensors")):
            refuse(f"{path.name}: its {part} has no safetensors weights", "BASE_MODEL_NOT_SAFETENSORS")


def load_part(model_class: Any, folder: Path, *, device: torch.device, dtype: torch.dtype) -> Any:
    """One frozen model of a pipeline, its convolutions in the memory layout that they are fastest in."""
    model = model_class.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=dtype)
    return model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def refuse(description: str, reason: str) -> NoReturn:
    """Refuses a base model."""
    raise InvalidArgumentError("base_model", description, reason=reason)


__all__ = ["Base", "TextTower", "Words", "load_base", "model_digest", "pixel_chunk"]
