"""A finished job's adapter goes to the registry: once, however often the job is tried."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from atelier.client.connection import Connection
from atelier.client.registry import RegistryClient
from atelier.errors import AlreadyExistsError, NotFoundError
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.registry.v1.registry_pb2 import Version
from services.trainer.methods.base import Evaluated
from services.trainer.queue import Assignment


def publish(
    registry: str, token: str, assignment: Assignment, files: Mapping[str, bytes | Path], evaluated: Evaluated | None
) -> str:
    """Publishes a version, creating its adapter when needed, and returns its full name.

    An earlier attempt may have published and died before it could say so: that version is the answer then.
    """
    with Connection(registry, token) as connection:
        client = RegistryClient(connection)
        try:
            client.adapter(assignment.adapter)
        except NotFoundError:
            with contextlib.suppress(AlreadyExistsError):  # another job of the tenant may be faster
                client.create_adapter(assignment.adapter)
        for version in client.versions(assignment.adapter):
            if version.source_job == assignment.name:
                return version.name
        return client.publish(assignment.adapter, _version(assignment, evaluated), files).name


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
