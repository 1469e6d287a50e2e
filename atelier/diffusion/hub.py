"""Where a base model is: a folder, or a model of the Hugging Face Hub that is brought into the local cache.

Nothing is run that comes with a model: only configuration, tokenizers and safetensors weights are fetched.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from atelier.errors import InvalidArgumentError

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_FILES = ["*.json", "*.safetensors", "*/merges.txt"]
# Single-file checkpoints of other programs, and copies of the weights in other number types.
_NOT_NEEDED = ["*.fp16.safetensors", "*.non_ema.safetensors", "*/*/*", "v1-*", "v2-*", "sd_xl_*", "stage_*"]


def find_model(name: str) -> Path:
    """The folder of a model that is named by its path, or by `OWNER/MODEL` or `OWNER/MODEL@REVISION` on the Hub.

    A model that is in the Hub's local cache needs no connection. The Hub's own environment variables hold (HF_HOME,
    HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT).

    Raises:
        InvalidArgumentError: neither a folder nor a model that the Hub has or the cache holds.
    """
    if Path(name).is_dir():
        return Path(name)
    match = _HUB_ID.fullmatch(name)
    if match is None or Path(name).parent.is_dir():  # a misspelt folder must not become somebody else's model
        raise InvalidArgumentError(
            "base_model",
            f"{name} is neither a folder nor of the form OWNER/MODEL or OWNER/MODEL@REVISION",
            reason="BASE_MODEL_NOT_FOUND",
        )
    try:
        folder = snapshot_download(match[1], revision=match[2], allow_patterns=_FILES, ignore_patterns=_NOT_NEEDED)
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        raise InvalidArgumentError(
            "base_model",
            f"{name} is no folder, and the Hub and its cache do not have it: {type(error).__name__}",
            reason="BASE_MODEL_NOT_FOUND",
        ) from error
    return Path(folder)
