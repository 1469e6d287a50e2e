"""What is not understood to its last tensor is refused, and the message says what and why."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import safetensors.torch
import torch

from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.diffusion.formats.foreign import read_foreign
from atelier.diffusion.lowrank import all_weight_shapes
from atelier.errors import InvalidArgumentError

_LAYER, _OTHER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"
_KEY = f"lora_unet_{_LAYER.replace('.', '_')}"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def good() -> Tensors:
    """One layer with kohya's keys."""
    return {
        f"{_KEY}.lora_down.weight": torch.randn(2, 192),
        f"{_KEY}.lora_up.weight": torch.randn(192, 2),
        f"{_KEY}.alpha": torch.tensor(1.0),
    }


def read(base: StableDiffusion, tensors: Tensors, metadata: dict[str, str] | None = None) -> object:
    shapes = {component: all_weight_shapes(model) for component, model in base.components().items()}
    contents = safetensors.torch.save(tensors, metadata)
    return read_foreign(contents, shapes, {"clip_l": 256}, max_rank=128, field="spec.file")


def dotted(tensors: Tensors) -> Tensors:
    down, up = (tensors[f"{_KEY}.lora_{part}.weight"].clone() for part in ("down", "up"))
    return {f"unet.{_LAYER}.lora_A.weight": down, f"unet.{_LAYER}.lora_B.weight": up}


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        (
            lambda t: t.update({f"lora_te2_{i}.alpha": torch.ones(()) for i in range(9)}),
            "ADAPTER_KEY_UNKNOWN",
            "9 of its 12 tensors belong to no layer of the base model, which has unet, text_encoder: 'lora_te2_0",
        ),
        (lambda t: t.update({f"{_KEY}.scalar": torch.ones(())}), "ADAPTER_KEY_UNKNOWN", "1 of its 4 tensors"),
        (lambda t: t.update(dotted(t)), "ADAPTER_KEY_UNKNOWN", "2 of its 5 tensors"),
        (lambda t: t.pop(f"{_KEY}.lora_up.weight"), "ADAPTER_KEY_MISSING", "to_q lacks one of its factors"),
        (
            lambda t: t.update({f"lora_unet_middle_block_1_{_LAYER[23:].replace('.', '_')}.alpha": torch.ones(())}),
            "ADAPTER_KEY_AMBIGUOUS",
            "for the same",
        ),
        (lambda t: t.update({f"{_KEY}.hada_w1_a": torch.ones(1)}), "ADAPTER_KIND_NOT_SUPPORTED", "1 tensors of LoHa"),
        (lambda t: t.update({f"{_KEY}.lokr_w1": torch.ones(1)}), "ADAPTER_KIND_NOT_SUPPORTED", "1 tensors of LoKr"),
        (lambda t: t.update({f"{_KEY}.oft_diag": torch.ones(1)}), "ADAPTER_KIND_NOT_SUPPORTED", "OFT"),
        (lambda t: t.update({f"{_KEY}.diff_b": torch.ones(1)}), "ADAPTER_KIND_NOT_SUPPORTED", "whole weights"),
        (lambda t: t.update({f"{_KEY}.lora_up.bias": torch.ones(1)}), "ADAPTER_KIND_NOT_SUPPORTED", "biases"),
        (lambda t: t.update({f"{_KEY}.lora_down.weight": torch.ones(2, 320)}), "ADAPTER_SHAPE_MISMATCH", "needs"),
        (lambda t: t.update({f"{_KEY}.lora_up.weight": torch.ones(192, 3)}), "ADAPTER_SHAPE_MISMATCH", "lora_B"),
        (lambda t: t.update({f"{_KEY}.lora_up.weight": torch.ones(192)}), "ADAPTER_SHAPE_MISMATCH", "matrices"),
        (lambda t: t.update({f"{_KEY}.lora_down.weight": torch.ones(())}), "ADAPTER_SHAPE_MISMATCH", "matrices"),
        (lambda t: t.update({f"{_KEY}.alpha": torch.ones(2)}), "ADAPTER_SHAPE_MISMATCH", "must be one number"),
        (lambda t: t.update({f"{_KEY}.lora_mid.weight": torch.ones(2, 2)}), "ADAPTER_SHAPE_MISMATCH", "lora_mid"),
        (lambda t: t.update({f"{_KEY}.dora_scale": torch.ones(1, 191)}), "ADAPTER_SHAPE_MISMATCH", "magnitudes"),
        (lambda t: t.update({f"{_KEY}.dora_scale": torch.ones(1, 192)}), "ADAPTER_KIND_NOT_SUPPORTED", "inputs"),
        (lambda t: t[f"{_KEY}.lora_down.weight"][0].fill_(torch.nan), "ADAPTER_NOT_FINITE", "NaN or infinite"),
        (lambda t: t[f"{_KEY}.alpha"].fill_(torch.inf), "ADAPTER_NOT_FINITE", "NaN or infinite"),
        (
            lambda t: t.update(
                {f"{_KEY}.lora_down.weight": torch.ones(129, 192), f"{_KEY}.lora_up.weight": torch.ones(192, 129)}
            ),
            "ADAPTER_RANK_TOO_HIGH",
            "rank 129; allowed are 1 to 128",
        ),
        (
            lambda t: t.update({f"bundle_emb.{name}.emb_params": torch.ones(1, 256) for name in ("a", "b")}),
            "ADAPTER_KIND_NOT_SUPPORTED",
            "several textual inversions",
        ),
    ],
)
def test_a_lora_that_is_not_understood(
    base: StableDiffusion, good: Tensors, change: Callable[[Tensors], object], reason: str, message: str
) -> None:
    read(base, good)
    change(good)
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        read(base, good)
    assert caught.value.reason == reason
    assert caught.value.violations[0].field == "spec.file"


