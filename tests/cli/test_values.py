from __future__ import annotations

import pytest

from atelier.cli.values import parse_adapter_use, parse_concept, set_hyperparameter
from atelier.pb.trainer.v1.trainer_pb2 import Concept, TrainingConfig


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rank", "8", 8),
        ("rank", 8, 8),
        ("learning_rate", "1e-3", 1e-3),
        ("learning_rate", 0.5, 0.5),
        ("lr_scheduler", "cosine", "cosine"),
        ("seed", str(2**53 - 1), 2**53 - 1),
        ("use_dora", "true", True),
        ("use_dora", True, True),
        ("random_flip", "False", False),
        ("initializer_word", "fox", "fox"),
    ],
)
def test_hyperparameters_take_text_and_numbers(name: str, value: object, expected: object) -> None:
    config = TrainingConfig()
    set_hyperparameter(config, name, value)
    assert config.ListFields()[0][1] == expected


def test_a_hyperparameter_set_to_zero_counts_as_set() -> None:
    config = TrainingConfig()
    set_hyperparameter(config, "validation_steps", "0")
    set_hyperparameter(config, "use_dora", "false")
    assert config.HasField("validation_steps")
    assert config.HasField("use_dora")


def test_an_unknown_hyperparameter_names_the_nearest_and_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no hyperparameter; did you mean 'learning_rate'\? there are .*rank"):
        set_hyperparameter(TrainingConfig(), "lerning_rate", "1")
    with pytest.raises(ValueError, match=r"no hyperparameter; there are .*learning_rate.*rank"):
        set_hyperparameter(TrainingConfig(), "epochs", "1")


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
        ("use_dora", "yes", "true or false"),
        ("use_dora", 1, "true or false"),
        ("initializer_word", 7, "text"),
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


def test_a_concept_is_keys_and_values_between_semicolons() -> None:
    text = "dataset=cat; instance_prompt=a zwx cat, on a=b;class_prompt=a cat;placeholder_token=CAT;repeats=3"
    assert parse_concept(text) == Concept(
        dataset="tenants/-/datasets/cat",
        instance_prompt="a zwx cat, on a=b",
        class_prompt="a cat",
        placeholder_token="CAT",
        repeats=3,
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the form KEY=VALUE"),
        ("dataset=cat;", "the form KEY=VALUE"),
        ("dataset=cat;dataset=dog", "the key is there already"),
        ("instance_prompt=a cat", "dataset: is missing"),
        (
            "dataset=cat;instance_promt=a cat",
            "instance_promt: is no field of a concept; did you mean 'instance_prompt'",
        ),
        ("dataset=cat;repeats=many", "repeats: is 'many'; it takes a whole number"),
    ],
)
def test_a_malformed_concept_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_concept(text)
