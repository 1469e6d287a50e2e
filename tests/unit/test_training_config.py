"""Hyperparameters: names as in the contract, limits, defaults, and errors that name the field."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from atelier.errors import InvalidArgumentError
from atelier.pb.trainer.v1 import trainer_pb2
from services.trainer.methods import METHODS, resolve_config
from services.trainer.training.config import BaseFacts, TrainingConfig

_BASE = Path(__file__).parents[2] / "models" / "emoji-sd"


def test_fields_are_those_of_the_contract() -> None:
    contract = [f.name for f in trainer_pb2.TrainingConfig.DESCRIPTOR.fields]
    assert [f.name for f in fields(TrainingConfig)] == contract


def test_defaults_are_complete_for_small_and_large_models() -> None:
    assert resolve_config("dreambooth-lora", {}, base_path=_BASE).resolution == 128
    for is_small in (True, False):
        facts = BaseFacts(size_factor=8, default_size=512, is_small=is_small)
        missing = {f.name for f in fields(TrainingConfig)} - METHODS["dreambooth-lora"].defaults(facts).keys()
        assert missing <= {"lora_alpha", "resolution"}


def test_what_is_set_wins_and_what_follows_follows() -> None:
    config = resolve_config("dreambooth-lora", {"rank": 4, "max_train_steps": 3, "seed": 7}, base_path=_BASE)
    assert (config.rank, config.lora_alpha, config.seed) == (4, 4, 7)
    assert config.lr_warmup_steps <= 3
    assert resolve_config("dreambooth-lora", {"rank": 4, "lora_alpha": 1.0}, base_path=_BASE).lora_alpha == 1.0
    assert resolve_config("dreambooth-lora", asdict(config), base_path=_BASE) == config


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("max_train_steps", 0, "a whole number from 1 to 20000"),
        ("max_train_steps", 100_000, "a whole number from 1 to 20000"),
        ("max_train_steps", True, "a whole number"),
        ("train_batch_size", 2.5, "a whole number from 1 to 64"),
        ("learning_rate", float("nan"), "a number above 0 up to 0.1"),
        ("learning_rate", float("inf"), "a number above 0 up to 0.1"),
        ("learning_rate", 0.0, "a number above 0 up to 0.1"),
        ("learning_rate", "1e-3", "a number above 0 up to 0.1"),
        ("lr_scheduler", "cosinus", "one of constant, linear, cosine"),
        ("lora_layers", [], "one of attention, all"),
        ("lr_warmup_steps", 19_999, "at most max_train_steps"),
        ("rank", 129, "a whole number from 1 to 128"),
        ("prior_loss_weight", -0.1, "a number from 0 to 10"),
        ("resolution", 100, "a multiple of 8"),
        ("seed", 2**53, "a whole number from 0 to 9007199254740991"),
        ("adam_weight_decay", 10**400, "a number from 0 to 1"),
    ],
)
def test_values_outside_their_limits_are_refused_by_field(field: str, value: object, allowed: str) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        resolve_config("dreambooth-lora", {field: value}, base_path=_BASE)
    (violation,) = refusal.value.violations
    assert violation.field == f"config.{field}"
    assert allowed in violation.description


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        resolve_config("dreambooth-lora", {"rank": 0, "seed": -1}, base_path=_BASE)
    assert [v.field for v in refusal.value.violations] == ["config.rank", "config.seed"]


def test_unknown_names_are_refused_with_those_that_are_allowed() -> None:
    with pytest.raises(InvalidArgumentError, match=r"method: 'alchemy' is none of dreambooth-lora"):
        resolve_config("alchemy", {}, base_path=_BASE)
    with pytest.raises(InvalidArgumentError, match=r"config\.epochs: is no hyperparameter; there are max_train"):
        resolve_config("dreambooth-lora", {"epochs": 3}, base_path=_BASE)


def test_the_service_process_needs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; import services.trainer.methods as m;"
        f"m.resolve_config('dreambooth-lora', {{}}, base_path=Path({str(_BASE)!r}));"
        "import atelier.diffusion.safetensors_header; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=_BASE.parents[1])
