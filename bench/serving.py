"""Generating with adapters: diffusers' pipeline with PEFT, and Atelier's engine.

Both have the same adapters (rank 16 on the attention projections, random weights) on the same base model, and draw
the same images: same prompt, seeds, steps, guidance and scheduler. Neither encodes the prompt: Atelier remembers
prompts, and the peer is given its embeddings. The peer switches adapters with `set_adapters`; requests for different
adapters come one after the other, since one batch of its UNet has one set of adapters. Atelier's engine is called in
this process, without gRPC and without PNG files.
"""

from __future__ import annotations

import queue
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from atelier.diffusion.adapter_file import FILE_NAME, read_adapter_file, write_adapter_file
from atelier.diffusion.base import default_dtype
from atelier.diffusion.lowrank import LowRank, select_layers
from atelier.diffusion.slots import PackedFactors
from bench.measure import Result, take_turns
from services.inference.engine import EngineConfig
from services.inference.generation import Event, Failed, Finished, Generation
from services.inference.models import Model, load_model
from services.inference.validation import GenerationSpec

RANK, STEPS, GUIDANCE, PROMPT, NUM_ADAPTERS = 16, 25, 4.0, "a photo of a sks fox on a red background", 4


class Contest:
    """Both contenders with the same adapters loaded."""

    def __init__(self, base_path: Path, device: torch.device) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.model = load_model(base_path.name, base_path, EngineConfig(num_slots=NUM_ADAPTERS + 2, max_rank=RANK))
        self.files = [self._write_adapter(seed) for seed in range(NUM_ADAPTERS + 1)]
        self.adapters = {str(index): self.pack(index) for index in range(NUM_ADAPTERS)}
        self.pipeline = StableDiffusionPipeline.from_pretrained(base_path, dtype=default_dtype(device)).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self._embeddings = self._peer_embeddings(device)
        for index in range(NUM_ADAPTERS):
            self.pipeline.load_lora_weights(self.files[index].parent, adapter_name=_peer_name(index))

    def latency(self, *, turns: int) -> list[Result]:
        """Seconds for one image with one adapter, loaded already."""
        return self._compare([0], turns)

    def crowd(self, *, turns: int) -> list[Result]:
        """Seconds for one image each with NUM_ADAPTERS adapters, loaded already, asked for at once."""
        return self._compare(range(NUM_ADAPTERS), turns)

    def loading(self, *, turns: int) -> list[Result]:
        """Seconds from an adapter's file on disk to a state in which the next image can use it."""

        def peer() -> None:
            self.pipeline.load_lora_weights(self.files[-1].parent, adapter_name="new")

        def atelier() -> None:
            self.model.engine.bank.load(NUM_ADAPTERS + 1, self.pack(NUM_ADAPTERS))

        return take_turns(
            {"diffusers + PEFT, load_lora_weights": peer, "Atelier, file to slot": atelier},
            turns=turns,
            clean_up=lambda: self.pipeline.delete_adapters("new"),
        )

    def pack(self, index: int) -> PackedFactors:
        """An adapter's file, read and checked."""
        bank = self.model.engine.bank
        return bank.pack(read_adapter_file(self.files[index], {"unet": bank.shapes}, max_rank=RANK)["unet"])

    def close(self) -> None:
        """Stops the engine."""
        self.model.engine.stop()
        self._folder.cleanup()

    def _compare(self, adapters: Sequence[int], turns: int) -> list[Result]:
        def peer() -> None:
            for index in adapters:
                self.pipeline.set_adapters([_peer_name(index)])
                self.pipeline(
                    **self._embeddings,
                    num_inference_steps=STEPS,
                    guidance_scale=GUIDANCE,
                    generator=torch.Generator("cpu").manual_seed(index),
                )

        def atelier() -> None:
            generate(
                self.model, [(spec(index, self.model), {str(index): self.adapters[str(index)]}) for index in adapters]
            )

        return take_turns({"diffusers + PEFT": peer, "Atelier": atelier}, turns=turns)

    @torch.no_grad()
    def _peer_embeddings(self, device: torch.device) -> dict[str, torch.Tensor]:
        prompt, negative = self.pipeline.encode_prompt(PROMPT, device, 1, do_classifier_free_guidance=True)
        return {"prompt_embeds": prompt, "negative_prompt_embeds": negative}

    def _write_adapter(self, seed: int) -> Path:
        generator = torch.Generator().manual_seed(seed)
        factors = {}
        for name, layer in select_layers(self.model.engine.base.unet, "attention").items():
            out, width = layer.weight.shape
            a = torch.randn(RANK, width, generator=generator) / width**0.5
            factors[name] = LowRank(a=a, b=torch.randn(out, RANK, generator=generator) * 0.02)
        path = Path(self._folder.name) / str(seed) / FILE_NAME
        path.parent.mkdir()
        path.write_bytes(write_adapter_file({"unet": factors}))
        return path


def _peer_name(index: int) -> str:
    """Not the bare number: diffusers takes that for a part of PEFT's keys."""
    return f"adapter-{index}"


def spec(seed: int, model: Model) -> GenerationSpec:
    """The image that both contenders draw."""
    size = model.engine.base.default_size
    return GenerationSpec(
        prompt=PROMPT,
        negative_prompt="",
        adapters=(),
        seed=seed,
        steps=STEPS,
        guidance_scale=GUIDANCE,
        scheduler="",
        num_images=1,
        width=size,
        height=size,
    )


def generate(model: Model, requests: Sequence[tuple[GenerationSpec, dict[str, PackedFactors]]]) -> None:
    """Submits requests at once and returns when all images are there."""
    events: queue.Queue[Event] = queue.Queue()
    for wanted, adapters in requests:
        model.engine.submit(
            Generation(
                tracks=model.prepare(wanted),
                adapters=adapters,
                weights=[(digest, 1.0) for digest in adapters],
                deadline=None,
                correlation_id="bench",
                notify=events.put,
            )
        )
    missing = len(requests)
    while missing:
        event = events.get()
        if isinstance(event, Failed):
            raise event.error
        missing -= isinstance(event, Finished)
