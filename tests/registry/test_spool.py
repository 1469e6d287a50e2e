"""Turns at the spool: never more files on disk or conversions than turns, however calls end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from atelier.client import RegistryClient
from atelier.errors import ResourceExhaustedError
from atelier.local.process import wait_until
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.identity import TokenAuthority
from atelier.rpc.uploads import receive_file
from services.registry.spool import TURNS, Spool, finished, sent_in_time
from tests.harness.files import adapter_files, version
from tests.harness.registry import RegistryServer
from tests.harness.rpc import ScaffoldServer
from tests.registry.formats import export

KOHYA = pb.ExportVersionRequest.FORMAT_KOHYA


def test_cancelled_call_keeps_its_turn_and_folder_until_its_thread_ends(tmp_path: Path) -> None:
    async def check() -> None:
        spool, begun, may_end = Spool(tmp_path, "x-", turns=1), threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            may_end.wait(30)

        async def use() -> None:
            async with spool.turn():
                await finished(work)

        first = asyncio.create_task(use())
        await asyncio.to_thread(begun.wait, 30)
        second, third = asyncio.create_task(use()), asyncio.create_task(use())
        for _ in range(3):
            first.cancel()
            third.cancel()
            await asyncio.wait([first, third], timeout=0.05)
        assert third.cancelled()
        assert not first.done()
        assert len(list(tmp_path.iterdir())) == 1
        may_end.set()
        await second
        assert first.cancelled()
        assert list(tmp_path.iterdir()) == []

    asyncio.run(check())


def test_exports_that_are_cancelled_never_fill_the_spool(
    registry: RegistryClient, registry_stub: RegistryServiceStub, registry_server: RegistryServer
) -> None:
    registry.create_adapter("fox")
    published = registry.publish("fox", version(), adapter_files(weights_bytes=32 * 2**20))
    request = pb.ExportVersionRequest(version=published.name, format=KOHYA)
    seen = []

    def folders() -> int:
        seen.append(len(list(registry_server.spool_folder.glob("export-*"))))
        return seen[-1]

    for _ in range(3):
        streams = [registry_stub.ExportVersion(request) for _ in range(2 * TURNS)]
        wait_until(lambda: folders() == TURNS, timeout_seconds=30, what="the turns are taken")
        for stream in streams:
            stream.cancel()
    wait_until(lambda: folders() == 0, timeout_seconds=30, what="the spool is empty")
    assert max(seen) == TURNS
    registry_server.wait_until_idle()
    assert list(export(registry_stub, published, KOHYA)) == ["fox.safetensors"]


def test_client_that_does_not_read_is_cut_off(authority: TokenAuthority) -> None:
    ended = threading.Event()

    async def endless() -> AsyncIterator[pb.ExportVersionResponse]:
        try:
            while True:
                yield pb.ExportVersionResponse(data=bytes(2**20))
        finally:
            ended.set()

    async def handler(request: object, context: object) -> AsyncIterator[pb.ExportVersionResponse]:
        async for response in sent_in_time(endless(), idle_seconds=0.5):
            yield response

    with (
        closing(ScaffoldServer(authority, {"ExportVersion": handler}, grace_seconds=0.0)) as server,
        server.connect() as connection,
    ):
        stream = RegistryServiceStub(connection.channel).ExportVersion(pb.ExportVersionRequest())
        assert next(stream).data
        assert ended.wait(30)


def test_full_disk_is_told_as_such() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield bytes(2**20)

    with pytest.raises(ResourceExhaustedError) as caught:
        asyncio.run(receive_file(pieces(), File(path="x", size_bytes=2**20), Path("/dev/full"), field="file"))
    assert caught.value.reason == "SPOOL_FULL"


def test_full_disk_is_told_as_such_by_whoever_has_a_turn(tmp_path: Path) -> None:
    async def use() -> None:
        async with Spool(tmp_path, "x-").turn() as folder:
            (folder / "file").symlink_to("/dev/full")
            (folder / "file").write_bytes(bytes(2**20))

    with pytest.raises(ResourceExhaustedError):
        asyncio.run(use())
    assert list(tmp_path.iterdir()) == []
