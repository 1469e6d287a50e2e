"""A DreamBooth-LoRA step: diffusers' training script's way, and Atelier's.

Same base, images, batch, rank, layers (attention projections), optimizer and clipping. The peer comes twice. First it
does in each step what diffusers' `train_dreambooth_lora.py` does by default: encode the pixels with the VAE and the
prompt with the text encoder, then the UNet with PEFT's layers. Then with latents and embeddings made once, before the
clock runs, as Atelier makes them. All draw their own noise.

`python -m bench.training NAME` runs one contender alone and prints the peak of its memory in bytes: the process's on a
CPU, the device's on a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click
import torch
from diffusers import DDPMScheduler
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from peft import LoraConfig

from atelier.diffusion.base import default_dtype, load_base
from atelier.diffusion.families.stable_diffusion import StableDiffusion
from bench.measure import Result, peak_memory_bytes, take_turns
from services.trainer.methods import resolve_config
from services.trainer.methods.base import Concept, TrainingImage, TrainingJob
from services.trainer.training.examples import instance_examples, load_squares
from services.trainer.training.loop import TrainingLoop
from services.trainer.training.loss import Lessons
from services.trainer.training.low_rank import low_rank_student
from services.trainer.training.noise import noise_process

REPOSITORY = Path(__file__).resolve().parent.parent
BASE, IMAGES = REPOSITORY / "models" / "emoji-sd", REPOSITORY / "examples" / "fox"
RANK, BATCH, PROMPT = 16, 4, "a photo of a sks fox"
STEPS_A_TURN = 5
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]

Steps = Callable[[], None]


def compare(*, turns: int, device: torch.device) -> list[Result]:
    """Seconds of STEPS_A_TURN training steps, the peer first; preparation is not in them."""
    return take_turns({name: make(device) for name, make in CONTENDERS.items()}, turns=turns)


def peak_memory_alone(name: str, *, threads: int) -> int:
    """The peak in bytes of a contender that has a process of its own, its models and preparation included."""
    command = [sys.executable, "-m", "bench.training", name, "--threads", str(threads)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY).stdout)


def atelier_steps(device: torch.device) -> Steps:
    """Atelier's training loop, a few steps at a call."""
    base, job = _load(device), _job()
    lessons = Lessons(base, job.config, noise_process(base), instance_examples(base, job), None)
    loop = TrainingLoop(low_rank_student(job, base), job.config, lessons)
    return _repeated(loop.take_step)


def peer_steps(device: torch.device, *, cached: bool) -> Steps:
    """The peer's steps. Parameters and products are float32 on a CPU; autocast to bfloat16 on a GPU.

    Args:
        cached: encode images and prompt once, at the first step of all, and not in every step.
    """
    base = _load(device)
    unet = _with_peft(base)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-2)
    scheduler = DDPMScheduler.from_config(base.scheduler_config)
    pixels = (load_squares(_job()).permute(0, 3, 1, 2).float() / 127.5 - 1).to(device)
    batches = (_cached_batches if cached else _encoded_batches)(base, pixels)

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

    return _repeated(step)


CONTENDERS: Mapping[str, Callable[[torch.device], Steps]] = {
    "diffusers + PEFT, as train_dreambooth_lora.py": lambda device: peer_steps(device, cached=False),
    "diffusers + PEFT, cached latents and embeddings": lambda device: peer_steps(device, cached=True),
    "Atelier": atelier_steps,
}


def _repeated(step: Callable[[], None]) -> Steps:
    def steps() -> None:
        for _ in range(STEPS_A_TURN):
            step()

    return steps


def _load(device: torch.device) -> StableDiffusion:
    base = load_base(BASE, device=device, dtype=default_dtype(device))
    assert isinstance(base, StableDiffusion)
    return base


def _job() -> TrainingJob:
    overrides = {"rank": RANK, "train_batch_size": BATCH, "lora_layers": "attention", "max_train_steps": 20_000}
    images = tuple(TrainingImage(path=path.name, contents=path.read_bytes()) for path in sorted(IMAGES.glob("*.png")))
    return TrainingJob(
        method="dreambooth-lora",
        config=resolve_config("dreambooth-lora", overrides, base_path=BASE),
        concepts=(Concept(images=images, instance_prompt=PROMPT),),
        dataset_digest="",
    )


def _with_peft(base: StableDiffusion) -> UNet2DConditionModel:
    base.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS))
    for parameter in base.unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    unet: UNet2DConditionModel = base.unet
    return unet


def _encoded_batches(base: StableDiffusion, pixels: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Latents and text [BATCH, ...], encoded for each batch anew."""
    while True:
        chosen = pixels[torch.randint(len(pixels), (BATCH,))]
        yield _latents(base, chosen), base.text_encoder(_tokens(base)).last_hidden_state


def _cached_batches(base: StableDiffusion, pixels: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same out of what is encoded once, before the first batch."""
    latents, text = _latents(base, pixels), base.text_encoder(_tokens(base)).last_hidden_state
    while True:
        yield latents[torch.randint(len(latents), (BATCH,))], text


def _latents(base: StableDiffusion, pixels: torch.Tensor) -> torch.Tensor:
    return base.vae.encode(pixels.to(base.dtype)).latent_dist.sample() * base.vae.config["scaling_factor"]


def _tokens(base: StableDiffusion) -> torch.Tensor:
    length = base.tokenizer.model_max_length
    tokens = base.tokenizer([PROMPT] * BATCH, padding="max_length", max_length=length, return_tensors="pt")
    return tokens.input_ids.to(base.device)


@click.command()
@click.argument("name", type=click.Choice(list(CONTENDERS)))
@click.option("--threads", default=2, show_default=True, help="Torch threads.")
def main(name: str, threads: int) -> None:
    """Runs one contender alone and prints the peak of its memory in bytes."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = CONTENDERS[name](device)
    for _ in range(2):
        steps()
    click.echo(peak_memory_bytes())


if __name__ == "__main__":
    main()
