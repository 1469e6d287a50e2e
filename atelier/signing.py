"""Signatures over versions' manifests: Ed25519 over DSSE's pre-authentication encoding.

A registry signs what it publishes with one private key; whoever uses a version trusts some public keys, more than one
while a key is being replaced. What is promised: a version that passes `require` is, in every field of its manifest and
so in every byte of its files, what a registry with a trusted key published. What is not: that it is the newest, or that
its adapter's name belongs to it; the manifest names neither.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from atelier.errors import DataLossError, FailedPreconditionError
from atelier.manifest import canonical_manifest, digest_of
from atelier.pb.registry.v1 import registry_pb2 as pb

PAYLOAD_TYPE = b"application/vnd.atelier.adapter.v1+json"


class Policy(StrEnum):
    """What happens to a version without a good signature by a trusted key."""

    OFF = "off"
    """Signatures are not looked at."""
    WARN = "warn"
    """It is used; whoever asked for the check is told."""
    REQUIRE = "require"
    """It is refused."""


class Check(StrEnum):
    """What a version's signatures were found to be."""

    VALID = "valid"
    MISSING = "missing"
    """None is by a trusted key."""
    INVALID = "invalid"
    """One is by a trusted key, but not over this manifest."""
    OFF = "off"
    """They were not looked at."""


class Signer:
    """Signs manifests with a key; without one, makes no signatures."""

    def __init__(self, key: Ed25519PrivateKey | None = None) -> None:
        self._key = key

    @classmethod
    def from_file(cls, path: Path) -> Signer:
        """Reads the private key, in PEM without a password."""
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(f"{path} holds no Ed25519 private key in PEM; `atelier signing-key create` makes one")
        return cls(key)

    def sign(self, manifest: bytes) -> list[pb.Signature]:
        """The signatures that a version with this manifest gets."""
        if self._key is None:
            return []
        signature = self._key.sign(pre_authentication_encoding(manifest))
        return [pb.Signature(key_id=key_id(self._key.public_key()), signature=signature)]


class Verifier:
    """Checks versions before they are used."""

    def __init__(self, keys: Sequence[Ed25519PublicKey], policy: Policy) -> None:
        if policy != Policy.OFF and not keys:
            raise ValueError(f"signature_policy: is {policy}, but no key is trusted; name one, or choose {Policy.OFF}")
        self._keys = {key_id(key): key for key in keys}
        self._policy = policy

    @classmethod
    def from_files(cls, paths: Sequence[Path], policy: Policy) -> Verifier:
        """Reads the public keys, one a file, in PEM."""
        return cls([_public_key(path) for path in paths], policy)

    def check(self, version: pb.Version) -> Check:
        """What a version's signatures are. DataLossError when its digest is not that of its manifest."""
        manifest = canonical_manifest(version)
        if digest_of(manifest) != version.digest:
            raise DataLossError(
                f"{version.name} is not what its digest {version.digest} says", metadata={"version": version.name}
            )
        return Check.OFF if self._policy == Policy.OFF else self._check(manifest, version.signatures)

    def enforce(self, version: pb.Version, found: Check) -> None:
        """Refuses what the policy does not allow.

        Raises:
            DataLossError: a trusted key's signature is not over this version.
            FailedPreconditionError: no signature is by a trusted key.
        """
        if self._policy != Policy.REQUIRE:
            return
        if found == Check.INVALID:
            raise DataLossError(
                f"a signature of {version.name} is not over what the version says it is; it was changed since",
                reason="SIGNATURE_INVALID",
                metadata={"version": version.name},
            )
        if found == Check.MISSING:
            raise FailedPreconditionError(
                f"{version.name} has no signature by a trusted key; publish its files again as a new version, or trust "
                "the key of the registry that published it",
                reason="SIGNATURE_MISSING",
                metadata={"version": version.name},
            )

    def _check(self, manifest: bytes, signatures: Sequence[pb.Signature]) -> Check:
        found = Check.MISSING
        for each in signatures:
            key = self._keys.get(each.key_id)
            if key is not None:
                try:
                    key.verify(each.signature, pre_authentication_encoding(manifest))
                except InvalidSignature:
                    return Check.INVALID
                found = Check.VALID
        return found


def pre_authentication_encoding(manifest: bytes) -> bytes:
    """The bytes that are signed (DSSE, version 1): type and content cannot be confused."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE, len(manifest), manifest)


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key's raw bytes, in hexadecimal digits."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def public_key_path(path: Path) -> Path:
    """Where the public key lies beside a private key."""
    return path.with_name(f"{path.name}.pub")


def create_key_files(path: Path) -> str:
    """Writes a fresh private key, which only the owner can read, and its public key beside it.

    Returns:
        The key's id.

    Raises:
        FileExistsError: there is a key already; it is left alone.
    """
    key = Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key()
    public_key_path(path).write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return key_id(public)


def _public_key(path: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(path.read_bytes())
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"{path} holds no Ed25519 public key in PEM; `atelier signing-key create` writes it to *.pub")
    return key
