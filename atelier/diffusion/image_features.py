"""Unit vectors of images by frozen vision models: what the CLIP and the DINO scorer share.

Model folders are transformers': `config.json`, safetensors weights, and `preprocessor_config.json`, which says how
images become pixels. Weights in any other format, and folders that lack some of them, are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from torch.nn import functional as F

from atelier.errors import InvalidArgumentError

# PIL's numbers for filters, as preprocessor_config.json has them.
_FILTERS = {2: "bilinear", 3: "bicubic"}
_CHUNK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTransform:
    """From images to a model's pixels: resize, cut out the middle, normalize, as transformers' image processors do."""

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shortest_edge: int | None = None
    """The shorter side after the resize; None: straight to `height` and `width`, whatever the aspect ratio."""
    filter: str = "bicubic"

    @classmethod
    def from_folder(cls, path: Path, field: str) -> Self:
        """Reads `preprocessor_config.json`; `field` is what errors name.

        Raises:
            InvalidArgumentError: there is none, or it is not of this kind.
        """
        file = path / "preprocessor_config.json"
        if not file.is_file():
            refuse(field, f"{path.name} has no {file.name}")
        config = json.loads(file.read_text())
        try:
            return cls(
                **_sizes(config),
                mean=tuple(config["image_mean"]),
                std=tuple(config["image_std"]),
                filter=_FILTERS[config.get("resample", 3)],
            )
        except (KeyError, TypeError) as error:
            refuse(
                field,
                f"{path.name}/{file.name} has no usable {error}; it needs size, image_mean, image_std, and a resample "
                "of 2 (bilinear) or 3 (bicubic)",
            )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Pixels [N, 3, height, width] of images, uint8 [N, height, width, 3]."""
        pixels = images.permute(0, 3, 1, 2).float() / 255
        size = self._resized(pixels.shape[2], pixels.shape[3])
        if pixels.shape[2:] != size:
            pixels = F.interpolate(pixels, size, mode=self.filter, antialias=True, align_corners=False).clamp(0, 1)
        top, left = (size[0] - self.height) // 2, (size[1] - self.width) // 2
        pixels = pixels[:, :, top : top + self.height, left : left + self.width]
        mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.shortest_edge is None:
            return self.height, self.width
        shorter = min(height, width)
        return height * self.shortest_edge // shorter, width * self.shortest_edge // shorter


def _sizes(config: dict[str, Any]) -> dict[str, int]:
    """The sizes of an ImageTransform; old configurations have plain numbers for them."""
    size = config["size"]
    crop = config.get("crop_size") if config.get("do_center_crop") else None
    if isinstance(size, int):
        size = {"shortest_edge": size} if crop else {"height": size, "width": size}
    if "shortest_edge" not in size:
        return {"height": size["height"], "width": size["width"]}
    # Without a crop only square images come out as the square that the models want; it is cut out of the others.
    crop = crop or size["shortest_edge"]
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    return {"height": crop["height"], "width": crop["width"], "shortest_edge": size["shortest_edge"]}


def model_type(path: Path, field: str) -> str:
    """What transformers calls the model in a folder, such as `clip` or `dinov2`."""
    file = path / "config.json"
    if not file.is_file():
        refuse(field, f"{path} is not a transformers model folder: it has no config.json")
    return str(json.loads(file.read_text()).get("model_type"))


def load_frozen(model_class: Any, path: Path, device: torch.device, field: str, **options: Any) -> Any:
    """A model in float32, ready to use, from safetensors weights that are complete."""
    try:
        model, loading = model_class.from_pretrained(
            path,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except OSError as error:
        refuse(field, f"{path.name} has no safetensors weights of a {model_class.__name__}: {error}")
    if missing := loading["missing_keys"]:
        refuse(field, f"{path.name} lacks {len(missing)} weights of a {model_class.__name__}, such as {min(missing)}")
    return model.to(device).eval().requires_grad_(False)


def check_side(path: Path, transform: ImageTransform, side: int, field: str) -> None:
    """Refuses a folder whose preprocessing makes other pixels than its model takes, a square of this side."""
    if (transform.height, transform.width) != (side, side):
        made = f"{transform.height} x {transform.width}"
        refuse(field, f"{path.name}: its preprocessing makes images of {made} pixels; its model takes {side} x {side}")


@torch.no_grad()
def unit_vectors(
    images: torch.Tensor,
    transform: ImageTransform,
    features: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
) -> torch.Tensor:
    """Normalized features [N, width], on the CPU, of images, uint8 [N, height, width, 3]; `features` takes pixels."""
    vectors = [features(transform(chunk.to(device))) for chunk in images.split(_CHUNK)]
    return F.normalize(torch.cat(vectors), dim=1).cpu()


def refuse(field: str, description: str) -> NoReturn:
    """Refuses a scorer's folder."""
    raise InvalidArgumentError(field, description, reason="SCORER_NOT_SUPPORTED")
