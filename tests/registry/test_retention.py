"""Retention policies: which versions they keep, and that applying them deletes the others and no more."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration

from atelier.client import RegistryClient
from atelier.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from atelier.local.process import wait_until
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from services.registry.policies import Policy
from tests.harness.files import adapter_files, version
from tests.registry.lifecycle import delete_version, fox_version, publish_foxes, refused, visible_numbers
from tests.registry.uploads import OWN_FOX

NOW = datetime(2026, 1, 10, tzinfo=UTC)
SECOND = Duration(seconds=1)


def retain(
    stub: RegistryServiceStub,
    policy: pb.RetentionPolicy | None = None,
    *,
    parent: str = OWN_FOX,
    validate_only: bool = False,
) -> list[str]:
    """Applies a policy; the versions that it deleted, such as `fox/1`."""
    request = pb.ApplyRetentionRequest(parent=parent, policy=policy, validate_only=validate_only)
    with translated_errors():
        names = [name.split("/") for name in stub.ApplyRetention(request).versions]
    return [f"{parts[3]}/{parts[5]}" for parts in names]


def set_policy(stub: RegistryServiceStub, policy: pb.RetentionPolicy, adapter: str = "fox") -> pb.Adapter:
    """Makes it an adapter's own."""
    changed = pb.Adapter(name=f"tenants/-/adapters/{adapter}", retention=policy)
    return stub.UpdateAdapter(pb.UpdateAdapterRequest(adapter=changed, update_mask={"paths": ["retention"]}))


@pytest.mark.parametrize(
    ("keep_last", "keep_days", "aliased", "not_kept"),
    [
        (0, None, (), []),
        (1, None, (), [1, 2, 3, 5]),
        (2, None, (), [1, 2, 3]),
        (5, None, (), []),
        (9, None, (), []),
        (2, None, (1, 3), [2]),
        (0, 3, (), [1, 2]),
        (0, 0.1, (), [1, 2, 3, 5]),
        (0, 0.1, (2,), [1, 3, 5]),
        (1, 3, (), [1, 2]),
        (4, 3, (), [1]),
        (1, 9, (), []),
    ],
)
def test_policy_keeps_the_newest_the_young_and_the_aliased(
    keep_last: int, keep_days: float | None, aliased: tuple[int, ...], not_kept: list[int]
) -> None:
    """Versions 1, 2, 3, 5 and 6 are 5, 4, 2, 1 and 0.5 days old."""
    ages = {6: 0.5, 5: 1, 3: 2, 2: 4, 1: 5}
    versions = [(number, NOW - timedelta(days=days)) for number, days in ages.items()]
    policy = Policy(keep_last=keep_last, keep_younger_than=None if keep_days is None else timedelta(days=keep_days))
    assert policy.not_kept(versions, aliased, NOW) == not_kept


