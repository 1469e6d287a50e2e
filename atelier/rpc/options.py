"""Command-line options that every service has; each is also an environment variable, such as ATELIER_REGISTRY_PORT.

Secrets come by file or environment variable, so that no process list shows them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from atelier.client.connection import Endpoint
from atelier.rpc.channel import ClientTls, is_loopback
from atelier.rpc.identity import Authenticator, TokenAuthority, Verifier
from atelier.rpc.oidc import OidcConfig, OidcVerifier
from atelier.rpc.server import ServerConfig
from atelier.rpc.tls import ServerTls
from atelier.storage.blobs import S3Config

_Command = Callable[..., Any]
_PATH = click.Path(path_type=Path)


def _stacked(options: list[_Command], command: _Command) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command


def server_options(command: _Command) -> _Command:
    """Adds what `server_config`, `authority` and `authenticator` read."""
    options = [
        click.option("--host", default="127.0.0.1", show_default=True, help="Interface to listen on."),
        click.option("--port", type=int, required=True, help="Port of the gRPC server."),
        click.option("--metrics-port", type=int, required=True, help="Port of the Prometheus endpoint."),
        click.option("--health-port", type=int, help="Port of health alone, in plaintext, for probes beside TLS."),
        click.option("--tls-certificate-file", type=_PATH, help="PEM file of the certificate and its chain."),
        click.option("--tls-key-file", type=_PATH, help="PEM file of its key. Both are read again when they change."),
        click.option("--tls-client-ca-file", type=_PATH, help="Clients must show a certificate of these authorities."),
        click.option("--signing-key-file", type=_PATH, required=True, help="Key of the services' own tokens."),
        click.option("--oidc-issuer", help="Issuer of an identity provider's tokens, a URL."),
        click.option("--oidc-audience", help="What these tokens must be for."),
        click.option("--oidc-jwks-uri", help="Where the provider's keys are.  [default: discovered]"),
        click.option("--oidc-tenant-claim", default="tenant", show_default=True, help="Claim with the tenant."),
        click.option("--oidc-scope-claim", default="scope", show_default=True, help="Claim with the scopes."),
        click.option("--drain-seconds", type=float, default=0.0, help="From NOT_SERVING to the closed listener."),
        click.option("--grace-seconds", type=float, default=10.0, help="For calls in flight after that."),
        click.option("--max-unary-seconds", type=float, default=600.0, help="For a call with one answer; uploads too."),
    ]
    return _stacked(options, command)


def registry_options(command: _Command) -> _Command:
    """Adds what `registry_endpoint` reads."""
    options = [
        click.option("--registry", required=True, metavar="HOST:PORT", help="The registry."),
        click.option("--registry-ca-file", type=_PATH, help="PEM file: speak TLS to the registry, trust these."),
        click.option("--registry-certificate-file", type=_PATH, help="PEM file to show the registry."),
        click.option("--registry-key-file", type=_PATH, help="PEM file of its key."),
        click.option("--registry-plaintext", is_flag=True, help="Tokens may go to another machine without TLS."),
    ]
    return _stacked(options, command)


def s3_options(command: _Command) -> _Command:
    """Adds what `s3_config` reads."""
    options = [
        click.option("--s3-endpoint", required=True, help="host:port of the S3 server."),
        click.option("--s3-bucket", default="atelier", show_default=True, help="Bucket, created when missing."),
        click.option("--s3-access-key", required=True, help="Better given by environment variable."),
        click.option("--s3-secret-key", required=True, help="Better given by environment variable."),
        click.option("--s3-secure/--no-s3-secure", default=False, help="TLS to the S3 server."),
    ]
    return _stacked(options, command)


def spool_option(command: _Command) -> _Command:
    """Adds `spool_folder`, which the service creates."""
    help_text = "Where temporary files lie."
    default = tempfile.gettempdir()
    return click.option("--spool-folder", type=_PATH, default=default, show_default=True, help=help_text)(command)


def server_config(values: dict[str, Any]) -> ServerConfig:
    """The server's configuration out of a command's values."""
    names = ("host", "port", "metrics_port", "health_port", "drain_seconds", "grace_seconds", "max_unary_seconds")
    return ServerConfig(**{name: values[name] for name in names}, tls=_server_tls(values))


def _server_tls(values: dict[str, Any]) -> ServerTls | None:
    certificate, key, client_ca = (values[f"tls_{name}_file"] for name in ("certificate", "key", "client_ca"))
    if certificate and key:
        return ServerTls(certificate_file=certificate, key_file=key, client_ca_file=client_ca)
    if certificate or key or client_ca:
        raise click.UsageError("TLS needs --tls-certificate-file and --tls-key-file")
    return None


def authority(values: dict[str, Any]) -> TokenAuthority:
    """The token authority out of a command's values."""
    return TokenAuthority.from_file(values["signing_key_file"])


def authenticator(values: dict[str, Any], random_tokens: Verifier) -> Authenticator:
    """What knows callers, out of a command's values and the service's own way to verify random tokens."""
    issuer, audience = values["oidc_issuer"], values["oidc_audience"]
    oidc = None
    if issuer or audience:
        if not (issuer and audience):
            raise click.UsageError("OIDC needs --oidc-issuer and --oidc-audience")
        names = ("issuer", "audience", "jwks_uri", "tenant_claim", "scope_claim")
        oidc = OidcVerifier(OidcConfig(**{name: values[f"oidc_{name}"] for name in names}))
    return Authenticator(authority(values), random_tokens, oidc)


def registry_endpoint(values: dict[str, Any]) -> Endpoint:
    """Where the registry is, and how it is spoken to, out of a command's values."""
    ca, certificate, key = (values[f"registry_{name}_file"] for name in ("ca", "certificate", "key"))
    if (certificate or key) and not ca:
        raise click.UsageError("--registry-certificate-file and --registry-key-file need --registry-ca-file")
    if not (ca or values["registry_plaintext"] or is_loopback(values["registry"])):
        raise click.UsageError("a registry on another machine needs --registry-ca-file, or --registry-plaintext")
    return Endpoint(
        address=values["registry"],
        tls=ClientTls(ca_file=ca, certificate_file=certificate, key_file=key) if ca else None,
        allow_plaintext=values["registry_plaintext"],
    )


def s3_config(values: dict[str, Any]) -> S3Config:
    """The S3 configuration out of a command's values."""
    names = ("endpoint", "bucket", "access_key", "secret_key", "secure")
    return S3Config(**{name: values[f"s3_{name}"] for name in names})


def base_option(command: _Command) -> _Command:
    """Adds what `bases` reads."""
    help_text = "A base model's name, and its diffusers folder or Hub id; may be repeated, the first is the default."
    return click.option("--base", multiple=True, required=True, metavar="NAME=PATH", help=help_text)(command)


def bases(values: dict[str, Any]) -> dict[str, Path]:
    """The base models' folders by name out of a command's values; what is on the Hub is brought here."""
    from atelier.diffusion.hub import find_model  # not at the top: the registry needs no models

    return {name: find_model(str(path)) for name, path in named_folders(values["base"], "--base").items()}


def named_folders(entries: Sequence[str], option: str) -> dict[str, Path]:
    """Folders by name out of an option's `NAME=PATH` values."""
    folders: dict[str, Path] = {}
    for entry in entries:
        name, separator, path = entry.partition("=")
        if not (name and separator and path):
            raise click.BadParameter(f"{entry!r} is not of the form NAME=PATH", param_hint=option)
        if name in folders:
            raise click.BadParameter(f"{name!r} is there twice", param_hint=option)
        folders[name] = Path(path)
    return folders
