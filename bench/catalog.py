"""The registry's lists, searches and aliases at 1,000 and at 100,000 versions: one that keeps its shape is as quick.

Rows go straight into the database through the registry's own tables; what is timed goes through gRPC, one call after
the other. Every query finds a full page at either size, except for those that look for a needle: one adapter, one word,
one alias. Adapters have 10 versions each, so more versions are more adapters.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, create_engine, insert, text

from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from bench.registry_server import TENANT, Registry
from services.registry.content_tables import BlobRow, TenantBlobRow
from services.registry.tables import AdapterRow, AliasRow, FileRow, MetricRow, TagRow, TriggerWordRow, VersionRow

SIZES = (1_000, 100_000)
VERSIONS_EACH = 10
NUM_BASES, NUM_TAGS = 5, 2
ALL = "tenants/-/adapters/-"
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


def measure(database_url: str, *, calls: int) -> list[Row]:
    """Times every query at every size, `calls` times each."""
    seconds: dict[str, list[list[float]]] = {}
    with Registry(database_url) as registry:
        stub = RegistryServiceStub(registry.connection.channel)
        engine = create_engine(registry.database_url)
        filled = 0
        for size in SIZES:
            fill(engine, range(filled // VERSIONS_EACH, size // VERSIONS_EACH))
            filled = size
            for name, call in queries(stub, size).items():
                seconds.setdefault(name, []).append(_timed(call, calls))
        engine.dispose()
    return [
        Row(
            query=name,
            p50=tuple(1000 * statistics.median(each) for each in timings),
            p99=tuple(1000 * statistics.quantiles(each, n=100)[98] for each in timings),
        )
        for name, timings in seconds.items()
    ]


def queries(stub: RegistryServiceStub, size: int) -> Mapping[str, Callable[[random.Random], Any]]:
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


def fill(engine: Engine, adapters: range) -> None:
    """Adds adapters with all that they have."""
    tables = (AdapterRow, TagRow, BlobRow, TenantBlobRow, VersionRow, FileRow, MetricRow, TriggerWordRow, AliasRow)
    step = 100
    for start in range(adapters.start, adapters.stop, step):
        rows: dict[type, list[dict[str, Any]]] = {table: [] for table in tables}
        for index in range(start, min(start + step, adapters.stop)):
            for table, row in _adapter_rows(index):
                rows[table].append(row)
        with engine.begin() as connection:
            for table in tables:
                connection.execute(insert(table), rows[table])
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(text("ANALYZE"))  # as autovacuum does within a minute


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


def _timed(call: Callable[[random.Random], Any], calls: int) -> list[float]:
    draw, seconds = random.Random(0), []
    for turn in range(-calls // 10, calls):  # the first ones warm up
        start = time.perf_counter()
        call(draw)
        if turn >= 0:
            seconds.append(time.perf_counter() - start)
    return seconds
