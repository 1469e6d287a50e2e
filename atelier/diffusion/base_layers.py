"""Which layers a base model has, read from the headers of its files: what adapters are compared with. Needs no torch.

Layers have the names by which adapters know them (`base.Base.components()`, `lowrank.weight_shapes`): linear and
convolutional ones, of the denoiser and the text encoders. More layers are listed than Atelier itself would train.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from atelier.diffusion.digest import model_digest
from atelier.diffusion.pipelines import FAMILY_OF_PIPELINE
from atelier.diffusion.safetensors_header import TensorHeader, check_safetensors_header
from atelier.errors import InvalidArgumentError
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.registry.v1.base_models_pb2 import BaseModelDescription, Component, Layer


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyLayout:
    """What adapters of a family act on, and where it lies in the pipeline's folder."""

    components: tuple[str, ...]
    """Prefixes of keys in adapter files: the denoiser, then the text encoders."""
    part_prefix: str = ""
    """Before a component's name it makes the name of its folder."""

    def part_of(self, component: str) -> str:
        """The folder of a component."""
        return f"{self.part_prefix}{component}"


LAYOUTS: Mapping[str, FamilyLayout] = {
    "stable-diffusion": FamilyLayout(components=("unet", "text_encoder")),
    "stable-diffusion-xl": FamilyLayout(components=("unet", "text_encoder", "text_encoder_2")),
    "stable-cascade": FamilyLayout(components=("prior", "text_encoder"), part_prefix="prior_"),
}

_WRAPPER = "text_model."
_UNWRAPPED_CLASS = "CLIPTextModel"
"""From transformers 5.6 on it has no `text_model`, which its files before have; other classes still do."""
_EMBEDDING = re.compile(r"(.+\.)?embeddings\.(token|position)_embedding")
_WEIGHT = ".weight"
# Of diffusers and of transformers; copies in other number types are for folders that have nothing else.
_STEMS = ("diffusion_pytorch_model", "model")
_VARIANTS = ("", ".fp16")


def describe_base(folder: Path, name: str) -> BaseModelDescription:
    """A base model in a diffusers folder, as the registry wants to be told of it.

    Raises:
        InvalidArgumentError: no such folder, a pipeline of no supported family, or weights that are not safetensors.
    """
    index = _read_json(folder / "model_index.json")
    family = FAMILY_OF_PIPELINE.get(index.get("_class_name", ""))
    if family is None:
        _refuse(
            f"{folder.name} is a {str(index.get('_class_name'))[:64]}; supported are {', '.join(FAMILY_OF_PIPELINE)}",
            "BASE_MODEL_NOT_SUPPORTED",
        )
    return BaseModelDescription(
        base_model=BaseModel(model=name, digest=model_digest(folder)),
        family=family,
        components=[
            _component(folder, component, LAYOUTS[family].part_of(component), index)
            for component in LAYOUTS[family].components
        ],
    )


def layer_shapes(tensors: Mapping[str, TensorHeader]) -> dict[str, tuple[int, ...]]:
    """The weights' shapes of the linear and convolutional layers, by name, of a model with these tensors."""
    return {
        name.removesuffix(_WEIGHT): tensor.shape
        for name, tensor in tensors.items()
        if name.endswith(_WEIGHT) and len(tensor.shape) in (2, 4) and not _EMBEDDING.fullmatch(name[: -len(_WEIGHT)])
    }


def name_in_files(layer: str) -> str:
    """A layer's name as all readers of adapters know it; it differs for text encoders without `text_model` alone."""
    return _WRAPPER + layer if layer.startswith("encoder.layers.") else layer


def name_in_model(name: str, layers: Container[str]) -> str:
    """A layer's name in a model that has these layers, by its name in a file."""
    bare = name.removeprefix(_WRAPPER)
    return bare if name not in layers and bare in layers else name


def _component(folder: Path, component: str, part: str, index: Mapping[str, Any]) -> Component:
    tensors = _part_tensors(folder / part)
    if (index.get(part) or [None, None])[1] == _UNWRAPPED_CLASS:
        tensors = {name.removeprefix(_WRAPPER): tensor for name, tensor in tensors.items()}
    embeddings = [t.shape[1] for name, t in tensors.items() if name.endswith("token_embedding.weight")]
    return Component(
        component=component,
        layers=[Layer(name=name, weight_shape=shape) for name, shape in sorted(layer_shapes(tensors).items())],
        embedding_size=embeddings[0] if embeddings else 0,
    )


def _part_tensors(part: Path) -> dict[str, TensorHeader]:
    """Of a part's weights, in one file or in shards that an index lists."""
    for variant in _VARIANTS:
        for stem in _STEMS:
            if (single := part / f"{stem}{variant}.safetensors").is_file():
                return dict(check_safetensors_header(single, field="base_model").tensors)
            if (index := part / f"{stem}.safetensors.index{variant}.json").is_file():
                headers = [check_safetensors_header(path, field="base_model") for path in _shards(index)]
                return {name: tensor for header in headers for name, tensor in header.tensors.items()}
    _refuse(f"{part.parent.name}: its {part.name} has no safetensors weights", "BASE_MODEL_NOT_SAFETENSORS")


def _shards(index: Path) -> list[Path]:
    """The files that an index lists; they lie beside it."""
    names = _read_json(index).get("weight_map", {}).values()
    shards = [index.parent / name for name in sorted(set(names))]
    if not shards or not all(shard.parent == index.parent and shard.is_file() for shard in shards):
        _refuse(f"{index.parent.name}/{index.name} lists shards that are not beside it", "BASE_MODEL_NOT_SAFETENSORS")
    return shards


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        _refuse(f"{path.parent} is not a diffusers model folder: it has no {path.name}", "BASE_MODEL_NOT_FOUND")
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        _refuse(f"{path.parent.name}: its {path.name} is not a JSON object", "BASE_MODEL_NOT_SUPPORTED")
    return content


def _refuse(description: str, reason: str) -> NoReturn:
    raise InvalidArgumentError("base_model", description, reason=reason)
