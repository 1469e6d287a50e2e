"""Small files of every kind that an adapter version may hold, made without any library of models or images."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from atelier.diffusion.base_layers import name_in_files
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.base_models_pb2 import BaseModelDescription, Component, Layer

WEIGHTS = "pytorch_lora_weights.safetensors"
WORDS = "learned_embeds.safetensors"
BASE_DIGEST = "sha256:" + "ab" * 32
BASE_WIDTH = 512
"""Inputs and outputs of the fake base's attention layers: a rank of one of them has 4,096 bytes."""
MAX_PUBLISHED_RANK = 1024
"""As `services.registry.weights` has it."""


def fake_base() -> BaseModelDescription:
    """The base model of `version()`: layers as Stable Diffusion names them, and no weights anywhere."""
    blocks = [f"down_blocks.{i // 4}.attentions.{i % 4}.transformer_blocks.0" for i in range(16)]
    square = [
        Layer(name=f"{block}.{attention}.{projection}", weight_shape=[BASE_WIDTH, BASE_WIDTH])
        for block in blocks
        for attention in ("attn1", "attn2")
        for projection in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    convolution = Layer(name="mid_block.resnets.0.conv1", weight_shape=[64, 32, 3, 3])
    text = [
        Layer(name=f"encoder.layers.{i}.self_attn.{projection}_proj", weight_shape=[48, 48])
        for i in range(2)
        for projection in ("q", "k", "v", "out")
    ]
    return BaseModelDescription(
        base_model=BaseModel(model="emoji-sd", digest=BASE_DIGEST),
        family="stable-diffusion",
        components=[
            Component(component="unet", layers=[*square, convolution]),
            Component(component="text_encoder", layers=text, embedding_size=48),
        ],
    )


def version(**fields: Any) -> pb.Version:
    """A version that the registry accepts, less its files; `fields` replace what it says."""
    usual = {
        "base_model": BaseModel(model="emoji-sd", digest=BASE_DIGEST),
        "method": "dreambooth-lora",
        "instance_prompt": "a photo of a sks fox",
        "metrics": {"clip_i": 0.875, "clip_t": 0.25},
    }
    return pb.Version(**{**usual, **fields})


def adapter_files(seed: int = 0, *, weights_bytes: int = 4096) -> dict[str, bytes]:
    """Path to bytes of a complete adapter of the fake base; another seed gives other weights.

    Args:
        weights_bytes: of the tensors, rounded up to full ranks.
    """
    return {
        "README.md": "# A fox – für alle\n".encode(),
        "recipe.json": b'{"steps": 100}',
        "samples/0.png": png(),
        WEIGHTS: safetensors(_low_rank_of(weights_bytes), seed=seed),
    }


def low_rank(shapes: Mapping[str, Sequence[int]], *, rank: int, dora: bool = False) -> dict[str, tuple[int, ...]]:
    """The tensors' shapes of an adapter file, by name.

    Args:
        shapes: of the layers' weights, by component and layer, such as `unet.mid_block.resnets.0.conv1`.
        dora: with magnitudes.
    """
    tensors: dict[str, tuple[int, ...]] = {}
    for path, (out, *inner) in shapes.items():
        component, _, layer = path.partition(".")
        key = f"{component}.{name_in_files(layer)}"
        ones = (1,) * (len(inner) - 1)
        tensors[f"{key}.lora_A.weight"] = (rank, *inner)
        tensors[f"{key}.lora_B.weight"] = (out, rank, *ones)
        if dora:
            tensors[f"{key}.lora_magnitude_vector.weight"] = (1, out, *ones) if ones else (out,)
    return tensors


def layer_shapes(base: BaseModelDescription) -> dict[str, Sequence[int]]:
    """The shapes of all layers of a base model, by component and layer."""
    return {
        f"{component.component}.{layer.name}": layer.weight_shape
        for component in base.components
        for layer in component.layers
    }


def _low_rank_of(weights_bytes: int) -> dict[str, tuple[int, ...]]:
    """As many of the fake base's square layers as it takes, of up to the highest rank."""
    squares = [path for path, shape in layer_shapes(fake_base()).items() if list(shape) == [BASE_WIDTH] * 2]
    ranks = -(-weights_bytes // (2 * 4 * BASE_WIDTH))
    tensors: dict[str, tuple[int, ...]] = {}
    for path, start in zip(squares, range(0, ranks, MAX_PUBLISHED_RANK), strict=False):
        tensors |= low_rank({path: (BASE_WIDTH, BASE_WIDTH)}, rank=min(MAX_PUBLISHED_RANK, ranks - start))
    return tensors


def safetensors(shapes: Mapping[str, Sequence[int]], *, seed: int = 0) -> bytes:
    """A safetensors file of F32 tensors with random bytes that are finite numbers."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    return safetensors_of(header, b"".join(_floats(end // 4, seed)))


def safetensors_of(header: Mapping[str, Any] | bytes, data: bytes) -> bytes:
    """A file with this header, right or wrong, before this data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def png(width: int = 2, height: int = 2) -> bytes:
    """A grey PNG image."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0),
        b"IDAT": zlib.compress((b"\0" + b"\x80" * width) * height),
        b"IEND": b"",
    }
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def zipped(comment: bytes = b"", *, entries: int = 1) -> bytes:
    """A zip archive with a pickle in it, as `torch.save` writes one.

    Args:
        comment: what the archive ends with.
        entries: how many files it has.
    """
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weights": [1.0]}))
        for i in range(1, entries):
            archive.writestr(f"archive/data/{i}", b"")
        archive.comment = comment
    return target.getvalue()


def _floats(count: int, seed: int) -> list[bytes]:
    generator = random.Random(seed)
    block = struct.pack("<1024f", *(generator.uniform(-1, 1) for _ in range(1024)))
    return [block] * (count // 1024) + [block[: 4 * (count % 1024)]]
