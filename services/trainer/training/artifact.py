"""What a student has learnt, as the files that plain diffusers loads.

- low-rank updates: `pytorch_lora_weights.safetensors`;
- learned words: `learned_embeds.safetensors`;
- all weights of a model: a whole pipeline folder, in the base's number type, and beside it the low-rank update that
  comes closest to it, in `lora/`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from atelier.diffusion import words
from atelier.diffusion.adapter_file import FILE_NAME, write_adapter_file
from atelier.diffusion.base import Base
from atelier.diffusion.extraction import explained, extract_low_rank
from atelier.diffusion.lowrank import LayerSelection
from atelier.json_paths import find_absolute_path, without_absolute_paths
from services.trainer.training.student import Student

EXTRACTION_FOLDER = "lora"
_EXTRACTION_RANK = 32
# Configurations, tokenizers and weights: what else lies in a base's folder, pickles above all, is not published.
_PUBLISHED_SUFFIXES = (".json", ".txt", ".safetensors")


def write_artifact(student: Student, folder: Path) -> dict[str, Any]:
    """Writes the files into an empty folder; returns what was measured on the way."""
    if factors := student.factors():
        (folder / FILE_NAME).write_bytes(write_adapter_file(factors))
    if tables := student.tables():
        (folder / words.FILE_NAME).write_bytes(words.write_words_file(tables))
    if not student.models():
        return {}
    with student.acting(training=False):  # the moving averages, where there are any
        _write_pipeline(student.bare, student.models(), folder)
        return _write_extraction(student.bare, student.models(), folder / EXTRACTION_FOLDER)


def artifact_files(folder: Path) -> dict[str, Path]:
    """The files of a folder by their paths in it."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _write_pipeline(base: Base, models: Mapping[str, nn.Module], folder: Path) -> None:
    """The base's folder with some of its models exchanged; files that no part of the pipeline needs stay behind."""
    index = json.loads((base.path / "model_index.json").read_text())
    shutil.copyfile(base.path / "model_index.json", folder / "model_index.json")
    parts = {base.part_of(component): model for component, model in models.items()}
    for part in (part for part in index if (base.path / part).is_dir()):
        if part not in parts:
            shutil.copytree(base.path / part, folder / part, ignore=_unpublished)
            continue
        model: Any = parts[part]
        # A copy: saving must not change the number type of what may go on training.
        saved = type(model).from_pretrained(
            base.path / part, use_safetensors=True, local_files_only=True, dtype=base.dtype
        )
        saved.load_state_dict(model.state_dict())
        saved.save_pretrained(folder / part, safe_serialization=True)
        # The base's own: the library's names the folder that the base was loaded from.
        shutil.copyfile(base.path / part / "config.json", folder / part / "config.json")
    for extra in base.path.glob("effnet_encoder*"):  # no part of Stable Cascade's pipeline, but of a base for training
        if extra.is_dir():
            shutil.copytree(extra, folder / extra.name, ignore=_unpublished)
        elif extra.name.endswith(_PUBLISHED_SUFFIXES):
            shutil.copyfile(extra, folder / extra.name)
    _remove_absolute_paths(folder)


def _remove_absolute_paths(folder: Path) -> None:
    """Many bases tell in their configurations where they were loaded from; the registry refuses such."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        if find_absolute_path(content) is not None:
            path.write_text(json.dumps(without_absolute_paths(content), indent=2) + "\n")


def _unpublished(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_file() and not name.endswith(_PUBLISHED_SUFFIXES)]


def _write_extraction(base: Base, models: Mapping[str, nn.Module], folder: Path) -> dict[str, Any]:
    components = base.components()
    factors = {}
    for name, model in models.items():
        selection: LayerSelection = "attention" if name.startswith("text_encoder") else "all"
        factors[name] = extract_low_rank(components[name], model, selection, _EXTRACTION_RANK)
    folder.mkdir()
    (folder / FILE_NAME).write_bytes(write_adapter_file(factors))
    shares = {name: explained(components[name], model, factors[name]) for name, model in models.items()}
    return {"extraction": {"rank": _EXTRACTION_RANK, "explained": shares}}
