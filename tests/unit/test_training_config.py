"""Hyperparameters: names as in the contract, limits, defaults, and errors that name the field."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import get_args

import pytest

from atelier.errors import FailedPreconditionError, InvalidArgumentError
from atelier.pb.trainer.v1 import trainer_pb2
from services.trainer.methods import METHODS, resolve_config
from services.trainer.training.base_facts import BaseFacts, Family
from services.trainer.training.config import TrainingConfig, pivot_step

_BASE = Path(__file__).parents[2] / "models" / "emoji-sd"


def test_fields_are_those_of_the_contract() -> None:
    contract = [f.name for f in trainer_pb2.TrainingConfig.DESCRIPTOR.fields]
    assert [f.name for f in fields(TrainingConfig)] == contract


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_complete_for_small_and_large_models_of_every_family(method: str) -> None:
    assert resolve_config(method, {}, base_path=_BASE).resolution == 128
    for family in get_args(Family):
        for is_small in (True, False):
            facts = BaseFacts(family=family, size_factor=8, default_size=512, is_small=is_small)
            missing = {f.name for f in fields(TrainingConfig)} - METHODS[method].defaults(facts).keys()
            assert missing == {"lora_alpha", "resolution"}


def test_what_is_set_wins_and_what_follows_follows() -> None:
    config = resolve_config("dreambooth-lora", {"rank": 4, "max_train_steps": 3, "seed": 7}, base_path=_BASE)
    assert (config.rank, config.lora_alpha, config.seed) == (4, 4, 7)
    assert config.lr_warmup_steps <= 3
    assert resolve_config("dreambooth-lora", {"rank": 4, "lora_alpha": 1.0}, base_path=_BASE).lora_alpha == 1.0
    flags = {"use_dora": True, "use_rslora": True}
    both = resolve_config("lora", flags, base_path=_BASE)
    assert (both.use_dora, both.use_rslora, both.random_flip) == (True, True, False)


@pytest.mark.parametrize("method", METHODS)
def test_an_answered_configuration_may_be_sent_again(method: str) -> None:
    config = resolve_config(method, {"seed": 7, "max_train_steps": 30}, base_path=_BASE)
    message = trainer_pb2.TrainingConfig(**asdict(config))
    again = {descriptor.name: value for descriptor, value in message.ListFields()}
    assert len(again) == len(fields(TrainingConfig))
    assert resolve_config(method, again, base_path=_BASE) == config


@pytest.mark.parametrize(
    ("method", "overrides", "rates"),
    [
        ("dreambooth-lora", {}, (1.0, 1.0)),
        ("dreambooth-lora", {"learning_rate": 0.5}, (0.5, 0.5)),
        ("textual-inversion", {"embedding_learning_rate": 2.0}, (2.0, 2.0)),
    ],
)
def test_prodigy_takes_one_rate_which_is_1_unless_set(
    method: str, overrides: dict[str, object], rates: tuple[float, float]
) -> None:
    config = resolve_config(method, {"optimizer": "prodigy", **overrides}, base_path=_BASE)
    assert (config.learning_rate, config.embedding_learning_rate) == rates


def test_prodigy_s_rate_grows_by_itself_so_its_schedule_is_constant_unless_set() -> None:
    config = resolve_config("lora", {"optimizer": "prodigy"}, base_path=_BASE)
    assert (config.lr_scheduler, config.lr_warmup_steps) == ("constant", 0)
    chosen = {"optimizer": "prodigy", "lr_scheduler": "cosine", "lr_warmup_steps": 5}
    config = resolve_config("lora", chosen, base_path=_BASE)
    assert (config.lr_scheduler, config.lr_warmup_steps) == ("cosine", 5)


def test_prodigy_refuses_different_rates() -> None:
    with pytest.raises(InvalidArgumentError, match=r"config\.embedding_learning_rate: .* one rate for learning_rate, "):
        resolve_config(
            "pivotal",
            {"optimizer": "prodigy", "learning_rate": 1.0, "embedding_learning_rate": 0.5},
            base_path=_BASE,
        )


def test_the_pivot_lies_between_the_first_and_the_last_step() -> None:
    config = resolve_config("pivotal", {"max_train_steps": 5, "pivot_fraction": 0.3}, base_path=_BASE)
    assert pivot_step(config) == 2
    with pytest.raises(InvalidArgumentError, match=r"config\.pivot_fraction: is '0.05'; .*step 1 to 4 of 5"):
        resolve_config("pivotal", {"max_train_steps": 5, "pivot_fraction": 0.05}, base_path=_BASE)
    with pytest.raises(InvalidArgumentError, match=r"config\.max_train_steps: is '1'; allowed is at least 2"):
        resolve_config("pivotal", {"max_train_steps": 1}, base_path=_BASE)
    assert resolve_config("lora", {"max_train_steps": 1}, base_path=_BASE).max_train_steps == 1


@pytest.mark.parametrize(
    ("method", "field", "value", "users"),
    [
        ("textual-inversion", "rank", 4, "dreambooth-lora, lora, pivotal"),
        ("textual-inversion", "learning_rate", 1e-4, "dreambooth, dreambooth-lora, lora, pivotal"),
        ("lora", "num_vectors", 3, "pivotal, textual-inversion"),
        ("lora", "prior_loss_weight", 1.0, "dreambooth, dreambooth-lora, pivotal"),
        ("lora", "ema_decay", 0.9, "dreambooth"),
        ("dreambooth", "use_dora", True, "dreambooth-lora, lora, pivotal"),
    ],
)
def test_a_field_that_the_method_does_not_use_is_refused(method: str, field: str, value: object, users: str) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        resolve_config(method, {field: value}, base_path=_BASE)
    assert refusal.value.message == f"config.{field}: is not used by {method}; only by {users}"


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("max_train_steps", 0, "a whole number from 1 to 20000"),
        ("max_train_steps", 100_000, "a whole number from 1 to 20000"),
        ("max_train_steps", True, "a whole number"),
        ("train_batch_size", 2.5, "a whole number from 1 to 64"),
        ("learning_rate", float("nan"), "a number above 0 up to 10"),
        ("learning_rate", float("inf"), "a number above 0 up to 10"),
        ("learning_rate", 10.5, "a number above 0 up to 10"),
        ("learning_rate", 0.0, "a number above 0 up to 10"),
        ("learning_rate", "1e-3", "a number above 0 up to 10"),
        ("lr_scheduler", "cosinus", "one of constant, linear, cosine"),
        ("lr_scheduler", "cosinus", "did you mean 'cosine'?"),
        ("lora_layers", [], "one of attention, linear, all"),
        ("precision", "fp64", "one of fp32, bf16, fp16, or empty; did you mean"),
        ("adam_beta1", 1.0, "a number from 0 to below 1"),
        ("lora_dropout", 1, "a number from 0 to below 1"),
        ("use_dora", 1, "true or false"),
        ("use_dora", "true", "true or false"),
        ("text_encoder_learning_rate", 0, "a number above 0 up to 10"),
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
    with pytest.raises(InvalidArgumentError, match=r"method: 'alchemy' is no method; there are dreambooth, dreamb"):
        resolve_config("alchemy", {}, base_path=_BASE)
    with pytest.raises(InvalidArgumentError, match=r"method: 'dreamboth' .*did you mean 'dreambooth'"):
        resolve_config("dreamboth", {}, base_path=_BASE)
    with pytest.raises(InvalidArgumentError, match=r"config\.epochs: is no hyperparameter; there are max_train"):
        resolve_config("dreambooth-lora", {"epochs": 3}, base_path=_BASE)
    with pytest.raises(InvalidArgumentError, match=r"hyperparameter; did you mean 'learning_rate'\? there are max_"):
        resolve_config("dreambooth-lora", {"lerning_rate": 3}, base_path=_BASE)


@pytest.mark.parametrize(
    ("channels", "default_size", "is_small"),
    [([2048, 2048], 1024, False), ([1536, 1536], 1024, False), ([64], 128, True)],
)
def test_a_cascade_is_measured_by_its_prior(
    channels: list[int], default_size: int, is_small: bool, tmp_path: Path
) -> None:
    (tmp_path / "prior_prior").mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableCascadeCombinedPipeline"}')
    (tmp_path / "prior_prior" / "config.json").write_text(json.dumps({"block_out_channels": channels}))
    assert BaseFacts.read(tmp_path) == BaseFacts(
        family="stable-cascade", size_factor=128, default_size=default_size, is_small=is_small
    )


def test_other_pipelines_are_refused_with_those_that_are_supported(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(FailedPreconditionError, match="'FluxPipeline' is none of StableDiffusionPipeline, Stable"):
        BaseFacts.read(tmp_path)


def test_the_service_process_needs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; import services.trainer.methods as m;"
        f"m.resolve_config('dreambooth-lora', {{}}, base_path=Path({str(_BASE)!r}));"
        "import atelier.diffusion.safetensors_header; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=_BASE.parents[1])
