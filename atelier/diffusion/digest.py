"""What a base model is, whatever its name: a digest over its configuration and weights. Needs no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

# Of every family; a model has some of them. What pipelines bring besides, such as safety checkers, does not count.
_PARTS = (
    *("unet", "text_encoder", "text_encoder_2", "vae", "tokenizer", "tokenizer_2", "scheduler"),
    *("prior_prior", "prior_text_encoder", "prior_tokenizer", "prior_scheduler", "decoder", "vqgan", "effnet_encoder"),
)


def model_digest(path: Path) -> str:
    """`sha256:` and the SHA-256 over the configuration and weights of a diffusers folder.

    Hashed is, for `model_index.json` and every JSON and safetensors file of the model's parts in the order of their
    relative paths, one line of path, space, the file's SHA-256.
    """
    files = [path / "model_index.json", *(file for part in _PARTS for file in (path / part).glob("*"))]
    files += path.glob("effnet_encoder.safetensors")  # Stability AI publishes it outside any folder
    names = sorted(f.relative_to(path).as_posix() for f in files if f.suffix in (".json", ".safetensors"))
    digest = hashlib.sha256()
    for name in names:
        with (path / name).open("rb") as file:
            digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"
