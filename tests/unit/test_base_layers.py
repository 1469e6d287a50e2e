"""What is told of a base model without loading it is what the loaded model says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from atelier.diffusion.base import Base, load_base
from atelier.diffusion.base_layers import LAYOUTS, describe_base
from atelier.diffusion.formats.word_forms import table_keys
from atelier.diffusion.lowrank import weight_shapes
from atelier.diffusion.safetensors_header import check_safetensors_header
from atelier.errors import InvalidArgumentError
from tests.harness.families import tiny_stable_cascade, tiny_stable_diffusion, tiny_stable_diffusion_xl

EMOJI_SD = Path(__file__).parents[2] / "models" / "emoji-sd"


def load(folder: Path) -> Base:
    return load_base(folder, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize(
    "make",
    [tiny_stable_diffusion, tiny_stable_diffusion_xl, tiny_stable_cascade, lambda _: EMOJI_SD],
    ids=["stable-diffusion", "stable-diffusion-xl", "stable-cascade", "emoji-sd"],
)
def test_layers_are_those_of_the_loaded_model(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "base")
    told, base = describe_base(folder, "a name"), load(folder)
    assert (told.base_model.model, told.base_model.digest, told.family) == ("a name", base.digest, base.family)
    components = base.components()
    assert [each.component for each in told.components] == list(components)
    assert list(LAYOUTS[base.family].components) == list(components)
    for each in told.components:
        layers = {layer.name: tuple(layer.weight_shape) for layer in each.layers}
        model = components[each.component]
        assert layers == {
            name: tuple(module.weight.shape)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        }
        assert weight_shapes(model).items() <= layers.items()
        assert LAYOUTS[base.family].part_of(each.component) == base.part_of(each.component)


@pytest.mark.parametrize("make", [tiny_stable_diffusion, tiny_stable_diffusion_xl, tiny_stable_cascade])
def test_widths_of_words_are_those_of_the_loaded_model(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "base")
    widths = {each.component: each.embedding_size for each in describe_base(folder, "x").components}
    towers = load(folder).towers
    for tower in towers:
        assert widths.pop(tower.component) == tower.model.get_input_embeddings().weight.shape[1]
    assert list(widths.values()) == [0]
    keys = table_keys([each.component for each in describe_base(folder, "x").components])
    assert keys == {tower.component: tower.embeds_key for tower in towers}


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_are_read_by_their_index(variant: str, tmp_path: Path) -> None:
    folder = tiny_stable_diffusion(tmp_path / "base")
    whole = describe_base(folder, "x").components
    single = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(single)
    single.unlink()
    shards = {
        name: f"diffusion_pytorch_model{variant}-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(tensors)
    }
    for shard in set(shards.values()):
        save_file({name: tensor for name, tensor in tensors.items() if shards[name] == shard}, folder / "unet" / shard)
    index = folder / "unet" / f"diffusion_pytorch_model.safetensors.index{variant}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert describe_base(folder, "x").components == whole


def test_a_copy_in_another_number_type_is_read_where_there_is_no_other(tmp_path: Path) -> None:
    folder = tiny_stable_diffusion(tmp_path / "base")
    whole = describe_base(folder, "x").components
    single = folder / "text_encoder" / "model.safetensors"
    single.rename(single.with_name("model.fp16.safetensors"))
    assert describe_base(folder, "x").components == whole


def test_files_of_older_transformers_give_the_same_names(tmp_path: Path) -> None:
    folder = tiny_stable_diffusion(tmp_path / "base")
    told = describe_base(folder, "x").components
    weights = folder / "text_encoder" / "model.safetensors"
    save_file({f"text_model.{name}": tensor for name, tensor in load_file(weights).items()}, weights)
    assert describe_base(folder, "x").components == told


def test_every_tensor_of_the_embedded_models_has_a_name_that_is_let_pass() -> None:
    paths = list(EMOJI_SD.parent.rglob("*.safetensors"))
    assert paths
    for path in paths:
        assert check_safetensors_header(path).tensors


def _lose_weights(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def _lose_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def _spoil_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("[]")


def _lose_shard(folder: Path) -> None:
    _lose_weights(folder)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "gone.safetensors"}}))


def _point_elsewhere(folder: Path) -> None:
    _lose_weights(folder)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../text_encoder/model.safetensors"}}))


def _other_family(folder: Path) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_lose_weights, "BASE_MODEL_NOT_SAFETENSORS"),
        (_lose_index, "BASE_MODEL_NOT_FOUND"),
        (_spoil_index, "BASE_MODEL_NOT_SUPPORTED"),
        (_lose_shard, "BASE_MODEL_NOT_SAFETENSORS"),
        (_point_elsewhere, "BASE_MODEL_NOT_SAFETENSORS"),
        (_other_family, "BASE_MODEL_NOT_SUPPORTED"),
    ],
)
def test_folders_that_are_no_base_are_refused(change: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    folder = tiny_stable_diffusion(tmp_path / "base")
    change(folder)
    with pytest.raises(InvalidArgumentError) as caught:
        describe_base(folder, "x")
    assert caught.value.reason == reason


def test_it_takes_no_torch() -> None:
    code = "import sys, atelier.diffusion.base_layers; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
