"""Runs a program that ends with its parent: `python leash.py PARENT_PID PROGRAM [ARGUMENT ...]`.

A program of its own, and not a function in the child of a fork: that child of a process with threads may run next
to nothing safely. Needs only the standard library; does nothing special where there is no prctl (Linux only).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent_pid: int, command: list[str]) -> None:
    """Becomes the program, unless the parent is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == parent_pid:
        os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
