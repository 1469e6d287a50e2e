"""TLS of a server: what it shows, and whom it lets in. A client's is in `atelier.rpc.channel`.

The files are read again when they have changed, so that certificates are renewed without a restart; files that do not
fit together are left alone until they do. Connections that are open stay as they are.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

_log = structlog.get_logger("atelier.rpc")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerTls:
    """What a server shows. PEM files; the certificate's holds its chain."""

    certificate_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    """Authorities of clients' certificates. When given, nobody connects without one (mutual TLS)."""

    def credentials(self) -> grpc.ServerCredentials:
        """For a listener. ValueError or OSError when the files are not fit to start with."""
        files = _WatchedFiles(self)
        return grpc.dynamic_ssl_server_credentials(files.read(), files.changed, self.client_ca_file is not None)


class _WatchedFiles:
    """The files of a ServerTls. gRPC asks for a change at every connection, before the handshake."""

    def __init__(self, tls: ServerTls) -> None:
        self._tls = tls
        self._paths = [tls.certificate_file, tls.key_file, *([tls.client_ca_file] if tls.client_ca_file else [])]
        self._seen = self._state()

    def read(self) -> grpc.ServerCertificateConfiguration:
        """What the files hold."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._tls.certificate_file, self._tls.key_file)
        except ssl.SSLError as error:
            raise ValueError(
                f"{self._tls.certificate_file}, {self._tls.key_file}: no certificate and its key"
            ) from error
        authorities = self._tls.client_ca_file.read_bytes() if self._tls.client_ca_file else None
        pair = (self._tls.key_file.read_bytes(), self._tls.certificate_file.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], authorities)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What the files hold, when they have changed and fit together; None keeps what was read before."""
        try:
            state = self._state()
            if state == self._seen:
                return None
            configuration = self.read()
        except (OSError, ValueError) as error:
            _log.warning("the changed certificate files cannot be used; the earlier ones stay", error=str(error))
            return None
        self._seen = state
        _log.info("certificate files read again")
        return configuration

    def _state(self) -> list[tuple[int, int, int]]:
        found = [path.stat() for path in self._paths]
        return [(each.st_ino, each.st_mtime_ns, each.st_size) for each in found]
