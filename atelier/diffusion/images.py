"""Image files of what models draw."""

from __future__ import annotations

import io

import torch
from PIL import Image


def encode_png(image: torch.Tensor) -> bytes:
    """A PNG file of one image: uint8 [height, width, 3], on the CPU."""
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, format="PNG")
    return file.getvalue()
