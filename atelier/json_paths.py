"""Absolute paths in JSON: libraries note the folder that they loaded a model from, which tells of people and servers.

Found are whole strings and keys that are such a path; one within other text is not looked for.
"""

from __future__ import annotations

import re
from typing import Any

# A POSIX path counts from its second name on: vocabularies have tokens such as `/x` and `/</w>`.
_NAME = r"[.@+~-]*\w[\w.@+~-]*"
_ABSOLUTE = re.compile(
    rf"""\s*(
      file:/
    | ~\w*[/\\]\w
    | [A-Za-z]:[/\\]+\w
    | \\\\{_NAME}\\
    | /+{_NAME}/+[\w.]
    )""",
    re.VERBOSE,
)
_KEY = "(key)"


def find_absolute_path(value: Any) -> str | None:
    """Where in a JSON document the first absolute path is, such as `parts.0._name_or_path`; None without one.

    Raises:
        RecursionError: the document is nested too deeply.
    """
    place = _find(value)
    return None if place is None else ".".join(place)


def without_absolute_paths(value: Any) -> Any:
    """The document without the entries of its objects whose value is an absolute path."""
    if isinstance(value, dict):
        return {key: without_absolute_paths(each) for key, each in value.items() if not _is_absolute(each)}
    if isinstance(value, list):
        return [without_absolute_paths(each) for each in value]
    return value


def _find(value: Any) -> tuple[str, ...] | None:
    # Places are put together on the way back: on the way in, long keys would be copied for each of their values.
    if isinstance(value, dict):
        for key, each in value.items():
            if _is_absolute(key):
                return (_KEY,)
            if (place := _find(each)) is not None:
                return (key, *place)
    elif isinstance(value, list):
        for i, each in enumerate(value):
            if (place := _find(each)) is not None:
                return (str(i), *place)
    elif _is_absolute(value):
        return ()
    return None


def _is_absolute(value: Any) -> bool:
    return isinstance(value, str) and _ABSOLUTE.match(value) is not None
