"""Keeps the model libraries from writing: progress bars, advice, and above all the prompts that warnings quote."""

from __future__ import annotations

import diffusers
import transformers


def silence_libraries() -> None:
    """For the whole process. Errors still come, as exceptions."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
