from __future__ import annotations

import pytest

from atelier.cli.values import parse_adapter_use, set_hyperparameter
from atelier.pb.trainer.v1.trainer_pb2 import TrainingConfig


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rank", "8", 8),
        ("rank", 8, 8),
        ("learning_rate", "1e-3", 1e-3),
        ("learning_rate", 0.5, 0.5),
        ("lr_scheduler", "cosine", "cosine"),
        ("seed", str(2**53 - 1), 2**53 - 1),
    ],
)
def test_hyperparameters_take_text_and_numbers(name: str, value: object, expected: object) -> None:
    config = TrainingConfig()
    set_hyperparameter(config, name, value)
    assert config.ListFields()[0][1] == expected


def test_a_hyperparameter_set_to_zero_counts_as_set() -> None:
    config = TrainingConfig()
    set_hyperparameter(config, "validation_steps", "0")
    assert config.HasField("validation_steps")


def test_an_unknown_hyperparameter_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no hyperparameter; there are .*learning_rate.*rank"):
        set_hyperparameter(TrainingConfig(), "lerning_rate", "1")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("rank", "many", "a whole number of 32 bits"),
        ("rank", "8.5", "a whole number of 32 bits"),
        ("rank", True, "a whole number of 32 bits"),
        ("rank", None, "a whole number of 32 bits"),
        ("rank", str(2**31), "a whole number of 32 bits"),
        ("seed", str(2**63), "a whole number of 64 bits"),
        ("learning_rate", "fast", "a number"),
        ("learning_rate", [1e-3], "a number"),
    ],
)
def test_a_value_of_the_wrong_type_says_what_is_taken(name: str, value: object, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"it takes {allowed}"):
        set_hyperparameter(TrainingConfig(), name, value)


@pytest.mark.parametrize(
    ("text", "adapter", "weight"),
    [
        ("fox", "fox", None),
        ("fox@prod", "fox@prod", None),
        ("fox@3", "fox@3", None),
        ("fox:0.5", "fox", 0.5),
        ("fox@prod:-1", "fox@prod", -1.0),
        ("fox@3:0", "fox@3", 0.0),
    ],
)
def test_an_adapter_has_an_optional_reference_and_weight(text: str, adapter: str, weight: float | None) -> None:
    use = parse_adapter_use(text)
    assert use.adapter == adapter
    assert (use.weight if use.HasField("weight") else None) == weight


@pytest.mark.parametrize("text", ["", ":1", "@prod", "fox@", "fox@:1", "fox:", "fox:much", "fox:1:2"])
def test_a_malformed_adapter_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"the form is NAME|is no number"):
        parse_adapter_use(text)
