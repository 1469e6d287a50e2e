"""All of Atelier on one machine: S3, Ray and the three services, each a process of its own on loopback.

State lives in the data folder and survives a restart; tokens and keys are made once and stay in its `secrets`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from atelier.client.base_models import BaseModelClient
from atelier.client.connection import Connection
from atelier.diffusion.base_layers import describe_base
from atelier.errors import FailedPreconditionError
from atelier.local.process import ManagedProcess, free_ports, is_port_free, wait_until
from atelier.local.ray_cluster import THREAD_ENV, RayCluster
from atelier.local.seaweedfs import SeaweedFS
from atelier.rpc.identity import TokenAuthority, create_key_file
from atelier.rpc.scopes import ADMIN, OPERATOR
from atelier.signing import create_key_files, public_key_path

START_SECONDS = 180.0
TOKEN_DAYS = 365
LOCAL_TENANT = "local"
SERVICES = ("registry", "trainer", "inference")
MODELS = Path(__file__).resolve().parent.parent.parent / "models"
"""The embedded base model and its scorer, in a checkout of the repository."""
EMBEDDED_BASES = {"emoji-sd": MODELS / "emoji-sd"}
EMBEDDED_SCORERS = {"emoji-sd": MODELS / "emoji-clip"}


@dataclass(frozen=True, kw_only=True, slots=True)
class StackConfig:
    """What to start, and where its state lives."""

    data_dir: Path
    base_port: int | None = None
    """The services listen on this port and the two above, their metrics on the next three; None takes free ports."""
    bases: Mapping[str, Path] = field(default_factory=lambda: EMBEDDED_BASES)
    scorers: Mapping[str, Path] = field(default_factory=lambda: EMBEDDED_SCORERS)
    dino: Path | None = None
    torch_threads: int = 2


class Stack:
    """Starts and stops everything; a context manager.

    `addresses` says where the services listen, `token` is a credential for the tenant `local`.
    """

    def __init__(self, config: StackConfig) -> None:
        self._config = config
        self._data = config.data_dir.resolve()
        self._data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key_path = self._data / "secrets" / "signing.key"
        create_key_file(self._key_path)
        self._manifest_key_path = self._data / "secrets" / "manifest.pem"
        if not public_key_path(self._manifest_key_path).exists():
            self._manifest_key_path.unlink(missing_ok=True)  # of a start that was killed between the two files
            create_key_files(self._manifest_key_path)
        authority = TokenAuthority.from_file(self._key_path)
        self.token = authority.issue(
            tenant=LOCAL_TENANT,
            subject="local-user",
            scopes=[ADMIN, OPERATOR],
            lifetime_seconds=TOKEN_DAYS * 86400.0,
        )
        ports = self._ports()
        self._ports_by_service = dict(zip(SERVICES, ports[:3], strict=True))
        self._metrics_ports = dict(zip(SERVICES, ports[3:], strict=True))
        self.addresses = {name: f"127.0.0.1:{port}" for name, port in self._ports_by_service.items()}
        self.seaweedfs = SeaweedFS(self._data / "s3")
        self.ray = RayCluster(self._data / "ray")
        self.processes = {name: self._service(name) for name in SERVICES}
        self._running = ExitStack()

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def start(self, on_event: Callable[[str], None] = lambda _: None) -> None:
        """Starts everything and waits for health; `on_event` is told what is ready."""
        for name, server in (("S3", self.seaweedfs), ("Ray", self.ray)):
            self._running.callback(server.stop)
            server.start()
            on_event(f"{name} is ready")
        for process in self.processes.values():
            self._running.callback(process.stop)
            process.start()
        for name in SERVICES:
            self.wait_for_service(name)
            if name == "registry":
                self._register_bases()
            on_event(f"{name} is ready at {self.addresses[name]}")

    def wait_for_service(self, name: str) -> None:
        """Returns when a service says SERVING."""
        process = self.processes[name]
        with grpc.insecure_channel(self.addresses[name]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            def serves() -> bool:
                process.check_alive()
                try:
                    status = stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0).status
                except grpc.RpcError:
                    return False
                return status == health_pb2.HealthCheckResponse.SERVING

            wait_until(serves, timeout_seconds=START_SECONDS, what=f"{name} serves")

    def _register_bases(self) -> None:
        """Tells the registry of the base models, so that adapters of them can be published by anyone."""
        with Connection(self.addresses["registry"], self.token) as connection:
            client = BaseModelClient(connection)
            for name, folder in self._config.bases.items():
                client.register(describe_base(folder, name))

    def check_alive(self) -> None:
        """Raises InternalError when any part has ended."""
        self.seaweedfs.check_alive()
        self.ray.check_alive()
        for process in self.processes.values():
            process.check_alive()

    def stop(self) -> None:
        """Stops everything, the services first."""
        self._running.close()

    def _ports(self) -> list[int]:
        base = self._config.base_port
        if base is None:
            return free_ports(6)
        ports = list(range(base, base + 6))
        taken = [str(port) for port in ports if not is_port_free(port)]
        if taken:
            raise FailedPreconditionError(f"port {', '.join(taken)} is taken; choose another", reason="PORT_TAKEN")
        return ports

    def _service(self, name: str) -> ManagedProcess:
        settings = {**self._common_settings(name), **self._own_settings()[name]}
        env = {f"ATELIER_{name.upper()}_{key}": str(value) for key, value in settings.items()}
        env |= THREAD_ENV
        if name == "trainer":
            env |= self.ray.env
        command = [sys.executable, "-m", f"services.{name}", *self._folders(name)]
        return ManagedProcess(name, command, self._data / "logs" / f"{name}.log", env)

    def _folders(self, name: str) -> list[str]:
        """As arguments: a variable's values are parted at white space, which paths may hold."""
        bases = [f"--base={base}={path}" for base, path in self._config.bases.items()]
        scorers = [f"--scorer={base}={path}" for base, path in self._config.scorers.items()]
        dino = [f"--dino={self._config.dino}"] if self._config.dino else []
        trusted = [f"--trusted-key-file={public_key_path(self._manifest_key_path)}"]
        return {"registry": [], "trainer": bases + scorers + dino, "inference": bases + trusted}[name]

    def _common_settings(self, name: str) -> dict[str, object]:
        return {
            "PORT": self._ports_by_service[name],
            "METRICS_PORT": self._metrics_ports[name],
            "SIGNING_KEY_FILE": self._key_path,
            "GRACE_SECONDS": 5,
        }

    def _own_settings(self) -> dict[str, dict[str, object]]:
        s3 = self.seaweedfs.s3_config("atelier")
        storage = {
            "S3_ENDPOINT": s3.endpoint,
            "S3_BUCKET": s3.bucket,
            "S3_ACCESS_KEY": s3.access_key,
            "S3_SECRET_KEY": s3.secret_key,
        }
        models = {
            "REGISTRY": self.addresses["registry"],
            "TORCH_THREADS": self._config.torch_threads,
        }
        return {
            "registry": {
                **storage,
                "DATABASE_URL": f"sqlite:///{self._data}/registry.db",
                "MANIFEST_KEY_FILE": self._manifest_key_path,
            },
            "trainer": {
                **storage,
                **models,
                "DATABASE_URL": f"sqlite:///{self._data}/trainer.db",
                "SPOOL_FOLDER": self._data / "spool",
                "RAY_ADDRESS": self.ray.address,
            },
            "inference": {**models, "CACHE_DIR": self._data / "cache", "SIGNATURE_POLICY": "require"},
        }
