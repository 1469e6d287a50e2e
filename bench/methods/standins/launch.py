"""Runs a script of the peer's with the stand-ins: `python launch.py SCRIPT OPTION...`, by any interpreter.

The libraries ask whether torchvision is there and would then want all of it. They ask before the stand-in can be
imported, and remember the answer; only the script finds it.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import accelerate  # noqa: F401
import diffusers  # noqa: F401
import peft  # noqa: F401
from transformers.utils import is_torchvision_available

if __name__ == "__main__":
    is_torchvision_available()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    sys.path.append(str(Path(__file__).resolve().parent / "modules"))
    runpy.run_path(sys.argv[0], run_name="__main__")
