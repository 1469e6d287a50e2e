"""A job that was killed after any step, and went on from its checkpoint, is bit for bit as if nothing had happened."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import safetensors.torch
import torch

from atelier.diffusion.base import Base
from atelier.diffusion.safetensors_header import check_safetensors_header
from atelier.errors import FailedPreconditionError, InvalidArgumentError
from services.trainer.methods.base import CheckpointReady, StepDone
from services.trainer.training.evaluation import Scorers
from tests.harness.training import checkpoints, files_of, make_job, run_job

_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dreambooth": ("dreambooth", {"ema_decay": 0.9, "train_text_encoder": True}),
    "dreambooth-lora": ("dreambooth-lora", {}),
    "everything on": (
        "dreambooth-lora",
        {
            "train_text_encoder": True,
            "use_dora": True,
            "use_rslora": True,
            "lora_dropout": 0.3,
            "caption_dropout": 0.3,
            "noise_offset": 0.1,
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": True,
            "random_flip": True,
            "random_crop": True,
            "lora_layers": "attention",
        },
    ),
    "lora, the best": ("lora", {"publish_weights": "best", "validation_steps": 1, "learning_rate": 0.01}),
    "textual-inversion": ("textual-inversion", {"initializer_word": "fox"}),
    "pivotal": ("pivotal", {}),
    "prodigy": ("pivotal", {"optimizer": "prodigy"}),
    "adafactor": ("lora", {"optimizer": "adafactor"}),
}


@pytest.mark.parametrize("case", _CASES)
def test_a_killed_job_resumes_bit_for_bit(case: str, base: Base, scorers: Scorers) -> None:
    method, config = _CASES[case]
    job = make_job(method, base, **config)
    undisturbed = checkpoints(job, base, scorers)
    assert list(undisturbed) == [1, 2, 3, 4]
    assert len(set(undisturbed.values())) == 4
    for step in (1, 2, 3):  # what is equal after the next step is equal after all
        resumed = checkpoints(job, base, scorers, resume=undisturbed[step], last=step + 1)
        assert resumed == {step + 1: undisturbed[step + 1]}


def test_early_stopping_remembers_its_losses(base: Base) -> None:
    config = {"max_train_steps": 21, "checkpointing_steps": 11, "validation_steps": 0, "train_batch_size": 1}
    job = make_job("textual-inversion", base, early_stopping=True, **config)
    undisturbed = checkpoints(job, base)
    resumed = checkpoints(job, base, resume=undisturbed[11])
    assert resumed[21] == undisturbed[21]
    progress = json.loads(check_safetensors_header(undisturbed[21], field="checkpoint").metadata["progress"])
    assert len(progress["fixed_losses"]) == 2


def test_a_job_that_finished_training_is_evaluated_again_to_the_same_files(base: Base, scorers: Scorers) -> None:
    job = make_job("lora", base, publish_weights="best", validation_steps=1, max_train_steps=2)
    events = run_job(job, base, scorers)
    (*_, last) = (event.contents for event in events if isinstance(event, CheckpointReady))
    again = run_job(job, base, scorers, resume=last)
    assert not any(isinstance(event, StepDone) for event in again)
    files, same = files_of(events), files_of(again)
    assert files.keys() == same.keys()
    assert [path for path in files if files[path] != same[path]] == ["metrics.json"], "it has the seconds that it took"


def test_a_checkpoint_of_another_job_is_refused(base: Base) -> None:
    job = make_job("lora", base, max_train_steps=1, lr_warmup_steps=0)
    checkpoint = checkpoints(job, base)[1]
    concept = dataclasses.replace(job.concepts[0], instance_prompt="a photo of a zwx fox")
    others = [
        make_job("lora", base, max_train_steps=1, learning_rate=2e-4),
        make_job("dreambooth-lora", base, max_train_steps=1, lr_warmup_steps=0),
        dataclasses.replace(job, concepts=(concept,)),
        dataclasses.replace(job, dataset_digest="sha256:" + "1" * 64),
    ]
    for other in others:
        with pytest.raises(FailedPreconditionError, match="belongs to another job"):
            checkpoints(other, base, resume=checkpoint)


def test_a_torn_checkpoint_is_refused(base: Base) -> None:
    job = make_job("lora", base, max_train_steps=1)
    with pytest.raises(InvalidArgumentError):
        checkpoints(job, base, resume=checkpoints(job, base)[1][:-1])
    foreign = safetensors.torch.save({"weight": torch.zeros(1)})
    with pytest.raises(FailedPreconditionError, match="belongs to another job"):
        checkpoints(job, base, resume=foreign)
