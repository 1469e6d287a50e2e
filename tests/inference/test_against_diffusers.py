"""What the service draws is what plain diffusers draws with the published files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from atelier.client import InferenceClient, RegistryClient
from atelier.diffusion.base import Base
from atelier.diffusion.schedulers import SCHEDULERS, make_scheduler, scheduler_names
from atelier.pb.inference.v1 import inference_pb2 as pb
from tests.harness.inference import EMOJI_SD, MAX_DIFFERENCE, pixels, publish, random_factors, request


@pytest.fixture(scope="module")
def loaded_pipeline() -> StableDiffusionPipeline:
    """diffusers, with nothing of Atelier in it."""
    pipeline = StableDiffusionPipeline.from_pretrained(EMOJI_SD, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(loaded_pipeline: StableDiffusionPipeline) -> Iterator[StableDiffusionPipeline]:
    """diffusers without adapters and with the base model's own scheduler."""
    scheduler = loaded_pipeline.scheduler
    yield loaded_pipeline
    loaded_pipeline.scheduler = scheduler
    loaded_pipeline.unload_lora_weights()


def draw(pipeline: StableDiffusionPipeline, wanted: pb.GenerateRequest) -> list[np.ndarray]:
    count = wanted.num_images or 1
    images: Any = pipeline(
        wanted.prompt,
        negative_prompt=wanted.negative_prompt,
        num_inference_steps=wanted.num_inference_steps,
        guidance_scale=wanted.guidance_scale if wanted.HasField("guidance_scale") else 4.0,
        num_images_per_prompt=count,
        generator=[torch.Generator("cpu").manual_seed(wanted.seed + index) for index in range(count)],
    ).images
    return [np.asarray(image).astype(np.int16) for image in images]


def assert_same(images: list[pb.Image], expected: list[np.ndarray]) -> None:
    assert len(images) == len(expected)
    for image, other in zip(images, expected, strict=True):
        assert np.abs(pixels(image.png) - other).max() <= MAX_DIFFERENCE


def load(pipeline: StableDiffusionPipeline, registry: RegistryClient, folder: Path, adapter: str) -> None:
    registry.pull(registry.resolve(adapter), folder / adapter)
    pipeline.load_lora_weights(folder / adapter, adapter_name=adapter)


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_bare_base_with_every_scheduler(
    scheduler: str, base: Base, inference: InferenceClient, pipeline: StableDiffusionPipeline
) -> None:
    if scheduler not in scheduler_names(base.scheduler_config):
        assert scheduler not in inference.models()[0].schedulers
        return
    wanted = request(scheduler=scheduler, negative_prompt="stripes", guidance_scale=3.0, num_images=2)
    pipeline.scheduler = make_scheduler(scheduler, base.scheduler_config)
    assert_same(inference.generate(wanted).images, draw(pipeline, wanted))


def test_adapter_on_attention_and_convolutions(
    base: Base, registry: RegistryClient, inference: InferenceClient, pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    factors = random_factors(base, seed=1)
    assert {update.a.ndim for update in factors.values()} == {2, 4}
    publish(registry, base, "fox", factors)
    wanted = request("fox", negative_prompt="a blue background")
    bare = draw(pipeline, wanted)
    load(pipeline, registry, tmp_path, "fox")
    expected = draw(pipeline, wanted)
    assert np.abs(expected[0] - bare[0]).max() > 50  # the adapter is seen
    assert_same(inference.generate(wanted).images, expected)


def test_adapter_with_half_its_weight_and_without_guidance(
    base: Base, registry: RegistryClient, inference: InferenceClient, pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    publish(registry, base, "fox", random_factors(base, seed=1))
    load(pipeline, registry, tmp_path, "fox")
    pipeline.set_adapters(["fox"], [0.5])
    for guidance_scale in (1.0, 6.0):
        wanted = request(("fox", 0.5), guidance_scale=guidance_scale)
        assert_same(inference.generate(wanted).images, draw(pipeline, wanted))


def test_two_adapters_of_other_ranks_and_layers_composed(
    base: Base, registry: RegistryClient, inference: InferenceClient, pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    publish(registry, base, "fox", random_factors(base, seed=1, layers="attn"))
    publish(registry, base, "style", random_factors(base, seed=2, rank=7))
    for adapter in ("fox", "style"):
        load(pipeline, registry, tmp_path, adapter)
    pipeline.set_adapters(["fox", "style"], [0.75, -0.5])
    wanted = request(("fox", 0.75), ("style", -0.5), num_images=2)
    assert_same(inference.generate(wanted).images, draw(pipeline, wanted))
