"""Adapter files: what is written is what plain diffusers loads; what is not right is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from atelier.diffusion.adapter_file import FILE_NAME, max_file_bytes, read_adapter_file, write_adapter_file
from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.diffusion.lowrank import LowRank, weight_shapes
from atelier.diffusion.safetensors_header import check_safetensors_header
from atelier.diffusion.slots import InferenceSlots, InferenceSlotsConfig
from atelier.errors import InvalidArgumentError
from tests.harness.adapters import largest_difference, random_updates

_LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
_CONV = "mid_block.resnets.0.conv1"


@pytest.fixture(scope="module")
def shapes(base: StableDiffusion) -> dict[str, torch.Size]:
    return weight_shapes(base.unet)


def make_factors(shapes: dict[str, torch.Size], names: list[str] | None = None) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: LowRank(
            a=torch.randn(4, *shapes[name][1:], generator=generator) * 0.05,
            b=torch.randn(shapes[name][0], 4, generator=generator) * 0.05,
        )
        for name in names or shapes
    }


@pytest.fixture(scope="module")
def contents(shapes: dict[str, torch.Size]) -> bytes:
    return write_adapter_file({"unet": make_factors(shapes, [_LINEAR, _CONV])})


def with_header(contents: bytes, change: Callable[[dict], object]) -> bytes:
    length = int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8 : 8 + length])
    changed = change(header)
    text = (changed if isinstance(changed, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + contents[8 + length :]


def test_reading_gives_back_what_was_written(shapes: dict[str, torch.Size]) -> None:
    factors = make_factors(shapes)
    (read,) = read_adapter_file(write_adapter_file({"unet": factors}), {"unet": shapes}).values()
    assert read.keys() == factors.keys()
    assert all(torch.equal(read[name].a, factors[name].a) for name in factors)
    assert all(torch.equal(read[name].b, factors[name].b) for name in factors)


def test_plain_diffusers_draws_the_same_from_the_file(
    base: StableDiffusion, shapes: dict[str, torch.Size], tmp_path: Path
) -> None:
    factors = make_factors(shapes)
    (tmp_path / FILE_NAME).write_bytes(write_adapter_file({"unet": factors}))
    pipeline = StableDiffusionPipeline.from_pretrained(base.path, dtype=torch.float32)
    pipeline.load_lora_weights(tmp_path, weight_name=FILE_NAME)
    assert sum("lora_" in name for name, _ in pipeline.unet.named_parameters()) == 2 * len(shapes)
    inputs = (torch.randn(2, 4, 16, 16), torch.tensor([900, 100]), base.encode_prompts(["a fox", "a cat"]).text)
    slots = InferenceSlots(base.unet, InferenceSlotsConfig(num_slots=2, max_rank=4))
    slots.load(1, factors)
    with torch.no_grad(), slots.bind(slots.gather([[(1, 1.0)]])):
        ours = base.unet(*inputs).sample
        theirs = pipeline.unet(*inputs).sample
    slots.close()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert isinstance(pipeline.unet, UNet2DConditionModel)
    assert not torch.allclose(ours, base.unet(*inputs).sample, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.__setitem__("unet.x.alpha", h.pop(f"unet.{_LINEAR}.lora_A.weight")), "is not named like"),
        (lambda h: h.__setitem__("text-encoder.a.lora_A.weight", h.pop(f"unet.{_LINEAR}.lora_A.weight")), "not named"),
        (
            lambda h: h.__setitem__(f"unet.{_LINEAR}2.lora_B.weight", h.pop(f"unet.{_LINEAR}.lora_B.weight")),
            "lacks one",
        ),
        (lambda h: h[f"unet.{_LINEAR}.lora_A.weight"].__setitem__("shape", [192, 4]), "has rank 192|has shape"),
        (lambda h: h[f"unet.{_LINEAR}.lora_A.weight"].__setitem__("shape", [4, 191]), "does not fit its shape"),
        (lambda h: h[f"unet.{_LINEAR}.lora_A.weight"].__setitem__("shape", [4.0, 192]), "malformed"),
        (lambda h: h[f"unet.{_LINEAR}.lora_A.weight"].__setitem__("dtype", "I32"), "number type other than F32"),
        (lambda h: h[f"unet.{_LINEAR}.lora_A.weight"].__setitem__("more", 1), "exactly dtype, shape"),
        (lambda h: h[f"unet.{_LINEAR}.lora_A.weight"].__setitem__("data_offsets", [64, 3136]), "overlaps|gap"),
        (lambda h: h.__setitem__("__metadata__", {"a": 1}), "metadata that is not text"),
        (
            lambda h: h.__setitem__("__metadata__", {"lora_adapter_metadata": '{"unet.lora_alpha": 8, "unet.r": 4}'}),
            "scale",
        ),
        (lambda h: json.dumps(h)[:-1] + ', "__metadata__": {}}', "twice"),
        (lambda h: "[]", "does not begin with {"),
        (lambda h: "{" * 5000, "not JSON"),
    ],
)
def test_a_file_with_a_wrong_header_is_refused(
    contents: bytes, shapes: dict[str, torch.Size], change: Callable[[dict], object], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        read_adapter_file(with_header(contents, change), {"unet": shapes})


def test_a_cut_or_overlong_file_is_refused(contents: bytes) -> None:
    for damaged in (b"", contents[:7], contents[:100], contents[:-1], contents + b"\0"):
        with pytest.raises(InvalidArgumentError):
            check_safetensors_header(damaged)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    path = tmp_path / FILE_NAME
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InvalidArgumentError, match="is a pickle"):
        read_adapter_file(path, {})
    assert not (tmp_path / "ran").exists()


def test_values_that_are_not_finite_are_refused_by_name(shapes: dict[str, torch.Size]) -> None:
    factors = make_factors(shapes, [_CONV])
    factors[_CONV].b[0, 0] = torch.nan
    with pytest.raises(InvalidArgumentError, match=rf"{_CONV}\.lora_B has values that are NaN"):
        read_adapter_file(write_adapter_file({"unet": factors}), {"unet": shapes})


def test_an_adapter_of_another_base_model_is_refused_by_layer(contents: bytes, shapes: dict[str, torch.Size]) -> None:
    wider = {name: torch.Size([shape[0], shape[1] + 64, *shape[2:]]) for name, shape in shapes.items()}
    with pytest.raises(InvalidArgumentError, match=r"lora_A has shape .* the base model needs"):
        read_adapter_file(contents, {"unet": wider})
    without = {name: shape for name, shape in shapes.items() if name != _CONV}
    with pytest.raises(InvalidArgumentError, match=rf"1 of its 2 layers are not in the base model: {_CONV}"):
        read_adapter_file(contents, {"unet": without})


def test_the_peer_s_own_files_are_read(base: StableDiffusion, shapes: dict[str, torch.Size], tmp_path: Path) -> None:
    factors = make_factors(shapes, [_LINEAR])
    layers: dict[str, torch.nn.Module | torch.Tensor] = {
        f"{name}.lora_{letter}.weight": tensor
        for name, update in factors.items()
        for letter, tensor in (("A", update.a), ("B", update.b))
    }
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    read = read_adapter_file(tmp_path / FILE_NAME, {"unet": shapes})["unet"]
    assert torch.equal(read[_LINEAR].a, factors[_LINEAR].a)
    assert (
        safetensors.torch.load_file(tmp_path / FILE_NAME).keys()
        == safetensors.torch.load(write_adapter_file({"unet": factors})).keys()
    )


_TEXT_LAYER = "encoder.layers.0.self_attn.q_proj"


def test_text_encoders_layers_have_the_names_that_all_readers_know(base: StableDiffusion) -> None:
    shapes = {"text_encoder": weight_shapes(base.text_encoder, "linear")}
    contents = write_adapter_file({"text_encoder": make_factors(shapes["text_encoder"])})
    tensors = safetensors.torch.load(contents)
    assert f"text_encoder.text_model.{_TEXT_LAYER}.lora_A.weight" in tensors
    newer = {name.replace("text_model.", ""): tensor for name, tensor in tensors.items()}
    for form in (contents, safetensors.torch.save(newer)):
        assert read_adapter_file(form, shapes)["text_encoder"].keys() == shapes["text_encoder"].keys()
    with pytest.raises(InvalidArgumentError, match="under two names"):
        read_adapter_file(
            safetensors.torch.save({**tensors, **{name: tensor.clone() for name, tensor in newer.items()}}), shapes
        )


def test_magnitudes_are_read_back_and_must_be_whole(base: StableDiffusion, shapes: dict[str, torch.Size]) -> None:
    factors = random_updates(base.unet, seed=0, dora=True)
    contents = write_adapter_file({"unet": factors})
    read = read_adapter_file(contents, {"unet": shapes})["unet"]
    assert all(largest_difference(read[name], factors[name]) == 0 for name in shapes)
    assert len(contents) <= max_file_bytes(shapes, max_rank=4)
    tensors = safetensors.torch.load(contents)
    peft_s = {name.replace("_vector.weight", "_vector"): tensor for name, tensor in tensors.items()}
    assert read_adapter_file(safetensors.torch.save(peft_s), {"unet": shapes}).keys() == {"unet"}
    both = {**tensors, f"unet.{_CONV}.lora_magnitude_vector": torch.ones(1, 192, 1, 1)}
    with pytest.raises(InvalidArgumentError, match=rf"layer {_CONV} has two magnitudes"):
        read_adapter_file(safetensors.torch.save(both), {"unet": shapes})
    tensors.pop(f"unet.{_CONV}.lora_magnitude_vector.weight")
    with pytest.raises(InvalidArgumentError, match=rf"1 of the 128 layers .* lack magnitudes \(DoRA\): {_CONV}"):
        read_adapter_file(safetensors.torch.save(tensors), {"unet": shapes})
    tensors[f"unet.{_CONV}.lora_magnitude_vector"] = torch.ones(5)
    with pytest.raises(InvalidArgumentError, match=rf"{_CONV}\.lora_magnitude_vector has shape \[5\]"):
        read_adapter_file(safetensors.torch.save(tensors), {"unet": shapes})


def test_components_that_the_base_has_not_got_are_refused_by_name(shapes: dict[str, torch.Size]) -> None:
    contents = write_adapter_file({"text_encoder_2": make_factors(shapes, [_LINEAR])})
    with pytest.raises(InvalidArgumentError, match="adapts text_encoder_2; accepted are unet") as caught:
        read_adapter_file(contents, {"unet": shapes})
    assert caught.value.reason == "ADAPTER_COMPONENT_UNKNOWN"
