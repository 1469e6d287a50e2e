"""Every method on every family of base models in miniature: trains, resumes, and loads as its card says."""

from __future__ import annotations

import json
import shutil
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
from services.trainer.training.artifact import artifact_files, write_artifact
from tests.harness.families import tiny_stable_cascade, tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.harness.training import (
    ALL_METHODS,
    checkpoints,
    files_of,
    make_job,
    parameters_in,
    run_job,
    traces,
    training,
)

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
    write(files_of(events), tmp_path)
    image = draw_as_the_card_says(tmp_path, tiny)
    assert image.size == (job.config.resolution, job.config.resolution)
    assert np.asarray(image).std() > 0


def write(files: Mapping[str, bytes], folder: Path) -> None:
    for path, contents in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(contents)


def test_a_whole_model_is_a_base_again_and_tells_of_no_path(tiny: Base, tmp_path: Path) -> None:
    """Also where the base's folder has more than configurations, tokenizers and safetensors weights."""
    folder = shutil.copytree(tiny.path, tmp_path / "secret" / "tiny")
    parts = [path for path in folder.iterdir() if path.is_dir()]
    for part in parts:
        (part / "pytorch_model.bin").write_bytes(b"a pickle")
    for config in folder.glob("*tokenizer*/tokenizer_config.json"):
        config.write_text(json.dumps({**json.loads(config.read_text()), "tokenizer_file": str(config)}))
    own = load_base(folder, device=torch.device("cpu"), dtype=torch.float32)
    settings = {"max_train_steps": 1, "validation_steps": 0, "lr_warmup_steps": 0, "num_class_images": 1}
    job = make_job("dreambooth", own, train_text_encoder=True, learning_rate=1e-4, **settings)
    with training(job, own) as trained:
        trained.take_steps(1)
        (tmp_path / "published").mkdir()
        write_artifact(trained.loop.student, tmp_path / "published")
        learnt = {name: model.state_dict() for name, model in trained.loop.student.models().items()}
    published = artifact_files(tmp_path / "published")
    assert {path.suffix for path in published.values()} <= {".json", ".txt", ".safetensors"}
    assert {path.partition("/")[0] for path in published} >= {part.name for part in parts}
    for path in (path for path in published if path.endswith(".json")):
        assert "secret" not in published[path].read_text()
        assert json.loads(published[path].read_text()).get("_name_or_path") == json.loads(
            (folder / path).read_text()
        ).get("_name_or_path")
    again = load_base(tmp_path / "published", device=torch.device("cpu"), dtype=torch.float32)
    assert learnt.keys() == {again.denoiser_name, *(tower.component for tower in again.towers)}
    for name, weights in learnt.items():
        loaded = again.components()[name].state_dict()
        assert all(torch.equal(loaded[key], weights[key]) for key in weights)
    pixels = torch.zeros(1, again.default_size, again.default_size, 3, dtype=torch.uint8)
    assert torch.equal(again.encode_images(pixels), tiny.encode_images(pixels))


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
