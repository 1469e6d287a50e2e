"""A registry to measure: SeaweedFS, one registry process, and a tenant with a credential, all in a temporary folder."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from atelier.client import Connection
from atelier.local.process import ManagedProcess, free_ports, wait_until
from atelier.local.seaweedfs import SeaweedFS
from atelier.rpc.identity import TokenAuthority, create_key_file
from atelier.rpc.scopes import ADMIN, OPERATOR
from bench.measure import peak_resident_bytes

TENANT = "bench"
BUCKET = "atelier"
START_SECONDS = 60.0
TOKEN_SECONDS = 12 * 3600.0


class Registry:
    """A context manager that starts all of it, and leaves nothing.

    Args:
        database_url: SQLAlchemy URL; an SQLite file in the temporary folder when empty.
    """

    def __init__(self, database_url: str = "") -> None:
        self._running = ExitStack()
        self.folder = Path(self._running.enter_context(tempfile.TemporaryDirectory(prefix="bench-registry-")))
        self.database_url = database_url or f"sqlite:///{self.folder / 'registry.db'}"
        self.seaweedfs = SeaweedFS(self.folder / "s3")
        self.s3 = self.seaweedfs.s3_config(BUCKET)
        key_path = self.folder / "signing.key"
        create_key_file(key_path)
        authority = TokenAuthority.from_file(key_path)
        self._token = authority.issue(
            tenant=TENANT, subject="bench", scopes=[ADMIN, OPERATOR], lifetime_seconds=TOKEN_SECONDS
        )
        port, metrics_port = free_ports(2)
        self._address = f"127.0.0.1:{port}"
        flags = {
            "port": port,
            "metrics-port": metrics_port,
            "signing-key-file": key_path,
            "database-url": self.database_url,
            "s3-endpoint": self.s3.endpoint,
            "s3-bucket": self.s3.bucket,
            "s3-access-key": self.s3.access_key,
        }
        command = [sys.executable, "-m", "services.registry", *(f"--{name}={value}" for name, value in flags.items())]
        env = {"ATELIER_REGISTRY_S3_SECRET_KEY": self.s3.secret_key}
        self._process = ManagedProcess("registry", command, self.folder / "registry.log", env)

    def __enter__(self) -> Registry:
        with self._running:  # what has started is stopped when what follows it does not start
            for server in (self.seaweedfs, self._process):
                self._running.callback(server.stop)
                server.start()
            wait_until(self._serves, timeout_seconds=START_SECONDS, what="the registry serves")
            self.connection = self._running.enter_context(Connection(self._address, self._token))
            self._running = self._running.pop_all()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._running.close()

    def peak_bytes(self) -> int:
        """The most memory that the registry's process has had since it started."""
        return peak_resident_bytes(self._process.pid)

    def _serves(self) -> bool:
        self._process.check_alive()
        with grpc.insecure_channel(self._address) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5.0)
            except grpc.RpcError:
                return False
            return answer.status == health_pb2.HealthCheckResponse.SERVING
