"""Adapters of the embedded base model in the forms of other programs, and what plain diffusers draws with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from atelier.diffusion.adapter_file import write_adapter_file
from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.diffusion.formats.original_names import original_names
from atelier.diffusion.kohya import write_kohya_file
from atelier.diffusion.lowrank import LowRank, all_weight_shapes
from atelier.diffusion.words import token_names
from atelier.pb.common.v1.common_pb2 import BaseModel, File
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from tests.harness.adapters import random_updates
from tests.harness.inference import EMOJI_SD
from tests.registry.uploads import OWN_FOX

WIDTH = 256
PROMPT = "a small rocket on a red background"
PRIVATE = {"ss_output_name": "alice_smith", "ss_dataset_dirs": '{"/home/alice/private": {"img_count": 9}}'}
"""What trainers write into metadata."""
Factors = Mapping[str, Mapping[str, LowRank]]


def random_factors(base: StableDiffusion, *, dora: bool = False) -> Factors:
    """An adapter of all layers of the UNet and the linear ones of the text encoder."""
    return {
        "unet": random_updates(base.unet, seed=1, dora=dora),
        "text_encoder": random_updates(base.text_encoder, seed=2, rank=3, layers="linear", dora=dora),
    }


def random_vectors(count: int) -> torch.Tensor:
    """Word embeddings, strong enough to be seen."""
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(3)) * 0.1


def with_metadata(contents: bytes) -> bytes:
    """The same tensors, and what their maker would rather have kept to himself."""
    return safetensors.torch.save(safetensors.torch.load(contents), metadata=PRIVATE)


def as_diffusers(factors: Factors, base: StableDiffusion) -> bytes:
    """With diffusers' keys."""
    return with_metadata(write_adapter_file(factors))


def as_kohya(factors: Factors, base: StableDiffusion) -> bytes:
    """With kohya's keys and diffusers' names of layers."""
    return with_metadata(write_kohya_file(factors, base.components()))


def as_original(factors: Factors, base: StableDiffusion) -> bytes:
    """With kohya's keys and Stable Diffusion's own names of layers."""
    layers = original_names(all_weight_shapes(base.unet))
    names = {
        f"lora_unet_{own}".replace(".", "_"): f"lora_unet_{name}".replace(".", "_") for own, name in layers.items()
    }
    tensors = safetensors.torch.load(write_kohya_file(factors, base.components()))
    renamed = {}
    for name, tensor in tensors.items():
        key, _, part = name.partition(".")
        renamed[f"{names.get(key, key)}.{part}"] = tensor
    return safetensors.torch.save(renamed, metadata=PRIVATE)


def own_base(base: StableDiffusion) -> BaseModel:
    """As versions name it."""
    return BaseModel(model=base.name, digest=base.digest)


def messages(contents: bytes, version: pb.Version, **fields: Any) -> Iterator[pb.ImportVersionRequest]:
    """An import into the adapter `fox`; `fields` of the spec replace what is right."""
    file = File(path="x.safetensors", size_bytes=len(contents), sha256=hashlib.sha256(contents).hexdigest())
    spec = {"parent": OWN_FOX, "version": version, "file": file, **fields}
    yield pb.ImportVersionRequest(spec=pb.ImportVersionSpec(**spec))
    for start in range(0, len(contents), 2**20):
        yield pb.ImportVersionRequest(data=contents[start : start + 2**20])


def export(stub: RegistryServiceStub, version: pb.Version, form: pb.ExportVersionRequest.Format) -> dict[str, bytes]:
    """The files of an export, whose sizes and digests are the announced ones."""
    files: list[File] = []
    contents: list[bytearray] = []
    for response in stub.ExportVersion(pb.ExportVersionRequest(version=version.name, format=form)):
        if response.WhichOneof("content") == "file":
            files.append(response.file)
            contents.append(bytearray())
        else:
            assert len(response.data) <= 2**20
            contents[-1] += response.data
    for file, content in zip(files, contents, strict=True):
        assert (file.size_bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    return {file.path: bytes(content) for file, content in zip(files, contents, strict=True)}


class PlainDiffusers:
    """Plain diffusers with the embedded base model, and nothing of ours."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pipeline: Any = StableDiffusionPipeline.from_pretrained(
            EMOJI_SD, dtype=torch.float32, use_safetensors=True
        )
        self._pipeline.set_progress_bar_config(disable=True)

    def draw(self, prompt: str = PROMPT) -> np.ndarray:
        """An image's channels, as signed numbers."""
        drawn = self._pipeline(
            prompt, num_inference_steps=3, guidance_scale=4.0, generator=torch.Generator().manual_seed(3)
        )
        return np.asarray(drawn.images[0]).astype(np.int16)

    def draw_with_lora(self, contents: bytes) -> np.ndarray:
        """With a LoRA's file, all of whose matrices must arrive."""
        (self._folder / "lora.safetensors").write_bytes(contents)
        self._pipeline.load_lora_weights(self._folder, weight_name="lora.safetensors", use_safetensors=True)
        names = safetensors.torch.load(contents)
        models = (self._pipeline.unet, self._pipeline.text_encoder)
        loaded = sum("lora_" in name for model in models for name, _ in model.named_parameters())
        assert loaded == sum(name.endswith(".weight") for name in names)
        image = self.draw()
        self._pipeline.unload_lora_weights()
        return image

    def draw_with_vectors(self, vectors: torch.Tensor) -> np.ndarray:
        """With vectors for the tokens `<s0><s1>…`, which are in the prompt."""
        names = token_names(len(vectors))
        self._pipeline.load_textual_inversion(list(vectors), token=names)
        return self._draw_and_forget("".join(names))

    def draw_with_embedding(self, contents: bytes) -> np.ndarray:
        """With an embedding's file for one word, which is in the prompt."""
        (self._folder / "word.safetensors").write_bytes(contents)
        self._pipeline.load_textual_inversion(self._folder, weight_name="word.safetensors", token="<fox>")
        return self._draw_and_forget("<fox>")

    def _draw_and_forget(self, word: str) -> np.ndarray:
        image = self.draw(f"a photo of {word} on a red background")
        self._pipeline.unload_textual_inversion()
        return image
