"""Both forms of adapter files in plain diffusers: all tensors arrive, and the images are ours."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from atelier.diffusion.adapter_file import FILE_NAME, write_adapter_file
from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.diffusion.kohya import KOHYA_FILE_NAME, write_kohya_file
from atelier.diffusion.lowrank import LowRank
from atelier.diffusion.sampler import SamplingConfig, sample
from atelier.diffusion.slots import InferenceSlots, InferenceSlotsConfig
from atelier.diffusion.training_slots import TrainingSlots, TrainingSlotsConfig
from tests.harness.adapters import random_updates

_PROMPT, _SEED, _STEPS = "a small rocket on a red background", 3, 5
# Of 255, in any channel of any pixel: float32 sums in another order.
_MAX_DIFFERENCE = 2
Components = Mapping[str, Mapping[str, LowRank]]


@pytest.fixture(scope="module")
def factors(base: StableDiffusion) -> dict[str, dict[str, LowRank]]:
    """Two components, ranks that differ from layer to layer, linear layers and convolutions."""
    unet = random_updates(base.unet, seed=1)
    first = next(iter(unet))
    return {
        "unet": {**unet, first: LowRank(a=unet[first].a[:2], b=unet[first].b[:, :2])},
        "text_encoder": random_updates(base.text_encoder, seed=2, rank=3, layers="linear"),
    }


def draw(base: StableDiffusion, factors: Components) -> torch.Tensor:
    with ExitStack() as stack:
        for component, updates in factors.items():
            bank = InferenceSlots(base.components()[component], InferenceSlotsConfig(num_slots=2, max_rank=4))
            stack.callback(bank.close)
            bank.load(1, updates)
            stack.enter_context(bank.bind(bank.gather([[(1, 1.0)]])))
        return sample(base, [_PROMPT], [_SEED], SamplingConfig(size=128, steps=_STEPS))[0]


def loaded(base: StableDiffusion, folder: Path, file_name: str, contents: bytes) -> Any:
    """A fresh pipeline with the file."""
    (folder / file_name).write_bytes(contents)
    pipeline = StableDiffusionPipeline.from_pretrained(base.path, dtype=torch.float32, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(folder, weight_name=file_name, use_safetensors=True)
    return pipeline


def count(model: torch.nn.Module) -> int:
    return sum("lora_" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("form", [FILE_NAME, KOHYA_FILE_NAME])
def test_two_components_draw_the_same_image(
    base: StableDiffusion, factors: dict[str, dict[str, LowRank]], tmp_path: Path, form: str
) -> None:
    is_kohya = form == KOHYA_FILE_NAME
    contents = write_kohya_file(factors, base.components()) if is_kohya else write_adapter_file(factors)
    pipeline = loaded(base, tmp_path, form, contents)
    assert count(pipeline.unet) == 2 * len(factors["unet"]) == 2 * 128
    assert count(pipeline.text_encoder) == 2 * len(factors["text_encoder"]) == 2 * 24
    drawn = pipeline(
        _PROMPT, num_inference_steps=_STEPS, guidance_scale=4.0, generator=torch.Generator().manual_seed(_SEED)
    )
    theirs = torch.from_numpy(np.asarray(drawn.images[0]).copy()).short()
    ours = draw(base, factors).short()
    assert (ours - theirs).abs().max() <= _MAX_DIFFERENCE
    for fewer in ({}, {"unet": factors["unet"]}, {"text_encoder": factors["text_encoder"]}):
        assert (draw(base, fewer).short() - ours).abs().max() > 10 * _MAX_DIFFERENCE


def test_dora_gives_the_same_outputs(base: StableDiffusion, tmp_path: Path) -> None:
    models = {"unet": base.unet, "text_encoder": base.text_encoder}
    config = TrainingSlotsConfig(layers="all", rank=4, scale=0.5, use_dora=True)
    banks = {component: TrainingSlots(model, config, seeds=[0]) for component, model in models.items()}
    for bank in banks.values():
        for index, parameter in enumerate(bank.parameters(0).values()):
            parameter.data += 0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    contents = write_adapter_file({component: bank.factors(0) for component, bank in banks.items()})
    pipeline = loaded(base, tmp_path, FILE_NAME, contents)
    latents, timesteps = torch.randn(2, 4, 16, 16), torch.tensor([900, 200])
    with torch.no_grad(), ExitStack() as stack:
        for component, bank in banks.items():
            assert count(getattr(pipeline, component)) == len(bank.parameters(0)) == 3 * len(bank.layers)
            stack.callback(bank.close)
            stack.enter_context(bank.bind(bank.gather()))
        text = base.encode_prompts([_PROMPT, "a fox"]).text
        ours = base.unet(latents, timesteps, text).sample
        tokens = pipeline.tokenizer([_PROMPT, "a fox"], padding="max_length", return_tensors="pt")
        their_text = pipeline.text_encoder(tokens.input_ids).last_hidden_state
        torch.testing.assert_close(text, their_text, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours, pipeline.unet(latents, timesteps, their_text).sample, rtol=1e-4, atol=1e-4)
    assert (base.unet(latents, timesteps, text).sample - ours).abs().max() > 0.01
