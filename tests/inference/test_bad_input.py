"""Requests that are wrong: refused whole, with the field and what is allowed."""

from __future__ import annotations

import math
from typing import Any

import pytest

from atelier.client import InferenceClient
from atelier.errors import InvalidArgumentError, NotFoundError
from atelier.pb.inference.v1 import inference_pb2 as pb
from tests.harness.inference import InferenceServer, request
from tests.harness.registry import RegistryServer

WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "empty prompt": ({"prompt": ""}, "prompt", "1 to 2000"),
    "blank prompt": ({"prompt": " \n"}, "prompt", "1 to 2000"),
    "prompt of 100 kB": ({"prompt": "x" * 100_000}, "prompt", "at most 2000"),
    "prompt with NUL": ({"prompt": "a\0cat"}, "prompt", "NUL"),
    "long negative prompt": ({"negative_prompt": "x" * 2001}, "negative_prompt", "at most 2000"),
    "unknown base": ({"base_model": "nope"}, "base_model", "emoji-sd"),
    "negative seed": ({"seed": -1}, "seed", "0 to"),
    "huge seed": ({"seed": 2**53}, "seed", str(2**53 - 1)),
    "last image's seed": ({"seed": 2**53 - 2, "num_images": 3}, "seed", str(2**53 - 3)),
    "no steps": ({"num_inference_steps": 0}, "num_inference_steps", "1 to 200"),
    "no images": ({"num_images": 0}, "num_images", "1 to 16"),
    "no width": ({"width": 0}, "width", "multiples of 8"),
    "negative steps": ({"num_inference_steps": -1}, "num_inference_steps", "1 to 200"),
    "100000 steps": ({"num_inference_steps": 100_000}, "num_inference_steps", "1 to 200"),
    "guidance NaN": ({"guidance_scale": math.nan}, "guidance_scale", "0 to 50"),
    "guidance infinite": ({"guidance_scale": math.inf}, "guidance_scale", "0 to 50"),
    "guidance negative": ({"guidance_scale": -0.5}, "guidance_scale", "0 to 50"),
    "guidance 51": ({"guidance_scale": 51}, "guidance_scale", "0 to 50"),
    "unknown scheduler": ({"scheduler": "nope"}, "scheduler", "ddim, dpmpp-2m, euler, unipc"),
    "scheduler for other models": ({"scheduler": "pndm"}, "scheduler", "ddim, dpmpp-2m, euler, unipc"),
    "negative count": ({"num_images": -1}, "num_images", "1 to 16"),
    "17 images": ({"num_images": 17}, "num_images", "1 to 16"),
    "width off the grid": ({"width": 100}, "width", "multiples of 8"),
    "height off the grid": ({"height": 129}, "height", "multiples of 8"),
    "negative width": ({"width": -8}, "width", "from 8 to 256"),
    "width above the largest": ({"width": 264}, "width", "from 8 to 256"),
}
WRONG_ADAPTERS: dict[str, tuple[list[pb.AdapterUse], str, str]] = {
    "five adapters": ([pb.AdapterUse(adapter=f"a{i}") for i in range(5)], "adapters", "at most 3"),
    "twice the same": ([pb.AdapterUse(adapter="fox@1")] * 2, "adapters[1].adapter", "twice"),
    "empty reference": ([pb.AdapterUse()], "adapters[0].adapter", "NAME@ALIAS"),
    "upper case": ([pb.AdapterUse(adapter="Fox")], "adapters[0].adapter", "NAME@ALIAS"),
    "empty alias": ([pb.AdapterUse(adapter="fox@")], "adapters[0].adapter", "NAME@ALIAS"),
    "version 0": ([pb.AdapterUse(adapter="fox@0")], "adapters[0].adapter", "NAME@ALIAS"),
    "another tenant's name": ([pb.AdapterUse(adapter="tenants/b/adapters/fox")], "adapters[0].adapter", "NAME@ALIAS"),
    "path": ([pb.AdapterUse(adapter="../fox")], "adapters[0].adapter", "NAME@ALIAS"),
    "weight NaN": (
        [pb.AdapterUse(adapter="a"), pb.AdapterUse(adapter="b", weight=math.nan)],
        "adapters[1].weight",
        "4",
    ),
    "weight infinite": ([pb.AdapterUse(adapter="a", weight=-math.inf)], "adapters[0].weight", "-4 to 4"),
    "weight above 4": ([pb.AdapterUse(adapter="a", weight=4.01)], "adapters[0].weight", "-4 to 4"),
}


@pytest.mark.parametrize(("fields", "field", "allowed"), WRONG.values(), ids=WRONG)
def test_wrong_fields_are_named(inference: InferenceClient, fields: dict[str, Any], field: str, allowed: str) -> None:
    assert_refused(inference, request(**fields), field, allowed)


@pytest.mark.parametrize(("uses", "field", "allowed"), WRONG_ADAPTERS.values(), ids=WRONG_ADAPTERS)
def test_wrong_adapters_are_named(
    inference: InferenceClient, uses: list[pb.AdapterUse], field: str, allowed: str
) -> None:
    assert_refused(inference, request(adapters=uses), field, allowed)


def assert_refused(inference: InferenceClient, wrong: pb.GenerateRequest, field: str, allowed: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        inference.generate(wrong)
    (violation,) = caught.value.violations
    assert violation.field == field
    assert allowed in violation.description
    assert len(caught.value.message) < 400


def test_wrong_requests_do_no_work(
    inference_server: InferenceServer, registry_server: RegistryServer, inference: InferenceClient
) -> None:
    def work() -> tuple[float, float]:
        resolved = [value for name, value in registry_server.metrics().items() if is_resolve(name)]
        return inference_server.metrics()["atelier_inference_step_seconds_count"], sum(resolved)

    before = work()
    with pytest.raises(InvalidArgumentError):
        inference.generate(request("fox", width=100))
    assert work() == before


def is_resolve(name: str) -> bool:
    return name.startswith("grpc_server_started_total") and "ResolveVersion" in name


def test_an_adapter_that_does_not_exist_is_not_found(inference: InferenceClient) -> None:
    with pytest.raises(NotFoundError) as caught:
        inference.generate(request("never-made"))
    assert caught.value.reason == "ADAPTER_NOT_FOUND"
