"""Checks of what is to be published, before a byte of its files is received.

The version's fields are named in errors as the request has them: below `field`, such as `spec.version`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePosixPath

from atelier.errors import InvalidArgumentError, PermissionDeniedError
from atelier.pb.common.v1.common_pb2 import BaseModel, File
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.call import current_call
from atelier.rpc.names import JOB, MAX_PROMPT_CHARACTERS, check_text, shown
from atelier.rpc.uploads import check_files
from services.registry.base_models import check_digest
from services.registry.content import check_kind

# A version has one of these: low-rank updates, learned words, or a whole pipeline.
WEIGHTS = ("pytorch_lora_weights.safetensors", "learned_embeds.safetensors", "model_index.json")
MAX_WEIGHT_FILES = 100
"""Of safetensors. Whole models, cut into shards, have fewer."""
MAX_METRICS = 100
MAX_NAME_CHARACTERS = 63
MAX_TRIGGER_WORDS = 64
MAX_WORD_CHARACTERS = 100


def check_version(version: pb.Version, field: str, *, max_version_bytes: int) -> pb.Version:
    """The version that is to be published, with the fields that the publisher sets and no others."""
    checked = check_facts(version, field)
    _check_files(version.files, f"{field}.files", max_version_bytes)
    checked.files.extend(version.files)
    return checked


def check_facts(version: pb.Version, field: str) -> pb.Version:
    """The same, without its files."""
    _check_base_model(version.base_model, f"{field}.base_model")
    check_text(version.method, f"{field}.method", max_characters=MAX_NAME_CHARACTERS, required=True)
    check_text(version.instance_prompt, f"{field}.instance_prompt", max_characters=MAX_PROMPT_CHARACTERS)
    _check_metrics(version, f"{field}.metrics")
    _check_trigger_words(version.trigger_words, f"{field}.trigger_words")
    return pb.Version(
        base_model=version.base_model,
        method=version.method,
        instance_prompt=version.instance_prompt,
        metrics=version.metrics,
        source_job=_source_job(version.source_job, f"{field}.source_job"),
        trigger_words=sorted(version.trigger_words),
    )


def _check_base_model(base_model: BaseModel, field: str) -> None:
    check_text(base_model.model, f"{field}.model", max_characters=200, required=True)
    check_digest(base_model.digest, f"{field}.digest")


def _check_files(files: Sequence[File], field: str, max_version_bytes: int) -> None:
    check_files(files, field, max_file_bytes=max_version_bytes)
    total_bytes = sum(file.size_bytes for file in files)
    if total_bytes > max_version_bytes:
        raise InvalidArgumentError(field, f"add up to {total_bytes} bytes; at most {max_version_bytes} are allowed")
    weight_files = sum(file.path.endswith(".safetensors") for file in files)
    if weight_files > MAX_WEIGHT_FILES:
        raise InvalidArgumentError(
            field, f"hold {weight_files} safetensors files; at most {MAX_WEIGHT_FILES} are allowed"
        )
    paths = {file.path for file in files}
    for index, file in enumerate(files):
        check_kind(file, f"{field}[{index}]")
        folders = {str(folder) for folder in PurePosixPath(file.path).parents}
        if folders & paths:
            raise InvalidArgumentError(
                f"{field}[{index}].path", f"{shown(file.path)} lies below another file; files hold no files"
            )
    if paths.isdisjoint(WEIGHTS):
        raise InvalidArgumentError(
            field, f"hold no weights; needed is {' or '.join(WEIGHTS)}", reason="WEIGHTS_MISSING"
        )


def _check_metrics(version: pb.Version, field: str) -> None:
    if len(version.metrics) > MAX_METRICS:
        raise InvalidArgumentError(field, f"holds {len(version.metrics)} metrics; at most {MAX_METRICS} are allowed")
    for name, value in version.metrics.items():
        check_text(name, field, max_characters=MAX_NAME_CHARACTERS, required=True)
        if not math.isfinite(value):
            raise InvalidArgumentError(f"{field}[{shown(name)}]", f"is {value}; finite numbers are allowed")


def _check_trigger_words(words: Sequence[str], field: str) -> None:
    if len(words) > MAX_TRIGGER_WORDS:
        raise InvalidArgumentError(field, f"holds {len(words)} words; at most {MAX_TRIGGER_WORDS} are allowed")
    for index, word in enumerate(words):
        where = f"{field}[{index}]"
        check_text(word, where, max_characters=MAX_WORD_CHARACTERS, required=True)
        if word != word.strip():
            raise InvalidArgumentError(where, f"is {shown(word)}; white space at its ends is not allowed")
        if word in words[:index]:
            raise InvalidArgumentError(where, f"is {shown(word)} once more; each word is allowed once")


def _source_job(name: str, field: str) -> str:
    """Only the job itself says that it made a version: the trainer gives each job's worker a token for it."""
    if not name:
        return ""
    job = JOB.parse(name, field)["job"]
    if current_call().subject != f"jobs/{job}":
        raise PermissionDeniedError(
            f"{field}: only the job's own credential, whose subject is jobs/{job}, may name it; leave it out",
            reason="SOURCE_JOB_REFUSED",
            metadata={"job": name},
        )
    return JOB.format(job=job)
