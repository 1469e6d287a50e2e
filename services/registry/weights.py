"""Whether a version's weights fit its base model, and what they are: read from the headers of its files alone.

A version that would be loaded in part, or on layers of another shape, is refused: no base model says so itself, and
what comes out of it looks like a picture all the same. The numbers are `content`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NoReturn

from atelier.diffusion.base_layers import LAYOUTS, layer_shapes, name_in_model
from atelier.diffusion.formats import diffusers_form, word_forms
from atelier.diffusion.formats.diffusers_form import adapter_layers, require_unit_scale
from atelier.diffusion.safetensors_header import SafetensorsHeader, TensorHeader
from atelier.errors import InvalidArgumentError
from atelier.pb.registry.v1 import registry_pb2 as pb
from services.registry.base_models import KnownBase

MAX_PUBLISHED_RANK = 1024
"""More than inference has room for in a slot (`low_rank.MAX_SLOT_RANK`): other programs load what is published, too."""
MAX_VECTORS = 1024
_FLOATS = ("F32", "F16", "BF16")
_EXTRACTION = f"lora/{diffusers_form.FILE_NAME}"
"""The trainer puts it beside a whole model: the low-rank update that comes closest."""
_EXTRA_PART = "effnet_encoder.safetensors"
"""Of Stable Cascade, published outside any folder."""
_MAX_SHOWN = 3


def summarize(headers: Mapping[str, SafetensorsHeader], base: KnownBase, field: str) -> list[pb.WeightsSummary]:
    """What the weights do to each component of the base model.

    Args:
        headers: of the version's safetensors files, by path.
        field: the request's field that errors name.

    Raises:
        InvalidArgumentError: they do not fit the base model, or there are none.
    """
    summaries: list[pb.WeightsSummary] = []
    parts: dict[str, list[SafetensorsHeader]] = {}
    for path, header in sorted(headers.items()):
        if path in (diffusers_form.FILE_NAME, _EXTRACTION):
            summaries += _low_rank(header, base, path, field)
        elif path == word_forms.FILE_NAME:
            summaries += _embeddings(header, base, path, field)
        elif len(PurePosixPath(path).parts) == 2:
            parts.setdefault(PurePosixPath(path).parts[0], []).append(header)
        elif path != _EXTRA_PART:
            _refuse(
                field,
                f"hold {path}, which nothing loads; weights are {diffusers_form.FILE_NAME}, {word_forms.FILE_NAME}, "
                f"{_EXTRACTION}, or in the folders of a pipeline",
                "WEIGHTS_UNKNOWN",
            )
    if parts:
        summaries += _full(parts, base, field)
    if not summaries:
        _refuse(field, "hold no weights of any component of the base model", "WEIGHTS_MISSING")
    return summaries


def _low_rank(header: SafetensorsHeader, base: KnownBase, path: str, field: str) -> list[pb.WeightsSummary]:
    require_unit_scale(header.metadata, field)
    by_component: dict[str, list[str]] = {}
    for component, name in adapter_layers(header.tensors, field):
        by_component.setdefault(component, []).append(name)
    if unknown := sorted(by_component.keys() - base.shapes.keys()):
        _refuse(
            field,
            f"{path} adapts {unknown[0]}; the base model has {', '.join(base.shapes)}",
            "ADAPTER_COMPONENT_UNKNOWN",
        )
    return [_low_rank_of(header, component, names, base, field) for component, names in sorted(by_component.items())]


def _low_rank_of(
    header: SafetensorsHeader, component: str, names: Sequence[str], base: KnownBase, field: str
) -> pb.WeightsSummary:
    """Of one component, of which the file has layers of these names."""
    shapes = base.shapes[component]
    layers = {name: name_in_model(name, shapes) for name in names}
    unknown = [name for name, layer in layers.items() if layer not in shapes]
    if unknown:
        more = f" and {len(unknown) - _MAX_SHOWN} more" if len(unknown) > _MAX_SHOWN else ""
        _refuse(
            field,
            f"{len(unknown)} of the {len(names)} layers for its {component} are not in the base model: "
            f"{', '.join(unknown[:_MAX_SHOWN])}{more}; was it made for another one?",
            "ADAPTER_LAYER_UNKNOWN",
        )
    if len(set(layers.values())) != len(layers):
        _refuse(field, f"a layer of its {component} is there under two names", "ADAPTER_KEY_UNKNOWN")
    ranks = [_check_pair(header, f"{component}.{name}", shapes[layer], field) for name, layer in layers.items()]
    magnitudes = [
        _check_magnitude(header, f"{component}.{name}", shapes[layer], field) for name, layer in layers.items()
    ]
    if any(magnitudes) and not all(magnitudes):
        first = names[magnitudes.index(False)]
        _refuse(field, f"some layers of its {component} have magnitudes (DoRA), {first} has not", "ADAPTER_KEY_MISSING")
    return pb.WeightsSummary(
        kind=pb.WeightsSummary.KIND_LOW_RANK,
        component=component,
        layer_count=len(layers),
        max_rank=max(ranks),
        has_magnitudes=all(magnitudes),
    )


def _check_pair(header: SafetensorsHeader, name: str, weight: Sequence[int], field: str) -> int:
    """The rank of a layer's update."""
    a, b = (header.tensors[f"{name}.lora_{factor}.weight"] for factor in "AB")
    rank = a.shape[0] if a.shape else 0
    if not 1 <= rank <= MAX_PUBLISHED_RANK:
        _refuse(field, f"{name}.lora_A has rank {rank}; allowed are 1 to {MAX_PUBLISHED_RANK}", "ADAPTER_RANK_TOO_HIGH")
    ones = (1,) * (len(weight) - 2)
    _check_tensor(f"{name}.lora_A", a, [(rank, *weight[1:])], field)
    _check_tensor(f"{name}.lora_B", b, [(weight[0], rank, *ones)], field)
    return rank


