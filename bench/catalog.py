"""The registry's lists, searches and aliases at 1,000 and at 100,000 versions: one that keeps its shape is as quick.

Rows go straight into the database through the registry's own tables; what is timed goes through gRPC, one call after
the other, to two registries in turns. Every query finds a full page at either size, except for those that look for a
needle: one adapter, one word, one alias. Adapters have 10 versions each, so more versions are more adapters.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import create_engine, insert, text

from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from bench.registry_server import TENANT, Registry
from services.registry.content_tables import BlobRow, TenantBlobRow
from services.registry.tables import AdapterRow, AliasRow, FileRow, MetricRow, TagRow, TriggerWordRow, VersionRow

SIZES = (1_000, 100_000)
VERSIONS_EACH = 10
NUM_BASES, NUM_TAGS = 5, 2
ALL = "tenants/-/adapters/-"
ADAPTERS_AT_ONCE = 1000
Query = Callable[[random.Random], Any]
"""Makes one call about whatever it draws."""
_START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """How long a query takes at each size, in milliseconds."""

    query: str
    p50: tuple[float, ...]
    p99: tuple[float, ...]

    @property
    def growth(self) -> float:
        """How many times as long the median takes at the last size as at the first."""
        return self.p50[-1] / self.p50[0]


def measure(database_urls: Sequence[str], *, calls: int) -> list[Row]:
    """Times every query `calls` times at every size, the sizes taking turns; each has a registry with a database."""
    with ExitStack() as running:
        registries = [running.enter_context(Registry(url)) for url in database_urls]
        contenders = []
        for registry, size in zip(registries, SIZES, strict=True):
            fill(registry.database_url, size // VERSIONS_EACH)
            contenders.append(queries(RegistryServiceStub(registry.connection.channel), size))
        return [_row(name, [each[name] for each in contenders], calls) for name in contenders[0]]


def _row(query: str, contenders: Sequence[Query], calls: int) -> Row:
    seconds = _take_turns(contenders, calls)
    return Row(
        query=query,
        p50=tuple(1000 * statistics.median(each) for each in seconds),
        p99=tuple(1000 * statistics.quantiles(each, n=100)[98] for each in seconds),
    )


def queries(stub: RegistryServiceStub, size: int) -> Mapping[str, Query]:
    """What is timed, by what it is. Each call draws which adapter, alias or value it asks for."""
    last = size // VERSIONS_EACH - 1

    def adapter(draw: random.Random) -> str:
        return f"tenants/-/adapters/{_adapter_id(draw.randint(0, last))}"

    def versions(parent: str, filter_: str = "", order_by: str = "", page_token: str = "") -> pb.ListVersionsResponse:
        request = pb.ListVersionsRequest(parent=parent, filter=filter_, order_by=order_by, page_token=page_token)
        response = stub.ListVersions(request)
        assert response.versions, f"nothing found: {request}"
        return response

    middle = _middle_token(stub, size)
    good = "base_model.model = base-{} AND metrics.clip_i > 0.6"
    return {
        "page of adapters": lambda draw: stub.ListAdapters(pb.ListAdaptersRequest(parent="tenants/-")),
        "page of adapters with a tag": lambda draw: stub.ListAdapters(
            pb.ListAdaptersRequest(parent="tenants/-", filter=f"tags:tag-{draw.randrange(NUM_TAGS)}")
        ),
        "page of an adapter's versions": lambda draw: versions(adapter(draw)),
        "page of all versions": lambda draw: versions(ALL),
        "page in the middle of all versions": lambda draw: versions(ALL, page_token=middle),
        "base model and metric": lambda draw: versions(ALL, good.format(draw.randrange(NUM_BASES))),
        "base model and metric, best first": lambda draw: versions(
            ALL, good.format(draw.randrange(NUM_BASES)), "metrics.clip_i desc"
        ),
        "trigger word of one adapter": lambda draw: versions(ALL, f'trigger_words:"word-{draw.randint(0, last)}"'),
        "alias": lambda draw: stub.ResolveVersion(
            pb.ResolveVersionRequest(adapter=adapter(draw), reference="production")
        ),
        "newest version": lambda draw: stub.ResolveVersion(pb.ResolveVersionRequest(adapter=adapter(draw))),
    }


def fill(database_url: str, num_adapters: int) -> None:
    """Adds adapters with all that they have."""
    tables = (AdapterRow, TagRow, BlobRow, TenantBlobRow, VersionRow, FileRow, MetricRow, TriggerWordRow, AliasRow)
    engine = create_engine(database_url)
    for start in range(0, num_adapters, ADAPTERS_AT_ONCE):
        rows: dict[type, list[dict[str, Any]]] = {table: [] for table in tables}
        for index in range(start, min(start + ADAPTERS_AT_ONCE, num_adapters)):
            for table, row in _adapter_rows(index):
                rows[table].append(row)
        with engine.begin() as connection:
            for table in tables:
                connection.execute(insert(table), rows[table])
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(text("ANALYZE"))  # as autovacuum does within a minute
    engine.dispose()


def _adapter_rows(index: int) -> Iterator[tuple[type, dict[str, Any]]]:
    draw = random.Random(index)
    own = {"tenant": TENANT, "adapter_id": _adapter_id(index)}
    yield (
        AdapterRow,
        {
            **own,
            "description": f"Adapter {index}",
            "last_number": VERSIONS_EACH,
            "latest_number": VERSIONS_EACH,
            "create_time": _START + timedelta(seconds=index),
        },
    )
    yield TagRow, {**own, "tag": f"tag-{index % NUM_TAGS}"}
    for number in range(1, VERSIONS_EACH + 1):
        yield from _version_rows({**own, "number": number}, index, draw)
    yield AliasRow, {**own, "alias_id": "production", "number": draw.randint(1, VERSIONS_EACH)}


def _version_rows(own: dict[str, Any], index: int, draw: random.Random) -> Iterator[tuple[type, dict[str, Any]]]:
    base, sha256 = draw.randrange(NUM_BASES), f"{draw.getrandbits(256):064x}"
    yield (
        VersionRow,
        {
            **own,
            "digest": f"sha256:{draw.getrandbits(256):064x}",
            "manifest": "{}",
            "signatures": [],
            "base_model": f"base-{base}",
            "base_model_digest": f"sha256:{base:064x}",
            "family": "stable-diffusion",
            "method": "dreambooth-lora",
            "instance_prompt": "a photo of a sks fox",
            "weights": [{"kind": "KIND_LOW_RANK", "component": "unet", "layer_count": 128, "max_rank": 16}],
            "source_job": "",
            "create_time": _START + timedelta(seconds=index * VERSIONS_EACH + own["number"]),
        },
    )
    yield BlobRow, {"sha256": sha256, "size_bytes": 2**20, "object_key": f"registry/blobs/{sha256}"}
    yield TenantBlobRow, {"tenant": own["tenant"], "sha256": sha256, "file_count": 1}
    yield FileRow, {**own, "path": "pytorch_lora_weights.safetensors", "size_bytes": 2**20, "sha256": sha256}
    for name in ("clip_i", "clip_t"):
        yield MetricRow, {**own, "name": name, "value": draw.random()}
    yield TriggerWordRow, {**own, "word": f"word-{index}"}


def _adapter_id(index: int) -> str:
    return f"adapter-{index:05d}"


def _middle_token(stub: RegistryServiceStub, size: int) -> str:
    """The token of a page in the middle of all versions."""
    request = pb.ListVersionsRequest(parent=ALL, page_size=500)
    for _ in range(size // 2 // request.page_size):
        request.page_token = stub.ListVersions(request).next_page_token
    return request.page_token


def _take_turns(contenders: Sequence[Query], calls: int) -> list[list[float]]:
    """The seconds of each contender's calls; the first tenth warms up and does not count."""
    draws = [random.Random(0) for _ in contenders]
    seconds: list[list[float]] = [[] for _ in contenders]
    for turn in range(-calls // 10, calls):
        for call, draw, own in zip(contenders, draws, seconds, strict=True):
            start = time.perf_counter()
            call(draw)
            if turn >= 0:
                own.append(time.perf_counter() - start)
    return seconds
