"""A real gRPC server in this process, with handlers of the test's choice behind the whole scaffold."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import grpc

from atelier.client import Connection
from atelier.local.process import free_ports
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceServicer, add_RegistryServiceServicer_to_server
from atelier.rpc.identity import TokenAuthority
from atelier.rpc.server import Server, ServerConfig

SERVICE = pb.DESCRIPTOR.services_by_name["RegistryService"]


class ScaffoldServer:
    """The scaffold around the contract of the registry.

    Args:
        authority: verifies the callers.
        handlers: what to do, by the name of the method.
        limits: fields of ServerConfig.
    """

    def __init__(self, authority: TokenAuthority, handlers: dict[str, Callable[..., Any]], **limits: float) -> None:
        servicer = type("Servicer", (RegistryServiceServicer,), {k: staticmethod(v) for k, v in handlers.items()})()
        port, metrics_port = free_ports(2)
        config = ServerConfig(port=port, metrics_port=metrics_port, **limits)  # type: ignore[arg-type]
        self.address = f"127.0.0.1:{port}"
        self._authority = authority
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

        def register(server: grpc.aio.Server) -> None:
            add_RegistryServiceServicer_to_server(servicer, server)

        async def build() -> Server:
            return Server(config, authority, SERVICE, register)

        self._thread.start()
        self._server = self.submit(build()).result()
        self.submit(self._server.start()).result()
        self.submit(self._server.set_serving(True)).result()

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Runs a coroutine on the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def drain(self) -> Future[Any]:
        """Begins to drain the server."""
        return self.submit(self._server.drain())

    def connect(self, tenant: str = "acme") -> Connection:
        """A connection with a fresh token; close it after use."""
        return Connection(self.address, self._authority.issue(tenant=tenant, subject="test", lifetime_seconds=600))

    def close(self) -> None:
        """Stops the server and its event loop."""
        self.drain().result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
