"""Image transforms with torchvision's names: PIL images in, float tensors [channels, height, width] out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps


class InterpolationMode(Enum):
    """Names as in torchvision; values are Pillow's filters."""

    NEAREST = Image.Resampling.NEAREST
    BILINEAR = Image.Resampling.BILINEAR
    BICUBIC = Image.Resampling.BICUBIC
    BOX = Image.Resampling.BOX
    HAMMING = Image.Resampling.HAMMING
    LANCZOS = Image.Resampling.LANCZOS


class Compose:
    """One transform after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class Lambda:
    """Any function."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, image: Any) -> Any:
        return self.function(image)


class Resize:
    """Scales the shorter side to `size` pixels."""

    def __init__(self, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> None:
        self.size = size
        self.interpolation = interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        shorter = min(image.size)
        width, height = (int(self.size * side / shorter) for side in image.size)
        return image if (width, height) == image.size else image.resize((width, height), self.interpolation.value)


class CenterCrop:
    """The square of `size` pixels in the middle."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        return _crop(image, (image.width - self.size) // 2, (image.height - self.size) // 2, self.size)


class RandomCrop:
    """A square of `size` pixels anywhere."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top = (int(torch.randint(side - self.size + 1, ())) for side in image.size)
        return _crop(image, left, top, self.size)


class RandomHorizontalFlip:
    """Mirrors with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.mirror(image) if float(torch.rand(())) < self.p else image


class ToTensor:
    """Values from 0 to 1."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = np.array(image)
        return torch.from_numpy(pixels.reshape(image.height, image.width, -1)).permute(2, 0, 1).float() / 255


class Normalize:
    """Subtracts the mean and divides by the deviation, channel by channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return (image - self.mean) / self.std


def _crop(image: Image.Image, left: int, top: int, size: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))
