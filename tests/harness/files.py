"""Small files of every kind that an adapter version may hold, made without any library of models or images."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.registry.v1 import registry_pb2 as pb

WEIGHTS = "pytorch_lora_weights.safetensors"
BASE_DIGEST = "sha256:" + "ab" * 32


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
    """Path to bytes of a complete adapter; another seed gives other weights."""
    return {
        "README.md": "# A fox – für alle\n".encode(),
        "recipe.json": b'{"steps": 100}',
        "samples/0.png": png(),
        WEIGHTS: safetensors({"unet.lora_A": (weights_bytes // 4,)}, seed=seed),
    }


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


def _floats(count: int, seed: int) -> list[bytes]:
    generator = random.Random(seed)
    block = struct.pack("<1024f", *(generator.uniform(-1, 1) for _ in range(1024)))
    return [block] * (count // 1024) + [block[: 4 * (count % 1024)]]
