"""Exports: another program's file draws what the version draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from atelier.client import RegistryClient
from atelier.diffusion.adapter_file import write_adapter_file
from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.diffusion.words import write_words_file
from atelier.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from atelier.storage.blobs import BlobStore
from tests.harness.files import version
from tests.harness.inference import EMOJI_SD
from tests.harness.registry import RegistryServer
from tests.registry import formats
from tests.registry.formats import Factors, PlainDiffusers, export
from tests.registry.store import key_of

LORA, WORDS = "pytorch_lora_weights.safetensors", "learned_embeds.safetensors"
DIFFUSERS = pb.ExportVersionRequest.FORMAT_DIFFUSERS
KOHYA = pb.ExportVersionRequest.FORMAT_KOHYA
EMBEDDING = pb.ExportVersionRequest.FORMAT_EMBEDDING
RECIPE = {"concepts": [{"placeholder_token": "TOK"}, {"placeholder_token": "DOG"}], "config": {"num_vectors": 2}}


@pytest.fixture(autouse=True)
def fox(registry: RegistryClient) -> pb.Adapter:
    """An adapter without versions."""
    return registry.create_adapter("fox")


@pytest.fixture(scope="module")
def factors(base: StableDiffusion) -> Factors:
    return formats.random_factors(base)


def publish(registry: RegistryClient, base: StableDiffusion, **files: bytes) -> pb.Version:
    """A version of these files, whose names have `_` for the last dot."""
    paths = {"lora": LORA, "words": WORDS, "recipe": "recipe.json"}
    told = version(base_model=formats.own_base(base))
    return registry.publish("fox", told, {paths[name]: content for name, content in files.items()})


def test_a_lora_draws_the_same_image_in_every_form(
    base: StableDiffusion,
    factors: Factors,
    plain: PlainDiffusers,
    registry: RegistryClient,
    registry_stub: RegistryServiceStub,
) -> None:
    contents = write_adapter_file(factors)
    published = publish(registry, base, lora=contents)
    assert export(registry_stub, published, DIFFUSERS) == {LORA: contents}
    ((name, kohya),) = export(registry_stub, published, KOHYA).items()
    assert name == "fox.safetensors"
    tensors = safetensors.torch.load(kohya)
    assert len(tensors) == 3 * (128 + 24)
    assert sum(key.startswith("lora_te_text_model_encoder_layers_") for key in tensors) == 3 * 24
    image = plain.draw_with_lora(contents)
    assert np.abs(image - plain.draw()).max() > 50
    assert np.array_equal(plain.draw_with_lora(kohya), image)


def test_what_is_exported_is_imported_as_it_was(
    base: StableDiffusion, factors: Factors, registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    dora = formats.random_factors(base, dora=True)
    for each in (factors, dora):
        contents = write_adapter_file(each)
        (kohya,) = export(registry_stub, publish(registry, base, lora=contents), KOHYA).values()
        assert any(key.endswith(".dora_scale") for key in safetensors.torch.load(kohya)) == (each is dora)
        told = pb.Version(base_model=formats.own_base(base))
        imported = registry_stub.ImportVersion(formats.messages(kohya, told))
        assert registry.download(imported, LORA) == contents


def test_a_word_draws_the_same_image(
    base: StableDiffusion, plain: PlainDiffusers, registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    vectors = formats.random_vectors(3)
    published = publish(registry, base, words=write_words_file({"clip_l": vectors}))
    ((name, contents),) = export(registry_stub, published, EMBEDDING).items()
    assert name == "fox.safetensors"
    assert list(safetensors.torch.load(contents)) == ["emb_params"]
    image = plain.draw_with_embedding(contents)
    assert np.array_equal(image, plain.draw_with_vectors(vectors))
    assert np.abs(image - plain.draw_with_vectors(vectors.flip(0))).max() > 10


def test_a_version_of_several_words_has_a_file_for_each(
    base: StableDiffusion, registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    vectors = formats.random_vectors(4)
    words, recipe = write_words_file({"clip_l": vectors}), json.dumps(RECIPE).encode()
    files = export(registry_stub, publish(registry, base, words=words, recipe=recipe), EMBEDDING)
    tables = [safetensors.torch.load(content)["emb_params"] for content in files.values()]
    assert list(files) == ["fox-1.safetensors", "fox-2.safetensors"]
    assert torch.equal(tables[0], vectors[:2])
    assert torch.equal(tables[1], vectors[2:])


def test_of_both_kinds_each_is_exported_by_itself(
    base: StableDiffusion, factors: Factors, registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    words = write_words_file({"clip_l": formats.random_vectors(1)})
    lora = write_adapter_file(factors)
    published = publish(registry, base, words=words, lora=lora)
    assert export(registry_stub, published, DIFFUSERS) == {WORDS: words, LORA: lora}
    (kohya,) = export(registry_stub, published, KOHYA).values()
    (embedding,) = export(registry_stub, published, EMBEDDING).values()
    assert all(key.startswith("lora_") for key in safetensors.torch.load(kohya))
    assert list(safetensors.torch.load(embedding)) == ["emb_params"]


@pytest.mark.parametrize(
    ("has", "wanted", "possible"),
    [
        ("words", KOHYA, "FORMAT_DIFFUSERS, FORMAT_EMBEDDING"),
        ("lora", EMBEDDING, "FORMAT_DIFFUSERS, FORMAT_KOHYA"),
    ],
)
def test_a_form_that_a_version_has_no_weights_for(
    has: str,
    wanted: pb.ExportVersionRequest.Format,
    possible: str,
    base: StableDiffusion,
    factors: Factors,
    registry: RegistryClient,
    registry_stub: RegistryServiceStub,
) -> None:
    contents = {
        "words": write_words_file({"clip_l": formats.random_vectors(1)}),
        "lora": write_adapter_file(factors),
    }
    published = publish(registry, base, **{has: contents[has]})
    with pytest.raises(FailedPreconditionError) as caught, translated_errors():
        export(registry_stub, published, wanted)
    assert caught.value.reason == "EXPORT_NOT_POSSIBLE"
    assert caught.value.message.endswith(f"it can be exported as {possible}")


def test_a_whole_model_is_exported_as_it_is(
    base: StableDiffusion, registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    files: dict[str, bytes | Path] = {
        path.relative_to(EMOJI_SD).as_posix(): path for path in EMOJI_SD.rglob("*") if path.is_file()
    }
    published = registry.publish("fox", version(base_model=formats.own_base(base)), files)
    exported = export(registry_stub, published, DIFFUSERS)
    assert exported == {path: (EMOJI_SD / path).read_bytes() for path in files}
    with pytest.raises(FailedPreconditionError, match=r"it can be exported as FORMAT_DIFFUSERS$"), translated_errors():
        export(registry_stub, published, KOHYA)


@pytest.mark.parametrize("form", [DIFFUSERS, KOHYA])
def test_lost_content_is_data_loss(
    form: pb.ExportVersionRequest.Format,
    base: StableDiffusion,
    tenant: str,
    registry: RegistryClient,
    registry_stub: RegistryServiceStub,
    registry_server: RegistryServer,
    registry_blobs: BlobStore,
) -> None:
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    contents = safetensors.torch.save(
        {
            f"unet.{layer}.lora_A.weight": torch.full((1, 192), int(tenant[2:8], 16)).float(),
            f"unet.{layer}.lora_B.weight": torch.ones(192, 1),
        }
    )
    published = publish(registry, base, lora=contents)
    registry_blobs.delete(key_of(registry_server, contents))
    with pytest.raises(DataLossError), translated_errors():
        export(registry_stub, published, form)


def test_what_is_asked_for_is_there_and_named(
    base: StableDiffusion, factors: Factors, tenant: str, registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    published = publish(registry, base, lora=write_adapter_file(factors))
    with pytest.raises(InvalidArgumentError) as caught, translated_errors():
        export(registry_stub, published, pb.ExportVersionRequest.FORMAT_UNSPECIFIED)
    assert caught.value.message.endswith("allowed are FORMAT_DIFFUSERS, FORMAT_KOHYA, FORMAT_EMBEDDING")
    with pytest.raises(NotFoundError), translated_errors():
        export(registry_stub, pb.Version(name=f"tenants/{tenant}/adapters/fox/versions/7"), KOHYA)
