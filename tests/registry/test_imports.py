"""Imports: what another program's file draws is drawn by the version, and nothing else of the file is kept."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from atelier.client import RegistryClient
from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.errors import InvalidArgumentError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from tests.registry import formats
from tests.registry.formats import Factors, PlainDiffusers

LORA, WORDS = "pytorch_lora_weights.safetensors", "learned_embeds.safetensors"


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


@pytest.mark.parametrize("write", [formats.as_diffusers, formats.as_kohya, formats.as_original])
def test_a_lora_draws_the_same_image(
    write: Callable[[Factors, StableDiffusion], bytes],
    base: StableDiffusion,
    factors: Factors,
    plain: PlainDiffusers,
    wanted: pb.Version,
    registry: RegistryClient,
    registry_stub: RegistryServiceStub,
) -> None:
    contents = write(factors, base)
    assert b"alice" in contents
    imported = registry_stub.ImportVersion(formats.messages(contents, wanted))
    stored = registry.download(imported, LORA)
    tensors = safetensors.torch.load(stored)
    assert len(tensors) == 2 * (128 + 24)
    for component, updates in factors.items():
        for layer, update in updates.items():
            name = f"{component}.{'text_model.' if component == 'text_encoder' else ''}{layer}"
            assert torch.equal(tensors[f"{name}.lora_A.weight"], update.a)
            assert torch.equal(tensors[f"{name}.lora_B.weight"].flatten(1), update.b)
    image = plain.draw_with_lora(stored)
    assert np.abs(image - plain.draw()).max() > 50
    # diffusers itself knows the original names of SDXL's layers only.
    original = formats.as_diffusers(factors, base) if write is formats.as_original else contents
    assert np.array_equal(image, plain.draw_with_lora(original))


def test_nothing_is_kept_of_who_made_it(
    base: StableDiffusion,
    factors: Factors,
    wanted: pb.Version,
    registry: RegistryClient,
    registry_stub: RegistryServiceStub,
    tmp_path: Path,
) -> None:
    contents = formats.as_kohya(factors, base)
    file = next(formats.messages(contents, wanted)).spec.file
    file.path = "/home/alice/fox of alice.safetensors"
    imported = registry_stub.ImportVersion(formats.messages(contents, wanted, file=file))
    assert [each.path for each in imported.files] == ["README.md", LORA]
    assert b"alice" not in imported.SerializeToString()
    for path in registry.pull(imported, tmp_path):
        assert b"alice" not in path.read_bytes()
    assert base.digest in (tmp_path / "README.md").read_text()


def test_what_the_version_says(
    base: StableDiffusion,
    factors: Factors,
    wanted: pb.Version,
    registry: RegistryClient,
    registry_stub: RegistryServiceStub,
) -> None:
    contents = formats.as_kohya(factors, base)
    imported = registry_stub.ImportVersion(formats.messages(contents, wanted))
    assert registry.resolve("fox") == imported
    assert (imported.method, imported.family) == ("imported", "stable-diffusion")
    assert [(each.component, each.layer_count, each.max_rank) for each in imported.weights] == [
        ("text_encoder", 24, 3),
        ("unet", 128, 4),
    ]
    told = pb.Version(method="lora", instance_prompt="a fox", trigger_words=["sks"], metrics={"clip_i": 0.5})
    told.MergeFrom(wanted)
    other = registry_stub.ImportVersion(formats.messages(contents, told))
    assert (other.method, other.instance_prompt, list(other.trigger_words)) == ("lora", "a fox", ["sks"])
    again = registry_stub.ImportVersion(formats.messages(contents, wanted))
    assert again.digest == imported.digest != other.digest
    assert again.files == imported.files
    assert again.name.endswith("/3")


@pytest.mark.parametrize("key", ["<fox>", "emb_params", "clip_l"])
def test_a_textual_inversion_draws_the_same_image(
    key: str,
    plain: PlainDiffusers,
    wanted: pb.Version,
    registry: RegistryClient,
    registry_stub: RegistryServiceStub,
) -> None:
    vectors = formats.random_vectors(3)
    contents = safetensors.torch.save({key: vectors}, metadata=formats.PRIVATE)
    imported = registry_stub.ImportVersion(formats.messages(contents, wanted))
    assert [(each.component, each.vector_count) for each in imported.weights] == [("text_encoder", 3)]
    stored = registry.download(imported, WORDS)
    assert b"alice" not in stored
    (table,) = safetensors.torch.load(stored).values()
    assert torch.equal(table, vectors)
    assert np.array_equal(plain.draw_with_vectors(table), plain.draw_with_embedding(contents))


def test_a_lora_with_its_own_textual_inversion(
    base: StableDiffusion, factors: Factors, wanted: pb.Version, registry_stub: RegistryServiceStub
) -> None:
    tensors = safetensors.torch.load(formats.as_kohya(factors, base))
    tensors["bundle_emb.fox.string_to_param.*"] = formats.random_vectors(2)
    imported = registry_stub.ImportVersion(formats.messages(safetensors.torch.save(tensors), wanted))
    assert [each.path for each in imported.files] == ["README.md", WORDS, LORA]
    kinds = [(each.kind, each.component) for each in imported.weights]
    assert kinds == [
        (pb.WeightsSummary.KIND_EMBEDDINGS, "text_encoder"),
        (pb.WeightsSummary.KIND_LOW_RANK, "text_encoder"),
        (pb.WeightsSummary.KIND_LOW_RANK, "unet"),
    ]


def test_a_repeated_request_is_answered_as_before(
    base: StableDiffusion,
    factors: Factors,
    wanted: pb.Version,
    registry: RegistryClient,
    registry_stub: RegistryServiceStub,
) -> None:
    contents, request_id = formats.as_kohya(factors, base), str(uuid.uuid4())
    first = registry_stub.ImportVersion(formats.messages(contents, wanted, request_id=request_id))
    assert registry_stub.ImportVersion(formats.messages(contents, wanted, request_id=request_id)) == first
    assert len(list(registry.versions("fox"))) == 1


def test_validate_only_checks_the_file_when_it_follows(
    base: StableDiffusion,
    factors: Factors,
    wanted: pb.Version,
    registry: RegistryClient,
    registry_stub: RegistryServiceStub,
) -> None:
    contents = formats.as_kohya(factors, base)
    spec_only = next(formats.messages(contents, wanted, validate_only=True))
    assert not registry_stub.ImportVersion(iter([spec_only])).digest
    checked = registry_stub.ImportVersion(formats.messages(contents, wanted, validate_only=True))
    assert [each.component for each in checked.weights] == ["text_encoder", "unet"]
    with pytest.raises(InvalidArgumentError), translated_errors():
        registry_stub.ImportVersion(formats.messages(b"{" * 100, wanted, validate_only=True))
    assert list(registry.versions("fox")) == []
    assert registry_stub.ImportVersion(formats.messages(contents, wanted)).digest == checked.digest
