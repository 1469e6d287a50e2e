"""Starts a service as its users do: `python -m MODULE`, on free ports, until health says SERVING."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import grpc
import psutil
import urllib3
from grpc_health.v1 import health_pb2, health_pb2_grpc

from atelier.client import ClientTls, Connection
from atelier.local.process import ManagedProcess, free_ports, wait_until
from atelier.pb.common.v1.common_pb2 import Scope
from atelier.rpc.identity import TokenAuthority
from atelier.rpc.scopes import ADMIN

START_SECONDS = 60.0
TOKEN_SECONDS = 3600.0


class ServiceProcess:
    """One service.

    Args:
        module: such as `services.registry`.
        folder: for its log.
        authority: issues the tokens of its clients.
        options: command-line options by name without the dashes, a list's once for each value; the ports are added.
        env: environment variables.
    """

    def __init__(
        self,
        module: str,
        folder: Path,
        authority: TokenAuthority,
        options: Mapping[str, object],
        env: Mapping[str, str],
    ) -> None:
        self._authority = authority
        self.port, self.metrics_port = free_ports(2)
        self.address = f"127.0.0.1:{self.port}"
        self.health_address = f"127.0.0.1:{options['health-port']}" if "health-port" in options else self.address
        self.client_tls: ClientTls | None = None
        """What clients trust and show; to be set before the start of a server that speaks TLS."""
        every = {**options, "port": self.port, "metrics-port": self.metrics_port}
        lists = {name: value if isinstance(value, list) else [value] for name, value in every.items()}
        flags = [f"--{name}={value}" for name, values in lists.items() for value in values]
        self.process = ManagedProcess(module, [sys.executable, "-m", module, *flags], folder / f"{module}.log", env)

    def start(self) -> None:
        """Starts the process and waits until it serves."""
        self.process.start()
        wait_until(self._is_serving, timeout_seconds=START_SECONDS, what=f"{self.process.name} serves")

    def stop(self) -> None:
        """Asks the process to end, and waits."""
        self.process.stop()

    def terminate(self) -> None:
        """Sends SIGTERM, and does not wait."""
        os.kill(self.process.pid, signal.SIGTERM)

    def exit_status(self) -> int:
        """The status with which the process ends, waited for."""
        return psutil.Process(self.process.pid).wait(timeout=START_SECONDS)

    def wait_for_health(self, state: str) -> None:
        """Returns when `health` says this of the server."""
        wait_until(
            lambda: health(self.health_address) == state, timeout_seconds=START_SECONDS, what=f"health is {state}"
        )

    def kill(self) -> None:
        """Ends the process without a chance to clean up."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.stop()

    def connect(self, tenant: str, *scopes: Scope, subject: str = "test") -> Connection:
        """A connection with a fresh token for the tenant; close it after use."""
        return Connection(self.address, self.token(tenant, *scopes, subject=subject), tls=self.client_tls)

    def token(self, tenant: str, *scopes: Scope, subject: str = "test") -> str:
        """A token for the tenant that allows `scopes`: everything of a tenant's own, unless given."""
        return self._authority.issue(
            tenant=tenant, subject=subject, scopes=scopes or (ADMIN,), lifetime_seconds=TOKEN_SECONDS
        )

    def metrics(self) -> dict[str, float]:
        """Every sample on the Prometheus port, by name and labels as they are written there."""
        text = urllib3.request("GET", f"http://127.0.0.1:{self.metrics_port}/metrics").data.decode()
        lines = (line for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def wait_until_idle(self) -> None:
        """Returns when no call is being served."""
        wait_until(
            lambda: not any(value for name, value in self.metrics().items() if "in_progress" in name),
            timeout_seconds=30,
            what=f"{self.process.name} has no call in progress",
        )

    def _is_serving(self) -> bool:
        self.process.check_alive()
        return health(self.health_address) == "SERVING"


def health(address: str, service: str = "") -> str:
    """The status that a server gives of one of its services; CONNECTION_REFUSED when nobody listens."""
    with grpc.insecure_channel(address) as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=service)
            status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status
        except grpc.RpcError as error:
            return "CONNECTION_REFUSED" if error.code() == grpc.StatusCode.UNAVAILABLE else error.code().name
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)
