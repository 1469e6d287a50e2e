"""Textual inversions in every form: the vectors are the same, for one text encoder and for two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from atelier.diffusion.formats.foreign import Foreign, read_foreign
from atelier.diffusion.formats.word_forms import embedding_tensors, read_words, table_keys, write_words
from services.registry.exports import word_count

_VECTORS = np.random.default_rng(0).standard_normal((3, 16), np.float32)
_MORE = np.random.default_rng(1).standard_normal((3, 20), np.float32)
_NO_LAYERS: dict[str, dict[str, tuple[int, ...]]] = {"unet": {}, "text_encoder": {}}


def read(tensors: dict[str, np.ndarray], **widths: int) -> Foreign:
    return read_foreign(safetensors.numpy.save(tensors), _NO_LAYERS, widths, max_rank=1, field="file")


@pytest.mark.parametrize(
    "key",
    ["<fox>", "*", "fuchs-ähnlich 狐", "emb_params", "string_to_param.*", "clip_l", "bundle_emb.fox.string_to_param.*"],
)
def test_one_encoder(key: str) -> None:
    (table,) = read({key: _VECTORS}, clip_l=16).tables.values()
    assert np.array_equal(table, _VECTORS)


def test_one_vector_without_a_dimension_of_its_own() -> None:
    (table,) = read({"<fox>": _VECTORS[0]}, clip_g=16).tables.values()
    assert np.array_equal(table, _VECTORS[:1])


@pytest.mark.parametrize("prefix", ["", "bundle_emb.fox."])
def test_two_encoders(prefix: str) -> None:
    found = read({f"{prefix}clip_g": _MORE, f"{prefix}clip_l": _VECTORS}, clip_l=16, clip_g=20)
    assert found.form == "textual inversion"
    assert np.array_equal(found.tables["clip_l"], _VECTORS)
    assert np.array_equal(found.tables["clip_g"], _MORE)


def test_half_precision_is_widened() -> None:
    (table,) = read({"emb_params": _VECTORS.astype(np.float16)}, clip_l=16).tables.values()
    assert table.dtype == np.float32
    assert np.array_equal(table, _VECTORS.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("tables", [{"clip_l": _VECTORS}, {"clip_g": _MORE}, {"clip_l": _VECTORS, "clip_g": _MORE}])
def test_what_is_exported_is_imported_again(tables: dict[str, np.ndarray]) -> None:
    widths = {key: table.shape[1] for key, table in tables.items()}
    stored = read_words(write_words(tables), widths)
    again = read_foreign(
        safetensors.numpy.save(embedding_tensors(stored)), _NO_LAYERS, widths, max_rank=1, field="file"
    ).tables
    assert {key: table.tolist() for key, table in again.items()} == {k: t.tolist() for k, t in tables.items()}


def test_keys_are_those_of_the_families() -> None:
    assert table_keys({"unet", "text_encoder"}) == {"text_encoder": "clip_l"}
    assert table_keys({"prior", "text_encoder"}) == {"text_encoder": "clip_g"}
    assert table_keys({"unet", "text_encoder", "text_encoder_2"})["text_encoder_2"] == "clip_g"


@pytest.mark.parametrize(
    ("recipe", "vectors", "words"),
    [
        (b'{"concepts": [{"placeholder_token": "TOK"}], "config": {"num_vectors": 4}}', 4, 1),
        (b'{"concepts": [{"placeholder_token": "A"}, {"placeholder_token": "B"}], "config": {"num_vectors": 2}}', 4, 2),
        (b'{"concepts": [{"placeholder_token": "A"}, {"placeholder_token": "A"}], "config": {"num_vectors": 4}}', 4, 1),
        (b'{"concepts": [{"placeholder_token": "A"}, {"placeholder_token": "B"}], "config": {"num_vectors": 3}}', 4, 1),
        (b'{"concepts": [{"placeholder_token": []}], "config": {"num_vectors": 4}}', 4, 1),
        (b'{"concepts": []}', 4, 1),
        (b"[" * 100_000, 4, 1),
        (b"", 4, 1),
    ],
)
def test_a_recipe_tells_how_many_words_there_are(recipe: bytes, vectors: int, words: int) -> None:
    assert word_count(recipe, vectors) == words


def test_the_registry_needs_no_torch() -> None:
    code = "import sys, services.registry.main; assert not {'torch', 'diffusers', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
