"""Files of other programs: each layer's update is the one that plain diffusers and PEFT make of the same file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional as F

from atelier.diffusion.adapter_file import write_adapter_file
from atelier.diffusion.base import Base, load_base
from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.diffusion.formats.foreign import Foreign, read_foreign
from atelier.diffusion.formats.kohya_form import kohya_key
from atelier.diffusion.formats.low_rank import Update
from atelier.diffusion.formats.original_names import original_names
from atelier.diffusion.kohya import write_kohya_file
from atelier.diffusion.lowrank import all_weight_shapes, from_arrays
from atelier.errors import InvalidArgumentError
from tests.harness.adapters import largest_difference, random_updates
from tests.harness.families import tiny_stable_cascade, tiny_stable_diffusion, tiny_stable_diffusion_xl

Tensors = dict[str, torch.Tensor]
_CONV, _LINEAR = "mid_block.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def read(components: Mapping[str, nn.Module], contents: bytes, widths: Mapping[str, int] | None = None) -> Foreign:
    shapes = {component: all_weight_shapes(model) for component, model in components.items()}
    return read_foreign(contents, shapes, widths or {"clip_l": 256}, max_rank=128, field="file")


@pytest.fixture(scope="module")
def peft_s(base: StableDiffusion) -> Tensors:
    """An adapter of attention and convolutions with PEFT's keys."""
    tensors = {}
    for component, model in base.components().items():
        for name, update in random_updates(model, seed=1).items():
            key = f"{component}.{'text_model.' if component == 'text_encoder' else ''}{name}"
            tensors[f"{key}.lora_A.weight"] = update.a
            tensors[f"{key}.lora_B.weight"] = update.b if update.a.ndim == 2 else update.b[:, :, None, None]
    return tensors


def renamed(tensors: Tensors, *replacements: tuple[str, str]) -> Tensors:
    result = {}
    for name, tensor in tensors.items():
        for old, new in replacements:
            name = name.replace(old, new)
        result[name] = tensor
    return result


def newer_diffusers(tensors: Tensors) -> bytes:
    """By diffusers' own hand, which puts PEFT's alphas into the metadata."""
    own: Any = {
        component: {name.removeprefix(f"{component}."): t for name, t in tensors.items() if name.startswith(component)}
        for component in ("unet", "text_encoder")
    }
    unet_layers = sorted({name.partition(".lora_")[0] for name in own["unet"]})
    scaled = LoraConfig(r=4, lora_alpha=6, alpha_pattern={_LINEAR: 3, "conv2": 10}, target_modules=unet_layers)
    text_layers = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    square = LoraConfig(r=4, lora_alpha=2, use_rslora=True, target_modules=text_layers)
    with TemporaryDirectory() as folder:
        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=own["unet"],
            text_encoder_lora_layers=own["text_encoder"],
            unet_lora_adapter_metadata=scaled.to_dict(),
            text_encoder_lora_adapter_metadata=square.to_dict(),
        )
        return (Path(folder) / "pytorch_lora_weights.safetensors").read_bytes()


def lora_down_up(tensors: Tensors) -> bytes:
    named = {
        name: name.replace("lora_A", "lora_linear_layer.down").replace("lora_B", "lora_linear_layer.up")
        if name.startswith("text")
        else name.replace("lora_A", "lora.down").replace("lora_B", "lora.up")
        for name in tensors
    }
    return safetensors.torch.save({named[name]: tensor for name, tensor in tensors.items()})


def attention_processors(tensors: Tensors) -> bytes:
    """The first form that diffusers had, of attention alone."""
    old = {name: tensor for name, tensor in tensors.items() if ".attn" in name or ".self_attn" in name}
    old = renamed(old, (".attn1.", ".attn1.processor."), (".attn2.", ".attn2.processor."), ("to_out.0", "to_out"))
    old = renamed(old, ("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out"))
    return safetensors.torch.save(renamed(old, (".lora_A.", "_lora.down."), (".lora_B.", "_lora.up.")))


def sd_scripts(tensors: Tensors) -> bytes:
    """kohya's keys in half precision, with one alpha for linear layers and one for convolutions.

    diffusers alone would lose alphas that differ among attention layers.
    """
    flat: Tensors = {}
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".lora_")
        component, _, layer = layer.partition(".")
        key = f"{'lora_unet' if component == 'unet' else 'lora_te'}_{layer.replace('.', '_')}"
        flat[f"{key}.lora_{'down' if part.startswith('A') else 'up'}.weight"] = tensor.half()
        flat[f"{key}.alpha"] = torch.tensor(6.0 if tensor.ndim == 2 else 1.0, dtype=torch.float16)
    return safetensors.torch.save(flat, metadata={"ss_dataset_dirs": '{"/home/alice/private": 1}'})


def deltas(updates: Mapping[str, Update]) -> Tensors:
    return {
        layer: torch.from_numpy(update.b) @ torch.from_numpy(update.a).flatten(1) for layer, update in updates.items()
    }


def loaded_deltas(model: nn.Module) -> Tensors:
    """What PEFT adds to the weights of a model's layers."""
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return {
        name: layer.get_delta_weight(layer.active_adapters[0]).flatten(1).detach() for name, layer in layers.items()
    }


