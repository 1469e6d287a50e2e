"""One job from its images to its files, whatever its method: the order of things, told as events."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from atelier.diffusion.base import Base
from atelier.errors import FailedPreconditionError
from services.trainer.methods.base import (
    CheckpointReady,
    Evaluating,
    Event,
    Finished,
    Preparing,
    TrainingJob,
)
from services.trainer.training.artifact import artifact_files, write_artifact
from services.trainer.training.cache import TensorCache, TensorStore
from services.trainer.training.checkpoint import load_checkpoint, save_checkpoint
from services.trainer.training.evaluation import Evaluator, Scorers, validation_prompts
from services.trainer.training.examples import Example, instance_examples
from services.trainer.training.guard import guarded, stop_check
from services.trainer.training.loadback import check_load_back
from services.trainer.training.loop import TrainingLoop
from services.trainer.training.loss import Lessons
from services.trainer.training.noise import noise_process
from services.trainer.training.outputs import describing_files
from services.trainer.training.prior import Prior, prepare_prior
from services.trainer.training.student import Student
from services.trainer.training.validation import Validations

# Where no store is given, class images live as long as the process.
_memory = TensorCache(max_bytes=512 * 1024 * 1024)


class MakeStudent(Protocol):
    """What a method is: what it trains on a base model."""

    def __call__(self, job: TrainingJob, base: Base) -> Student: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMethod:
    """A method as the runner needs it."""

    title: str
    """Its name for humans."""
    make_student: MakeStudent
    preserves_prior: bool
    """Whether class prompts take part."""


def run(
    method: TrainingMethod,
    job: TrainingJob,
    base: Base,
    scorers: Scorers | None,
    *,
    resume: bytes | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    store: TensorStore = _memory,
) -> Iterator[Event]:
    """Trains a job and yields what happens, at last `Finished`; its files are there until the next event is asked for.

    Args:
        scorers: of this base model; None trains unscored.
        resume: a checkpoint of the same job, to go on from there.
        should_stop: asked after every event but the last, and at every denoising step of the images that are drawn.
        store: keeps class images for later jobs.

    Raises:
        CancelledError: `should_stop` said so.
        InvalidArgumentError: the images or captions will not do.
        FailedPreconditionError: the training diverged, or `resume` is another job's.
        ResourceExhaustedError: the GPU's memory ran out.
        InternalError: the adapter did not pass the load-back check.
    """
    check_stop = stop_check(should_stop)
    yield from guarded(_Run(method, job, base, scorers, store, check_stop).events(resume), check_stop)


class _Run:
    def __init__(
        self,
        method: TrainingMethod,
        job: TrainingJob,
        base: Base,
        scorers: Scorers | None,
        store: TensorStore,
        check_stop: Callable[[], None],
    ) -> None:
        self.method, self.job, self.base, self.scorers = method, job, base, scorers
        self.store, self.check_stop = store, check_stop

    def events(self, resume: bytes | None) -> Generator[Event, None, None]:
        yield Preparing(what=f"{len(self.job.images)} training images")
        instances = instance_examples(self.base, self.job)
        prior: Prior | None = None
        if self._preserves_prior():
            for made in prepare_prior(self.base, self.job, self.store, self.check_stop):
                if isinstance(made, Prior):
                    prior = made
                else:
                    yield Preparing(what=f"class images: {made} of {self._class_image_count()}")
        yield Preparing(what="a rehearsal: one step, one preview, one checkpoint")
        self._rehearse(instances, prior)
        student = self.method.make_student(self.job, self.base)
        try:
            yield from self._train(self._loop(student, instances, prior), resume)
        finally:
            self._close(student)

    def _preserves_prior(self) -> bool:
        has_class = any(concept.class_prompt for concept in self.job.concepts)
        return self.method.preserves_prior and has_class and self.job.config.prior_loss_weight > 0

    def _class_image_count(self) -> int:
        return self.job.config.num_class_images * sum(bool(concept.class_prompt) for concept in self.job.concepts)

    def _loop(self, student: Student, instances: list[Example], prior: Prior | None) -> TrainingLoop:
        if self.job.config.gradient_checkpointing:
            student.base.denoiser.enable_gradient_checkpointing()
        lessons = Lessons(self.base, self.job.config, noise_process(self.base), instances, prior)
        return TrainingLoop(student, self.job.config, lessons)

    def _close(self, student: Student) -> None:
        try:
            student.base.denoiser.disable_gradient_checkpointing()
        finally:
            student.close()

    def _rehearse(self, instances: list[Example], prior: Prior | None) -> None:
        """Goes through all that takes memory once, so that a job that does not fit fails before it was paid for."""
        student = self.method.make_student(self.job, self.base)
        try:
            loop = self._loop(student, instances, prior)
            evaluator = Evaluator(student, self.job, self.scorers, self.check_stop)
            for trainable in student.trainables:
                loop.step = trainable.steps.start
                # Not a number here is none of its business: later phases begin from what the earlier ones learn.
                with contextlib.suppress(FailedPreconditionError):
                    loop.take_step()
            evaluator.rehearse()
            save_checkpoint(loop, self.job, Validations(evaluator))
        finally:
            self._close(student)

    def _train(self, loop: TrainingLoop, resume: bytes | None) -> Iterator[Event]:
        evaluator = Evaluator(loop.student, self.job, self.scorers, self.check_stop)
        validations = Validations(evaluator)
        if resume is not None:
            load_checkpoint(resume, loop, self.job, validations)
        config = self.job.config
        for event in loop.run():
            yield event
            if loop.is_done:
                break
            if config.validation_steps and loop.step % config.validation_steps == 0:
                yield validations.validate(loop.step)
            if loop.step % config.checkpointing_steps == 0:
                yield CheckpointReady(step=loop.step, contents=save_checkpoint(loop, self.job, validations))
        # Everything from here can be done again from this checkpoint.
        yield CheckpointReady(step=loop.step, contents=save_checkpoint(loop, self.job, validations))
        loop.release_optimizer()
        yield Evaluating()
        validations.finish(loop.step)
        yield from self._finish(loop, evaluator, validations)

    def _finish(self, loop: TrainingLoop, evaluator: Evaluator, validations: Validations) -> Iterator[Event]:
        student, started = loop.student, time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="artifact-") as name:
            folder = Path(name)
            measured = write_artifact(student, folder)
            self.check_stop()
            prompt = validation_prompts(self.job)[0]
            measured |= check_load_back(student, folder, prompt, self.job.config.resolution)
            self.check_stop()
            evaluation = evaluator.evaluate()
            if evaluation.scores is not None:
                yield evaluation.scores
            measured |= _course(loop, validations)
            measured["finishing_seconds"] = time.perf_counter() - started
            described = describing_files(self.job, student, evaluation, measured, self.method.title)
            files: Mapping[str, bytes | Path] = {**artifact_files(folder), **described}
            yield Finished(files=files)


def _course(loop: TrainingLoop, validations: Validations) -> dict[str, Any]:
    """How the training went, for `metrics.json`."""
    total = loop.config.max_train_steps
    return {
        "loss": loop.smoothed_loss,
        "steps": loop.step,
        "published_step": validations.published_step or loop.step,
        "early_stopping": {"stopped": loop.stopped_early, "saved_steps": total - loop.step},
    }
