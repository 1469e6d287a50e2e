"""What every command starts from: where the services are, with which credential, and how to print."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from atelier.client import ClientTls, Connection, InferenceClient, RegistryClient, TokenClient, TrainerClient
from atelier.client.base_models import BaseModelClient
from atelier.client.connection import Endpoint
from atelier.client.maintenance import MaintenanceClient
from atelier.local.profile import load_profile

CLOSE_SECONDS = 2.0
_Command = TypeVar("_Command", bound=Callable[..., Any])


class Session:
    """One run of the command line.

    Addresses come from ATELIER_REGISTRY, ATELIER_TRAINER and ATELIER_INFERENCE, and where one is unset from the
    profile that `atelier up` writes. The profile's token goes only to the profile's own services, which speak no TLS;
    others do where ATELIER_CA_FILE names their authorities, and get no token without it unless
    ATELIER_ALLOW_PLAINTEXT=1 says that the network is protected.

    Args:
        as_json: print one JSON document on standard output instead of a table.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    @property
    def registry(self) -> RegistryClient:
        """A client of the registry."""
        return RegistryClient(self._connect("registry"))

    @property
    def trainer(self) -> TrainerClient:
        """A client of the trainer."""
        return TrainerClient(self._connect("trainer"))

    @property
    def inference(self) -> InferenceClient:
        """A client of the inference service."""
        return InferenceClient(self._connect("inference"))

    @property
    def tokens(self) -> TokenClient:
        """A client of the registry's tokens."""
        return TokenClient(self._connect("registry"))

    @property
    def base_models(self) -> BaseModelClient:
        """A client of the registry's base models."""
        return BaseModelClient(self._connect("registry"))

    @property
    def maintenance(self) -> MaintenanceClient:
        """A client of the registry's maintenance."""
        return MaintenanceClient(self._connect("registry"))

    def _connect(self, service: str) -> Connection:
        endpoint, token = _find(service)
        connection = endpoint.connect(token)
        click.get_current_context().call_on_close(lambda: _close(connection))
        return connection


def _close(connection: Connection) -> None:
    """Ends the connection and its calls.

    Ctrl-C may hit gRPC just where it takes the event for which closing then waits for ever: so it is waited for in a
    thread of its own, for a moment only. The calls are cancelled before that wait.
    """
    closing = threading.Thread(target=connection.channel.close, daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS)


def _find(service: str) -> tuple[Endpoint, str]:
    """A service, and the token for it."""
    variable = f"ATELIER_{service.upper()}"
    profile = load_profile() or {}
    address = os.environ.get(variable) or profile.get(service)
    if not address:
        raise click.ClickException(
            f"no address of the {service} service: set {variable} to its HOST:PORT and ATELIER_TOKEN to your token, "
            "or start the services on this machine with `atelier up`"
        )
    is_own = address == profile.get(service)
    token = os.environ.get("ATELIER_TOKEN") or (profile.get("token") if is_own else None)
    if not token:
        raise click.ClickException(f"no token for the {service} service at {address}: set ATELIER_TOKEN")
    if is_own:
        return Endpoint(address=address), token
    allow_plaintext = os.environ.get("ATELIER_ALLOW_PLAINTEXT") == "1"
    return Endpoint(address=address, tls=_tls(), allow_plaintext=allow_plaintext), token


def _tls() -> ClientTls | None:
    ca, certificate, key = (
        Path(value) if (value := os.environ.get(f"ATELIER_{name}_FILE")) else None
        for name in ("CA", "CERTIFICATE", "KEY")
    )
    if (certificate is None) != (key is None) or (certificate and not ca):
        raise click.ClickException("ATELIER_CERTIFICATE_FILE, ATELIER_KEY_FILE and ATELIER_CA_FILE go together")
    return ClientTls(ca_file=ca, certificate_file=certificate, key_file=key) if ca else None


def json_option(command: _Command) -> _Command:
    """Adds `--json` to a command."""

    def remember(context: click.Context, _: click.Parameter, value: bool) -> None:
        context.obj.as_json = context.obj.as_json or value

    help_text = "Print one JSON document instead of a table."
    return click.option("--json", is_flag=True, expose_value=False, callback=remember, help=help_text)(command)
