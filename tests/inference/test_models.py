"""Which base models the service loads: those of a family that is trained but not served yet are passed over."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from atelier.client import Connection, RegistryClient
from atelier.errors import InvalidArgumentError, UnavailableError
from atelier.signing import Policy, Verifier
from services.inference.adapters import AdapterCache, CacheConfig
from services.inference.engine import EngineConfig
from services.inference.models import load_models
from services.inference.servicer import InferenceServicer, ServiceConfig
from tests.harness.families import tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.harness.inference import request

CONFIG = EngineConfig(num_slots=2, max_rank=1)


def test_a_family_that_is_not_served_leaves_the_others_alone(tmp_path: Path) -> None:
    folders = {"xl": tiny_stable_diffusion_xl(tmp_path / "xl"), "sd": tiny_stable_diffusion(tmp_path / "sd")}
    models = load_models(folders, CONFIG)
    assert list(models) == ["sd"]
    models["sd"].engine.stop()


def test_without_any_that_is_served_there_is_none(tmp_path: Path) -> None:
    assert load_models({"xl": tiny_stable_diffusion_xl(tmp_path / "xl")}, CONFIG) == {}


def test_a_service_without_any_says_so(tmp_path: Path) -> None:
    with Connection("127.0.0.1:1", "token") as connection:
        cache = AdapterCache(RegistryClient(connection), CacheConfig(folder=tmp_path), Verifier([], Policy.OFF))
        servicer = InferenceServicer({}, cache, ServiceConfig())
        answers = servicer.Generate(request(), None)  # it does not come so far

        async def first() -> object:
            return await anext(answers)

        with pytest.raises(UnavailableError) as caught:
            asyncio.run(first())
    assert caught.value.reason == "NO_BASE_MODEL"


def test_a_folder_that_is_no_model_is_never_passed_over(tmp_path: Path) -> None:
    folders = {"none": tmp_path, "sd": tiny_stable_diffusion(tmp_path / "sd")}
    with pytest.raises(InvalidArgumentError, match="not a diffusers model folder"):
        load_models(folders, CONFIG)