def assert_same(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    assert all(tensor.abs().max() > 1e-4 for tensor in theirs.values())
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("write", [newer_diffusers, lora_down_up, attention_processors, sd_scripts])
def test_every_layer_is_as_diffusers_reads_it(
    write: Callable[[Tensors], bytes], base: StableDiffusion, peft_s: Tensors, tmp_path: Path
) -> None:
    contents = write(peft_s)
    (tmp_path / "x.safetensors").write_bytes(contents)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(base.path, dtype=torch.float32, use_safetensors=True)
    pipeline.load_lora_weights(tmp_path, weight_name="x.safetensors")
    updates = read(base.components(), contents).updates
    assert_same(deltas(updates["unet"]), loaded_deltas(pipeline.unet))
    assert_same(deltas(updates["text_encoder"]), loaded_deltas(pipeline.text_encoder))


def test_peft_s_own_file_names_no_component(base: StableDiffusion) -> None:
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_k", "conv1"], init_lora_weights=False)
    fresh: Any = StableDiffusionPipeline.from_pretrained(base.path, dtype=torch.float32, use_safetensors=True)
    model = get_peft_model(fresh.unet, config)
    tensors = {name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    assert all(name.startswith("base_model.model.") for name in tensors)
    (updates,) = read(base.components(), safetensors.torch.save(tensors)).updates.values()
    theirs = {name.removeprefix("base_model.model."): tensor for name, tensor in loaded_deltas(model).items()}
    assert_same(deltas(updates), theirs)


def test_a_layer_of_two_text_encoders_is_ambiguous_without_its_component(tmp_path: Path) -> None:
    base = load_base(tiny_stable_diffusion_xl(tmp_path), device=torch.device("cpu"), dtype=torch.float32)
    name = "text_model.encoder.layers.0.mlp.fc1"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 32), f"{name}.lora_B.weight": torch.ones(64, 2)}
    with pytest.raises(InvalidArgumentError, match="2 of its 2 tensors may belong to several") as caught:
        read(base.components(), safetensors.torch.save(tensors))
    assert caught.value.reason == "ADAPTER_KEY_AMBIGUOUS"
    named = {f"text_encoder_2.{key}": tensor for key, tensor in tensors.items()}
    assert read(base.components(), safetensors.torch.save(named)).updates.keys() == {"text_encoder_2"}


def other_names(base: Base, contents: bytes) -> bytes:
    """A file with kohya's keys, but other names of the denoiser's layers: the original ones, or diffusers' own."""
    layers = all_weight_shapes(base.denoiser)
    names = original_names(layers) if base.denoiser_name == "unet" else {layer: layer for layer in layers}
    prefix = "lora_unet_" if base.denoiser_name == "unet" else "lora_prior_unet_"
    keys = {
        kohya_key(base.denoiser_name, layer, base.components()): f"{prefix}{name.replace('.', '_')}"
        for layer, name in names.items()
    }
    renamed = {}
    for name, tensor in safetensors.torch.load(contents).items():
        key, _, part = name.partition(".")
        renamed[f"{keys.get(key, key)}.{part}"] = tensor
    assert renamed.keys() != safetensors.torch.load(contents).keys()
    return safetensors.torch.save(renamed)


@pytest.mark.parametrize("make", [tiny_stable_diffusion, tiny_stable_diffusion_xl, tiny_stable_cascade])
@pytest.mark.parametrize("dora", [False, True])
def test_every_layer_of_every_family_arrives_from_every_form(make: Any, dora: bool, tmp_path: Path) -> None:
    base = load_base(make(tmp_path), device=torch.device("cpu"), dtype=torch.float32)
    components = base.components()
    factors = {name: random_updates(model, seed=2, rank=2, dora=dora) for name, model in components.items()}
    kohya_s = write_kohya_file(factors, components)
    for contents in (write_adapter_file(factors), kohya_s, other_names(base, kohya_s)):
        found = {name: from_arrays(updates) for name, updates in read(components, contents).updates.items()}
        assert {name: updates.keys() for name, updates in found.items()} == {
            name: updates.keys() for name, updates in factors.items()
        }
        for name, updates in factors.items():
            for layer, update in updates.items():
                assert largest_difference(found[name][layer], update) == 0


def test_three_factors_of_a_convolution_act_as_their_two(base: StableDiffusion) -> None:
    generator = torch.Generator().manual_seed(0)
    out, wide = base.unet.get_parameter(f"{_CONV}.weight").shape[:2]
    down = torch.randn(4, wide, 1, 1, generator=generator) / 14
    mid = torch.randn(4, 4, 3, 3, generator=generator)
    up = torch.randn(out, 4, 1, 1, generator=generator)
    key = f"lora_unet_{_CONV.replace('.', '_')}"
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_mid.weight": mid, f"{key}.lora_up.weight": up}
    update = read(base.components(), safetensors.torch.save(tensors)).updates["unet"][_CONV]
    x = torch.randn(1, wide, 5, 5, generator=generator)
    theirs = F.conv2d(F.conv2d(F.conv2d(x, down), mid, padding=1), up)
    ours = F.conv2d(F.conv2d(x, torch.from_numpy(update.a), padding=1), torch.from_numpy(update.b)[:, :, None, None])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_bfloat16_and_a_lonely_linear_layer_in_place_of_a_1x1_convolution(base: StableDiffusion) -> None:
    layer = "mid_block.attentions.0.proj_in"
    out, wide = base.unet.get_parameter(f"{layer}.weight").shape[:2]
    tensors = {
        f"unet.{layer}.lora_A.weight": torch.randn(2, wide).bfloat16(),
        f"unet.{layer}.lora_B.weight": torch.randn(out, 2).bfloat16(),
    }
    update = read(base.components(), safetensors.torch.save(tensors)).updates["unet"][layer]
    assert torch.equal(torch.from_numpy(update.a), tensors[f"unet.{layer}.lora_A.weight"].float()[:, :, None, None])
    assert torch.equal(torch.from_numpy(update.b), tensors[f"unet.{layer}.lora_B.weight"].float())
