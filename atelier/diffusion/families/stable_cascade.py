"""Stable Cascade (Pernias et al. 2023): `StableCascadeCombinedPipeline` folders with the encoder of stage C.

The denoiser is stage C, the prior: it draws latents of 42.67 pixels a side. Stage B and the VQGAN are the decoder. The
encoder, which training needs, is not in diffusers' folders and must be put there: see `efficientnet.load_encoder`.

Images equal diffusers' from the same seed, as long as the decoder's noise is drawn from a generator of its own, seeded
with `decoder_seed`: latents then decode to the same image whatever number of steps made them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Self

import diffusers
import torch
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from diffusers.schedulers.scheduling_ddpm_wuerstchen import DDPMWuerstchenScheduler
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from atelier.diffusion.base import Base, TextTower, check_parts, load_part, pixel_chunk, refuse
from atelier.diffusion.conditioning import Conditioning
from atelier.diffusion.digest import model_digest
from atelier.diffusion.efficientnet import EfficientNetEncoder, load_encoder
from atelier.errors import InvalidArgumentError

# diffusers 0.42 has no such name any more, but its own pipelines look there for the class when they load.
diffusers.PaellaVQModel = PaellaVQModel  # type: ignore[attr-defined]

_PARTS = {
    "prior_prior": "StableCascadeUNet",
    "prior_text_encoder": "CLIPTextModelWithProjection",
    "decoder": "StableCascadeUNet",
    "vqgan": "PaellaVQModel",
}
_SCHEDULER_NAME = "ddpm-wuerstchen"
# The defaults of StableCascadePriorPipeline, StableCascadeDecoderPipeline and StableCascadeCombinedPipeline.
_PIXELS_PER_LATENT = 42.67
_DECODER_LATENTS_PER_LATENT = 10.67
_DECODER_CHANNELS = 4
_DECODER_STEPS = 12
_ENCODER_PIXELS_PER_LATENT = 32
# Models of published width draw 1,024 pixels; the configuration does not say it.
_PUBLISHED_CHANNELS, _PUBLISHED_SIZE = 1024, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StableCascade(Base):
    """One CLIP-G text encoder; what adapters act on is stage C, and its text encoder."""

    family = "stable-cascade"
    denoiser_name = "prior"

    decoder: Any
    vqgan: Any
    encoder: EfficientNetEncoder
    decoder_scheduler_config: dict[str, Any]

    @classmethod
    def load(cls, path: Path, *, device: torch.device, dtype: torch.dtype, name: str) -> Self:
        """Loads a `StableCascadeCombinedPipeline` folder that has the encoder of stage C too.

        The decoder's own text encoder stays on the disk: the pipeline gives the decoder what the prior's made.
        """
        check_parts(path, _PARTS)
        tower = TextTower(
            component="text_encoder",
            embeds_key="clip_g",
            tokenizer=CLIPTokenizer.from_pretrained(path / "prior_tokenizer", local_files_only=True),
            model=load_part(CLIPTextModelWithProjection, path / "prior_text_encoder", device=device, dtype=dtype),
        )
        return cls(
            name=name,
            digest=model_digest(path),
            path=path,
            denoiser=load_part(StableCascadeUNet, path / "prior_prior", device=device, dtype=dtype),
            towers=(tower,),
            scheduler_config=_read_scheduler(path, "prior_scheduler"),
            device=device,
            dtype=dtype,
            decoder=load_part(StableCascadeUNet, path / "decoder", device=device, dtype=dtype),
            vqgan=load_part(PaellaVQModel, path / "vqgan", device=device, dtype=dtype),
            encoder=load_encoder(path, device),
            decoder_scheduler_config=_read_scheduler(path, "scheduler"),
        )

    @property
    def size_factor(self) -> int:
        """Three latents cover so many pixels a side."""
        return 128

    @property
    def default_size(self) -> int:
        """1,024 pixels for models of published width, else the least."""
        is_published = max(self.denoiser.config["block_out_channels"]) >= _PUBLISHED_CHANNELS
        return _PUBLISHED_SIZE if is_published else self.size_factor

    def part_of(self, component: str) -> str:
        """A component's name among the parts of the pipeline: it is the prior's."""
        return f"prior_{component}"

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Channels, height and width of stage C's latents of an image of so many pixels."""
        height, width = (ceil(side / _PIXELS_PER_LATENT) for side in (height, width))
        return self.denoiser.config["in_channels"], height, width

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Stage C's latents: the encoder's, of the image at 32 pixels a latent."""
        _, *size = self.latent_shape(images.shape[2], images.shape[1])
        size = [side * _ENCODER_PIXELS_PER_LATENT for side in size]
        latents = []
        for chunk in images.split(pixel_chunk(*images.shape[1:3])):
            pixels = chunk.permute(0, 3, 1, 2).to(self.device).float() / 255
            latents.append(self.encoder(F.interpolate(pixels, size, mode="bilinear", antialias=True)))
        return torch.cat(latents).to(self.dtype)

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor, conditioning: Conditioning, seeds: Sequence[int]) -> torch.Tensor:
        """Images on the CPU, by stage B without guidance, from noise of `decoder_seed`, and the VQGAN."""
        height, width = (round(side * _PIXELS_PER_LATENT) for side in latents.shape[2:])
        count = pixel_chunk(width, height)
        chunks = [slice(start, start + count) for start in range(0, len(latents), count)]
        pixels = torch.cat([self._decode(latents[c], conditioning.rows(c), seeds[c]) for c in chunks]).float()
        return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The noise in stage C's latents; timesteps [N] are between 0 and 1, noise."""
        assert conditioning.pooled is not None
        no_image = latents.new_zeros(len(latents), 1, self.denoiser.config["clip_image_in_channels"])
        output: torch.Tensor = self.denoiser(
            sample=latents,
            timestep_ratio=timesteps.to(latents.dtype),
            clip_text_pooled=conditioning.pooled.unsqueeze(1),
            clip_text=conditioning.text,
            clip_img=no_image,
        ).sample
        return output

    @torch.no_grad()
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
        """As diffusers' prior does it; noise is drawn at every step, for each row from its seed.

        Raises:
            InvalidArgumentError: another scheduler than the model's own.
        """
        if scheduler not in ("", _SCHEDULER_NAME):
            raise InvalidArgumentError(
                "scheduler", f"{scheduler[:64]!r} is none of {_SCHEDULER_NAME}", reason="SCHEDULER_UNKNOWN"
            )
        guided = guidance_scale > 1
        context = Conditioning.cat([conditioning, negative]) if guided else conditioning

        def predict(latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            before_step()
            if not guided:
                return self.predict(latents, timesteps, context)
            both = self.predict(latents.repeat(2, 1, 1, 1), timesteps.repeat(2), context)
            with_text, without = both.chunk(2)
            return torch.lerp(without, with_text, guidance_scale)

        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        _draw_noise(generators, latents.shape[1:], latents.dtype)  # what `latents` are: the stream goes on after them
        return _sample(predict, latents, generators, steps, self.scheduler_config)

    def _encode_tokens(self, ids: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor]) -> Conditioning:
        tower = self.towers[0]
        output = tower.model(ids[tower.component], attention_mask=masks[tower.component], output_hidden_states=True)
        return Conditioning(text=output.hidden_states[-1], pooled=output.text_embeds)

    def _decode(self, latents: torch.Tensor, conditioning: Conditioning, seeds: Sequence[int]) -> torch.Tensor:
        assert conditioning.pooled is not None
        pooled = conditioning.pooled.unsqueeze(1)
        height, width = (int(side * _DECODER_LATENTS_PER_LATENT) for side in latents.shape[2:])

        def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.decoder(
                sample=noisy, timestep_ratio=timesteps.to(noisy.dtype), clip_text_pooled=pooled, effnet=latents
            ).sample
            return output

        generators = [torch.Generator("cpu").manual_seed(decoder_seed(seed)) for seed in seeds]
        noise = _draw_noise(generators, (_DECODER_CHANNELS, height, width), self.dtype).to(self.device)
        drawn = _sample(predict, noise, generators, _DECODER_STEPS, self.decoder_scheduler_config)
        pixels: torch.Tensor = self.vqgan.decode(self.vqgan.config["scale_factor"] * drawn).sample
        return pixels


