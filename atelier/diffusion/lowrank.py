"""Low-rank updates (LoRA, Hu et al. 2021) of linear and convolutional layers: what they are and how they act.

A layer with weight `W` gets the update `B A`. For a convolution, A has W's kernel, stride, padding and dilation,
and B is a 1x1 convolution, as in PEFT. Scaling factors are always folded into the numbers: alpha equals rank.
With a magnitude `m` per output (DoRA, Liu et al. 2024) the weight becomes `m (W + B A) / |W + B A|`, the norm taken
over each output's inputs.
Only plain `nn.Linear` and ungrouped, zero-padded `nn.Conv2d` layers are adapted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from atelier.diffusion.formats.low_rank import Update, Updates, check_updates
from atelier.diffusion.formats.tensor_file import Array

LayerSelection = Literal["attention", "linear", "all"]

# UNets and Stable Cascade's prior have `to_q`, CLIP's text encoders `q_proj`.
_ATTENTION = r"to_(q|k|v|out\.0)|(q|k|v|out)_proj"
_FEED_FORWARD = r"ff\.net\.(0\.proj|2)|mlp\.fc[12]|proj_(in|out)|channelwise\.(0|4)|kv_mapper\.1"
_RESNET = r"conv1|conv2|conv_shortcut|time_emb_proj|(down|up)samplers\.\d+\.conv"
_SELECTIONS: Mapping[str, tuple[re.Pattern[str], type | tuple[type, ...]]] = {
    "attention": (re.compile(rf"(.+\.)?({_ATTENTION})"), nn.Linear),
    "linear": (re.compile(rf"(.+\.)?({_ATTENTION}|{_FEED_FORWARD}|{_RESNET})"), nn.Linear),
    "all": (re.compile(rf"(.+\.)?({_ATTENTION}|{_FEED_FORWARD}|{_RESNET})"), (nn.Linear, nn.Conv2d)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """One layer's update.

    `a` is [rank, in] for a linear layer and [rank, in, kernel height, kernel width] for a convolution; `b` is
    [out, rank] for both, and `magnitude`, of DoRA alone, [out].
    """

    a: torch.Tensor
    b: torch.Tensor
    magnitude: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]


# An adapter of one component: the update of each layer, by the layer's name in it.
Factors = Mapping[str, LowRank]


def select_layers(model: nn.Module, selection: LayerSelection) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers of a denoiser or text encoder that adapters act on, by name.

    `attention` means the query, key, value and output projections; `linear` adds the feed-forward layers and other
    linear projections of the blocks, `all` also their convolutions and those of residual blocks and samplers.
    """
    pattern, kinds = _SELECTIONS[selection]
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and isinstance(module, kinds) and pattern.fullmatch(name)
    }
    assert all(m.groups == 1 and m.padding_mode == "zeros" for m in layers.values() if isinstance(m, nn.Conv2d))
    return layers


def weight_shapes(model: nn.Module, selection: LayerSelection = "all") -> dict[str, torch.Size]:
    """The shape of each adapted layer's weight: [out, in] or [out, in, kernel height, kernel width]."""
    return {name: layer.weight.shape for name, layer in select_layers(model, selection).items()}


def all_weight_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """The shape of the weight of every linear and convolutional layer, adapted or not, by its name."""
    return {
        name: module.weight.shape for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }


def to_arrays(factors: Factors) -> dict[str, Update]:
    """The updates as float32 arrays; on the CPU they share their numbers."""
    return {
        name: Update(
            a=_array(update.a),
            b=_array(update.b),
            magnitude=None if update.magnitude is None else _array(update.magnitude),
        )
        for name, update in factors.items()
    }


def from_arrays(updates: Updates) -> dict[str, LowRank]:
    """The updates as tensors, which share their numbers."""
    return {
        name: LowRank(
            a=torch.from_numpy(update.a),
            b=torch.from_numpy(update.b),
            magnitude=None if update.magnitude is None else torch.from_numpy(update.magnitude),
        )
        for name, update in updates.items()
    }


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().float().cpu().contiguous().numpy()
    return array


def check_factors(factors: Factors, shapes: Mapping[str, torch.Size], *, max_rank: int, field: str = "adapter") -> None:
    """Raises InvalidArgumentError, with the tensor's name, unless `factors` fits a model with these weights."""
    check_updates(to_arrays(factors), shapes, max_rank=max_rank, field=field)


def add_linear(output: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`output` plus the updates of G groups of consecutive rows.

    Args:
        output: [rows, ..., out], what the base layer made of `x`.
        x: [rows, ..., in]; rows is a multiple of G.
        a: [G, rank, in].
        b: [G, rank, out].
    """
    groups = a.shape[0]
    low = torch.bmm(x.reshape(groups, -1, x.shape[-1]), a.mT)
    return torch.baddbmm(output.reshape(groups, -1, output.shape[-1]), low, b).view_as(output)


def add_conv(output: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """`output` plus the updates of G groups of consecutive rows, for a convolution.

    Args:
        output: [rows, out, height, width], what `conv` made of `x`.
        x: [rows, in, ...]; rows is a multiple of G.
        a: [G, rank, in, kernel height, kernel width].
        b: [G, rank, out].
    """
    groups, rank = a.shape[:2]
    # The groups' channels side by side, so that one grouped convolution serves them all.
    side_by_side = x.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)
    low = F.conv2d(side_by_side, a.flatten(0, 1), None, conv.stride, conv.padding, conv.dilation, groups)
    low = low.unflatten(1, (groups, rank)).transpose(0, 1).flatten(3)
    delta = torch.matmul(b.mT.unsqueeze(1), low)
    return output + delta.reshape(output.shape)


def rescale(output: torch.Tensor, layer: nn.Linear | nn.Conv2d, scale: torch.Tensor) -> torch.Tensor:
    """DoRA's last step: the output that a layer and its updates have, as if their weights' rows were scaled.

    Args:
        output: of the layer, its updates added; its bias is not scaled.
        scale: [G, out], of G groups of consecutive rows.
    """
    spread = (-1, 1, 1) if isinstance(layer, nn.Conv2d) else (1,) * (output.ndim - 2) + (-1,)
    rows = scale.repeat_interleave(len(output) // len(scale), dim=0).unflatten(1, spread)
    if layer.bias is None:
        return rows * output
    bias = layer.bias.view(spread)
    return rows * (output - bias) + bias


def updated_norms(layer: nn.Linear | nn.Conv2d, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The norms [G, out] of the rows of a layer's weight with the updates of G groups (`add_linear`, `add_conv`)."""
    weight = layer.weight.flatten(1)
    return torch.linalg.vector_norm(weight + b.mT @ a.flatten(2), dim=2)
