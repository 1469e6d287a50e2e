"""Every model family: it loads, is known by its contents, and draws what diffusers' own pipeline draws."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableCascadeCombinedPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig, inject_adapter_in_model

from atelier.diffusion.base import Base, load_base, model_digest
from atelier.diffusion.families.stable_cascade import StableCascade, decoder_seed
from atelier.diffusion.families.stable_diffusion_xl import StableDiffusionXL
from atelier.diffusion.lowrank import select_layers
from atelier.diffusion.sampler import SamplingConfig, initial_latents, sample
from atelier.diffusion.training_slots import TrainingSlots, TrainingSlotsConfig
from atelier.errors import InvalidArgumentError
from tests.harness.families import tiny_stable_cascade, tiny_stable_diffusion, tiny_stable_diffusion_xl

_CPU = torch.device("cpu")
_MAKERS: dict[str, Callable[..., Path]] = {
    "stable-diffusion": tiny_stable_diffusion,
    "stable-diffusion-xl": tiny_stable_diffusion_xl,
    "stable-cascade": tiny_stable_cascade,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model's folder, by family."""
    parent = tmp_path_factory.mktemp("models")
    return {family: make(parent / family) for family, make in _MAKERS.items()}


def load(path: Path, dtype: torch.dtype = torch.float32) -> Base:
    return load_base(path, device=_CPU, dtype=dtype)


def changed(path: Path, folder: Path, file: str, **changes: object) -> Path:
    """A copy of a model with a changed JSON file."""
    shutil.copytree(path, folder / "changed")
    target = folder / "changed" / file
    target.write_text(json.dumps(json.loads(target.read_text()) | changes))
    return folder / "changed"


def drawn(pipeline: Any, seed: int, **options: Any) -> torch.Tensor:
    """An image [1, height, width, 3] between 0 and 255 that a diffusers pipeline draws."""
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline("a cat face", generator=torch.Generator("cpu").manual_seed(seed), output_type="pt", **options)
    return output.images.permute(0, 2, 3, 1) * 255


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.float().std() > 5  # not a blank image, which would prove nothing
    assert (ours.float() - theirs).abs().max() <= 1


@pytest.mark.parametrize(
    ("family", "size", "latent_shape"),
    [
        ("stable-diffusion", 64, (4, 8, 8)),
        ("stable-diffusion-xl", 64, (4, 8, 8)),
        ("stable-cascade", 128, (16, 3, 3)),
    ],
)
def test_a_family_loads_and_encodes_and_decodes(
    folders: dict[str, Path], family: str, size: int, latent_shape: tuple[int, int, int]
) -> None:
    base = load(folders[family])
    assert (base.family, base.default_size) == (family, size)
    assert base.latent_shape(size, size) == latent_shape
    assert not any(
        p.requires_grad or p.dtype != torch.float32 for m in base.components().values() for p in m.parameters()
    )
    images = torch.randint(0, 256, (2, size, 2 * size, 3), generator=torch.manual_seed(0), dtype=torch.uint8)
    latents = base.encode_images(images)
    assert latents.shape == (2, *base.latent_shape(2 * size, size))
    assert latents.std() > 0.01
    decoded = base.decode_latents(latents, base.encode_prompts(["a fox", "a cat"]), [1, 2])
    assert (decoded.shape, decoded.dtype) == (images.shape, torch.uint8)


@pytest.mark.parametrize(("size", "side"), [(128, 3), (256, 6), (512, 12), (768, 18), (1024, 24), (1536, 36)])
def test_cascade_has_three_latents_for_every_128_pixels(folders: dict[str, Path], size: int, side: int) -> None:
    assert load(folders["stable-cascade"]).latent_shape(size, size) == (16, side, side)