def _check_magnitude(header: SafetensorsHeader, name: str, weight: Sequence[int], field: str) -> bool:
    """Whether a layer has a magnitude."""
    spellings = (f"{name}.lora_magnitude_vector", f"{name}.lora_magnitude_vector.weight")
    found = [header.tensors[key] for key in spellings if key in header.tensors]
    for tensor in found:
        allowed = [(weight[0],), (1, weight[0], 1, 1)] if len(weight) == 4 else [(weight[0],)]
        _check_tensor(f"{name}.lora_magnitude_vector", tensor, allowed, field)
    return bool(found)


def _embeddings(header: SafetensorsHeader, base: KnownBase, path: str, field: str) -> list[pb.WeightsSummary]:
    keys = word_forms.table_keys(base.shapes.keys())
    if header.tensors.keys() != set(keys.values()):
        found = ", ".join(sorted(header.tensors))[:200]
        _refuse(
            field,
            f"{path} has the tensors {found}; the base model needs {', '.join(keys.values())}",
            "ADAPTER_KEY_UNKNOWN",
        )
    counts = {tensor.shape[:1] for tensor in header.tensors.values()}
    if len(counts) != 1:
        _refuse(field, f"{path} has other numbers of vectors for its text encoders", "ADAPTER_SHAPE_MISMATCH")
    vectors = next(iter(counts))[0] if counts != {()} else 0
    if not 1 <= vectors <= MAX_VECTORS:
        _refuse(field, f"{path} has {vectors} vectors; allowed are 1 to {MAX_VECTORS}", "ADAPTER_SHAPE_MISMATCH")
    for component, key in keys.items():
        _check_tensor(key, header.tensors[key], [(vectors, base.embedding_sizes[component])], field)
    return [
        pb.WeightsSummary(kind=pb.WeightsSummary.KIND_EMBEDDINGS, component=component, vector_count=vectors)
        for component in sorted(keys)
    ]


def _full(parts: Mapping[str, Sequence[SafetensorsHeader]], base: KnownBase, field: str) -> list[pb.WeightsSummary]:
    """Of a pipeline's folder, whose parts may be in shards."""
    for component in sorted(base.shapes):
        _check_part(LAYOUTS[base.family].part_of(component), component, parts, base, field)
    return [
        pb.WeightsSummary(kind=pb.WeightsSummary.KIND_FULL, component=component) for component in sorted(base.shapes)
    ]


def _check_part(
    part: str, component: str, parts: Mapping[str, Sequence[SafetensorsHeader]], base: KnownBase, field: str
) -> None:
    """Every layer that the base has must be there, in the base's shape."""
    wanted = base.shapes[component]
    found: dict[str, tuple[int, ...]] = {}
    for header in parts.get(part, ()):
        shapes = layer_shapes(header.tensors)
        found |= {name_in_model(name, wanted): shape for name, shape in shapes.items()}
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        _refuse(
            field,
            f"{part}/ lacks {len(missing)} of the {len(wanted)} layers of the base model: "
            f"{', '.join(missing[:_MAX_SHOWN])}",
            "WEIGHTS_INCOMPLETE",
        )
    for name, shape in wanted.items():
        if found[name] != tuple(shape):
            _refuse_shape(field, f"{part}/{name}", found[name], [tuple(shape)])


def _check_tensor(name: str, tensor: TensorHeader, allowed: Sequence[tuple[int, ...]], field: str) -> None:
    if tensor.shape not in allowed:
        _refuse_shape(field, name, tensor.shape, allowed)
    if tensor.dtype not in _FLOATS:
        _refuse(field, f"{name} has numbers of type {tensor.dtype}; allowed are {', '.join(_FLOATS)}", "ADAPTER_DTYPE")


def _refuse_shape(field: str, name: str, found: Sequence[int], allowed: Sequence[Sequence[int]]) -> NoReturn:
    _refuse(
        field,
        f"{name} has shape {list(found)}; the base model needs {' or '.join(str(list(each)) for each in allowed)}",
        "ADAPTER_SHAPE_MISMATCH",
    )


def _refuse(field: str, description: str, reason: str) -> NoReturn:
    raise InvalidArgumentError(field, description, reason=reason)
