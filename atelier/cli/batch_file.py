"""Batch files: many training jobs in one YAML document.

    defaults:                     # optional; a job's own fields go before them
      method: dreambooth-lora
      config: {rank: 8}
    jobs:
      - dataset: fox
        adapter: fox
        instance_prompt: a photo of a sks fox
        concepts:                 # further subjects in the same adapter
          - {dataset: cat, instance_prompt: a photo of a zwx cat, repeats: 2}

A job has the fields below; `method`, `dataset` and `adapter` must come from it or from the defaults. Only names and
types are checked here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from atelier.cli.values import set_concept_field, set_hyperparameter
from atelier.client.trainer import dataset_name
from atelier.errors import InvalidArgumentError
from atelier.nearest import did_you_mean
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.trainer.v1.trainer_pb2 import Concept, Job, TrainingConfig

REQUIRED_FIELDS = ("method", "dataset", "adapter")
TEXT_FIELDS = (*REQUIRED_FIELDS, "base", "instance_prompt", "class_prompt", "recipe", "placeholder_token")
JOB_FIELDS = (*TEXT_FIELDS, "validation_prompts", "concepts", "config")


def read_batch_file(path: Path) -> list[Job]:
    """The jobs of a batch file.

    Raises:
        InvalidArgumentError: not YAML, or a wrong field; names its path in the document, such as `jobs[2].config.rank`.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(str(path), f"is not YAML: {' '.join(str(error).split())}") from error
    document = _mapping(document, str(path), ("defaults", "jobs"))
    defaults = _fields(document.get("defaults") or {}, "defaults")
    entries = document.get("jobs")
    if not isinstance(entries, list) or not entries:
        raise InvalidArgumentError("jobs", "must be a list of at least one job")
    return [_job(defaults, _fields(entry, f"jobs[{i}]"), f"jobs[{i}]") for i, entry in enumerate(entries)]


def _mapping(value: Any, where: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidArgumentError(where, f"must be a mapping with the keys {', '.join(allowed)}")
    for key in value:
        if key not in allowed:
            near = did_you_mean(key, allowed)
            raise InvalidArgumentError(f"{where}.{key}", f"is unknown; {near}there are {', '.join(allowed)}")
    return value


def _fields(value: Any, where: str) -> dict[str, Any]:
    """A job's fields, each of its type; `concepts` and `config` as messages."""
    fields = dict(_mapping(value, where, JOB_FIELDS))
    for name in TEXT_FIELDS:
        if not isinstance(fields.get(name, ""), str):
            raise InvalidArgumentError(f"{where}.{name}", f"is {fields[name]!r}; it takes text")
    prompts = fields.get("validation_prompts", [])
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidArgumentError(f"{where}.validation_prompts", "must be a list of texts")
    concepts = fields.get("concepts") or []
    if not isinstance(concepts, list):
        raise InvalidArgumentError(f"{where}.concepts", "must be a list of mappings")
    if concepts:
        fields["concepts"] = [_concept(each, f"{where}.concepts[{i}]") for i, each in enumerate(concepts)]
    fields["config"] = _config(fields.get("config") or {}, f"{where}.config")
    return fields


def _config(value: Any, where: str) -> TrainingConfig:
    if not isinstance(value, dict):
        raise InvalidArgumentError(where, "must be a mapping of hyperparameters")
    config = TrainingConfig()
    for name, setting in value.items():
        try:
            set_hyperparameter(config, str(name), setting)
        except ValueError as error:
            raise InvalidArgumentError(f"{where}.{name}", str(error)) from error
    return config


def _concept(value: Any, where: str) -> Concept:
    if not isinstance(value, dict) or not value.get("dataset"):
        raise InvalidArgumentError(where, "must be a mapping with a dataset")
    concept = Concept()
    for name, setting in value.items():
        try:
            set_concept_field(concept, str(name), setting)
        except ValueError as error:
            raise InvalidArgumentError(f"{where}.{name}", str(error)) from error
    return concept


def _job(defaults: dict[str, Any], own: dict[str, Any], where: str) -> Job:
    fields = {**defaults, **own}
    for name in REQUIRED_FIELDS:
        if not fields.get(name):
            raise InvalidArgumentError(f"{where}.{name}", "is missing, and the defaults have none")
    config = TrainingConfig()
    config.CopyFrom(defaults["config"])
    config.MergeFrom(own["config"])
    return Job(
        method=fields["method"],
        dataset=dataset_name(fields["dataset"]),
        adapter=fields["adapter"],
        base_model=BaseModel(model=fields.get("base", "")),
        instance_prompt=fields.get("instance_prompt", ""),
        class_prompt=fields.get("class_prompt", ""),
        validation_prompts=fields.get("validation_prompts", []),
        config=config,
        recipe=fields.get("recipe", ""),
        placeholder_token=fields.get("placeholder_token", ""),
        concepts=fields.get("concepts", []),
    )
