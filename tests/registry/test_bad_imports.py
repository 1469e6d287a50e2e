"""Imports that must be refused, with a reason, and leave nothing behind."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import safetensors.torch
import torch

from atelier.client import RegistryClient
from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.errors import AtelierError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from tests.harness.files import version
from tests.registry import formats
from tests.registry.formats import Factors


@pytest.fixture(autouse=True)
def fox(registry: RegistryClient) -> pb.Adapter:
    """An adapter without versions."""
    return registry.create_adapter("fox")


@pytest.fixture(scope="module")
def factors(base: StableDiffusion) -> Factors:
    return formats.random_factors(base)


@pytest.fixture
def wanted(base: StableDiffusion) -> pb.Version:
    """What an import must say of the version."""
    return pb.Version(base_model=formats.own_base(base))


_TO_Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def _wider(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{_TO_Q}.lora_down.weight"] = torch.ones(4, 320)


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{_TO_Q}.lora_down.weight"][0, 0] = torch.nan


def _partial(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{_TO_Q}.lora_up.weight"]


def _more(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lora_unet_down_blocks_7_resnets_0_conv1.alpha"] = torch.ones(())


def _loha(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{_TO_Q}.hada_w1_a"] = torch.ones(4, 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_wider, "ADAPTER_SHAPE_MISMATCH"),
        (_nan, "ADAPTER_NOT_FINITE"),
        (_partial, "ADAPTER_KEY_MISSING"),
        (_more, "ADAPTER_KEY_UNKNOWN"),
        (_loha, "ADAPTER_KIND_NOT_SUPPORTED"),
    ],
)
def test_a_file_that_is_not_whole_and_right_is_refused(
    change: Callable[[dict[str, torch.Tensor]], None],
    reason: str,
    base: StableDiffusion,
    factors: Factors,
    wanted: pb.Version,
    registry: RegistryClient,
    registry_stub: RegistryServiceStub,
) -> None:
    tensors = safetensors.torch.load(formats.as_kohya(factors, base))
    change(tensors)
    with pytest.raises(InvalidArgumentError) as caught, translated_errors():
        registry_stub.ImportVersion(formats.messages(safetensors.torch.save(tensors), wanted))
    assert caught.value.reason == reason
    assert caught.value.violations[0].field == "spec.file"
    assert list(registry.versions("fox")) == []


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit",))


@pytest.mark.parametrize("contents", [pickle.dumps(_Bomb()), b"PK\x03\x04" + bytes(100), bytes(100), b"x"])
def test_what_is_no_safetensors_file_is_refused_whatever_its_name(
    contents: bytes, wanted: pb.Version, registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    with pytest.raises(InvalidArgumentError) as caught, translated_errors():
        registry_stub.ImportVersion(formats.messages(contents, wanted))
    assert caught.value.reason in ("PICKLE_REFUSED", "SAFETENSORS_INVALID")
    assert list(registry.versions("fox")) == []


def test_an_adapter_of_another_base_model_is_refused(
    base: StableDiffusion,
    factors: Factors,
    wanted: pb.Version,
    registry: RegistryClient,
    registry_stub: RegistryServiceStub,
) -> None:
    contents = formats.as_kohya(factors, base)
    refused: list[tuple[BaseModel, type[AtelierError], str]] = [
        (version().base_model, InvalidArgumentError, "ADAPTER_KEY_UNKNOWN"),
        (BaseModel(model="x", digest="sha256:" + "00" * 32), FailedPreconditionError, "BASE_MODEL_UNKNOWN"),
        (BaseModel(model="x", digest="x"), InvalidArgumentError, "INVALID_FIELD"),
    ]
    for other, kind, reason in refused:
        with pytest.raises(kind) as caught, translated_errors():
            registry_stub.ImportVersion(formats.messages(contents, pb.Version(base_model=other)))
        assert caught.value.reason == reason
    assert list(registry.versions("fox")) == []


@pytest.mark.parametrize(
    ("fields", "pieces", "reason"),
    [
        ({}, [b"abc"], "UPLOAD_INCOMPLETE"),
        ({}, [b"abcdefgh", b"i"], "UPLOAD_TOO_LONG"),
        ({}, [b"abcdefgx"], "CHECKSUM_MISMATCH"),
        ({"size_bytes": 0}, [], "INVALID_FIELD"),
        ({"size_bytes": 2 * 1024**3 + 1}, [], "INVALID_FIELD"),
        ({"sha256": "x"}, [], "INVALID_FIELD"),
    ],
)
def test_bytes_are_the_declared_ones(
    fields: dict[str, object],
    pieces: list[bytes],
    reason: str,
    wanted: pb.Version,
    registry_stub: RegistryServiceStub,
) -> None:
    spec = next(formats.messages(b"abcdefgh", wanted))
    for name, value in fields.items():
        setattr(spec.spec.file, name, value)
    with pytest.raises(InvalidArgumentError) as caught, translated_errors():
        registry_stub.ImportVersion(iter([spec, *(pb.ImportVersionRequest(data=piece) for piece in pieces)]))
    assert caught.value.reason == reason
    assert caught.value.violations[0].field.startswith("spec.file")


def test_an_adapter_that_is_not_there_is_not_found_before_any_data(
    wanted: pb.Version, registry_stub: RegistryServiceStub
) -> None:
    spec = next(formats.messages(b"x", wanted, parent="tenants/-/adapters/cat"))
    with pytest.raises(NotFoundError), translated_errors():
        registry_stub.ImportVersion(iter([spec]))
