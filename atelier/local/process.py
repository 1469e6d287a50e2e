"""Child processes that do not outlive their parent.

Each child is the leader of its own process group, writes to its own log file, and is asked by the kernel to end
when the thread that started it dies (see `leash`), so that even `kill -9` of the parent leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from atelier.errors import InternalError

_LOG_TAIL_BYTES = 2000
_LEASH = Path(__file__).parent / "leash.py"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on now; another program may still take one."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def is_port_free(port: int) -> bool:
    """Whether nobody listens on this port of the loopback interface."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def wait_until(condition: Callable[[], bool], *, timeout_seconds: float, what: str) -> None:
    """Returns when `condition()` holds; raises InternalError when it does not in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise InternalError(f"{what}: not within {timeout_seconds:.0f} s", reason="START_TIMEOUT")
        time.sleep(0.05)


class ManagedProcess:
    """A program that runs until it is stopped.

    Args:
        name: for messages.
        command: program and arguments.
        log_path: gets standard output and error, appended.
        env: environment variables beside the parent's own.
    """

    def __init__(self, name: str, command: Sequence[str], log_path: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log_path = log_path
        self._command = [str(part) for part in command]
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the program."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-E", str(_LEASH), str(os.getpid()), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the program; it must have been started."""
        assert self._process is not None
        return self._process.pid

    def check_alive(self) -> None:
        """Raises InternalError with the end of the log when the program has ended."""
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            raise InternalError(f"{self.name} ended with status {code}:\n{self.log_tail()}", reason="PROCESS_ENDED")

    def log_tail(self) -> str:
        """The last lines of the log."""
        content = self.log_path.read_bytes() if self.log_path.exists() else b""
        return content[-_LOG_TAIL_BYTES:].decode(errors="replace")

    def stop(self, *, grace_seconds: float = 15.0) -> None:
        """Asks the program and its descendants to end, waits, and kills what is left."""
        if self._process is None:
            return
        family = _family(self._process.pid)
        if self._process.poll() is None:
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_seconds)
        _, alive = psutil.wait_procs(family, timeout=1.0)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=5.0)
        self._process.wait()


def _family(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return []
