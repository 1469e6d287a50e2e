"""Adapters by name: what a name means, whose it is, whether it fits, and how often it is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors.torch
import torch

from atelier.client import InferenceClient, RegistryClient
from atelier.diffusion.adapter_file import write_adapter_file
from atelier.diffusion.base import Base
from atelier.diffusion.base_layers import describe_base
from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.errors import AtelierError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from atelier.pb.common.v1.common_pb2 import BaseModel
from tests.harness.adapters import random_updates
from tests.harness.files import WEIGHTS, version
from tests.harness.inference import (
    EMOJI_SD,
    MAX_DIFFERENCE,
    InferenceServer,
    difference,
    publish,
    publish_file,
    random_factors,
    request,
)
from tests.harness.registry import RegistryServer
from tests.inference.conftest import NUM_SLOTS

ATTENTION = "attn"
"""Small files suffice where only the name matters."""


def test_name_alias_and_version_mean_what_the_registry_says_now(
    base: Base, registry: RegistryClient, inference: InferenceClient
) -> None:
    versions = [
        publish(registry, base, "fox", random_factors(base, seed=seed, layers=ATTENTION, strength=0.2))
        for seed in (1, 2)
    ]
    registry.set_alias("fox", "prod", "1")
    drawn: dict[int, bytes] = {}
    for reference, number in (("fox", 2), ("fox@latest", 2), ("fox@2", 2), ("fox@1", 1), ("fox@prod", 1)):
        result = inference.generate(request(reference))
        (loaded,) = result.summary.adapters
        assert (loaded.version, loaded.digest) == (versions[number - 1].name, versions[number - 1].digest)
        assert drawn.setdefault(number, result.images[0].png) == result.images[0].png
    assert difference(drawn[1], drawn[2]) > 20

    registry.set_alias("fox", "prod", "2")
    assert inference.generate(request("fox@prod")).images[0].png == drawn[2]


def test_the_second_use_finds_the_adapter_in_its_slot(
    base: Base, registry: RegistryClient, inference: InferenceClient, inference_server: InferenceServer
) -> None:
    publish(registry, base, "fox", random_factors(base, seed=1, rank=16))
    sources = ("registry", "disk", "host", "slot")
    before = [inference_server.loads(source) for source in sources]
    first = inference.generate(request("fox"))
    between = [inference_server.loads(source) for source in sources]
    second = inference.generate(request("fox"))
    after = [inference_server.loads(source) for source in sources]
    assert [now - then for now, then in zip(between, before, strict=True)] == [1, 0, 0, 0]
    assert [now - then for now, then in zip(after, between, strict=True)] == [0, 0, 0, 1]
    assert [result.summary.adapters[0].was_loaded for result in (first, second)] == [False, True]
    assert first.images[0].png == second.images[0].png


def test_requests_without_adapters_are_bit_equal_before_and_after_others_load(
    base: Base, registry: RegistryClient, inference: InferenceClient
) -> None:
    before = inference.generate(request(num_images=2)).images
    for seed in (1, 2):
        publish(registry, base, f"a{seed}", random_factors(base, seed=seed))
    inference.generate(request("a1", "a2"))
    after = inference.generate(request(num_images=2)).images
    assert [image.png for image in after] == [image.png for image in before]


def test_weight_zero_is_the_bare_base(base: Base, registry: RegistryClient, inference: InferenceClient) -> None:
    publish(registry, base, "fox", random_factors(base, seed=1))
    with_zero = inference.generate(request(("fox", 0.0)))
    assert with_zero.summary.adapters[0].weight == 0
    assert with_zero.images[0].png == inference.generate(request()).images[0].png


def test_a_tenant_cannot_use_anothers_adapter_even_in_a_slot(
    base: Base, registry: RegistryClient, inference: InferenceClient, inference_server: InferenceServer
) -> None:
    publish(registry, base, "secret", random_factors(base, seed=1, layers=ATTENTION))
    inference.generate(request("secret"))
    with inference_server.connect("somebody-else") as connection, pytest.raises(NotFoundError) as caught:
        InferenceClient(connection).generate(request("secret"))
    assert caught.value.reason == "ADAPTER_NOT_FOUND"
    assert inference.generate(request("secret")).summary.adapters[0].was_loaded


def test_the_same_content_of_two_tenants_is_loaded_once(
    base: Base,
    registry: RegistryClient,
    inference: InferenceClient,
    inference_server: InferenceServer,
    registry_server: RegistryServer,
    tenant: str,
) -> None:
    factors = random_factors(base, seed=77, layers=ATTENTION)
    publish(registry, base, "mine", factors)
    inference.generate(request("mine"))
    with registry_server.connect(f"{tenant}-b") as connection:
        publish(RegistryClient(connection), base, "theirs", factors)
    with inference_server.connect(f"{tenant}-b") as connection:
        (loaded,) = InferenceClient(connection).generate(request("theirs")).summary.adapters
    assert loaded.was_loaded
    assert loaded.version.startswith(f"tenants/{tenant}-b/")


def test_concurrent_first_uses_load_once(
    base: Base, registry: RegistryClient, inference: InferenceClient, inference_server: InferenceServer
) -> None:
    publish(registry, base, "fox", random_factors(base, seed=3, rank=16))
    before = inference_server.loads("registry")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: inference.generate(request("fox", num_inference_steps=2)), range(4)))
    assert inference_server.loads("registry") == before + 1
    assert max(difference(result.images[0].png, results[0].images[0].png) for result in results) <= MAX_DIFFERENCE


def test_more_adapters_than_slots_are_served_in_turn_and_at_once(
    base: Base, registry: RegistryClient, inference: InferenceClient, inference_server: InferenceServer
) -> None:
    names = [f"a{index}" for index in range(NUM_SLOTS + 1)]
    for index, name in enumerate(names):
        publish(registry, base, name, random_factors(base, seed=index, layers=ATTENTION, strength=0.2))
    before = inference_server.metrics()["atelier_inference_slot_evictions_total"]
    solo = [inference.generate(request(name)).images[0].png for name in names]
    assert inference_server.metrics()["atelier_inference_slot_evictions_total"] >= before + 2
    with ThreadPoolExecutor(len(names)) as pool:
        crowd = list(pool.map(lambda name: inference.generate(request(name)).images[0].png, names))
    assert max(difference(one, other) for one, other in zip(solo, crowd, strict=True)) <= MAX_DIFFERENCE
    assert min(difference(one, solo[0]) for one in solo[1:]) > 20


def test_an_adapter_of_another_base_is_refused_with_both_names(
    base: Base, registry_server: RegistryServer, registry: RegistryClient, inference: InferenceClient
) -> None:
    other = BaseModel(model="other-sd", digest="sha256:" + "12" * 32)
    described = describe_base(EMOJI_SD, "other-sd")
    described.base_model.CopyFrom(other)
    registry_server.register(described)
    publish(registry, base, "fox", random_factors(base, seed=1, layers=ATTENTION), base_model=other)
    with pytest.raises(FailedPreconditionError) as caught:
        inference.generate(request("fox"))
    assert caught.value.reason == "BASE_MODEL_MISMATCH"
    for part in ("fox", "other-sd", other.digest, "emoji-sd", base.digest):
        assert part in caught.value.message


def outside(base: Base) -> bytes:
    """An update of a layer that the base model has, and that nobody trains."""
    return safetensors.torch.save(
        {
            "unet.conv_in.lora_A.weight": torch.ones(1, *base.denoiser.conv_in.weight.shape[1:]),
            "unet.conv_in.lora_B.weight": torch.ones(base.denoiser.conv_in.weight.shape[0], 1, 1, 1),
        }
    )


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda base: write_adapter_file({"unet": random_factors(base, seed=1, rank=17)}), "ADAPTER_RANK_TOO_HIGH"),
        (outside, "ADAPTER_LAYER_UNKNOWN"),
    ],
    ids=["high rank", "another layer"],
)
def test_files_that_do_not_fit_the_service_are_refused_and_leave_nothing(
    make: object,
    cause: str,
    base: Base,
    registry: RegistryClient,
    inference: InferenceClient,
    inference_server: InferenceServer,
) -> None:
    publish(registry, base, "good", random_factors(base, seed=1, layers=ATTENTION))
    inference.generate(request("good", num_inference_steps=1))
    cached = set(inference_server.cache_folder.iterdir())
    bad = publish_file(registry, base, "bad", make(base))  # type: ignore[operator]
    for _ in range(2):
        with pytest.raises(FailedPreconditionError) as caught:
            inference.generate(request("good", "bad"))
        assert caught.value.reason == "ADAPTER_FILE_INVALID"
        assert caught.value.metadata == {"field": "adapters[1]", "version": bad.name, "cause": cause}
        assert caught.value.message.startswith(f"adapters[1]: the file of {bad.name} ")
    assert set(inference_server.cache_folder.iterdir()) == cached
    assert inference.generate(request()).images


def of_a_text_encoder(base: StableDiffusion) -> bytes:
    updates = random_updates(base.text_encoder, seed=1, layers="attention")
    return write_adapter_file({"unet": random_factors(base, seed=1, layers=ATTENTION), "text_encoder": updates})


@pytest.mark.parametrize(
    ("make", "reason", "words"),
    [
        (of_a_text_encoder, "ADAPTER_COMPONENT_UNKNOWN", "adapts text_encoder; accepted are unet"),
        (
            lambda base: write_adapter_file({"unet": random_updates(base.unet, seed=1, layers="attention", dora=True)}),
            "ADAPTER_KIND_NOT_SUPPORTED",
            "DoRA",
        ),
    ],
    ids=["text encoder", "DoRA"],
)
def test_adapters_that_are_trained_but_not_served_are_told_as_such(
    make: Callable[[StableDiffusion], bytes],
    reason: str,
    words: str,
    base: StableDiffusion,
    registry: RegistryClient,
    inference: InferenceClient,
) -> None:
    other = publish_file(registry, base, "other", make(base))
    with pytest.raises(FailedPreconditionError, match=words) as caught:
        inference.generate(request("other"))
    assert caught.value.reason == reason
    assert caught.value.metadata == {"field": "adapters[0]", "version": other.name, "cause": reason}


def test_a_file_larger_than_a_slot_is_refused_before_it_is_fetched(
    base: Base, registry: RegistryClient, inference: InferenceClient, registry_server: RegistryServer
) -> None:
    def downloads() -> float:
        started = registry_server.metrics().items()
        return sum(value for name, value in started if name.startswith("grpc_server_started") and "Download" in name)

    large = publish(registry, base, "large", random_factors(base, seed=1, rank=32))
    before = downloads()
    with pytest.raises(FailedPreconditionError, match=r"adapters\[0\]: .* a slot of rank 16 holds at most") as caught:
        inference.generate(request("large"))
    assert caught.value.reason == "ADAPTER_TOO_LARGE"
    assert caught.value.metadata == {"field": "adapters[0]", "version": large.name, "max_rank": "16"}
    assert downloads() == before


def test_adapters_that_would_act_in_part_only_are_refused(
    base: Base, registry: RegistryClient, inference: InferenceClient
) -> None:
    registry.create_adapter("pivotal")
    contents = {
        WEIGHTS: write_adapter_file({"unet": random_factors(base, seed=1, layers=ATTENTION)}),
        "learned_embeds.safetensors": safetensors.torch.save({"clip_l": torch.ones(1, 256)}),
    }
    own_base = BaseModel(model=base.name, digest=base.digest)
    registry.publish("pivotal", version(base_model=own_base), contents)
    with pytest.raises(FailedPreconditionError, match=r"learned_embeds") as caught:
        inference.generate(request("pivotal"))
    assert caught.value.reason == "ADAPTER_KIND_NOT_SUPPORTED"


def test_unknown_aliases_versions_and_empty_adapters_are_told_apart(
    base: Base, registry: RegistryClient, inference: InferenceClient
) -> None:
    registry.create_adapter("empty")
    publish(registry, base, "fox", random_factors(base, seed=1, layers=ATTENTION))
    expected = {
        "empty": "ADAPTER_HAS_NO_VERSION",
        "fox@nope": "ALIAS_NOT_FOUND",
        "fox@9": "VERSION_NOT_FOUND",
        "nope": "ADAPTER_NOT_FOUND",
    }
    for reference, reason in expected.items():
        with pytest.raises(AtelierError) as caught:
            inference.generate(request(reference))
        assert caught.value.reason == reason


def test_two_names_of_the_same_content_are_refused(
    base: Base, registry: RegistryClient, inference: InferenceClient
) -> None:
    publish(registry, base, "fox", random_factors(base, seed=1, layers=ATTENTION))
    with pytest.raises(InvalidArgumentError, match=r"adapters\[1\]\.adapter: 'fox@1' is the same content as 'fox'"):
        inference.generate(request("fox", "fox@1"))


def test_metrics_and_logs_name_no_adapter(
    base: Base, registry: RegistryClient, inference: InferenceClient, inference_server: InferenceServer
) -> None:
    publish(registry, base, "quite-private", random_factors(base, seed=5, layers=ATTENTION))
    inference.generate(request("quite-private", prompt="a very private prompt"))
    publish_file(registry, base, "private-too", outside(base))
    with pytest.raises(FailedPreconditionError):
        inference.generate(request("private-too"))
    assert not any("private" in name for name in inference_server.metrics())
    lines = inference_server.process.log_path.read_text().splitlines()
    own_lines = [json.loads(line) for line in lines if line.startswith("{")]
    assert "ADAPTER_LAYER_UNKNOWN" in [line.get("reason") for line in own_lines]
    assert not any("private" in line for line in lines)
