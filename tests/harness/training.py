"""Training jobs of every method, small enough for seconds, and the parts of a run for tests that need one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from atelier.diffusion.base import Base
from services.trainer.methods import find_method, load_train, resolve_config
from services.trainer.methods.base import (
    CheckpointReady,
    Concept,
    Evaluating,
    Event,
    Finished,
    TrainingImage,
    TrainingJob,
)
from services.trainer.training.evaluation import Scorers
from services.trainer.training.examples import Example, instance_examples
from services.trainer.training.loop import TrainingLoop
from services.trainer.training.loss import Lessons
from services.trainer.training.noise import noise_process
from services.trainer.training.prior import Prior

ALL_METHODS = ("dreambooth", "dreambooth-lora", "lora", "pivotal", "textual-inversion")
LEARN_WORDS = ("pivotal", "textual-inversion")
_FOX = Path(__file__).parents[2] / "examples" / "fox"
# What every test's job has, unless it says otherwise and its method uses it.
_SMALL = {
    "max_train_steps": 4,
    "train_batch_size": 2,
    "num_class_images": 2,
    "rank": 4,
    "checkpointing_steps": 1,
    "validation_steps": 3,
    "pivot_fraction": 0.5,
    "publish_weights": "last",
}


def fox_images(count: int = 2) -> tuple[TrainingImage, ...]:
    """Images without captions."""
    paths = sorted(_FOX.glob("*.png"))[:count]
    return tuple(TrainingImage(path=path.name, contents=path.read_bytes()) for path in paths)


def make_job(method: str, base: Base, **config: Any) -> TrainingJob:
    """Two foxes, four steps; on the embedded base at 64 pixels. `config` are hyperparameters."""
    small = _SMALL | ({"resolution": 64} if base.name == "emoji-sd" else {})
    small = {name: value for name, value in small.items() if name in find_method(method).fields}
    token = "TOK" if method in LEARN_WORDS else ""
    concept = Concept(
        images=fox_images(),
        instance_prompt=f"a photo of a {token or 'sks fox'}",
        class_prompt="a photo of a fox face",
        placeholder_token=token,
    )
    return TrainingJob(
        method=method,
        config=resolve_config(method, small | config, base_path=base.path),
        concepts=(concept,),
        dataset_digest="sha256:" + "0" * 64,
        validation_prompts=(f"{concept.instance_prompt} on a red background",),
    )


def run_job(job: TrainingJob, base: Base, scorers: Scorers | None = None, **options: Any) -> list[Event]:
    """All events; the files of the last, which are there only until the next is asked for, are read."""
    return [
        Finished(files={path: _read(file) for path, file in event.files.items()})
        if isinstance(event, Finished)
        else event
        for event in load_train(job.method)(job, base, scorers, **options)
    ]


def files_of(events: list[Event]) -> dict[str, bytes]:
    """What a finished job has made, by path."""
    assert isinstance(events[-1], Finished)
    return {path: _read(file) for path, file in events[-1].files.items()}


def _read(file: bytes | Path) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def checkpoints(
    job: TrainingJob, base: Base, scorers: Scorers | None = None, *, last: int | None = None, **options: Any
) -> dict[int, bytes]:
    """A run's checkpoints by step.

    It is left after the checkpoint `last`, else before its evaluation, which can be done again from the last one.
    """
    saved: dict[int, bytes] = {}
    running = load_train(job.method)(job, base, scorers, **options)
    for event in running:
        if isinstance(event, CheckpointReady):
            saved[event.step] = event.contents
        if isinstance(event, Evaluating) or (last is not None and last in saved):
            break
    running.close()  # type: ignore[attr-defined]  # as the worker's stream does it
    return saved


def parameters_in(checkpoint: bytes) -> dict[str, torch.Tensor]:
    """The trained parameters of a checkpoint."""
    tensors = safetensors.torch.load(checkpoint)
    return {name: tensor for name, tensor in tensors.items() if name.startswith("parameter.")}


@dataclass(frozen=True, kw_only=True)
class Training:
    """A job's loop, with what it learns from."""

    loop: TrainingLoop
    lessons: Lessons
    instances: list[Example]

    @torch.no_grad()
    def fixed_loss(self, batches: int = 4) -> float:
        """The loss on always the same images, noise and timesteps."""
        student, losses = self.loop.student, []
        with student.acting(training=False):
            for index in range(batches):
                for rows in self.lessons.fixed(index):
                    conditioning = student.encode(rows.prompts, student.trainables).with_sizes(rows.sizes)
                    losses.append(rows.loss(student.base.predict(rows.latents, rows.timesteps, conditioning)).item())
        return sum(losses) / batches

    def take_steps(self, count: int) -> None:
        for _ in range(count):
            self.loop.take_step()

    def parameters(self) -> dict[str, torch.Tensor]:
        """Copies."""
        return {name: parameter.detach().clone() for name, parameter in self.loop.student.parameters().items()}


@contextmanager
def training(job: TrainingJob, base: Base, prior: Prior | None = None) -> Iterator[Training]:
    """A job about to take its first step; afterwards the base is bare again."""
    import importlib

    method = importlib.import_module(find_method(job.method).module).METHOD
    instances = instance_examples(base, job)
    lessons = Lessons(base, job.config, noise_process(base), instances, prior)
    student = method.make_student(job, base)
    try:
        yield Training(loop=TrainingLoop(student, job.config, lessons), lessons=lessons, instances=instances)
    finally:
        student.close()


def traces(base: Base) -> list[str]:
    """What a job has left on a base model, by module: there should be nothing."""
    models: dict[str, nn.Module] = base.components()
    modules = {f"{part}.{name}": each for part, model in models.items() for name, each in model.named_modules()}
    hooked = [name for name, each in modules.items() if any(map(_is_ours, _hooks(each)))]
    recomputing = [name for name, each in modules.items() if getattr(each, "gradient_checkpointing", False)]
    learning = [name for model in models.values() for name, p in model.named_parameters() if p.requires_grad]
    return hooked + recomputing + learning


def _hooks(module: nn.Module) -> list[Any]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


def _is_ours(hook: Any) -> bool:
    """Those that transformers puts on a text encoder to hear of hidden states stay for good."""
    module: str = getattr(hook, "func", hook).__module__
    return not module.startswith("transformers.")
