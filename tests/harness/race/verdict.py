"""What must be true when the race is over and the registry has come to rest."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from atelier.client.connection import OWN_TENANT, paged
from atelier.errors import AtelierError
from atelier.local.process import wait_until
from atelier.manifest import canonical_manifest, digest_of
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.registry.v1 import maintenance_pb2
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.scopes import OPERATOR
from atelier.storage.blobs import BlobStore
from atelier.storage.database import Database
from services.registry.content_tables import BlobRow, TenantBlobRow, TenantRow
from services.registry.tables import AliasRow, FileRow, VersionRow
from tests.harness.race.arena import GC_GRACE_SECONDS, Race
from tests.harness.race.calls import DELETED, OPERATORS, RETAINED, TENANTS, Caller, publication, send
from tests.harness.race.journal import Operation, Outcome, read_journals

_CODES_OF_BUGS = ("INTERNAL", "WRITE_CONFLICT", "CONTENT_LOST", "DIGEST_MISMATCH")
"""Reasons that no client may be told."""
_THREADS = 8


def summary(race: Race) -> str:
    """For people: what was done, how often it was disturbed, and why things were refused."""
    operations = read_journals(race.journals)
    outcomes = Counter(f"{operation.kind} {operation.outcome}" for operation in operations)
    reasons = Counter(operation.reason for operation in operations if operation.outcome == Outcome.REFUSED)
    lost = Counter(operation.reason or "client killed" for operation in operations if operation.outcome == "unknown")
    lines = [f"{len(operations)} operations; kills: {dict(race.kills)}"]
    lines += [f"  {count:6} {name}" for name, count in sorted(outcomes.items())]
    lines += [f"  {count:6} refused: {name}" for name, count in reasons.most_common()]
    lines += [f"  {count:6} answer lost: {name}" for name, count in lost.most_common()]
    return "\n".join(lines)


def bugs_told(race: Race) -> list[str]:
    """Refusals that are no client's fault."""
    operations = read_journals(race.journals)
    return [
        f"{operation.kind}: {operation.reason}"
        for operation in operations
        if operation.reason.startswith(_CODES_OF_BUGS)
    ]


