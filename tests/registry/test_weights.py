"""Weights that fit their base model, and all those that do not, over the real process and for a real base model."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from atelier.client import RegistryClient
from atelier.diffusion.safetensors_header import ITEM_BYTES
from atelier.errors import InvalidArgumentError
from atelier.pb.registry.v1 import registry_pb2 as pb
from tests.fuzz.checking import verdict
from tests.harness.files import WEIGHTS, WORDS, adapter_files, fake_base, layer_shapes, low_rank, safetensors, version
from tests.harness.registry import RegistryServer

Tensors = dict[str, tuple[int, ...]]
TO_Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.mid_block.resnets.0.conv1"
TEXT = "text_encoder.encoder.layers.0.self_attn.q_proj"
SHAPES = layer_shapes(fake_base())
PAIR = low_rank({TO_Q: SHAPES[TO_Q]}, rank=2)
A, B = f"{TO_Q}.lora_A.weight", f"{TO_Q}.lora_B.weight"
MAGNITUDE = f"{TO_Q}.lora_magnitude_vector.weight"


@pytest.fixture(autouse=True)
def fox(registry: RegistryClient) -> None:
    """An adapter without versions."""
    registry.create_adapter("fox")


def publish(registry: RegistryClient, files: Mapping[str, bytes], **fields: Any) -> pb.Version:
    return registry.publish("fox", version(**fields), files)


def summaries(published: pb.Version) -> list[dict[str, Any]]:
    return [MessageToDict(each, preserving_proto_field_name=True) for each in published.weights]


def test_low_rank_updates_are_summed_up_by_component(registry: RegistryClient) -> None:
    shapes = {name: SHAPES[name] for name in (TO_Q, CONV)}
    tensors = {**low_rank(shapes, rank=4), **low_rank({TEXT: SHAPES[TEXT]}, rank=8, dora=True)}
    published = publish(registry, {WEIGHTS: safetensors(tensors)})
    assert summaries(published) == [
        {"kind": "KIND_LOW_RANK", "component": "text_encoder", "layer_count": 1, "max_rank": 8, "has_magnitudes": True},
        {"kind": "KIND_LOW_RANK", "component": "unet", "layer_count": 2, "max_rank": 4},
    ]
    assert published.family == "stable-diffusion"
    assert registry.resolve("fox") == published


def test_ranks_may_differ_between_layers(registry: RegistryClient) -> None:
    tensors = {**PAIR, **low_rank({CONV: SHAPES[CONV]}, rank=16)}
    (summary,) = publish(registry, {WEIGHTS: safetensors(tensors)}).weights
    assert (summary.max_rank, summary.layer_count) == (16, 2)


def test_magnitudes_of_convolutions_are_known(registry: RegistryClient) -> None:
    tensors = low_rank({name: SHAPES[name] for name in (TO_Q, CONV)}, rank=1, dora=True)
    (summary,) = publish(registry, {WEIGHTS: safetensors(tensors)}).weights
    assert summary.has_magnitudes


def test_text_encoders_are_known_with_and_without_their_wrapper(registry: RegistryClient) -> None:
    bare = {f"{TEXT}.lora_A.weight": (2, 48), f"{TEXT}.lora_B.weight": (48, 2)}
    (summary,) = publish(registry, {WEIGHTS: safetensors(bare)}).weights
    assert (summary.component, summary.layer_count) == ("text_encoder", 1)


def test_words_are_summed_up(registry: RegistryClient) -> None:
    published = publish(registry, {WORDS: safetensors({"clip_l": (3, 48)})})
    assert summaries(published) == [{"kind": "KIND_EMBEDDINGS", "component": "text_encoder", "vector_count": 3}]


def test_words_and_updates_may_be_together(registry: RegistryClient) -> None:
    published = publish(registry, {WORDS: safetensors({"clip_l": (1, 48)}), WEIGHTS: safetensors(PAIR)})
    kinds = [pb.WeightsSummary.Kind.Name(each.kind) for each in published.weights]
    assert sorted(kinds) == ["KIND_EMBEDDINGS", "KIND_LOW_RANK"]


def pipeline(**changes: tuple[int, ...]) -> dict[str, bytes]:
    """A whole model of the fake base, its UNet in two shards; `changes` of layers' shapes, empty without the layer."""
    parts: dict[str, Tensors] = {"unet": {"conv_norm_out.weight": (32,)}, "text_encoder": {}}
    for path, shape in SHAPES.items():
        component, _, layer = path.partition(".")
        # Most of the numbers do not matter here: a small shape for each would not fit the base.
        parts[component][f"{layer}.weight"] = changes.get(path, tuple(shape))
    for part in parts.values():
        for name in [name for name, shape in part.items() if not shape]:
            del part[name]
    parts["text_encoder"]["embeddings.token_embedding.weight"] = (10, 48)
    unet = list(parts["unet"].items())
    return {
        "model_index.json": json.dumps({"_class_name": "StableDiffusionPipeline"}).encode(),
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors": zeros(dict(unet[: len(unet) // 2])),
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors": zeros(dict(unet[len(unet) // 2 :])),
        "text_encoder/model.safetensors": zeros(parts["text_encoder"]),
        "vae/diffusion_pytorch_model.safetensors": safetensors({"decoder.conv_in.weight": (4, 4, 3, 3)}),
    }


