"""The scale of each layer's update, as PEFT's configuration in a file's metadata says it.

diffusers writes it there (`lora_adapter_metadata`), by component when it saves a pipeline's adapters. PEFT takes the
patterns for regular expressions; here they are literal ends of layers' names, which is what they are in practice.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from atelier.diffusion.base_layers import name_in_files
from atelier.diffusion.formats.diffusers_form import PEFT_METADATA
from atelier.errors import InvalidArgumentError

_MAX_ALPHA = 1e6
_PATTERN = re.compile(r"\^?[A-Za-z0-9_.]+")


class PeftScales:
    """The scales of a file with this metadata; without a configuration in it all of them are 1, as for diffusers.

    Args:
        field: the request's field that errors name.
    """

    def __init__(self, metadata: Mapping[str, str], field: str) -> None:
        self._field = field
        self._config = self._parse(metadata[PEFT_METADATA]) if PEFT_METADATA in metadata else None

    @property
    def are_given(self) -> bool:
        """Whether there is a configuration."""
        return self._config is not None

    def of(self, component: str, layer: str, rank: int) -> float:
        """The factor between a layer's `B A` and its update."""
        if self._config is None:
            return 1.0
        own = {k.removeprefix(f"{component}."): v for k, v in self._config.items() if k.startswith(f"{component}.")}
        own = own or self._config
        alpha = self._alpha(own, layer)
        return alpha / (math.sqrt(rank) if own.get("use_rslora") else rank)

    def _alpha(self, config: Mapping[str, Any], layer: str) -> float:
        patterns = config.get("alpha_pattern") or {}
        if not isinstance(patterns, dict) or not all(map(_PATTERN.fullmatch, patterns)):
            raise self._error("has patterns other than names of layers")
        alpha = next((value for key, value in patterns.items() if _matches(key, layer)), config.get("lora_alpha"))
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= _MAX_ALPHA:
            raise self._error("has no lora_alpha for every component, or one that is no number")
        return alpha

    def _parse(self, text: str) -> dict[str, Any]:
        try:
            config = json.loads(text)
        except (ValueError, RecursionError):
            config = None
        if not isinstance(config, dict):
            raise self._error("is no JSON object")
        return config

    def _error(self, description: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            self._field, f"the scale is not clear: its {PEFT_METADATA} {description}", reason="ADAPTER_SCALED"
        )


def _matches(pattern: str, layer: str) -> bool:
    names = (layer, name_in_files(layer))
    if pattern.startswith("^"):
        return pattern[1:] in names
    return any(f".{name}".endswith(f".{pattern}") for name in names)
