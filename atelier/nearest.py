"""A hint for a word that is not known: the known word that it was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`did you mean 'rank'? `, or an empty text when no known word is near: to be put before the list of them all."""
    near = difflib.get_close_matches(str(word)[:64], list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""
