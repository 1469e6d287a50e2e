"""What a worker publishes, at a real registry: once for each job, for base models that the trainer has told of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from atelier.client import BaseModelClient, RegistryClient
from atelier.client.connection import Endpoint
from atelier.diffusion.base_layers import describe_base
from atelier.errors import FailedPreconditionError, NotFoundError, PermissionDeniedError, UnavailableError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.identity import TokenAuthority
from atelier.rpc.scopes import PUBLISHER
from services.trainer.base_models import BaseModels
from services.trainer.publishing import publish
from services.trainer.queue import AssignedConcept, Assignment
from tests.harness.families import tiny_stable_diffusion
from tests.harness.files import WEIGHTS, layer_shapes, low_rank, safetensors
from tests.harness.registry import RegistryServer


@pytest.fixture
def base(tmp_path: Path, tenant: str) -> Path:
    """The folder of a base model that the registry has never heard of."""
    folder = tiny_stable_diffusion(tmp_path / "base")
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text().replace("{", f'{{"_tenant": "{tenant}",', 1))
    return folder


@pytest.fixture
def assignment(base: Path, tenant: str) -> Assignment:
    """A job on this base model that has been trained."""
    concept = AssignedConcept(
        instance_prompt="a photo of a sks fox", class_prompt="", placeholder_token="", repeats=1, images=()
    )
    return Assignment(
        uid="u",
        attempt=1,
        name=f"tenants/{tenant}/jobs/fox",
        tenant=tenant,
        adapter="fox",
        method="lora",
        base_name="tiny",
        base_digest=describe_base(base, "tiny").base_model.digest,
        dataset_digest="sha256:0",
        concepts=(concept,),
        validation_prompts=(),
        config={},
        checkpoint_step=0,
    )


@pytest.fixture
def token(registry_server: RegistryServer, assignment: Assignment) -> str:
    """What the scheduler gives a worker."""
    return registry_server.token(assignment.tenant, PUBLISHER, subject=assignment.subject)


@pytest.fixture
def base_models(registry_server: RegistryServer, authority: TokenAuthority, base: Path) -> BaseModels:
    """What the scheduler tells the registry with."""
    return BaseModels(Endpoint(address=registry_server.address), authority, {"tiny": base})


def files(base: Path, *, seed: int = 0) -> dict[str, bytes]:
    shapes = layer_shapes(describe_base(base, "tiny"))
    attention = {name: shape for name, shape in shapes.items() if name.startswith("unet.") and name.endswith("to_q")}
    return {WEIGHTS: safetensors(low_rank(attention, rank=2), seed=seed)}


def test_an_unknown_base_model_makes_the_job_wait_until_it_is_told_of(
    registry_server: RegistryServer,
    registry: RegistryClient,
    base_models: BaseModels,
    token: str,
    assignment: Assignment,
    base: Path,
) -> None:
    endpoint = Endpoint(address=registry_server.address)
    with pytest.raises(UnavailableError) as caught:
        publish(endpoint, token, assignment, files(base), None)
    assert caught.value.reason == "BASE_MODEL_UNKNOWN"
    for _ in range(2):
        base_models.tell(assignment)
    with registry_server.connect(assignment.tenant) as connection:
        assert BaseModelClient(connection).base_model(assignment.base_digest).base_model.model == "tiny"
    name = publish(endpoint, token, assignment, files(base), None)
    version = registry.resolve("fox")
    assert (version.name, version.source_job, version.family) == (name, assignment.name, "stable-diffusion")


def test_a_worker_may_not_tell_of_base_models(registry_server: RegistryServer, token: str, base: Path) -> None:
    endpoint = Endpoint(address=registry_server.address)
    with endpoint.connect(token) as connection, pytest.raises(PermissionDeniedError):
        BaseModelClient(connection).register(describe_base(base, "tiny"))


def test_a_job_that_is_tried_again_publishes_no_second_time(
    base_models: BaseModels,
    registry_server: RegistryServer,
    registry: RegistryClient,
    token: str,
    assignment: Assignment,
    base: Path,
) -> None:
    endpoint = Endpoint(address=registry_server.address)
    base_models.tell(assignment)
    first = publish(endpoint, token, assignment, files(base), None)
    again = publish(endpoint, token, replace(assignment, attempt=2), files(base, seed=1), None)
    assert again == first
    other = replace(assignment, name=f"{assignment.name}-2")
    with pytest.raises(PermissionDeniedError):
        publish(endpoint, token, other, files(base), None)
    other_token = registry_server.token(other.tenant, PUBLISHER, subject=other.subject)
    assert publish(endpoint, other_token, other, files(base), None) != first
    assert len(list(registry.versions("fox"))) == 2


def test_what_was_deleted_is_not_published_again(
    base_models: BaseModels,
    registry_server: RegistryServer,
    registry_stub: RegistryServiceStub,
    token: str,
    assignment: Assignment,
    base: Path,
) -> None:
    """The id of the request stands for the job even where the version is not to be found any more."""
    endpoint = Endpoint(address=registry_server.address)
    base_models.tell(assignment)
    first = publish(endpoint, token, assignment, files(base), None)
    registry_stub.DeleteVersion(pb.DeleteVersionRequest(name=first))
    assert publish(endpoint, token, assignment, files(base), None) == first
    assert not registry_stub.ListVersions(pb.ListVersionsRequest(parent="tenants/-/adapters/fox")).versions


def test_a_base_model_that_has_changed_is_not_told_of(
    registry_server: RegistryServer, base_models: BaseModels, assignment: Assignment, base: Path
) -> None:
    (base / "vae" / "config.json").write_text("{}")
    with pytest.raises(FailedPreconditionError) as caught:
        base_models.tell(assignment)
    assert caught.value.reason == "BASE_MODEL_CHANGED"
    with registry_server.connect(assignment.tenant) as connection, pytest.raises(NotFoundError):
        BaseModelClient(connection).base_model(assignment.base_digest)
