"""The number type that a job's frozen base model has; what is trained is always float32."""

from __future__ import annotations

import torch

from atelier.diffusion.base import default_dtype
from atelier.errors import FailedPreconditionError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of `TrainingConfig.precision`; empty means the device's own.

    Raises:
        FailedPreconditionError: fp16 without a GPU, on which half of its operations do not exist.
    """
    if precision == "fp16" and device.type == "cpu":
        raise FailedPreconditionError(
            "config.precision: fp16 needs a GPU, and this worker has none; fp32 and bf16 work without",
            reason="PRECISION_NOT_AVAILABLE",
        )
    return _DTYPES[precision] if precision else default_dtype(device)
