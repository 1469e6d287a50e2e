"""Checkpoints of a training loop: all of its state as one safetensors file.

Latents, text embeddings and class images are not in it; they are made again, the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import safetensors.torch
import torch

from atelier.diffusion.safetensors_header import check_safetensors_header
from atelier.errors import FailedPreconditionError
from services.trainer.methods.base import TrainingJob
from services.trainer.training.loop import TrainingLoop

_MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(loop: TrainingLoop, job: TrainingJob) -> bytes:
    """The loop's state after its last step, tied to the job and the base model."""
    tensors = {}
    for name, parameter in loop.parameters.items():
        state = loop.optimizer.state[parameter]
        tensors[f"parameter.{name}"] = parameter.detach()
        tensors.update({f"{moment}.{name}": state[moment] for moment in _MOMENTS})
    progress = {"step": loop.step, "smoothed_loss": loop.smoothed_loss, "job": _identity(job, loop.base.digest)}
    contiguous = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
    return safetensors.torch.save(contiguous, metadata={"progress": json.dumps(progress)})


def load_checkpoint(contents: bytes, loop: TrainingLoop, job: TrainingJob) -> None:
    """Puts a loop where `save_checkpoint` left it.

    Raises:
        InvalidArgumentError: not a safetensors file.
        FailedPreconditionError: a checkpoint of another job, configuration or base model.
    """
    header = check_safetensors_header(contents, field="checkpoint")
    progress = json.loads(header.metadata.get("progress", "{}"))
    if progress.get("job") != _identity(job, loop.base.digest):
        raise FailedPreconditionError("the checkpoint belongs to another job", reason="CHECKPOINT_MISMATCH")
    tensors = safetensors.torch.load(contents)
    for name, parameter in loop.parameters.items():
        parameter.data.copy_(tensors[f"parameter.{name}"])
        loop.optimizer.state[parameter] = {
            "step": torch.tensor(float(progress["step"]), device=parameter.device),
            **{moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in _MOMENTS},
        }
    loop.step, loop.smoothed_loss = progress["step"], progress["smoothed_loss"]


def _identity(job: TrainingJob, base_digest: str) -> str:
    """A digest of all that the loop's course depends on."""
    parts = {
        "method": job.method,
        "config": asdict(job.config),
        "dataset": job.dataset_digest,
        "captions": [image.caption for image in job.images],
        "prompts": [job.instance_prompt, job.class_prompt],
        "base": base_digest,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