def test_magnitudes_of_some_layers_only(base: StableDiffusion, good: Tensors) -> None:
    good |= {
        f"lora_unet_{_OTHER.replace('.', '_')}.lora_down.weight": torch.ones(2, 192, 3, 3),
        f"lora_unet_{_OTHER.replace('.', '_')}.lora_up.weight": torch.ones(192, 2, 1, 1),
        f"lora_unet_{_OTHER.replace('.', '_')}.dora_scale": torch.ones(192, 1, 1, 1),
    }
    with pytest.raises(InvalidArgumentError, match="1 of the 2 layers of its unet lack magnitudes"):
        read(base, good)


def test_a_small_file_of_a_huge_convolution() -> None:
    tensors = {
        "lora_unet_c.lora_down.weight": torch.ones(1, 4096, 1, 1),
        "lora_unet_c.lora_mid.weight": torch.ones(1, 1, 1024, 1024),
        "lora_unet_c.lora_up.weight": torch.ones(1, 1, 1, 1),
    }
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "unet": {"c": (1, 4096, 1024, 1024)},
        "text_encoder": {"t": (1, 1)},
    }
    with pytest.raises(InvalidArgumentError, match="unfolds to 4294967297 numbers"):
        read_foreign(safetensors.torch.save(tensors), shapes, {"clip_l": 256}, max_rank=128, field="spec.file")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is no JSON object"),
        ("[]", "is no JSON object"),
        ('{"unet.r": 2}', "has no lora_alpha"),
        ('{"text_encoder.lora_alpha": 2}', "has no lora_alpha for every component"),
        ('{"unet.lora_alpha": "much"}', "no number"),
        ('{"unet.lora_alpha": 1' + "0" * 400 + "}", "no number"),
        ('{"unet.lora_alpha": NaN}', "no number"),
        ('{"unet.lora_alpha": 2, "unet.alpha_pattern": {"(a+)+$": 1}}', "patterns other than names"),
    ],
)
def test_a_scale_that_is_not_clear(base: StableDiffusion, good: Tensors, config: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        read(base, dotted(good), {"lora_adapter_metadata": config})
    assert caught.value.reason == "ADAPTER_SCALED"


def test_a_scale_that_is_there_twice(base: StableDiffusion, good: Tensors) -> None:
    config = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2, "unet.r": 2})}
    read(base, dotted(good), config)
    with pytest.raises(InvalidArgumentError, match="among its tensors and in its metadata too"):
        read(base, {**dotted(good), f"unet.{_LAYER}.alpha": torch.ones(())}, config)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"clip_l": torch.ones(2, 256), "clip_g": torch.ones(2, 256)}, "ADAPTER_KEY_UNKNOWN"),
        ({"clip_g": torch.ones(2, 256)}, "ADAPTER_KEY_UNKNOWN"),
        ({"<fox>": torch.ones(2, 768)}, "INVALID_FIELD"),
        ({"emb_params": torch.full((2, 256), torch.nan)}, "INVALID_FIELD"),
        ({"emb_params": torch.ones(1, 2, 256)}, "INVALID_FIELD"),
        ({"<fox>": torch.ones(1, 256), "<cat>": torch.ones(1, 256)}, "ADAPTER_KEY_UNKNOWN"),
        ({"<fox>": torch.ones(1, 256), "bundle_emb.cat.clip_l": torch.ones(1, 256)}, "ADAPTER_KEY_AMBIGUOUS"),
        ({"a\nb": torch.ones(1, 256)}, "SAFETENSORS_INVALID"),
    ],
)
def test_a_textual_inversion_that_does_not_fit(base: StableDiffusion, tensors: Tensors, reason: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read(base, tensors)
    assert caught.value.reason == reason
