"""PEFT's configuration in a file's metadata, as diffusers writes it: which entries may be published.

Allowed are the fields of PEFT's LoraConfig (0.21 and before), plain or as `COMPONENT.FIELD`, with numbers, truth
values, null, empty lists and objects, the library's own words, and names as layers have them where layers are named.
So there is no free text, no path and no address. A layer's name is taken by its form: it may be any word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from atelier.diffusion.base_layers import LAYOUTS

_LAYER = re.compile(r"\^?[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_MAX_LAYER_CHARACTERS = 256
_INITIAL = re.compile(r"gaussian|eva|olora|pissa|pissa_niter_[0-9]{1,4}|corda|loftq|orthogonal|mica|lora_ga")
_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}(\.dev[0-9]{1,4})?(@([0-9a-f]{7,40}|UNKNOWN))?")
_TASKS = ("FEATURE_EXTRACTION", "CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def is_harmless(text: str) -> bool:
    """Whether a configuration has allowed entries alone."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(config, dict) and all(_is_allowed(key, value) for key, value in config.items())


def _is_allowed(key: str, value: Any) -> bool:
    component, dot, field = key.rpartition(".")
    if (dot and component not in _COMPONENTS) or field not in _FIELDS:
        return False
    return _is_plain(value) or _FIELDS[field](value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, int | float) or value in ("", [], {})


def _nothing_else(value: Any) -> bool:
    return False


def _one_of(*words: str) -> Callable[[Any], bool]:
    return lambda value: value in words


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _are_layers(value: Any) -> bool:
    """One, a list of them, or an object that gives each a number."""
    if isinstance(value, dict):
        return all(map(_is_layer, value)) and all(map(_is_plain, value.values()))
    return all(map(_is_layer, value)) if isinstance(value, list) else _is_layer(value)


def _is_layer(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_LAYER_CHARACTERS and _LAYER.fullmatch(value) is not None


def _are_numbers(value: Any) -> bool:
    """In lists of lists, too."""
    return isinstance(value, list) and all(
        isinstance(each, int | float) or (isinstance(each, list) and all(isinstance(n, int | float) for n in each))
        for each in value
    )


_COMPONENTS = frozenset(component for layout in LAYOUTS.values() for component in layout.components)
_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        (
            # Numbers and truth values.
            *("r", "lora_alpha", "lora_dropout", "inference_mode", "fan_in_fan_out", "use_rslora", "use_dora"),
            *("use_qalora", "qalora_group_size", "lora_bias", "ensure_weight_tying"),
            # Folders, classes and settings of methods that no adapter here has: not set.
            *("base_model_name_or_path", "revision", "auto_mapping", "runtime_config", "megatron_config"),
            *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config", "monteclora_config"),
            *("arrow_config", "kasa_config", "use_bdlora"),
        ),
        _nothing_else,
    ),
    **dict.fromkeys(
        ("layers_to_transform", "layer_replication", "alora_invocation_tokens", "trainable_token_indices"), _are_numbers
    ),
    **dict.fromkeys(
        (
            *("target_modules", "exclude_modules", "modules_to_save", "target_parameters", "layers_pattern"),
            *("rank_pattern", "alpha_pattern"),
        ),
        _are_layers,
    ),
    "peft_type": _one_of("LORA"),
    "task_type": _one_of(*_TASKS),
    "bias": _one_of("none", "all", "lora_only"),
    "megatron_core": _one_of("megatron.core"),
    "init_lora_weights": _matches(_INITIAL),
    "peft_version": _matches(_VERSION),
}
