"""A registry whose database was changed behind its back: what it then says of a version is not used, cached or not."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import Engine, create_engine, text

from atelier.client import InferenceClient, RegistryClient
from atelier.diffusion.base import Base
from atelier.errors import AtelierError
from atelier.manifest import canonical_manifest, digest_of
from atelier.pb.registry.v1 import registry_pb2
from tests.harness.inference import InferenceServer, publish, random_factors, request
from tests.harness.registry import RegistryServer

LAYERS = "attn"


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A version, and a way to change its row."""

    version: registry_pb2.Version
    change: Callable[..., None]


@pytest.fixture
def fox(base: Base, registry: RegistryClient, registry_server: RegistryServer, tenant: str) -> Iterator[Published]:
    """The test's own version."""
    published = publish(registry, base, "fox", random_factors(base, seed=5, layers=LAYERS))
    engine: Engine = create_engine(registry_server.database_url)

    def change(**columns: str) -> None:
        assignments = ", ".join(f"{name} = :{name}" for name in columns)
        with engine.begin() as connection:
            connection.execute(text(f"UPDATE versions SET {assignments} WHERE tenant = :t"), {**columns, "t": tenant})

    yield Published(version=published, change=change)
    engine.dispose()


def refusal(inference: InferenceClient) -> str:
    with pytest.raises(AtelierError) as caught:
        inference.generate(request("fox"))
    return caught.value.reason


def checks(server: InferenceServer, result: str) -> float:
    return server.metrics().get(f'atelier_inference_signature_checks_total{{result="{result}"}}', 0.0)


def test_a_signed_version_is_used(
    fox: Published, inference: InferenceClient, inference_server: InferenceServer
) -> None:
    before = checks(inference_server, "valid")
    assert inference.generate(request("fox")).summary.adapters[0].digest == fox.version.digest
    assert checks(inference_server, "valid") == before + 1


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_version_without_a_signature_is_refused(
    is_cached: bool, fox: Published, inference: InferenceClient, inference_server: InferenceServer
) -> None:
    if is_cached:
        inference.generate(request("fox"))
    before = checks(inference_server, "missing")
    fox.change(signatures="[]")
    assert refusal(inference) == "SIGNATURE_MISSING"
    assert checks(inference_server, "missing") == before + 1


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_version_with_another_digest_is_refused(is_cached: bool, fox: Published, inference: InferenceClient) -> None:
    if is_cached:
        inference.generate(request("fox"))
    fox.change(instance_prompt="another")
    assert refusal(inference) == "DIGEST_MISMATCH"


def test_a_version_whose_digest_was_made_to_fit_is_refused(
    fox: Published, inference: InferenceClient, inference_server: InferenceServer
) -> None:
    changed = registry_pb2.Version()
    changed.CopyFrom(fox.version)
    changed.instance_prompt = "another"
    before = checks(inference_server, "invalid")
    fox.change(instance_prompt="another", digest=digest_of(canonical_manifest(changed)))
    assert refusal(inference) == "SIGNATURE_INVALID"
    assert checks(inference_server, "invalid") == before + 1


def test_what_the_registry_signs_is_what_it_tells(fox: Published, registry: RegistryClient) -> None:
    (told,) = registry.versions("fox")
    assert told.digest == digest_of(canonical_manifest(told)) == fox.version.digest
    assert list(told.signatures) == list(fox.version.signatures)
    (signature,) = told.signatures
    assert len(base64.b64encode(signature.signature)) == 88
