"""The load-back gate lets only the trained adapter through."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from atelier.diffusion import words
from atelier.diffusion.adapter_file import FILE_NAME, write_adapter_file
from atelier.diffusion.base import Base
from atelier.diffusion.lowrank import LowRank
from atelier.errors import AtelierError, InternalError
from services.trainer.training.artifact import write_artifact
from services.trainer.training.config import pivot_step
from services.trainer.training.evaluation import Evaluator, Scorers
from services.trainer.training.loadback import check_load_back
from services.trainer.training.student import Student
from services.trainer.training.validation import Validations
from tests.harness.training import ALL_METHODS, make_job, training

PROMPT = "a photo of a sks fox"


def check(student: Student, folder: Path, prompt: str = PROMPT) -> dict[str, float]:
    return check_load_back(student, folder, prompt, 64)


@pytest.mark.parametrize("method", ALL_METHODS)
def test_what_was_learnt_passes_whatever_the_prompt(method: str, base: Base, tmp_path: Path) -> None:
    """Also one without the learned word, such as a validation prompt may be."""
    with training(make_job(method, base), base) as trained:
        trained.take_steps(3)
        write_artifact(trained.loop.student, tmp_path)
        measured = check(trained.loop.student, tmp_path)
    assert measured["load_back_difference"] < 0.01
    assert measured["effect"] > 0


def _lacks_layers(factors: dict[str, LowRank]) -> dict[str, LowRank]:
    return dict(list(factors.items())[:100])


def _is_larger(factors: dict[str, LowRank]) -> dict[str, LowRank]:
    return {name: replace(update, b=update.b * 3) for name, update in factors.items()}


def _has_one_other_number(factors: dict[str, LowRank]) -> dict[str, LowRank]:
    name, update = next(iter(factors.items()))
    a = update.a.clone()
    a.view(-1)[0] += 1e-3
    return factors | {name: replace(update, a=a)}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_lacks_layers, "100 of 128 layers arrived"),
        (_is_larger, "arrived changed"),
        (_has_one_other_number, "arrived changed"),
    ],
)
def test_a_file_of_other_updates_is_stopped(
    change: Callable[[dict[str, LowRank]], dict[str, LowRank]], complaint: str, base: Base, tmp_path: Path
) -> None:
    with training(make_job("lora", base, lora_layers="all"), base) as trained:
        trained.take_steps(1)
        factors = change(dict(trained.loop.student.factors()["unet"]))
        (tmp_path / FILE_NAME).write_bytes(write_adapter_file({"unet": factors}))
        with pytest.raises(InternalError, match=complaint) as failure:
            check(trained.loop.student, tmp_path)
    assert failure.value.reason == "LOAD_BACK_FAILED"


def test_keys_that_nobody_knows_are_stopped(base: Base, tmp_path: Path) -> None:
    with training(make_job("lora", base), base) as trained:
        trained.take_steps(1)
        write_artifact(trained.loop.student, tmp_path)
        tensors = safetensors.torch.load_file(tmp_path / FILE_NAME)
        renamed = {key.replace("unet.", "model."): tensor for key, tensor in tensors.items()}
        safetensors.torch.save_file(renamed, tmp_path / FILE_NAME)
        with pytest.raises(AtelierError):
            check(trained.loop.student, tmp_path)


@pytest.mark.parametrize("method", ["lora", "dreambooth", "pivotal"])
def test_what_learnt_nothing_is_stopped(method: str, base: Base, tmp_path: Path) -> None:
    """Also updates that have learnt nothing, beside words that have."""
    with training(make_job(method, base), base) as trained:
        trained.take_steps(2 if method == "pivotal" else 0)
        write_artifact(trained.loop.student, tmp_path)
        with pytest.raises(InternalError, match="changes nothing"):
            check(trained.loop.student, tmp_path)


def test_the_best_of_pivotal_tuning_has_learnt_in_both_phases(base: Base, scorers: Scorers, tmp_path: Path) -> None:
    """Up to the pivot its updates have learnt nothing: however well it scores, it would be stopped."""
    job = make_job("pivotal", base, publish_weights="best", max_train_steps=3)
    assert pivot_step(job.config) == 2
    with training(job, base) as trained:
        student = trained.loop.student
        validations = Validations(Evaluator(student, job, scorers, lambda: None))
        published = []
        for step in (1, 2):
            trained.take_steps(1)
            validations.validate(step)
            published.append(validations.published_step)
        trained.take_steps(1)
        validations.finish(3)
        assert [*published, validations.published_step] == [None, None, 3]
        write_artifact(student, tmp_path)
        assert check(student, tmp_path)["effect"] > 0


def test_other_vectors_are_stopped(base: Base, tmp_path: Path) -> None:
    with training(make_job("textual-inversion", base), base) as trained:
        trained.take_steps(1)
        tables = trained.loop.student.tables()
        changed = {key: table + 1e-3 for key, table in tables.items()}
        (tmp_path / words.FILE_NAME).write_bytes(words.write_words_file(changed))
        with pytest.raises(InternalError, match="clip_l arrived changed"):
            check(trained.loop.student, tmp_path)


def test_another_model_is_stopped(base: Base, tmp_path: Path) -> None:
    with training(make_job("dreambooth", base), base) as trained:
        trained.take_steps(1)
        write_artifact(trained.loop.student, tmp_path)
        path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
        weights = safetensors.torch.load_file(path)
        weights["conv_out.weight"] *= 1.1
        safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
        with pytest.raises(InternalError, match=r"unet.conv_out.weight arrived changed"):
            check(trained.loop.student, tmp_path)


def test_pickles_of_a_base_s_folder_are_not_published(base: Base, tmp_path: Path) -> None:
    folder = shutil.copytree(base.path, tmp_path / "base")
    torch.save({}, folder / "vae" / "diffusion_pytorch_model.bin")
    (tmp_path / "artifact").mkdir()
    with training(make_job("dreambooth", base), replace(base, path=folder)) as trained:
        write_artifact(trained.loop.student, tmp_path / "artifact")
    assert (tmp_path / "artifact" / "vae" / "diffusion_pytorch_model.safetensors").is_file()
    assert not list((tmp_path / "artifact").rglob("*.bin"))
