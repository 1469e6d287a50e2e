"""Two replicas of the registry on one PostgreSQL and one bucket: callers cannot tell which one answers."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from atelier.client import RegistryClient
from atelier.errors import (
    AbortedError,
    AtelierError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from atelier.local.postgres import Postgres
from atelier.local.seaweedfs import SeaweedFS
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from tests.harness.files import WEIGHTS, adapter_files, version
from tests.harness.registry import BUCKET, RegistryServer
from tests.registry.lifecycle import delete_version, fox_alias, fox_version, visible_numbers
from tests.registry.uploads import OWN_FOX

RACERS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """The test's tenant at one replica."""

    sdk: RegistryClient
    stub: RegistryServiceStub


@pytest.fixture(scope="module")
def replicas(
    postgres: Postgres,
    seaweedfs: SeaweedFS,
    signing_key_file: Path,
    manifest_key_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[list[RegistryServer]]:
    """Two of them, started at the same moment on an empty database."""
    options = {"database-url": postgres.create_database(), "manifest-key-file": manifest_key_file}
    folders = [tmp_path_factory.mktemp("replica") for _ in range(2)]
    servers = [RegistryServer(folder, seaweedfs.s3_config(BUCKET), signing_key_file, options) for folder in folders]
    with ThreadPoolExecutor(len(servers)) as threads, ExitStack() as stack:
        for server in servers:
            stack.callback(server.stop)
        list(threads.map(RegistryServer.start, servers))
        yield servers


@pytest.fixture
def callers(replicas: list[RegistryServer], tenant: str) -> Iterator[list[Caller]]:
    """The test's tenant, at each replica."""
    with ExitStack() as stack:
        connections = [stack.enter_context(replica.connect(tenant)) for replica in replicas]
        yield [
            Caller(sdk=RegistryClient(connection), stub=RegistryServiceStub(connection.channel))
            for connection in connections
        ]


def race(callers: list[Caller], work: Callable[[Caller, int], Any]) -> list[Any]:
    """What RACERS calls that begin together return or raise, at both replicas in turn."""
    barrier = threading.Barrier(RACERS)

    def run(index: int) -> Any:
        barrier.wait()
        try:
            with translated_errors():
                return work(callers[index % len(callers)], index)
        except AtelierError as error:
            return error

    with ThreadPoolExecutor(RACERS) as threads:
        return list(threads.map(run, range(RACERS)))


def test_what_one_replica_wrote_the_other_tells_at_once(callers: list[Caller]) -> None:
    first, second = callers
    first.sdk.create_adapter("fox", description="of the first")
    published = second.sdk.publish("fox", version(), adapter_files(1))
    assert first.sdk.resolve("fox") == published
    first.sdk.set_alias("fox", "prod", "1")
    assert second.sdk.resolve("fox@prod") == published
    assert (
        first.sdk.download(published, WEIGHTS) == second.sdk.download(published, WEIGHTS) == adapter_files(1)[WEIGHTS]
    )
    second.sdk.publish("fox", version(), adapter_files(2))
    delete_version(first.stub, 2)
    for caller in callers:
        assert visible_numbers(caller.sdk) == [1]
        assert caller.sdk.resolve("fox") == published


def test_concurrent_publishes_take_numbers_in_turn(callers: list[Caller]) -> None:
    callers[0].sdk.create_adapter("fox")
    # Contents are shared by every second version: their rows are fought for.
    published = race(callers, lambda caller, index: caller.sdk.publish("fox", version(), adapter_files(index // 2)))
    assert sorted(int(each.name.rsplit("/", 1)[1]) for each in published) == list(range(1, RACERS + 1))
    for caller in callers:
        assert visible_numbers(caller.sdk) == list(range(RACERS, 0, -1))
        told = caller.sdk.tenant()
        assert told.version_count == RACERS
        sizes = {file.sha256: file.size_bytes for each in published for file in each.files}
        assert told.stored_bytes == sum(sizes.values())


def test_one_request_at_both_replicas_publishes_once(callers: list[Caller]) -> None:
    callers[0].sdk.create_adapter("fox")
    request_id = str(uuid.uuid4())
    published = race(
        callers, lambda caller, _: caller.sdk.publish("fox", version(), adapter_files(1), request_id=request_id)
    )
    assert published == [published[0]] * RACERS
    assert visible_numbers(callers[1].sdk) == [1]


def test_concurrent_publishes_of_several_adapters_of_shared_contents(callers: list[Caller]) -> None:
    """Contents are taken in one order, whatever the order of the files."""
    for index in range(RACERS):
        callers[0].sdk.create_adapter(f"a{index}")
    contents = {f"samples/{number}.txt": f"shared {number}".encode() for number in range(8)}

    def publish(caller: Caller, index: int) -> pb.Version:
        order = list(contents.values())[index % 8 :] + list(contents.values())[: index % 8]
        files = dict(zip(contents, order, strict=True)) | adapter_files(index)
        files = {path.replace(".txt", ".md"): content for path, content in files.items()}
        return caller.sdk.publish(f"a{index}", version(), files)

    for published in race(callers, publish):
        assert isinstance(published, pb.Version)


def test_of_concurrent_moves_from_one_etag_one_wins(callers: list[Caller]) -> None:
    callers[0].sdk.create_adapter("fox")
    for seed in range(2):
        callers[0].sdk.publish("fox", version(), adapter_files(seed))
    alias = callers[1].sdk.set_alias("fox", "prod", "1")

    def move(caller: Caller, _: int) -> pb.Alias:
        return caller.sdk.set_alias("fox", "prod", "2", etag=alias.etag)

    outcomes = race(callers, move)
    winners = [outcome for outcome in outcomes if isinstance(outcome, pb.Alias)]
    losers = [outcome for outcome in outcomes if isinstance(outcome, AbortedError)]
    assert (len(winners), len(losers)) == (1, RACERS - 1)
    assert {error.reason for error in losers} == {"ETAG_MISMATCH"}
    assert callers[1].stub.GetAlias(pb.GetAliasRequest(name=fox_alias("prod"))) == winners[0]


def test_an_alias_never_points_at_what_another_replica_deletes(callers: list[Caller]) -> None:
    callers[0].sdk.create_adapter("fox")
    for number in range(1, 9):
        callers[0].sdk.publish("fox", version(), adapter_files(number))

        def act(caller: Caller, index: int, number: int = number) -> object:
            if index % 4 < 2:
                return caller.stub.DeleteVersion(pb.DeleteVersionRequest(name=fox_version(number)))
            wanted = pb.Alias(name=fox_alias(f"prod-{number}"), version=fox_version(number))
            return caller.stub.UpdateAlias(pb.UpdateAliasRequest(alias=wanted, allow_missing=True))

        errors = {outcome.reason for outcome in race(callers, act) if isinstance(outcome, AtelierError)}
        aliases = {alias.version.rsplit("/", 1)[1] for alias in callers[1].sdk.aliases("fox")}
        is_visible = number in visible_numbers(callers[0].sdk)
        assert (str(number) in aliases) == is_visible
        assert errors == ({"VERSION_ALIASED"} if is_visible else {"VERSION_DELETED"})


def test_pages_go_on_at_the_other_replica(callers: list[Caller]) -> None:
    # Where a hyphen counts for little, `a-z` comes after `ab`: not here.
    names = sorted(["a", "a-b", "a-z", "ab", "ab-1", "az", "b"])
    for name in names:
        callers[0].sdk.create_adapter(name)
    found: list[str] = []
    token = ""
    for caller in itertools.cycle(callers):
        page = caller.stub.ListAdapters(pb.ListAdaptersRequest(parent="tenants/-", page_size=2, page_token=token))
        found.extend(adapter.name.rsplit("/", 1)[1] for adapter in page.adapters)
        token = page.next_page_token
        if not token:
            break
    assert found == names


def test_a_replica_that_is_killed_takes_nothing_with_it(callers: list[Caller], replicas: list[RegistryServer]) -> None:
    first, second = callers
    first.sdk.create_adapter("fox")
    published = first.sdk.publish("fox", version(), adapter_files(1))
    request_id = str(uuid.uuid4())
    begun, gone = threading.Event(), threading.Event()

    def messages() -> Iterator[pb.PublishVersionRequest]:
        files = adapter_files(2)
        spec = pb.PublishVersionSpec(parent=OWN_FOX, version=version(), request_id=request_id)
        spec.version.files.extend(published.files)
        yield pb.PublishVersionRequest(spec=spec)
        yield pb.PublishVersionRequest(data=files[WEIGHTS][:10])
        begun.set()
        gone.wait()

    call = first.stub.PublishVersion.future(messages())
    assert begun.wait(30)
    replicas[0].wait_for_upload()
    replicas[0].kill()
    gone.set()
    with pytest.raises(grpc.RpcError):
        call.result()
    assert visible_numbers(second.sdk) == [1]
    second.sdk.publish("fox", version(), adapter_files(2))
    assert visible_numbers(second.sdk) == [2, 1]
    replicas[0].start()
    assert visible_numbers(first.sdk) == [2, 1]


NUL = "a\0b"


@pytest.mark.parametrize(
    "send",
    [
        lambda stub: stub.ResolveVersion(pb.ResolveVersionRequest(adapter=OWN_FOX, reference=NUL)),
        lambda stub: stub.GetVersion(pb.GetVersionRequest(name=f"{OWN_FOX}/versions/{NUL}")),
        lambda stub: stub.GetVersion(pb.GetVersionRequest(name=f"{OWN_FOX}/versions/99999999999999999999")),
        lambda stub: stub.GetVersion(pb.GetVersionRequest(name=f"{OWN_FOX}/versions/4294967297")),
        lambda stub: stub.DownloadFile(pb.DownloadFileRequest(version=fox_version(1), path=NUL)).next(),
        lambda stub: stub.ListVersions(pb.ListVersionsRequest(parent=OWN_FOX, filter=f'method = "{NUL}"')),
        lambda stub: stub.ListVersions(pb.ListVersionsRequest(parent=OWN_FOX, filter="metrics.clip_i > 1e999")),
        lambda stub: stub.ListVersions(pb.ListVersionsRequest(parent=OWN_FOX, order_by=f"metrics.{NUL}")),
        lambda stub: stub.ListVersions(pb.ListVersionsRequest(parent=OWN_FOX, page_token=NUL)),
        lambda stub: stub.ListAdapters(pb.ListAdaptersRequest(parent="tenants/-", filter=f'tags:"{NUL}"')),
        lambda stub: stub.ListAdapters(
            pb.ListAdaptersRequest(parent="tenants/-", filter='create_time > "9999-12-31T23:59:59-23:59"')
        ),
        lambda stub: stub.UpdateAdapter(
            pb.UpdateAdapterRequest(adapter=pb.Adapter(name=OWN_FOX, description=NUL), request_id=str(uuid.uuid4()))
        ),
        lambda stub: stub.UpdateAdapter(pb.UpdateAdapterRequest(adapter=pb.Adapter(name=OWN_FOX, etag=NUL))),
        lambda stub: stub.GetAlias(pb.GetAliasRequest(name=fox_alias(NUL))),
        lambda stub: stub.GetUpload(pb.GetUploadRequest(name=f"tenants/-/uploads/{NUL}")),
    ],
)
def test_what_postgresql_cannot_hold_is_refused_as_on_sqlite(
    send: Callable[[Any], object], callers: list[Caller]
) -> None:
    callers[0].sdk.create_adapter("fox")
    callers[0].sdk.publish("fox", version(), adapter_files(1))
    try:
        with translated_errors():
            send(callers[0].stub)
    except (InvalidArgumentError, NotFoundError, AbortedError, FailedPreconditionError):
        pass
