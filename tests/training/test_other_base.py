"""A base model unlike the embedded one: other widths, noise prediction, an ordinary noise schedule, PNDM."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from atelier.diffusion.adapter_file import FILE_NAME
from atelier.diffusion.base import Base, load_base
from atelier.errors import InvalidArgumentError
from services.trainer.methods import load_train, resolve_config
from services.trainer.methods.base import Evaluated, Finished, StepDone, TrainingImage, TrainingJob
from tests.harness.families import tiny_stable_diffusion

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Stable Diffusion 1.x in miniature, with random weights."""
    folder = tiny_stable_diffusion(tmp_path_factory.mktemp("models") / "tiny")
    return load_base(folder, device=torch.device("cpu"), dtype=torch.float32)


def job(base: Base, **config: object) -> TrainingJob:
    images = [(path.name, path.read_bytes()) for path in sorted((_ROOT / "examples" / "fox").glob("*.png"))[:2]]
    small = {"max_train_steps": 3, "train_batch_size": 2, "rank": 2, "num_class_images": 2, "validation_steps": 0}
    return TrainingJob(
        method="dreambooth-lora",
        config=resolve_config("dreambooth-lora", small | config, base_path=base.path),
        images=tuple(TrainingImage(path=path, contents=contents) for path, contents in images),
        dataset_digest="sha256:" + "0" * 64,
        instance_prompt="a photo of a sks fox",
        class_prompt="a photo of a fox face",
    )


@pytest.mark.parametrize("layers", ["attention", "all"])
def test_it_trains_and_its_adapter_loads_in_plain_diffusers(other_base: Base, layers: str, tmp_path: Path) -> None:
    events = list(load_train("dreambooth-lora")(job(other_base, lora_layers=layers), other_base, None))
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3]
    assert not any(isinstance(event, Evaluated) for event in events)
    assert isinstance(events[-1], Finished)
    (tmp_path / FILE_NAME).write_bytes(events[-1].files[FILE_NAME])
    pipeline = StableDiffusionPipeline.from_pretrained(other_base.path, dtype=torch.float32)
    pipeline.load_lora_weights(tmp_path)
    assert len(pipeline.get_active_adapters()) == 1


def test_a_base_with_an_unknown_scheduler_is_refused(other_base: Base, tmp_path: Path) -> None:
    shutil.copytree(other_base.path, tmp_path / "odd")
    config = tmp_path / "odd" / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("PNDMScheduler", "HeunDiscreteScheduler"))
    with pytest.raises(InvalidArgumentError, match="HeunDiscreteScheduler"):
        load_base(tmp_path / "odd", device=torch.device("cpu"), dtype=torch.float32)