@pytest.mark.parametrize(
    ("family", "file", "changes", "message"),
    [
        (
            "stable-diffusion",
            "model_index.json",
            {"_class_name": "FluxPipeline"},
            "FluxPipeline; supported are StableDiffusionPipeline, StableDiffusionXLPipeline, StableCascadeCombinedPipe",
        ),
        (
            "stable-diffusion-xl",
            "model_index.json",
            {"text_encoder_2": ["transformers", "T5EncoderModel"]},
            "its text_encoder_2 is a T5EncoderModel; supported is CLIPTextModelWithProjection",
        ),
        ("stable-diffusion-xl", "vae/config.json", {"latents_mean": [0, 0, 0, 0]}, "its vae shifts latents"),
        (
            "stable-cascade",
            "prior_scheduler/scheduler_config.json",
            {"_class_name": "DDIMScheduler"},
            "its prior_scheduler is a DDIMScheduler; supported is DDPMWuerstchenScheduler",
        ),
        ("stable-cascade", "effnet_encoder/config.json", {"head_channels": 64}, "effnet_encoder does not load: .*size"),
        ("stable-cascade", "effnet_encoder/config.json", {"stages": []}, "four of them must have the stride 2"),
    ],
)
def test_what_is_not_supported_is_refused(
    folders: dict[str, Path], family: str, file: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        load(changed(folders[family], tmp_path, file, **changes))


def test_cascade_takes_the_encoder_where_stability_ai_puts_it_and_misses_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(folders["stable-cascade"], folder)
    encoder = folder / "effnet_encoder" / "model.safetensors"
    digest = model_digest(folder)
    encoder.rename(folder / "effnet_encoder.safetensors")
    image = torch.full((1, 128, 128, 3), 90, dtype=torch.uint8)
    expected = load(folders["stable-cascade"]).encode_images(image)
    assert torch.equal(load(folder).encode_images(image), expected)
    (folder / "effnet_encoder.safetensors").unlink()
    assert model_digest(folder) != digest
    with pytest.raises(InvalidArgumentError, match=r"no effnet_encoder\.safetensors"):
        load(folder)


def test_a_digest_covers_every_part_of_every_family(folders: dict[str, Path], tmp_path: Path) -> None:
    assert len({model_digest(path) for path in folders.values()}) == 3
    for family, path in folders.items():
        copied = tmp_path / family
        shutil.copytree(path, copied)
        before = model_digest(copied)
        files = [file for file in copied.rglob("*") if file.suffix in (".json", ".safetensors")]
        assert len(files) >= 10
        for file in files:
            contents = file.read_bytes()
            file.write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
            assert model_digest(copied) != before, file
            file.write_bytes(contents)
        assert model_digest(copied) == before


def test_the_embedded_model_s_digest_stays_what_it_was(base: Base) -> None:
    """Adapters name it: another way of hashing would orphan them."""
    assert base.digest == "sha256:f7656a6f523fdbeae6e5e212f95810355ec1c798ae255f2dc82e443a5488b889"


@pytest.mark.parametrize(
    ("prediction_type", "zero_snr"), [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]
)
def test_stable_diffusion_draws_what_diffusers_draws(prediction_type: str, zero_snr: bool, tmp_path: Path) -> None:
    path = tiny_stable_diffusion(tmp_path / "tiny", prediction_type=prediction_type, zero_snr=zero_snr)
    theirs = drawn(StableDiffusionPipeline.from_pretrained(path), 5, num_inference_steps=4, guidance_scale=4.0)
    ours = sample(load(path), ["a red car", "a cat face"], [4, 5], SamplingConfig(size=64, steps=4))
    assert_same(ours[1:], theirs)


@pytest.mark.parametrize(
    ("negative", "guidance_scale", "forces_zeros"),
    [("", 4.0, True), ("", 4.0, False), ("blob", 4.0, True), ("", 1.0, True)],
)
def test_sdxl_draws_what_diffusers_draws(
    folders: dict[str, Path], negative: str, guidance_scale: float, forces_zeros: bool, tmp_path: Path
) -> None:
    path = folders["stable-diffusion-xl"]
    path = changed(path, tmp_path, "model_index.json", force_zeros_for_empty_prompt=forces_zeros)
    theirs = drawn(
        StableDiffusionXLPipeline.from_pretrained(path),
        5,
        negative_prompt=negative or None,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        height=64,
        width=64,
    )
    config = SamplingConfig(size=64, steps=4, negative_prompt=negative, guidance_scale=guidance_scale)
    assert_same(sample(load(path), ["a red car", "a cat face"], [4, 5], config)[1:], theirs)


@pytest.mark.parametrize(("negative", "guidance_scale"), [("", 4.0), ("blob", 2.0), ("", 1.0)])
def test_cascade_draws_what_diffusers_draws(folders: dict[str, Path], negative: str, guidance_scale: float) -> None:
    """With the decoder's noise drawn from its own seed, which the pipeline has no argument for."""
    path, steps = folders["stable-cascade"], 4

    def reseed(_: Any, step: int, __: Any, ___: dict[str, Any]) -> dict[str, Any]:
        if step == steps - 1:
            generator.manual_seed(decoder_seed(5))
        return {}

    pipeline = StableCascadeCombinedPipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(5)
    theirs = pipeline(
        "a cat face",
        negative_prompt=negative or None,
        height=128,
        width=128,
        prior_num_inference_steps=steps,
        prior_guidance_scale=guidance_scale,
        prior_callback_on_step_end=reseed,
        generator=generator,
        output_type="pt",
    ).images
    config = SamplingConfig(size=128, steps=steps, negative_prompt=negative, guidance_scale=guidance_scale)
    ours = sample(load(path), ["a red car", "a cat face"], [4, 5], config)
    assert_same(ours[1:], theirs.permute(0, 2, 3, 1) * 255)


def test_cascade_has_one_scheduler_and_refuses_others(folders: dict[str, Path]) -> None:
    base = load(folders["stable-cascade"])
    own, named = (
        sample(base, ["a fox"], [1], SamplingConfig(size=128, steps=2, scheduler=name))
        for name in ("", "ddpm-wuerstchen")
    )
    assert torch.equal(own, named)
    with pytest.raises(InvalidArgumentError, match="'euler' is none of ddpm-wuerstchen"):
        sample(base, ["a fox"], [1], SamplingConfig(size=128, steps=2, scheduler="euler"))


def test_an_sdxl_vae_that_overflows_stays_in_float32(folders: dict[str, Path], tmp_path: Path) -> None:
    images = torch.randint(0, 256, (1, 64, 64, 3), generator=torch.manual_seed(0), dtype=torch.uint8)
    safe = load(folders["stable-diffusion-xl"], torch.float16)
    assert isinstance(safe, StableDiffusionXL)
    assert (safe.vae.dtype, safe.unet.dtype) == (torch.float32, torch.float16)
    latents = safe.encode_images(images)
    assert latents.dtype == torch.float16
    assert safe.decode_latents(latents).shape == images.shape
    fixed = load(
        changed(folders["stable-diffusion-xl"], tmp_path, "vae/config.json", force_upcast=False), torch.float16
    )
    assert isinstance(fixed, StableDiffusionXL)
    assert fixed.vae.dtype == torch.float16


@pytest.mark.parametrize("layers", ["attention", "linear", "all"])
def test_adapters_act_on_cascade_s_prior_as_in_peft(folders: dict[str, Path], layers: Any) -> None:
    base = load(folders["stable-cascade"])
    assert isinstance(base, StableCascade)
    bank = TrainingSlots(base.denoiser, TrainingSlotsConfig(layers=layers, rank=2, scale=1.0), seeds=[0])
    for parameter in bank.parameters(0).values():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.manual_seed(parameter.numel()))
    conditioning = base.encode_prompts(["a fox"])
    call = (initial_latents(base, 0, 128, 128), torch.tensor([0.5]), conditioning)
    with torch.no_grad():
        bare = base.predict(*call)
        with bank.bind(bank.gather(training=False)):
            ours = base.predict(*call)
        bank.close()
        theirs = _peft_prior(base, bank, layers).predict(*call)
    assert (ours - bare).abs().max() > 0.1 * bare.abs().max()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def _peft_prior(base: StableCascade, bank: TrainingSlots, layers: Any) -> StableCascade:
    """The base with a copy of its prior that holds the bank's factors by PEFT's own layers."""
    prior = copy.deepcopy(base.denoiser)
    names = list(select_layers(prior, layers))
    assert len(names) >= 16
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=names), prior)
    for name, update in bank.factors(0).items():
        layer = prior.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(update.a)
        layer.lora_B["default"].weight.data.copy_(update.b)
    return replace(base, denoiser=prior.eval())
