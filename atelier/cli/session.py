"""What every command starts from: where the services are, with which credential, and how to print."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from atelier.client import Connection, InferenceClient, RegistryClient, TrainerClient
from atelier.local.profile import load_profile

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Session:
    """One run of the command line.

    Addresses come from ATELIER_REGISTRY, ATELIER_TRAINER and ATELIER_INFERENCE, and where one is unset from the
    profile that `atelier up` writes. The profile's token goes only to the profile's own services.

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

    def _connect(self, service: str) -> Connection:
        connection = Connection(*_endpoint(service))
        click.get_current_context().call_on_close(connection.channel.close)
        return connection


def _endpoint(service: str) -> tuple[str, str]:
    """Address and token of a service."""
    variable = f"ATELIER_{service.upper()}"
    profile = load_profile() or {}
    address = os.environ.get(variable) or profile.get(service)
    if not address:
        raise click.ClickException(
            f"no address of the {service} service: set {variable} to its HOST:PORT and ATELIER_TOKEN to your token, "
            "or start the services on this machine with `atelier up`"
        )
    own_token = profile.get("token") if address == profile.get(service) else None
    token = os.environ.get("ATELIER_TOKEN") or own_token
    if not token:
        raise click.ClickException(f"no token for the {service} service at {address}: set ATELIER_TOKEN")
    return address, token


def json_option(command: _Command) -> _Command:
    """Adds `--json` to a command."""

    def remember(context: click.Context, _: click.Parameter, value: bool) -> None:
        context.obj.as_json = context.obj.as_json or value

    help_text = "Print one JSON document instead of a table."
    return click.option("--json", is_flag=True, expose_value=False, callback=remember, help=help_text)(command)
