"""What Stable Diffusion's own code (LDM, and SGM for SDXL) calls the layers of diffusers' UNets.

    conv_in                            input_blocks.0.0
    down_blocks.B.resnets.N            input_blocks.I.0         I counts residual blocks and downsamplers from 1 on
    down_blocks.B.attentions.N         input_blocks.I.1
    down_blocks.B.downsamplers.0.conv  input_blocks.I.0.op
    mid_block.resnets.0                middle_block.0           attentions.0 is .1, resnets.1 is .2
    up_blocks.B.resnets.N              output_blocks.I.0        I counts residual blocks from 0 on
    up_blocks.B.attentions.N           output_blocks.I.1
    up_blocks.B.upsamplers.0.conv      output_blocks.I.X.conv   of the block's last I, behind all else that it has
    conv_out                           out.2

Inside of attentions the names are the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import count

_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_INSIDE_RESNETS = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_PLACE = re.compile(r"((?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.[a-z]+\.\d+)\.(.+)")


def original_names(layers: Collection[str]) -> dict[str, str]:
    """The original name of each of a UNet's layers that has one, by diffusers' name.

    Args:
        layers: all layers of the UNet, since positions are counted among them.
    """
    names = {layer: name for layer, name in _OUTSIDE.items() if layer in layers}
    matches = [match for match in map(_PLACE.fullmatch, layers) if match]
    positions = _positions({match[1] for match in matches})
    for layer, place, inside in ((match[0], match[1], match[2]) for match in matches):
        if place in positions:
            own = "op" if ".downsamplers." in place else _INSIDE_RESNETS.get(inside, inside)
            names[layer] = f"{positions[place]}.{own}"
    return names


def _positions(places: Collection[str]) -> dict[str, str]:
    """Where each residual block, attention and sampler is."""
    middle = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}
    positions = {f"mid_block.{part}": f"middle_block.{index}" for part, index in middle.items()}
    index = 1
    for block in range(_count(places, "down_blocks", ".resnets.0")):
        own = f"down_blocks.{block}"
        for number in range(_count(places, f"{own}.resnets")):
            positions[f"{own}.resnets.{number}"] = f"input_blocks.{index}.0"
            positions[f"{own}.attentions.{number}"] = f"input_blocks.{index}.1"
            index += 1
        positions[f"{own}.downsamplers.0"] = f"input_blocks.{index}.0"
        index += _count(places, f"{own}.downsamplers")
    index = 0
    for block in range(_count(places, "up_blocks", ".resnets.0")):
        own = f"up_blocks.{block}"
        for number in range(_count(places, f"{own}.resnets")):
            positions[f"{own}.resnets.{number}"] = f"output_blocks.{index}.0"
            positions[f"{own}.attentions.{number}"] = f"output_blocks.{index}.1"
            behind = 2 if f"{own}.attentions.{number}" in places else 1
            positions[f"{own}.upsamplers.0"] = f"output_blocks.{index}.{behind}"  # the last one holds
            index += 1
    return positions


def _count(places: Collection[str], before: str, behind: str = "") -> int:
    return next(number for number in count() if f"{before}.{number}{behind}" not in places)
