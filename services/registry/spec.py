"""Checks of a publish request's first message, before a byte of its files is received."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from atelier.errors import InvalidArgumentError
from atelier.pb.common.v1.common_pb2 import BaseModel, File
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import JOB, MAX_PROMPT_CHARACTERS, check_text, shown
from atelier.rpc.uploads import check_files
from services.registry.content import check_kind

FILES_FIELD = "spec.version.files"
# A version has one of these: low-rank updates, learned words, or a whole pipeline.
WEIGHTS = ("pytorch_lora_weights.safetensors", "learned_embeds.safetensors", "model_index.json")
MAX_METRICS = 100
MAX_NAME_CHARACTERS = 63
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def check_version(version: pb.Version, *, max_version_bytes: int) -> pb.Version:
    """The version that is to be published, with the fields that the publisher sets and no others."""
    _check_base_model(version.base_model)
    check_text(version.method, "spec.version.method", max_characters=MAX_NAME_CHARACTERS, required=True)
    check_text(version.instance_prompt, "spec.version.instance_prompt", max_characters=MAX_PROMPT_CHARACTERS)
    _check_files(version.files, max_version_bytes)
    _check_metrics(version)
    return pb.Version(
        base_model=version.base_model,
        method=version.method,
        instance_prompt=version.instance_prompt,
        files=version.files,
        metrics=version.metrics,
        source_job=_source_job(version.source_job),
    )


def _check_base_model(base_model: BaseModel) -> None:
    check_text(base_model.model, "spec.version.base_model.model", max_characters=200, required=True)
    if not _DIGEST.fullmatch(base_model.digest):
        raise InvalidArgumentError(
            "spec.version.base_model.digest",
            f"is {shown(base_model.digest)}; it must be `sha256:` and 64 lower-case hexadecimal digits",
        )


def _check_files(files: Sequence[File], max_version_bytes: int) -> None:
    check_files(files, FILES_FIELD, max_file_bytes=max_version_bytes)
    total_bytes = sum(file.size_bytes for file in files)
    if total_bytes > max_version_bytes:
        raise InvalidArgumentError(
            FILES_FIELD, f"add up to {total_bytes} bytes; at most {max_version_bytes} are allowed"
        )
    paths = {file.path for file in files}
    for index, file in enumerate(files):
        check_kind(file, f"{FILES_FIELD}[{index}]")
        folders = {str(folder) for folder in PurePosixPath(file.path).parents}
        if folders & paths:
            raise InvalidArgumentError(
                f"{FILES_FIELD}[{index}].path", f"{shown(file.path)} lies below another file; files hold no files"
            )
    if paths.isdisjoint(WEIGHTS):
        raise InvalidArgumentError(
            FILES_FIELD, f"hold no weights; needed is {' or '.join(WEIGHTS)}", reason="WEIGHTS_MISSING"
        )


def _check_metrics(version: pb.Version) -> None:
    if len(version.metrics) > MAX_METRICS:
        raise InvalidArgumentError(
            "spec.version.metrics", f"holds {len(version.metrics)} metrics; at most {MAX_METRICS} are allowed"
        )
    for name, value in version.metrics.items():
        check_text(name, "spec.version.metrics", max_characters=MAX_NAME_CHARACTERS, required=True)
        if not math.isfinite(value):
            raise InvalidArgumentError(
                f"spec.version.metrics[{shown(name)}]", f"is {value}; finite numbers are allowed"
            )


def _source_job(name: str) -> str:
    return JOB.format(job=JOB.parse(name, "spec.version.source_job")["job"]) if name else ""
