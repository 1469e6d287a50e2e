"""Learned words as tables of vectors: `learned_embeds.safetensors`, and the embeddings of A1111 and ComfyUI.

A table has the vectors [vectors, width] of one text encoder, in the order of the tokens `<s0><s1>…`. It is known by the
encoder's kind, `clip_l` or `clip_g`, in our own files and in those of ComfyUI and A1111 for models with two encoders.
For models with one, A1111 has a single tensor, `emb_params`; ComfyUI reads whatever single tensor there is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from atelier.diffusion.formats.tensor_file import Array, TensorFile, encode_tensors
from atelier.errors import InvalidArgumentError

FILE_NAME = "learned_embeds.safetensors"

TABLE_KEYS = ("clip_l", "clip_g")
# The keys of the text encoders' tables, for each set of components that a base has.
_KEYS_OF_COMPONENTS: Mapping[frozenset[str], Mapping[str, str]] = {
    frozenset({"unet", "text_encoder"}): {"text_encoder": "clip_l"},
    frozenset({"unet", "text_encoder", "text_encoder_2"}): {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
    frozenset({"prior", "text_encoder"}): {"text_encoder": "clip_g"},
}
SINGLE_KEY = "emb_params"


def table_keys(components: Collection[str]) -> Mapping[str, str]:
    """By each text encoder of a base with these components, the key of its table."""
    return _KEYS_OF_COMPONENTS[frozenset(components)]


def write_words(tables: Mapping[str, Array]) -> bytes:
    """The contents of `learned_embeds.safetensors`, in float32."""
    return encode_tensors(tables)


def read_words(source: Path | bytes, widths: Mapping[str, int], *, field: str = "adapter") -> dict[str, Array]:
    """Reads `learned_embeds.safetensors` for a base model.

    Args:
        source: the file's path, or its whole contents.
        widths: of the base's word embeddings, by the tables' keys.
        field: the request's field that errors name.

    Raises:
        InvalidArgumentError: not a safetensors file, other keys than these, another width, different numbers of
            vectors, or a value that is not finite; the message names the tensor.
    """
    file = TensorFile(source, field=field)
    if file.headers.keys() != widths.keys():
        found = ", ".join(sorted(file.headers))[:200]
        raise InvalidArgumentError(
            field,
            f"has the tensors {found}; the base model needs {', '.join(widths)}",
            reason="ADAPTER_KEY_UNKNOWN",
        )
    tables = {key: file[key] for key in file.headers}
    check_tables(tables, widths, field=field)
    return tables


def check_tables(tables: Mapping[str, Array], widths: Mapping[str, int], *, field: str) -> None:
    """Raises InvalidArgumentError unless these are finite vectors, as many in every table, of the base's width."""
    counts = {table.shape[:1] for table in tables.values()}
    for key, table in tables.items():
        if table.ndim != 2 or table.shape[1] != widths[key] or len(counts) != 1 or not np.isfinite(table).all():
            raise InvalidArgumentError(
                field, f"{key} must be finite numbers [vectors, {widths[key]}], as many vectors as the others have"
            )


def embedding_tensors(tables: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors of a file for A1111's and ComfyUI's folders of embeddings: one word, with all of the vectors."""
    if len(tables) == 1:
        (table,) = tables.values()
        return {SINGLE_KEY: table}
    return dict(tables)
