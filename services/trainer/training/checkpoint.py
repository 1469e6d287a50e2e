"""Checkpoints of a training loop: all of its state as one safetensors file.

Latents, text embeddings and class images are not in it; they are made again, the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import safetensors
import safetensors.torch
import torch

from atelier.errors import FailedPreconditionError, InvalidArgumentError
from services.trainer.methods import find_method
from services.trainer.methods.base import TrainingJob
from services.trainer.training.loop import TrainingLoop
from services.trainer.training.optimizers import load_optimizer, save_optimizer
from services.trainer.training.validation import Validations


def save_checkpoint(loop: TrainingLoop, job: TrainingJob, validations: Validations) -> bytes:
    """The loop's state after its last step, tied to the job and the base model."""
    tensors, optimizer = save_optimizer(loop.optimizer, loop.groups)
    tensors |= _prefixed("parameter", loop.student.parameters())
    tensors |= _prefixed("buffer", loop.student.buffers())
    tensors |= _prefixed("best", validations.best_weights)
    progress = {
        "job": _identity(job, loop.student.bare.digest),
        "step": loop.step,
        "smoothed_loss": loop.smoothed_loss,
        "stopped_early": loop.stopped_early,
        "optimizer": optimizer,
        "scaler": loop.scaler.state_dict(),
        "fixed_losses": loop.early_stop.state() if loop.early_stop else [],
        "validations": validations.state(),
    }
    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    return safetensors.torch.save(contiguous, metadata={"progress": json.dumps(progress)})


def load_checkpoint(contents: bytes, loop: TrainingLoop, job: TrainingJob, validations: Validations) -> None:
    """Puts a loop where `save_checkpoint` left it.

    Raises:
        InvalidArgumentError: not a safetensors file.
        FailedPreconditionError: a checkpoint of another job, configuration or base model.
    """
    tensors, progress = _read(contents)
    if progress.get("job") != _identity(job, loop.student.bare.digest):
        raise FailedPreconditionError("the checkpoint belongs to another job", reason="CHECKPOINT_MISMATCH")
    for name, parameter in loop.student.parameters().items():
        parameter.data.copy_(tensors[f"parameter.{name}"])
    for name, buffer in loop.student.buffers().items():
        buffer.copy_(tensors[f"buffer.{name}"])
    load_optimizer(loop.optimizer, loop.groups, tensors, progress["optimizer"])
    if progress["scaler"]:
        loop.scaler.load_state_dict(progress["scaler"])
    if loop.early_stop:
        loop.early_stop.restore(progress["fixed_losses"])
    best = {key.removeprefix("best."): tensor for key, tensor in tensors.items() if key.startswith("best.")}
    validations.restore(progress["validations"], best)
    loop.step, loop.smoothed_loss = progress["step"], progress["smoothed_loss"]
    loop.stopped_early = progress["stopped_early"]


def _read(contents: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Not by `check_safetensors_header`: the trainer's own files have no limits, and numbers of any type."""
    try:
        tensors = safetensors.torch.load(contents)
    except safetensors.SafetensorError as error:
        raise InvalidArgumentError("checkpoint", f"is not a whole safetensors file: {error}") from error
    header = json.loads(contents[8 : 8 + int.from_bytes(contents[:8], "little")])
    return tensors, json.loads(header.get("__metadata__", {}).get("progress", "{}"))


def _prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _identity(job: TrainingJob, base_digest: str) -> str:
    """A digest of all that the loop's course depends on."""
    parts = {
        "method": job.method,
        "config": {name: value for name, value in asdict(job.config).items() if name in find_method(job.method).fields},
        "dataset": job.dataset_digest,
        "captions": [image.caption for image in job.images],
        "concepts": [
            [concept.instance_prompt, concept.class_prompt, concept.placeholder_token, concept.repeats]
            for concept in job.concepts
        ],
        "validation_prompts": job.validation_prompts,
        "base": base_digest,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
