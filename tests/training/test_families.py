"""Every method on every family of base models in miniature: trains, resumes, and loads as its card says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atelier.diffusion.base import Base, load_base
from atelier.diffusion.lowrank import weight_shapes
from services.trainer.methods.base import CheckpointReady, Preparing, StepDone
from tests.harness.families import tiny_stable_cascade, tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.harness.training import ALL_METHODS, checkpoints, files_of, make_job, parameters_in, run_job, traces

_FAMILIES: Mapping[str, Callable[[Path], Path]] = {
    "sd": tiny_stable_diffusion,
    "sd, zero snr": partial(tiny_stable_diffusion, prediction_type="v_prediction", zero_snr=True),
    "sdxl": tiny_stable_diffusion_xl,
    "cascade": tiny_stable_cascade,
}
# The text encoders learn too where the method can do that.
_SETTINGS: Mapping[str, dict[str, Any]] = {
    "dreambooth": {"train_text_encoder": True, "ema_decay": 0.5},
    "dreambooth-lora": {"train_text_encoder": True, "use_dora": True},
    "lora": {"gradient_checkpointing": True},
    "pivotal": {"max_train_steps": 4},
    "textual-inversion": {"initializer_word": "fox"},
}


@pytest.fixture(scope="module", params=_FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A base model of each family, with random weights."""
    torch.set_num_threads(1)
    folder = _FAMILIES[request.param](tmp_path_factory.mktemp("models") / "tiny")
    return load_base(folder, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("method", ALL_METHODS)
def test_every_method_trains_every_family(tiny: Base, method: str, tmp_path: Path) -> None:
    settings = {"max_train_steps": 2, "validation_steps": 0, "lr_warmup_steps": 0} | _SETTINGS[method]
    job = make_job(method, tiny, **settings)
    events = run_job(job, tiny)
    steps = job.config.max_train_steps
    assert [event.step for event in events if isinstance(event, StepDone)] == list(range(1, steps + 1))
    assert not traces(tiny)
    saved = {event.step: event.contents for event in events if isinstance(event, CheckpointReady)}
    resumed = checkpoints(job, tiny, resume=saved[steps // 2], last=steps)
    assert resumed[steps] == saved[steps]
    for path, contents in files_of(events).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(contents)
    image = draw_as_the_card_says(tmp_path, tiny)
    assert image.size == (job.config.resolution, job.config.resolution)
    assert np.asarray(image).std() > 0


def draw_as_the_card_says(folder: Path, base: Base) -> Image.Image:
    """Runs the code of a model card with the paths put in, and fewer steps than the pipelines' own."""
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    code = code.replace("PATH/TO/THIS/FOLDER", str(folder)).replace(f"PATH/TO/{base.name}", str(base.path))
    code = code.replace("guidance_scale=4.0", "guidance_scale=4.0, num_inference_steps=3")
    names: dict[str, Any] = {}
    exec(code, names)
    image: Image.Image = names["image"]
    return image


def test_class_images_of_a_family_are_drawn_with_it(tiny: Base) -> None:
    job = make_job("dreambooth-lora", tiny, max_train_steps=1, validation_steps=0, seed=5, num_class_images=3)
    events = run_job(job, tiny)
    drawn = [event.what for event in events if isinstance(event, Preparing) and "class images" in event.what]
    assert drawn == ["class images: 3 of 3"]


def test_updates_reach_the_layers_that_a_family_has(tiny: Base) -> None:
    """`all` is more than `linear`, which is more than `attention`."""
    counts = [len(weight_shapes(tiny.denoiser, selection)) for selection in ("attention", "linear", "all")]
    assert 0 < counts[0] < counts[1] <= counts[2]


@pytest.mark.parametrize("method", ALL_METHODS)
def test_every_method_trains_on_a_base_in_half_precision(method: str, tmp_path: Path) -> None:
    """What is trained is float32 all the same."""
    folder = tiny_stable_diffusion(tmp_path / "tiny")
    half = load_base(folder, device=torch.device("cpu"), dtype=torch.bfloat16)
    events = run_job(make_job(method, half, max_train_steps=2, validation_steps=0), half)
    (*_, last) = (event.contents for event in events if isinstance(event, CheckpointReady))
    assert {tensor.dtype for tensor in parameters_in(last).values()} == {torch.float32}
    assert not traces(half)