class Verdict:
    """Looks at a registry that is at rest. Each method returns what is wrong."""

    def __init__(self, race: Race, database: Database) -> None:
        self._race = race
        self._database = database
        self._operations = read_journals(race.journals)

    def unknown_publishes(self) -> list[str]:
        """Sends again the publishes of which no client knows whether they were done: each is done once, then or now."""
        problems = []
        before = self._names_by_digest()
        with self._callers() as callers:
            for operation in self._publishes():
                if operation.outcome != Outcome.UNKNOWN:
                    continue
                known = before.get((operation.tenant, _digest(operation)))
                try:
                    name = send(operation, callers[operation.tenant])
                except AtelierError as error:
                    name = error.reason
                    if operation.adapter == DELETED and name in ("ADAPTER_DELETED", "ADAPTER_NOT_FOUND"):
                        continue
                if not name.startswith("tenants/") or (known and name not in known):
                    problems.append(f"{operation.request_id}, known as {known}, is answered with {name}")
        return problems

    def versions_that_are_there_twice(self) -> list[str]:
        """Digests, of which each belongs to one request."""
        return [f"{digest}: {names}" for (_, digest), names in self._names_by_digest().items() if len(names) > 1]

    def lost_publishes(self) -> list[str]:
        """Publishes that were acknowledged, of versions that are not there, though nobody set out to delete them."""
        deleted = {each.details["version"] for each in self._operations if each.kind == "delete_version"}
        there = self._visible()
        return [
            each.answer
            for each in self._publishes()
            if each.outcome == Outcome.DONE and each.adapter not in (RETAINED, DELETED)
            if each.answer not in deleted and there.get(each.answer) != _digest(each)
        ]

    def broken_files(self) -> list[str]:
        """Files of visible versions that do not arrive with their SHA-256."""
        with self._callers() as callers, ThreadPoolExecutor(_THREADS) as threads:

            def examine(name: str) -> list[str]:
                caller = callers[name.split("/")[1]]
                version = caller.stub.GetVersion(pb.GetVersionRequest(name=name))
                return [f"{name} {file.path}" for file in version.files if not _arrives(caller, version, file)]

            return [problem for problems in threads.map(examine, self._visible()) for problem in problems]

    def dangling_aliases(self) -> list[str]:
        """Aliases that point at what is not there or is deleted, or that the API does not resolve."""
        with self._database.transaction(read_only=True) as session:
            undeleted = select(VersionRow.tenant, VersionRow.adapter_id, VersionRow.number)
            live = set(map(tuple, session.execute(undeleted.where(VersionRow.delete_time.is_(None)))))
            aliases = session.scalars(select(AliasRow)).all()
        problems = [str(row.alias_id) for row in aliases if (row.tenant, row.adapter_id, row.number) not in live]
        with self._callers() as callers:
            for caller in callers.values():
                for adapter in caller.sdk.adapters():
                    for alias in caller.sdk.aliases(adapter.name.rsplit("/", 1)[1]):
                        found = caller.sdk.resolve(f"{alias.name.split('/')[3]}@{alias.name.split('/')[5]}")
                        problems += [alias.name] if found.name != alias.version else []
        return problems

    def wrong_counters(self) -> list[str]:
        """Counters that differ from a recount of the rows."""
        with self._database.transaction(read_only=True) as session:
            return [*_wrong_shares(session), *_wrong_tenants(session), *_wrong_contents(session)]

    def collect_all(self) -> None:
        """Waits until what is garbage has grown old enough and is collected."""
        nothing = maintenance_pb2.CollectGarbageResponse()

        def is_clean() -> bool:
            with self._operator() as operator:
                operator.maintenance.collect_garbage()
                return operator.maintenance.collect_garbage(validate_only=True) == nothing and not self.leftovers()

        wait_until(is_clean, timeout_seconds=2 * GC_GRACE_SECONDS + 60, what="all garbage is collected")

    def leftovers(self) -> list[str]:
        """Objects that no row names, rows that name no object, and contents of nobody."""
        present = set(BlobStore(self._race.replicas[0].s3).keys("registry/"))
        with self._database.transaction(read_only=True) as session:
            named = set(session.scalars(select(BlobRow.object_key)))
            nobodys = session.scalars(select(BlobRow.sha256).where(BlobRow.unreferenced_time.is_not(None))).all()
        return [*sorted(named ^ present), *nobodys]

    def rot(self) -> list[str]:
        """What a scrub finds."""
        with self._operator() as operator:
            return [
                str(response.rot)
                for response in operator.maintenance.scrub()
                if response.WhichOneof("content") == "rot"
            ]

    def _publishes(self) -> Iterator[Operation]:
        return (each for each in self._operations if each.kind == "publish")

    def _visible(self) -> dict[str, str]:
        """Digests of the versions that are not deleted, by name."""
        with self._callers() as callers:
            request = pb.ListVersionsRequest(parent=f"{OWN_TENANT}/adapters/-", page_size=1000)
            return {
                version.name: version.digest
                for caller in callers.values()
                for version in paged(caller.stub.ListVersions, request, "versions")
            }

    def _names_by_digest(self) -> dict[tuple[str, str], list[str]]:
        """Of all versions, deleted ones too, by tenant and digest."""
        found = defaultdict(list)
        with self._database.transaction(read_only=True) as session:
            for row in session.scalars(select(VersionRow)):
                name = f"tenants/{row.tenant}/adapters/{row.adapter_id}/versions/{row.number}"
                found[row.tenant, row.digest].append(name)
        return found

    @contextmanager
    def _callers(self) -> Iterator[dict[str, Caller]]:
        replicas = self._race.replicas
        with ExitStack() as stack:
            yield {
                tenant: Caller(stack.enter_context(replicas[index % len(replicas)].connect(tenant)))
                for index, tenant in enumerate(TENANTS)
            }

    @contextmanager
    def _operator(self) -> Iterator[Caller]:
        with self._race.replicas[0].connect(OPERATORS, OPERATOR) as connection:
            yield Caller(connection)


def _digest(operation: Operation) -> str:
    """Of the version that an operation publishes."""
    version, contents = publication(operation)
    version.files.extend(
        File(path=path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for path, content in contents.items()
    )
    return digest_of(canonical_manifest(version))


def _arrives(caller: Caller, version: pb.Version, file: File) -> bool:
    request = pb.DownloadFileRequest(version=version.name, path=file.path)
    content = b"".join(response.data for response in caller.stub.DownloadFile(request))
    return hashlib.sha256(content).hexdigest() == file.sha256


def _wrong_shares(session: Session) -> list[str]:
    files = select(FileRow.tenant, FileRow.sha256, func.count()).group_by(FileRow.tenant, FileRow.sha256)
    shares = select(TenantBlobRow.tenant, TenantBlobRow.sha256, TenantBlobRow.file_count)
    counted, told = (set(map(tuple, session.execute(query))) for query in (files, shares))
    return [f"share {share}" for share in counted ^ told]


def _wrong_tenants(session: Session) -> list[str]:
    problems = []
    for tenant in session.scalars(select(TenantRow)):
        versions = select(func.count()).select_from(VersionRow).where(VersionRow.tenant == tenant.tenant)
        contents = select(FileRow.sha256).where(FileRow.tenant == tenant.tenant)
        stored = select(func.coalesce(func.sum(BlobRow.size_bytes), 0)).where(BlobRow.sha256.in_(contents))
        truth = (session.scalar(versions), session.scalar(stored))
        if truth != (tenant.version_count, tenant.stored_bytes):
            problems.append(f"{tenant.tenant}: {truth} is told as {tenant.version_count, tenant.stored_bytes}")
    return problems


def _wrong_contents(session: Session) -> list[str]:
    owned = set(session.scalars(select(TenantBlobRow.sha256)))
    blobs = session.scalars(select(BlobRow)).all()
    return [f"content {blob.sha256}" for blob in blobs if (blob.sha256 in owned) != (blob.unreferenced_time is None)]