def test_applying_a_policy_deletes_the_oldest_versions(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    publish_foxes(registry, 4)
    registry.set_alias("fox", "prod", "1")
    latest = registry.adapter("fox")
    assert retain(registry_stub, pb.RetentionPolicy(keep_last=2)) == ["fox/2"]
    assert visible_numbers(registry) == [4, 3, 1]
    assert registry.adapter("fox") == latest
    deleted = registry_stub.GetVersion(pb.GetVersionRequest(name=fox_version(2)))
    assert deleted.purge_time.ToDatetime() - deleted.delete_time.ToDatetime() == timedelta(days=30)
    assert retain(registry_stub, pb.RetentionPolicy(keep_last=2)) == []


def test_deleted_versions_are_not_counted_among_the_newest(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    publish_foxes(registry, 4)
    delete_version(registry_stub, 4)
    assert retain(registry_stub, pb.RetentionPolicy(keep_last=2)) == ["fox/1"]


def test_dry_run_tells_and_deletes_nothing(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    publish_foxes(registry, 3)
    assert retain(registry_stub, pb.RetentionPolicy(keep_last=1), validate_only=True) == ["fox/1", "fox/2"]
    assert visible_numbers(registry) == [3, 2, 1]


def test_versions_go_when_they_are_old_enough(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    publish_foxes(registry, 3)
    hour = pb.RetentionPolicy(keep_younger_than=Duration(seconds=3600))
    assert retain(registry_stub, hour) == []
    second = pb.RetentionPolicy(keep_younger_than=SECOND)
    wait_until(
        lambda: len(retain(registry_stub, second, validate_only=True)) == 2,
        timeout_seconds=10,
        what="two versions are a second old",
    )
    assert retain(registry_stub, second) == ["fox/1", "fox/2"]
    assert visible_numbers(registry) == [3]


def test_adapter_keeps_its_own_policy(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    publish_foxes(registry, 3)
    assert not registry.adapter("fox").HasField("retention")
    assert retain(registry_stub) == []
    policy = pb.RetentionPolicy(keep_last=2, keep_younger_than=Duration(seconds=5, nanos=250_000_000))
    assert set_policy(registry_stub, policy).retention == registry.adapter("fox").retention == policy
    set_policy(registry_stub, pb.RetentionPolicy(keep_last=2))
    assert retain(registry_stub) == ["fox/1"]
    assert not set_policy(registry_stub, pb.RetentionPolicy()).HasField("retention")


def test_own_policies_of_all_adapters_are_applied_together(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    publish_foxes(registry, 2)
    for adapter in ("ant", "bee", "cat"):
        registry.create_adapter(adapter)
        for seed in range(3):
            registry.publish(adapter, version(), adapter_files(seed))
    set_policy(registry_stub, pb.RetentionPolicy(keep_last=1), "ant")
    set_policy(registry_stub, pb.RetentionPolicy(keep_last=2), "cat")
    set_policy(registry_stub, pb.RetentionPolicy(keep_last=1), "bee")
    registry_stub.DeleteAdapter(pb.DeleteAdapterRequest(name="tenants/-/adapters/bee", force=True))
    assert retain(registry_stub, parent="tenants/-/adapters/-") == ["ant/1", "ant/2", "cat/1"]
    assert visible_numbers(registry) == [2, 1]


def test_one_policy_for_all_adapters_is_refused(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    publish_foxes(registry, 2)
    with refused(InvalidArgumentError, "INVALID_FIELD"):
        retain(registry_stub, pb.RetentionPolicy(keep_last=1), parent="tenants/-/adapters/-")
    assert visible_numbers(registry) == [2, 1]


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (pb.RetentionPolicy(keep_last=-1), "keep_last"),
        (pb.RetentionPolicy(keep_younger_than=Duration()), "keep_younger_than"),
        (pb.RetentionPolicy(keep_younger_than=Duration(seconds=-5)), "keep_younger_than"),
        (pb.RetentionPolicy(keep_younger_than=Duration(nanos=1)), "keep_younger_than"),
        (pb.RetentionPolicy(keep_younger_than=Duration(seconds=1, nanos=10**9)), "keep_younger_than"),
        (pb.RetentionPolicy(keep_younger_than=Duration(seconds=2**62)), "keep_younger_than"),
    ],
)
def test_policy_out_of_range_is_refused_wherever_it_is_given(
    registry: RegistryClient, registry_stub: RegistryServiceStub, policy: pb.RetentionPolicy, field: str
) -> None:
    registry.create_adapter("fox")
    with pytest.raises(InvalidArgumentError) as caught:
        retain(registry_stub, policy)
    assert caught.value.violations[0].field == f"policy.{field}"
    with pytest.raises(InvalidArgumentError) as caught, translated_errors():
        set_policy(registry_stub, policy)
    assert caught.value.violations[0].field == f"adapter.retention.{field}"


def test_retention_needs_an_adapter_that_is_there(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    with refused(NotFoundError, "ADAPTER_NOT_FOUND"):
        retain(registry_stub)
    registry.create_adapter("fox")
    registry_stub.DeleteAdapter(pb.DeleteAdapterRequest(name=OWN_FOX))
    with refused(FailedPreconditionError, "ADAPTER_DELETED"):
        retain(registry_stub)