def zeros(shapes: Tensors, dtype: str = "F16") -> bytes:
    """A file of zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + ITEM_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * end


def test_a_whole_model_in_shards_is_known_as_such(registry: RegistryClient) -> None:
    published = publish(registry, {**pipeline(), f"lora/{WEIGHTS}": safetensors(PAIR)}, method="dreambooth")
    assert summaries(published) == [
        {"kind": "KIND_LOW_RANK", "component": "unet", "layer_count": 1, "max_rank": 2},
        {"kind": "KIND_FULL", "component": "text_encoder"},
        {"kind": "KIND_FULL", "component": "unet"},
    ]


@pytest.mark.parametrize(
    ("changes", "reason", "told"),
    [
        ({TO_Q: ()}, "WEIGHTS_INCOMPLETE", "unet/ lacks 1 of the 129 layers"),
        ({TO_Q: (512, 513)}, "ADAPTER_SHAPE_MISMATCH", "needs [512, 512]"),
        ({CONV: (64, 32, 1, 1)}, "ADAPTER_SHAPE_MISMATCH", "needs [64, 32, 3, 3]"),
        ({TEXT: ()}, "WEIGHTS_INCOMPLETE", "text_encoder/ lacks 1 of the 8 layers"),
    ],
)
def test_whole_models_of_another_make_are_refused(
    registry: RegistryClient, changes: Mapping[str, tuple[int, ...]], reason: str, told: str
) -> None:
    _refused(registry, pipeline(**changes), reason, told)


def test_a_pipeline_without_one_of_its_models_is_refused(registry: RegistryClient) -> None:
    files = pipeline()
    del files["text_encoder/model.safetensors"]
    _refused(registry, files, "WEIGHTS_INCOMPLETE", "text_encoder/ lacks")


def test_an_index_without_any_weights_is_refused(registry: RegistryClient) -> None:
    _refused(registry, {"model_index.json": b"{}"}, "WEIGHTS_MISSING", "no weights")


@pytest.mark.parametrize(
    ("tensors", "reason", "told"),
    [
        ({A: PAIR[A]}, "ADAPTER_KEY_MISSING", "lacks one of its factors"),
        ({B: PAIR[B]}, "ADAPTER_KEY_MISSING", "lacks one of its factors"),
        ({**PAIR, A: (3, 512)}, "ADAPTER_SHAPE_MISMATCH", "lora_B has shape [512, 2]; the base model needs [512, 3]"),
        ({**PAIR, A: (2, 511)}, "ADAPTER_SHAPE_MISMATCH", "lora_A has shape [2, 511]"),
        ({**PAIR, B: (511, 2)}, "ADAPTER_SHAPE_MISMATCH", "lora_B has shape [511, 2]"),
        ({A: (), B: ()}, "ADAPTER_RANK_TOO_HIGH", "has rank 0"),
        ({A: (2,), B: (2,)}, "ADAPTER_SHAPE_MISMATCH", "lora_A has shape [2]"),
        ({A: (2, 512, 1, 1), B: (512, 2, 1, 1)}, "ADAPTER_SHAPE_MISMATCH", "lora_A has shape [2, 512, 1, 1]"),
        (low_rank({TO_Q: SHAPES[TO_Q]}, rank=1025), "ADAPTER_RANK_TOO_HIGH", "has rank 1025"),
        (low_rank({CONV: (64, 32, 1, 1)}, rank=1), "ADAPTER_SHAPE_MISMATCH", "needs [1, 32, 3, 3]"),
        (low_rank({CONV: (64, 32)}, rank=1), "ADAPTER_SHAPE_MISMATCH", "needs [1, 32, 3, 3]"),
        ({**PAIR, MAGNITUDE: (511,)}, "ADAPTER_SHAPE_MISMATCH", "lora_magnitude_vector has shape [511]"),
        (
            {**PAIR, MAGNITUDE: (512,), MAGNITUDE.removesuffix(".weight"): (512,)},
            "ADAPTER_KEY_UNKNOWN",
            "has two magnitudes",
        ),
        (
            {**PAIR, MAGNITUDE: (512,), **low_rank({CONV: SHAPES[CONV]}, rank=1)},
            "ADAPTER_KEY_MISSING",
            "mid_block.resnets.0.conv1 has not",
        ),
        (
            {**PAIR, **{f"unet.nowhere.{i}.lora_{f}.weight": (1, 1) for i in range(9) for f in "AB"}},
            "ADAPTER_LAYER_UNKNOWN",
            "9 of the 10 layers for its unet are not in the base model: nowhere.0, nowhere.1, nowhere.2 and 6 more",
        ),
        (low_rank({"unet.nowhere": (8, 8)}, rank=1), "ADAPTER_LAYER_UNKNOWN", "1 of the 1 layers"),
        (
            low_rank({"text_encoder_2.encoder.layers.0.mlp.fc1": (8, 8)}, rank=1),
            "ADAPTER_COMPONENT_UNKNOWN",
            "has unet",
        ),
        (
            {
                **{f"{TEXT}.lora_{f}.weight": s for f, s in (("A", (1, 48)), ("B", (48, 1)))},
                **low_rank({TEXT: (48, 48)}, rank=1),
            },
            "ADAPTER_KEY_UNKNOWN",
            "under two names",
        ),
        ({"anything": (1,)}, "ADAPTER_KEY_UNKNOWN", "'anything'"),
        ({"lora_unet_down_blocks_0.lora_down.weight": (1,)}, "ADAPTER_KEY_UNKNOWN", "not named like"),
    ],
)
def test_updates_that_do_not_fit_are_refused(
    registry: RegistryClient, tensors: Tensors, reason: str, told: str
) -> None:
    _refused(registry, {WEIGHTS: safetensors(tensors)}, reason, told)


@pytest.mark.parametrize(
    ("tensors", "reason", "told"),
    [
        ({"clip_l": (1, 47)}, "ADAPTER_SHAPE_MISMATCH", "needs [1, 48]"),
        ({"clip_l": (48,)}, "ADAPTER_SHAPE_MISMATCH", "needs [48, 48]"),
        ({"clip_l": ()}, "ADAPTER_SHAPE_MISMATCH", "0 vectors"),
        ({"clip_l": (1025, 48)}, "ADAPTER_SHAPE_MISMATCH", "1025 vectors"),
        ({"clip_g": (1, 48)}, "ADAPTER_KEY_UNKNOWN", "needs clip_l"),
        ({"clip_l": (1, 48), "clip_g": (1, 48)}, "ADAPTER_KEY_UNKNOWN", "needs clip_l"),
        ({"emb_params": (1, 48)}, "ADAPTER_KEY_UNKNOWN", "emb_params"),
    ],
)
def test_words_that_do_not_fit_are_refused(registry: RegistryClient, tensors: Tensors, reason: str, told: str) -> None:
    _refused(registry, {WORDS: safetensors(tensors)}, reason, told)


def test_whole_numbers_are_no_update(registry: RegistryClient) -> None:
    _refused(registry, {WEIGHTS: zeros(PAIR, "I64")}, "ADAPTER_DTYPE", "type I64")


def test_updates_that_ask_for_a_scale_are_refused(registry: RegistryClient) -> None:
    config = json.dumps({"unet.r": 2, "unet.lora_alpha": 4})
    _refused(registry, {WEIGHTS: _with_metadata(lora_adapter_metadata=config)}, "ADAPTER_SCALED", "fold it in")


def test_metadata_that_diffusers_writes_is_kept(registry: RegistryClient) -> None:
    contents = _with_metadata(format="pt", lora_adapter_metadata=json.dumps({"unet.r": 2, "unet.lora_alpha": 2}))
    published = publish(registry, {WEIGHTS: contents})
    assert registry.download(published, WEIGHTS) == contents


def test_other_metadata_is_refused_by_name(registry: RegistryClient) -> None:
    contents = _with_metadata(format="pt", ss_dataset_dirs="/home/alice/photos")
    error = _refused(registry, {WEIGHTS: contents}, "METADATA_REFUSED", "'ss_dataset_dirs'")
    assert "alice" not in error.message


def test_more_than_the_libraries_own_words_in_their_metadata_is_refused(registry: RegistryClient) -> None:
    config = json.dumps({"unet.r": 2, "unet.lora_alpha": 2, "author": "/home/alice"})
    contents = _with_metadata(lora_adapter_metadata=config)
    error = _refused(registry, {WEIGHTS: contents}, "METADATA_REFUSED", "'lora_adapter_metadata'")
    assert "alice" not in error.message


def test_what_diffusers_writes_today_is_accepted(
    registry: RegistryClient, registry_server: RegistryServer, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    from atelier.diffusion.base_layers import describe_base
    from tests.harness.families import tiny_stable_diffusion

    folder = tiny_stable_diffusion(tmp_path / "sd")
    base = registry_server.register(describe_base(folder, "tiny"))
    unet = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True).unet
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights="gaussian", target_modules=["to_q", "to_out.0"]))
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
    contents = (tmp_path / WEIGHTS).read_bytes()
    assert b"target_modules" in contents
    (summary,) = publish(registry, {WEIGHTS: contents}, base_model=base.base_model).weights
    assert (summary.component, summary.max_rank) == ("unet", 2)
    unet.save_lora_adapter(tmp_path / "unet")
    contents = (tmp_path / "unet" / WEIGHTS).read_bytes()
    assert b"target_modules" in contents
    assert verdict(WEIGHTS, contents) is None


@pytest.mark.parametrize("path", ["other.safetensors", "lora.safetensors", "a/b/c.safetensors"])
def test_weights_that_nothing_loads_are_refused(registry: RegistryClient, path: str) -> None:
    _refused(registry, {**adapter_files(), path: safetensors(PAIR)}, "WEIGHTS_UNKNOWN", path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_enough(registry: RegistryClient, value: float) -> None:
    contents = safetensors(PAIR)[:-4] + struct.pack("<f", value)
    _refused(registry, {WEIGHTS: contents}, "WEIGHTS_NOT_FINITE", "lora_B.weight")


def test_a_real_adapter_of_a_real_base_fits(
    registry: RegistryClient, registry_server: RegistryServer, tmp_path: Path
) -> None:
    from atelier.diffusion.base_layers import describe_base
    from tests.harness.families import tiny_stable_cascade

    base = registry_server.register(describe_base(tiny_stable_cascade(tmp_path / "cascade"), "tiny-cascade"))
    attention = {name: shape for name, shape in layer_shapes(base).items() if name.endswith("to_q")}
    files = {WEIGHTS: safetensors(low_rank(attention, rank=2, dora=True)), WORDS: safetensors({"clip_g": (2, 32)})}
    published = publish(registry, files, base_model=base.base_model)
    assert published.family == "stable-cascade"
    assert {each.component for each in published.weights} == {"prior", "text_encoder"}


def _with_metadata(**metadata: str) -> bytes:
    plain = safetensors(PAIR)
    length = int.from_bytes(plain[:8], "little")
    text = json.dumps({"__metadata__": metadata, **json.loads(plain[8 : 8 + length])}).encode()
    return struct.pack("<Q", len(text)) + text + plain[8 + length :]


def _refused(registry: RegistryClient, files: Mapping[str, bytes], reason: str, told: str) -> InvalidArgumentError:
    """The error of a version that is refused and leaves nothing behind."""
    with pytest.raises(InvalidArgumentError) as caught:
        publish(registry, files)
    assert caught.value.reason == reason
    assert caught.value.violations[0].field.startswith("spec.version.files")
    assert told in caught.value.message
    assert list(registry.versions("fox")) == []
    return caught.value
