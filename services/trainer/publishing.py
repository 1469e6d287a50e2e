"""A finished job's adapter goes to the registry: once, however often the job is tried.

A registry that does not know the job's base model makes the job wait: the trainer tells it before the next attempt.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from atelier.client.connection import Endpoint
from atelier.client.registry import RegistryClient
from atelier.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.registry.v1.registry_pb2 import Version
from services.trainer.methods.base import Evaluated
from services.trainer.queue import Assignment

_REQUESTS = uuid.UUID("5d2c2f0e-7d0b-4d38-9d3e-0b6e3c0f7a51")
"""Namespace of the requests' ids, which are made of the jobs' names."""


def publish(
    registry: Endpoint,
    token: str,
    assignment: Assignment,
    files: Mapping[str, bytes | Path],
    evaluated: Evaluated | None,
) -> str:
    """Publishes a version, creating its adapter when needed, and returns its full name.

    An earlier attempt may have published and died before it could say so: that version is the answer then.

    Raises:
        UnavailableError: BASE_MODEL_UNKNOWN, among other reasons.
    """
    with registry.connect(token) as connection:
        client = RegistryClient(connection)
        _create_adapter(client, assignment.adapter)
        if earlier := _published(client, assignment):
            return earlier
        try:
            return _publish(client, assignment, files, evaluated)
        except FailedPreconditionError as error:
            if error.reason != "BASE_MODEL_UNKNOWN":
                raise
            raise UnavailableError(error.message, reason=error.reason) from error


def _publish(
    client: RegistryClient, assignment: Assignment, files: Mapping[str, bytes | Path], evaluated: Evaluated | None
) -> str:
    request_id = str(uuid.uuid5(_REQUESTS, assignment.name))
    version = _version(assignment, evaluated)
    try:
        return client.publish(assignment.adapter, version, files, request_id=request_id).name
    except InvalidArgumentError as error:
        # An attempt that was given up for dead was faster, with other numbers.
        if error.reason == "REQUEST_ID_REUSED" and (published := _published(client, assignment)):
            return published
        raise


def _create_adapter(client: RegistryClient, adapter: str) -> None:
    try:
        client.adapter(adapter)
    except NotFoundError:
        with contextlib.suppress(AlreadyExistsError):  # another job of the tenant may be faster
            client.create_adapter(adapter)


def _published(client: RegistryClient, assignment: Assignment) -> str:
    """Full name of the version that the job has published; empty when it has not."""
    versions = client.versions(assignment.adapter, filter=f'source_job = "{assignment.name}"')
    return next((version.name for version in versions), "")


def _version(assignment: Assignment, evaluated: Evaluated | None) -> Version:
    metrics: dict[str, float] = {}
    if evaluated is not None:
        for prefix, scores in (("", evaluated.adapter), ("base_", evaluated.base)):
            metrics |= {f"{prefix}{name}": value for name, value in asdict(scores).items() if value is not None}
    return Version(
        base_model=BaseModel(model=assignment.base_name, digest=assignment.base_digest),
        method=assignment.method,
        instance_prompt=assignment.instance_prompt,
        metrics=metrics,
        source_job=assignment.name,
    )
