"""EfficientNetV2 (Tan & Le 2021) as Stable Cascade's image encoder: the latents that its stage C is trained on.

Parameters have torchvision's names, `backbone` its `features`, so that the published `effnet_encoder.safetensors` loads
strictly. It is for inference: what only training has (stochastic depth, dropout) is not here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from atelier.diffusion.base import refuse

# ImageNet's, which the published weights were trained with.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BATCH_NORM_EPS = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Blocks of one width; the first of them has the stride."""

    channels: int
    layers: int
    stride: int
    expand: int
    """How much wider a block is inside."""
    fused: bool
    """Fused-MBConv blocks, or MBConv blocks with squeeze-and-excitation."""


_STAGES_OF_S = (
    Stage(fused=True, expand=1, stride=1, channels=24, layers=2),
    Stage(fused=True, expand=4, stride=2, channels=48, layers=4),
    Stage(fused=True, expand=4, stride=2, channels=64, layers=4),
    Stage(fused=False, expand=4, stride=2, channels=128, layers=6),
    Stage(fused=False, expand=6, stride=1, channels=160, layers=9),
    Stage(fused=False, expand=6, stride=2, channels=256, layers=15),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficientNetConfig:
    """Widths and depths; by default EfficientNetV2-S (table 4 of the paper) with 16 latent channels.

    The stem and the stages together must halve the image five times: a latent covers 32 pixels.
    """

    stem_channels: int = 24
    stages: tuple[Stage, ...] = _STAGES_OF_S
    head_channels: int = 1280
    latent_channels: int = 16

    def __post_init__(self) -> None:
        halvings = sum(stage.stride == 2 for stage in self.stages)
        if halvings != 4 or any(stage.stride not in (1, 2) for stage in self.stages):
            raise ValueError("stages: four of them must have the stride 2, and the others 1")

    @classmethod
    def from_json(cls, text: str) -> EfficientNetConfig:
        """Reads what `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        return cls(**values | {"stages": tuple(Stage(**stage) for stage in values["stages"])})

    def to_json(self) -> str:
        """The contents of a `config.json`."""
        return json.dumps(asdict(self), indent=2)


class EfficientNetEncoder(nn.Module):
    """Latents [N, latent channels, height / 32, width / 32] of images [N, 3, height, width] between 0 and 1."""

    _mean: torch.Tensor
    _std: torch.Tensor

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__()
        last = config.stages[-1].channels
        self.backbone = nn.Sequential(
            _conv(3, config.stem_channels, kernel=3, stride=2),
            *_stages(config),
            _conv(last, config.head_channels, kernel=1),
        )
        self.mapper = nn.Sequential(
            nn.Conv2d(config.head_channels, config.latent_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(config.latent_channels, affine=False),
        )
        self.register_buffer("_mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self.mapper(self.backbone((images - self._mean) / self._std))
        return latents


def load_encoder(path: Path, device: torch.device) -> EfficientNetEncoder:
    """The frozen encoder of a base model's folder, in float32: it is small, and its latents are cached.

    It is `effnet_encoder.safetensors`, as Stability AI publishes it, or a safetensors file in `effnet_encoder/`, there
    with a `config.json` where it is not EfficientNetV2-S.

    Raises:
        InvalidArgumentError: there is none, or its tensors are not those of its configuration.
    """
    files = [path / "effnet_encoder.safetensors", *sorted((path / "effnet_encoder").glob("*.safetensors"))]
    weights = next((file for file in files if file.is_file()), None)
    if weights is None:
        refuse(f"{path.name}: it has no effnet_encoder.safetensors, which stage C needs", "BASE_MODEL_NOT_SUPPORTED")
    config_file = path / "effnet_encoder" / "config.json"
    try:
        config = (
            EfficientNetConfig.from_json(config_file.read_text()) if config_file.is_file() else EfficientNetConfig()
        )
        encoder = EfficientNetEncoder(config)
        encoder.load_state_dict(safetensors.torch.load_file(weights))
    except (KeyError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:500]
        refuse(f"{path.name}: its effnet_encoder does not load: {reason}", "BASE_MODEL_NOT_SUPPORTED")
    return encoder.to(device).eval().requires_grad_(False)


class _Block(nn.Module):
    """A residual block, fused or with a depthwise convolution and squeeze-and-excitation."""

    def __init__(self, channels: int, stage: Stage, stride: int) -> None:
        super().__init__()
        self._is_residual = stride == 1 and channels == stage.channels
        inner = channels * stage.expand
        layers: list[nn.Module] = []
        if stage.fused and stage.expand == 1:
            layers.append(_conv(channels, stage.channels, kernel=3, stride=stride))
        elif stage.fused:
            layers.append(_conv(channels, inner, kernel=3, stride=stride))
            layers.append(_conv(inner, stage.channels, kernel=1, activation=False))
        else:
            if stage.expand != 1:
                layers.append(_conv(channels, inner, kernel=1))
            layers.append(_conv(inner, inner, kernel=3, stride=stride, groups=inner))
            layers.append(_SqueezeExcitation(inner, max(1, channels // 4)))
            layers.append(_conv(inner, stage.channels, kernel=1, activation=False))
        self.block = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.block(x)
        return output + x if self._is_residual else output


class _SqueezeExcitation(nn.Module):
    """Scales channels by what the whole image has in them (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.fc2 = nn.Conv2d(squeezed, channels, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        squeezed = nn.functional.silu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))
        return x * self.fc2(squeezed).sigmoid()


def _stages(config: EfficientNetConfig) -> list[nn.Sequential]:
    stages, channels = [], config.stem_channels
    for stage in config.stages:
        first = _Block(channels, stage, stage.stride)
        stages.append(nn.Sequential(first, *(_Block(stage.channels, stage, 1) for _ in range(stage.layers - 1))))
        channels = stage.channels
    return stages


def _conv(
    channels: int, out: int, *, kernel: int, stride: int = 1, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out, eps=_BATCH_NORM_EPS),
    ]
    return nn.Sequential(*layers, *([nn.SiLU()] if activation else []))
