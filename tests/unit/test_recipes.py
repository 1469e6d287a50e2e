"""Named recipes: complete for their method and family, sourced, and refused where they do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from atelier.errors import InvalidArgumentError
from services.trainer.methods import METHODS, resolve_config
from services.trainer.methods.recipes import RECIPES
from services.trainer.training.config import LEARNING_RATES

_SMALL_BASE = Path(__file__).parents[2] / "models" / "emoji-sd"


_PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "stable-diffusion": {
        "model_index": {"_class_name": "StableDiffusionPipeline"},
        "unet/config": {"sample_size": 64, "block_out_channels": [320, 640, 1280, 1280]},
        "vae/config": {"block_out_channels": [128, 256, 512, 512]},
    },
    "stable-diffusion-xl": {
        "model_index": {"_class_name": "StableDiffusionXLPipeline"},
        "unet/config": {"sample_size": 128, "block_out_channels": [320, 640, 1280]},
        "vae/config": {"block_out_channels": [128, 256, 512, 512]},
    },
    "stable-cascade": {
        "model_index": {"_class_name": "StableCascadeCombinedPipeline"},
        "prior_prior/config": {"in_channels": 16, "block_out_channels": [2048, 2048]},
    },
}


@pytest.fixture
def base_of(tmp_path: Path) -> Callable[[str], Path]:
    """Folders with what is read of a published model of a family."""

    def write(family: str) -> Path:
        for name, contents in _PUBLISHED[family].items():
            path = tmp_path / family / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(contents))
        return tmp_path / family

    return write


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_a_valid_job_of_its_method_and_families(name: str, base_of: Callable[[str], Path]) -> None:
    recipe = RECIPES[name]
    assert recipe.settings.keys() <= METHODS[recipe.method].fields
    assert len(recipe.source) > 10
    for family in recipe.families:
        config = resolve_config(recipe.method, {}, base_path=base_of(family), recipe=name)
        assert {field: getattr(config, field) for field in recipe.settings} == dict(recipe.settings)


def test_published_values_are_those_of_their_guides(base_of: Callable[[str], Path]) -> None:
    dreambooth = resolve_config(
        "dreambooth", {}, base_path=base_of("stable-diffusion"), recipe="diffusers-dreambooth-prior-sd15"
    )
    assert (dreambooth.learning_rate, dreambooth.train_batch_size, dreambooth.max_train_steps) == (5e-6, 1, 800)
    assert (dreambooth.num_class_images, dreambooth.prior_loss_weight, dreambooth.lr_scheduler) == (200, 1, "constant")
    pivotal = resolve_config(
        "pivotal", {}, base_path=base_of("stable-diffusion-xl"), recipe="diffusers-pivotal-sdxl-prodigy"
    )
    assert (pivotal.optimizer, pivotal.learning_rate, pivotal.embedding_learning_rate) == ("prodigy", 1, 1)
    assert (pivotal.rank, pivotal.train_batch_size, pivotal.snr_gamma, pivotal.resolution) == (8, 3, 5, 1024)


def test_a_request_goes_before_its_recipe(base_of: Callable[[str], Path]) -> None:
    config = resolve_config("lora", {"rank": 8}, base_path=base_of("stable-diffusion-xl"), recipe="kohya-lora-sdxl")
    assert (config.rank, config.lora_alpha, config.learning_rate) == (8, 16, 1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_stored_of_a_job_resolves_to_itself(name: str, base_of: Callable[[str], Path]) -> None:
    """A worker sees no recipe: only the hyperparameters that came of it, those that the method uses."""
    recipe = RECIPES[name]
    for family in recipe.families:
        config = resolve_config(recipe.method, {}, base_path=base_of(family), recipe=name)
        used = METHODS[recipe.method].fields
        stored = {field: value for field, value in asdict(config).items() if field in used}
        again = asdict(resolve_config(recipe.method, stored, base_path=base_of(family)))
        assert {field: again[field] for field in used} == stored


def test_another_optimizer_than_the_recipe_s_has_the_service_s_rates(base_of: Callable[[str], Path]) -> None:
    base = base_of("stable-diffusion-xl")
    own = resolve_config("pivotal", {}, base_path=base)
    config = resolve_config("pivotal", {"optimizer": "adamw"}, base_path=base, recipe="diffusers-pivotal-sdxl-prodigy")
    for rate in LEARNING_RATES:
        assert getattr(config, rate) == getattr(own, rate) < 0.1
    assert (config.optimizer, config.rank, config.adam_beta2) == ("adamw", 8, 0.99)
    rates = {"optimizer": "adamw", "learning_rate": 2e-4}
    set_too = resolve_config("pivotal", rates, base_path=base, recipe="diffusers-pivotal-sdxl-prodigy")
    assert (set_too.learning_rate, set_too.embedding_learning_rate) == (2e-4, own.embedding_learning_rate)


def test_prodigy_on_a_recipe_of_another_optimizer_has_a_rate_of_1(base_of: Callable[[str], Path]) -> None:
    base = base_of("stable-diffusion-xl")
    config = resolve_config("pivotal", {"optimizer": "prodigy"}, base_path=base, recipe="cog-sdxl")
    assert (config.learning_rate, config.embedding_learning_rate) == (1, 1)


def test_the_scale_follows_a_rank_that_was_asked_for_unless_the_recipe_has_its_own(
    base_of: Callable[[str], Path],
) -> None:
    base = base_of("stable-diffusion-xl")
    config = resolve_config("pivotal", {"rank": 12}, base_path=base, recipe="diffusers-pivotal-sdxl-adamw")
    assert (config.rank, config.lora_alpha) == (12, 12)


def test_every_method_has_defaults_for_every_family(base_of: Callable[[str], Path]) -> None:
    for method in METHODS:
        for family in _PUBLISHED:
            config = resolve_config(method, {}, base_path=base_of(family))
            assert config.resolution == {"stable-diffusion": 512}.get(family, 1024)
            assert config.precision == ("fp32" if family == "stable-cascade" else "")


@pytest.mark.parametrize(
    ("method", "recipe", "words"),
    [
        ("lora", "onetrainer-lra", "is no recipe; did you mean 'onetrainer-lora'? for lora of stable-diffusion there"),
        ("lora", "kohya-lora-sdxl", "is for lora of stable-diffusion-xl; .*: diffusers-lora-sd15, onetrainer-lora$"),
        (
            "dreambooth",
            "onetrainer-lora",
            "is for lora of stable-diffusion and stable-diffusion-xl; .*dreambooth-paper",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_with_those_that_do(method: str, recipe: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^recipe: '{recipe}' {words.replace('?', '[?]')}") as refusal:
        resolve_config(method, {}, base_path=_SMALL_BASE, recipe=recipe)
    assert refusal.value.reason == "RECIPE_UNKNOWN"
