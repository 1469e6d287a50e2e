"""How much of a device training steps use: images a second, memory, and the share of the device's peak.

The work of a step is what PyTorch's flop counter counts in it, two for each multiply-add, without gradient
checkpointing, so nothing is counted twice. The peak is the vendor's figure for dense bfloat16 where the GPU is known;
elsewhere it is the best that a large matrix product or convolution reaches here and now, in the type that is trained
in. A step is all of it: drawing noise, the forward, the backward, clipping, and AdamW. Latents and text embeddings are
cached, as always in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from atelier.diffusion.base import Base, default_dtype
from atelier.diffusion.families.stable_diffusion_xl import StableDiffusionXL
from bench.measure import peak_memory_bytes, reset_peak_memory, take_turns
from bench.shapes import EMBEDDED, build
from services.trainer.methods import dreambooth, dreambooth_lora, find_method
from services.trainer.methods.base import Concept, TrainingJob
from services.trainer.training.base_facts import BaseFacts
from services.trainer.training.config import complete_config
from services.trainer.training.examples import Example
from services.trainer.training.loop import TrainingLoop
from services.trainer.training.loss import Lessons
from services.trainer.training.noise import noise_process

# Dense bfloat16 with float32 accumulation, in FLOP/s, from NVIDIA's data sheets (half of "with sparsity"), by the name
# that the driver gives. The first that fits counts.
_PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
_METHODS = {"dreambooth-lora": dreambooth_lora.METHOD, "dreambooth": dreambooth.METHOD}
_PROMPT, _RANK = "a photo of a sks fox", 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What a device can do at most."""

    flops_per_second: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured of steps of one kind."""

    images_per_second: float
    flops_per_image: float
    peak_bytes: int
    """While this ran: allocated on a GPU, else of the whole process."""

    def share(self, peak: Peak) -> float:
        """Of the peak, 0 to 1."""
        return self.images_per_second * self.flops_per_image / peak.flops_per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Steps of one kind, and their figures: None where the GPU's memory did not suffice."""

    shape: str
    method: str
    size: int
    """Side of the images in pixels."""
    batch: int
    figures: Figures | None


def default_shapes(device: torch.device) -> list[str]:
    """On a GPU the published shapes; on a CPU, which takes minutes for one of their steps, tiny ones."""
    return ["embedded", "sd15", "sdxl"] if device.type == "cuda" else ["embedded", "tiny-sd15", "tiny-sdxl"]


def measure(shape: str, device: torch.device, *, steps: int) -> Iterator[Throughput]:
    """Low-rank steps at every batch size, then, for shapes of SD 1.5, steps of all weights."""
    base = build(shape, device)
    batches = (1, 4, 8, 16) if device.type == "cuda" else (1, 4, 8)
    methods = ["dreambooth-lora", "dreambooth"] if shape.endswith("sd15") else ["dreambooth-lora"]
    for method in methods:
        for batch in batches:
            figures = _figures(base, method, batch, steps=steps)
            yield Throughput(shape=shape, method=method, size=base.default_size, batch=batch, figures=figures)


def find_peak(device: torch.device) -> Peak:
    """The vendor's figure, else what is reached here."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, flops in _PEAKS.items():
            if known in name:
                return Peak(flops_per_second=flops, source=f"{known}, dense bfloat16, NVIDIA's data sheet")
    return Peak(flops_per_second=_reached(device), source="best of a matrix product and a convolution, measured here")


def _figures(base: Base, method: str, batch: int, *, steps: int) -> Figures | None:
    reset_peak_memory()
    try:
        return _run(_loop(base, method, batch), batch, steps)
    except torch.OutOfMemoryError:
        return None


def _run(loop: TrainingLoop, batch: int, steps: int) -> Figures:
    try:
        loop.take_step()  # encodes the prompt, once
        with FlopCounterMode(display=False) as counter:
            loop.take_step()
        (result,) = take_turns({"": loop.take_step}, turns=steps)
    finally:
        loop.student.close()
    return Figures(
        images_per_second=batch / result.median_seconds,
        flops_per_image=counter.get_total_flops() / batch,
        peak_bytes=peak_memory_bytes(),
    )


def _loop(base: Base, method: str, batch: int) -> TrainingLoop:
    found = find_method(method)
    overrides = {"train_batch_size": batch, "max_train_steps": 20_000}
    if method == "dreambooth-lora":
        overrides["rank"] = _RANK
    facts = _facts(base)
    config = complete_config(overrides, {**found.defaults(facts), "lora_layers": "attention"}, facts, used=found.fields)
    concept = Concept(images=(), instance_prompt=_PROMPT)
    job = TrainingJob(method=method, config=config, concepts=(concept,), dataset_digest="")
    lessons = Lessons(base, config, noise_process(base), _examples(base), None)
    return TrainingLoop(_METHODS[method].make_student(job, base), config, lessons)


def _facts(base: Base) -> BaseFacts:
    if base.path == EMBEDDED:
        return BaseFacts.read(EMBEDDED)
    return BaseFacts(
        family="stable-diffusion-xl" if isinstance(base, StableDiffusionXL) else "stable-diffusion",
        size_factor=base.size_factor,
        default_size=base.default_size,
        is_small=False,
    )


def _examples(base: Base) -> list[Example]:
    """Five images' worth of latents."""
    size = base.default_size
    generator = torch.Generator("cpu").manual_seed(0)
    sizes = torch.tensor([[size, size, 0, 0, size, size]], dtype=torch.float32, device=base.device)
    latents = torch.randn(5, 1, *base.latent_shape(size, size), generator=generator).to(base.device)
    return [Example(prompt=_PROMPT, latents=each, sizes=sizes) for each in latents]


def _reached(device: torch.device) -> float:
    """FLOP/s."""
    width, channels, side = (8192, 512, 128) if device.type == "cuda" else (1536, 256, 32)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=default_dtype(device))

    left, right = random(width, width), random(width, width)
    images, kernel = random(8, channels, side, side), random(channels, channels, 3, 3)
    return max(
        2 * width**3 / _fastest(lambda: left @ right),
        2 * images.numel() * channels * 3 * 3 / _fastest(lambda: torch.conv2d(images, kernel, padding=1)),
    )


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of ten turns."""
    (result,) = take_turns({"": work}, turns=10, warm_up=3)
    return min(result.seconds)
