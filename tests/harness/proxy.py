"""A TCP proxy that loses what a server answers, or cannot be reached for a while."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 65536


class Proxy:
    """Forwards connections to a port of this machine; a context manager."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._loses_answers = threading.Event()
        self._turned_away = 0
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut()

    def lose_answers(self) -> None:
        """From now on nothing comes back from the server."""
        self._loses_answers.set()

    def break_off(self, *, turned_away: int) -> None:
        """Ends all connections. The next so many are ended at once, those after them are forwarded, answers too."""
        self._turned_away = turned_away
        self._cut()
        self._loses_answers.clear()

    def _cut(self) -> None:
        for each in self._open:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended by itself
                continue
        self._open.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._turned_away:
                self._turned_away -= 1
                client.close()
                continue
            server = socket.create_connection(self._target)
            self._open += [client, server]
            threading.Thread(target=self._forward, args=(client, server, None), daemon=True).start()
            threading.Thread(target=self._forward, args=(server, client, self._loses_answers), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, loses: threading.Event | None) -> None:
        try:
            while chunk := source.recv(_CHUNK_BYTES):
                if loses is None or not loses.is_set():
                    target.sendall(chunk)
        except OSError:  # it was cut
            pass