def decoder_seed(seed: int) -> int:
    """The seed of the decoder's noise of an image; not the image's own, lest the two stages' noise be alike."""
    return (seed + 0x9E3779B9) % 2**63


def _sample(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    latents: torch.Tensor,
    generators: list[torch.Generator],
    steps: int,
    scheduler_config: Mapping[str, Any],
) -> torch.Tensor:
    scheduler: Any = DDPMWuerstchenScheduler.from_config(dict(scheduler_config))
    scheduler.set_timesteps(steps, device=latents.device)
    for timestep in scheduler.timesteps[:-1]:
        timesteps = timestep.expand(len(latents))
        noise = predict(latents, timesteps)
        latents = scheduler.step(noise, timesteps, latents, generator=generators).prev_sample
    return latents


def _draw_noise(generators: Sequence[torch.Generator], shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.stack([torch.randn(tuple(shape), generator=generator, dtype=dtype) for generator in generators])


def _read_scheduler(path: Path, part: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / part / "scheduler_config.json").read_text())
    if config.get("_class_name") != DDPMWuerstchenScheduler.__name__:
        found = config.get("_class_name")
        refuse(
            f"{path.name}: its {part} is a {found}; supported is {DDPMWuerstchenScheduler.__name__}",
            "BASE_MODEL_NOT_SUPPORTED",
        )
    return config
