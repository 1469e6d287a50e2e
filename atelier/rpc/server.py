"""One server scaffold for the three services: listener, health, reflection, metrics port, graceful drain.

`serve` runs until SIGTERM or SIGINT, then drains: health says NOT_SERVING, load balancers get
`drain_seconds` to notice, the listener closes, and calls in flight get `grace_seconds` to finish.
With TLS, probes ask for health on a port of its own: kubelets speak none.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from atelier.rpc.identity import Authenticator
from atelier.rpc.interceptor import OPEN_SERVICES, CallInterceptor
from atelier.rpc.tls import ServerTls

MAX_REQUEST_BYTES = 4 * 1024 * 1024
MIN_PING_SECONDS = 60
"""Clients that ping more often are cut off; those of `atelier.rpc.channel` ping every two minutes."""
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_SECONDS * 1000),
]
_log = structlog.get_logger("atelier.rpc")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Where a server listens and how patient it is."""

    host: str = "127.0.0.1"
    port: int
    metrics_port: int
    health_port: int | None = None
    """Serves nothing but health, in plaintext; None where there is no such port."""
    tls: ServerTls | None = None
    """None listens in plaintext."""
    max_unary_seconds: float = 600.0
    """Uploads count as unary calls: they have one answer."""
    max_stream_seconds: float = 24 * 3600.0
    drain_seconds: float = 0.0
    """Between NOT_SERVING and the closing of the listener."""
    grace_seconds: float = 10.0
    """For calls in flight, after the listener has closed."""
    max_threads: int = 32
    """For handlers that are plain functions."""

    def __post_init__(self) -> None:
        for name in ("port", "metrics_port", "health_port"):
            port = getattr(self, name)
            if port is not None and not 0 < port < 65536:
                raise ValueError(f"{name}: is {port}; allowed are 1 to 65535")
        if self.drain_seconds < 0 or self.grace_seconds < 0:
            raise ValueError("drain_seconds and grace_seconds must not be negative")


class Server:
    """A gRPC server with the scaffold around one or more services.

    Args:
        config: where and how.
        authenticator: knows the callers by their credentials.
        services: descriptors of the services, for health and reflection; what is not among them is not served.
        register: adds their servicers to the server.
    """

    def __init__(
        self,
        config: ServerConfig,
        authenticator: Authenticator,
        services: Sequence[ServiceDescriptor],
        register: Callable[[grpc.aio.Server], None],
    ) -> None:
        self._config = config
        self._service_names = [service.full_name for service in services]
        interceptor = CallInterceptor(
            authenticator,
            self._service_names,
            max_unary_seconds=config.max_unary_seconds,
            max_stream_seconds=config.max_stream_seconds,
        )
        self._server = grpc.aio.server(interceptors=[interceptor], options=_OPTIONS)
        register(self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*self._service_names, *OPEN_SERVICES), self._server)
        self._health_server = grpc.aio.server(options=_OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._health_server)

    async def start(self) -> None:
        """Opens the ports. Health says NOT_SERVING until `set_serving`."""
        config = self._config
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(config.max_threads, thread_name_prefix="handler"))
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        start_http_server(config.metrics_port, addr=config.host)
        if config.tls is None:
            self._server.add_insecure_port(f"{config.host}:{config.port}")
        else:
            self._server.add_secure_port(f"{config.host}:{config.port}", config.tls.credentials())
        if config.health_port is not None:
            self._health_server.add_insecure_port(f"{config.host}:{config.health_port}")
        await self._server.start()
        await self._health_server.start()
        _log.info(
            "listening",
            host=config.host,
            port=config.port,
            tls=config.tls is not None,
            metrics_port=config.metrics_port,
            health_port=config.health_port,
        )

    async def set_serving(self, serving: bool) -> None:
        """Says whether the services take calls, under their own names and for the whole server."""
        code = health_pb2.HealthCheckResponse
        await self._set_health(code.SERVING if serving else code.NOT_SERVING)

    async def drain(self) -> None:
        """Lets the calls in flight finish, then stops."""
        _log.info("draining")
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._config.drain_seconds)
        await self._server.stop(self._config.grace_seconds)
        await self._health_server.stop(0)
        _log.info("stopped")

    async def _set_health(self, code: int) -> None:
        for name in ("", *self._service_names):
            await self._health.set(name, code)


async def serve(
    server: Server,
    *,
    warm_up: Callable[[], Awaitable[None]] | None = None,
    shut_down: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Runs a server until SIGTERM or SIGINT.

    Args:
        warm_up: work between opening the port and SERVING, such as loading a model.
        shut_down: work after the last call has ended.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    await server.start()
    try:
        if warm_up is not None:
            await warm_up()
        await server.set_serving(True)
        await stop.wait()
    finally:
        await server.drain()
        if shut_down is not None:
            await shut_down()
