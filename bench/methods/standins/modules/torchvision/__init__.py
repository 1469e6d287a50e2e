"""A stand-in for torchvision, for diffusers' example scripts and for nothing else.

The scripts use it to resize, crop and normalize images. The package itself cannot be installed here: its CPU builds do
not load beside every build of torch that this project runs on. Only what the scripts call is here, in the package's
own semantics.
"""

from __future__ import annotations

from torchvision import transforms

__all__ = ["transforms"]
