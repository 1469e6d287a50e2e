"""A real gRPC server in this process, with handlers of the test's choice behind the whole scaffold."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from atelier.client import Connection
from atelier.local.process import free_ports
from atelier.pb.common.v1.common_pb2 import Scope
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceServicer, add_RegistryServiceServicer_to_server
from atelier.rpc.identity import Authenticator, TokenAuthority
from atelier.rpc.scopes import ADMIN
from atelier.rpc.server import Server, ServerConfig

SERVICE = pb.DESCRIPTOR.services_by_name["RegistryService"]


class ScaffoldServer:
    """The scaffold around the contract of the registry.

    Args:
        authority: verifies the callers.
        handlers: what to do, by the name of the method.
        authenticator: knows the callers, unless it is the authority alone.
        services: what the scaffold is told of; the registry's is registered all the same.
        config: fields of ServerConfig.
    """

    def __init__(
        self,
        authority: TokenAuthority,
        handlers: dict[str, Callable[..., Any]],
        *,
        authenticator: Authenticator | None = None,
        services: Sequence[ServiceDescriptor] = (SERVICE,),
        **config: Any,
    ) -> None:
        servicer = type("Servicer", (RegistryServiceServicer,), {k: staticmethod(v) for k, v in handlers.items()})()
        port, metrics_port = free_ports(2)
        listening = ServerConfig(port=port, metrics_port=metrics_port, **config)
        self.address = f"127.0.0.1:{port}"
        self._authority = authority
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

        def register(server: grpc.aio.Server) -> None:
            add_RegistryServiceServicer_to_server(servicer, server)

        async def build() -> Server:
            return Server(listening, authenticator or Authenticator(authority), services, register)

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

    def connect(self, tenant: str = "acme", *scopes: Scope) -> Connection:
        """A connection with a fresh token, an administrator's unless told otherwise; close it after use."""
        token = self._authority.issue(tenant=tenant, subject="test", scopes=scopes or [ADMIN], lifetime_seconds=600)
        return Connection(self.address, token)

    def close(self) -> None:
        """Stops the server and its event loop."""
        self.drain().result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
