"""A Ray cluster of one node on loopback, with token authentication.

Ray's sockets need a short path, so its session folder lies in the system's temporary folder; it holds nothing that
must last.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from atelier.local.process import ManagedProcess, free_ports, wait_until

START_SECONDS = 90.0
THREAD_ENV = {"OMP_WAIT_POLICY": "passive"}
"""Processes that share few cores must not spin while they wait: spinning made training steps many times slower."""


class RayCluster:
    """Ray's head node as a child process.

    Args:
        folder: for the token and the log.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        token_path = folder / "token"
        if not token_path.exists():
            token_path.touch(mode=0o600)
            token_path.write_text(secrets.token_hex(32))
        self.env = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_path),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: keeps every listener on loopback
        }
        """What every program that speaks to this cluster needs in its environment."""
        self._session_folder = Path(tempfile.gettempdir()) / f"atelier-ray-{os.getpid()}-{secrets.token_hex(3)}"
        self._port, client_port, agent_port = free_ports(3)
        command = self._command(client_port, agent_port)
        workers_env = {**self.env, **THREAD_ENV}
        self._process = ManagedProcess("Ray", command, folder / "ray.log", workers_env)

    @property
    def address(self) -> str:
        """`host:port` of the head node."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Process id of the head node; the workers descend from it."""
        return self._process.pid

    def _command(self, client_port: int, agent_port: int) -> list[str]:
        flags = {
            "node-ip-address": "127.0.0.1",
            "port": self._port,
            "ray-client-server-port": client_port,
            "dashboard-agent-listen-port": agent_port,
            "include-dashboard": "false",
            "temp-dir": self._session_folder,
            "object-store-memory": 200_000_000,
        }
        ray = Path(sys.executable).parent / "ray"
        return [str(ray), "start", "--head", "--block", *(f"--{name}={value}" for name, value in flags.items())]

    def start(self) -> None:
        """Starts the node and waits until it takes connections."""
        self._process.start()
        wait_until(self._listens, timeout_seconds=START_SECONDS, what="Ray answers")

    def _listens(self) -> bool:
        self._process.check_alive()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def stop(self) -> None:
        """Stops the node and everything that it started."""
        self._process.stop()
        shutil.rmtree(self._session_folder, ignore_errors=True)

    def check_alive(self) -> None:
        """Raises InternalError when the node has ended."""
        self._process.check_alive()
