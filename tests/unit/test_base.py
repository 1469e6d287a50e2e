"""Loading base models, and their text encoder and VAE."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atelier.diffusion.base import Base, load_base, model_digest
from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.diffusion.sampler import SamplingConfig, sample
from atelier.diffusion.schedulers import make_scheduler, scheduler_names
from atelier.errors import InvalidArgumentError

_ROOT = Path(__file__).parents[2]


def copy_with(base: Base, folder: Path, file: str, **changes: object) -> Path:
    """A copy of the base model's folder with a changed JSON file, or without the file where nothing is changed."""
    copy = folder / "copy"
    shutil.copytree(base.path, copy)
    if changes:
        (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | changes))
    else:
        (copy / file).unlink()
    return copy


def test_everything_is_frozen_and_float32(base: StableDiffusion) -> None:
    for model in (base.unet, base.vae, base.text_encoder):
        assert not model.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.parameters())
    assert (base.size_factor, base.default_size) == (8, 128)


def test_a_digest_depends_on_contents_and_not_on_the_folder_s_name(base: Base, tmp_path: Path) -> None:
    copy = copy_with(base, tmp_path, "scheduler/scheduler_config.json", beta_end=0.013)
    changed = model_digest(copy)
    assert changed != base.digest
    shutil.copy(base.path / "scheduler/scheduler_config.json", copy / "scheduler/scheduler_config.json")
    (copy / "README.md").write_text("A model card is not the model.")
    assert model_digest(copy) == base.digest


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {}, "no model_index.json"),
        (
            "model_index.json",
            {"_class_name": "FluxPipeline"},
            "is a FluxPipeline; supported are StableDiffusionPipeline, StableDiffusionXLPipeline",
        ),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "its text_encoder is a T5Encoder"),
        ("vae/diffusion_pytorch_model.safetensors", {}, "its vae has no safetensors weights"),
    ],
)
def test_unsupported_folders_are_refused(
    base: Base, tmp_path: Path, file: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        load_base(copy_with(base, tmp_path, file, **changes), device=base.device, dtype=base.dtype)


def test_prompts_are_encoded_row_by_row_and_cut_to_the_window(base: Base) -> None:
    both = base.encode_prompts(["a fox", "a word " * 500]).text
    assert both.shape == (2, 77, 256)
    assert torch.isfinite(both).all()
    torch.testing.assert_close(base.encode_prompts(["a fox"]).text, both[:1], rtol=0, atol=1e-5)


def test_images_survive_the_autoencoder(base: StableDiffusion) -> None:
    image = torch.from_numpy(np.array(Image.open(_ROOT / "examples" / "fox" / "02.png").convert("RGB"))).unsqueeze(0)
    latents = base.encode_images(image)
    assert latents.shape == (1, 4, 16, 16)
    assert (base.decode_latents(latents).float() - image.float()).abs().mean() < 8


def test_samples_equal_plain_diffusers(base: Base) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(base.path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(
        "a cat face",
        negative_prompt="blob",
        num_inference_steps=4,
        guidance_scale=4.0,
        generator=torch.Generator("cpu").manual_seed(5),
        output_type="pt",
    ).images[0]
    config = SamplingConfig(size=128, steps=4, guidance_scale=4.0, negative_prompt="blob")
    ours = sample(base, ["a red car", "a cat face"], [4, 5], config)[1]
    assert (ours.float() - wanted.permute(1, 2, 0) * 255).abs().max() <= 2


def test_every_named_scheduler_agrees_with_the_base_s_own(base: Base) -> None:
    names = scheduler_names(base.scheduler_config)
    assert names[0] == "ddim"
    drawn = {
        name: sample(
            base, ["a cat face on a green background"], [3], SamplingConfig(size=128, steps=12, scheduler=name)
        )
        for name in names
    }
    assert all((image.float() - drawn["ddim"].float()).abs().mean() < 12 for image in drawn.values())


def test_schedulers_are_never_shared_and_unknown_ones_are_refused(base: Base) -> None:
    config = base.scheduler_config
    assert make_scheduler("euler", config) is not make_scheduler("euler", config)
    assert type(make_scheduler("", config)).__name__ == "DDIMScheduler"
    for name in ("pndm", "nonsense"):
        with pytest.raises(InvalidArgumentError, match="none of ddim, dpmpp-2m, euler, unipc"):
            make_scheduler(name, config)
