"""A DreamBooth-LoRA step: diffusers' training script's way, and Atelier's.

Same base, images, batch, rank, layers (attention projections), optimizer and clipping. The peer comes twice. First it
does in each step what diffusers' `train_dreambooth_lora.py` does by default: encode the pixels with the VAE and the
prompt with the text encoder, then the UNet with PEFT's layers. Then with latents and embeddings made once, before the
clock runs, as Atelier makes them. All draw their own noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from peft import LoraConfig

from atelier.diffusion.base import Base, default_dtype, load_base
from bench.measure import Result, take_turns
from services.trainer.methods import resolve_config
from services.trainer.methods.base import TrainingImage, TrainingJob
from services.trainer.training.data import instance_examples, load_images
from services.trainer.training.loop import TrainingLoop

RANK, BATCH, PROMPT = 16, 4, "a photo of a sks fox"
STEPS_A_TURN = 5
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def compare(base_path: Path, images_path: Path, *, turns: int, device: torch.device) -> list[Result]:
    """Seconds of STEPS_A_TURN training steps, the peer first; preparation is not in them."""
    contenders = {
        "diffusers + PEFT, as train_dreambooth_lora.py": peer_steps(base_path, images_path, device, cached=False),
        "diffusers + PEFT, cached latents and embeddings": peer_steps(base_path, images_path, device, cached=True),
        "Atelier": atelier_steps(base_path, images_path, device),
    }
    return take_turns(contenders, turns=turns)


def atelier_steps(base_path: Path, images_path: Path, device: torch.device) -> Callable[[], None]:
    """Atelier's training loop, a few steps at a call."""
    base = load_base(base_path, device=device, dtype=default_dtype(device))
    overrides = {"rank": RANK, "train_batch_size": BATCH, "lora_layers": "attention", "max_train_steps": 20_000}
    job = TrainingJob(
        method="dreambooth-lora",
        config=resolve_config("dreambooth-lora", overrides, base_path=base_path),
        images=_images(images_path),
        dataset_digest="",
        instance_prompt=PROMPT,
    )
    events = TrainingLoop(base, job.config, instance_examples(base, job, load_images(job)), None).run()

    def steps() -> None:
        for _ in range(STEPS_A_TURN):
            next(events)

    return steps


def peer_steps(base_path: Path, images_path: Path, device: torch.device, *, cached: bool) -> Callable[[], None]:
    """The peer's steps. Parameters and products are float32 on a CPU; autocast to bfloat16 on a GPU.

    Args:
        cached: encode images and prompt once, at the first step of all, and not in every step.
    """
    base = load_base(base_path, device=device, dtype=default_dtype(device))
    unet = _with_peft(base)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-2)
    scheduler = DDPMScheduler.from_config(base.scheduler_config)
    batches = (_cached_batches if cached else _encoded_batches)(base, _pixels(base, images_path))

    def step() -> None:
        latents, text = next(batches)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (BATCH,), device=device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            prediction = unet(noisy, timesteps, text).sample
        target = scheduler.get_velocity(latents, noise, timesteps)
        torch.nn.functional.mse_loss(prediction.float(), target.float()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def steps() -> None:
        for _ in range(STEPS_A_TURN):
            step()

    return steps


def _with_peft(base: Base) -> UNet2DConditionModel:
    base.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS))
    for parameter in base.unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return base.unet


def _encoded_batches(base: Base, pixels: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Latents and text [BATCH, ...], encoded for each batch anew."""
    while True:
        chosen = pixels[torch.randint(len(pixels), (BATCH,))]
        yield _latents(base, chosen), base.text_encoder(_tokens(base)).last_hidden_state


def _cached_batches(base: Base, pixels: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same out of what is encoded once, before the first batch."""
    latents, text = _latents(base, pixels), base.text_encoder(_tokens(base)).last_hidden_state
    while True:
        yield latents[torch.randint(len(latents), (BATCH,))], text


def _latents(base: Base, pixels: torch.Tensor) -> torch.Tensor:
    return base.vae.encode(pixels.to(base.dtype)).latent_dist.sample() * base.vae.config["scaling_factor"]


def _tokens(base: Base) -> torch.Tensor:
    length = base.tokenizer.model_max_length
    tokens = base.tokenizer([PROMPT] * BATCH, padding="max_length", max_length=length, return_tensors="pt")
    return tokens.input_ids.to(base.device)


def _images(folder: Path) -> tuple[TrainingImage, ...]:
    return tuple(TrainingImage(path=path.name, contents=path.read_bytes()) for path in sorted(folder.glob("*.png")))


def _pixels(base: Base, folder: Path) -> torch.Tensor:
    config = resolve_config("dreambooth-lora", {}, base_path=base.path)
    job = TrainingJob(method="", config=config, images=_images(folder), dataset_digest="", instance_prompt=PROMPT)
    return (load_images(job).permute(0, 3, 1, 2).float() / 127.5 - 1).to(base.device)
