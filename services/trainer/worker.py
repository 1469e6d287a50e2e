"""The Ray worker: holds a warm base model and trains the jobs that it is given, one after the other.

It tells the trainer what happens as a stream of plain events; files go straight to S3, the adapter straight to the
registry. It decides nothing about a job's state, and forgets a job when it is done with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from atelier import errors
from atelier.client.connection import Endpoint
from atelier.rpc.logs import configure_logging
from atelier.rpc.status import to_status
from atelier.storage.blobs import BlobStore, S3Config
from services.trainer.job_files import JobFiles
from services.trainer.methods import find_method, load_train, resolve_config
from services.trainer.methods.base import (
    CheckpointReady,
    Concept,
    Evaluated,
    Evaluating,
    Event,
    Finished,
    Preparing,
    Previews,
    StepDone,
    TrainingJob,
)
from services.trainer.publishing import publish
from services.trainer.queue import Assignment

if TYPE_CHECKING:
    from atelier.diffusion.base import Base
    from services.trainer.training.config import TrainingConfig
    from services.trainer.training.evaluation import Scorers

_MAX_CLASS_IMAGE_BYTES = 512 * 1024 * 1024
_log = structlog.get_logger("atelier.worker")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConfig:
    """What a worker needs beside a job."""

    bases: Mapping[str, Path]
    """Base models by name; the first is loaded at once."""
    scorers: Mapping[str, Path]
    """CLIP scorers by base model's name; jobs on a base without one are not scored."""
    dino: Path | None
    """A DINO model, with which jobs that have a scorer are scored too."""
    s3: S3Config
    registry: Endpoint
    """Its files are read where the worker runs."""
    torch_threads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointSaved:
    """The job can be resumed from this step."""

    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewsSaved:
    """Previews of this step are in S3."""

    step: int
    prompts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Publishing:
    """The adapter is on its way to the registry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """The adapter is in the registry. Last event of a job that succeeded."""

    version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped:
    """The job ended without a result. Last event of such a job. `status` is a serialized google.rpc.Status."""

    status: bytes = field(repr=False)


WorkerEvent = (
    Preparing | StepDone | Evaluating | Evaluated | CheckpointSaved | PreviewsSaved | Publishing | Published | Stopped
)


class TrainingWorker:
    """The actor's class; the scheduler makes it a Ray actor with two threads, so that `stop` gets through."""

    def __init__(self, config: WorkerConfig) -> None:
        import torch

        from atelier.diffusion.quiet import silence_libraries
        from services.trainer.training.cache import SharedTensors

        configure_logging("worker")
        silence_libraries()
        torch.set_num_threads(config.torch_threads)
        self._config = config
        blobs = BlobStore(config.s3)
        self._files = JobFiles(blobs)
        self._class_images = SharedTensors(blobs, "class-images", max_bytes=_MAX_CLASS_IMAGE_BYTES)
        self._base: Base | None = None
        self._scorers: Scorers | None = None
        self._stopping: set[tuple[str, int]] = set()

    def warm_up(self) -> None:
        """Loads the first base model, so that the first job need not wait for it."""
        self._warm(next(iter(self._config.bases)), precision="")

    def stop(self, uid: str, attempt: int) -> None:
        """Asks an attempt at a job to end at its next step."""
        self._stopping.add((uid, attempt))

    def run(self, assignment: Assignment, token: str) -> Iterator[WorkerEvent]:
        """Trains one job. `token` lets it publish for the job's tenant. Never raises: an error is an event."""
        try:
            yield from self._train(assignment, token)
        except errors.AtelierError as error:
            yield Stopped(status=to_status(error).SerializeToString())
        except Exception:
            _log.exception("training failed", job=assignment.uid)
            known = errors.InternalError("training failed; the worker's log says why", metadata={"job": assignment.uid})
            yield Stopped(status=to_status(known).SerializeToString())
        finally:
            self._stopping.discard((assignment.uid, assignment.attempt))

    def _train(self, assignment: Assignment, token: str) -> Iterator[WorkerEvent]:
        job = self._training_job(assignment)
        base = self._warm(assignment.base_name, job.config.precision)
        if base.digest != assignment.base_digest:
            raise errors.FailedPreconditionError(
                f"the base model {base.name} has changed since the job was created", reason="BASE_MODEL_CHANGED"
            )
        events = load_train(assignment.method)(
            job,
            base,
            self._scorers,
            resume=self._files.checkpoint(assignment.uid, assignment.checkpoint_step),
            should_stop=lambda: (assignment.uid, assignment.attempt) in self._stopping,
            store=self._class_images,
        )
        evaluated: Evaluated | None = None
        for event in events:
            if isinstance(event, Evaluated):
                evaluated = event
            if isinstance(event, Finished):
                yield Publishing()
                version = publish(self._config.registry, token, assignment, event.files, evaluated)
                yield Published(version=version)
                return  # nothing that comes later, a cancel least of all, undoes a publication
            yield self._stored(assignment.uid, event)

    def _stored(self, uid: str, event: Event) -> WorkerEvent:
        """The event without the bytes that it brought: those are in S3."""
        if isinstance(event, CheckpointReady):
            self._files.save_checkpoint(uid, event.step, event.contents)
            return CheckpointSaved(step=event.step)
        if isinstance(event, Previews):
            self._files.save_previews(uid, event.step, event.pngs)
            return PreviewsSaved(step=event.step, prompts=event.prompts)
        assert not isinstance(event, Finished)
        return event

    def _warm(self, name: str, precision: str) -> Base:
        """The base model in this number type (see `TrainingConfig.precision`), loaded unless it is there already."""
        import torch

        from atelier.diffusion.base import load_base
        from services.trainer.training.precision import choose_dtype

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = choose_dtype(precision, device)
        if self._base is None or (self._base.name, self._base.dtype) != (name, dtype):
            self._base = self._scorers = None  # makes room before the next one comes
            self._base = load_base(self._config.bases[name], device=device, dtype=dtype, name=name)
            self._scorers = self._load_scorers(self._base)
        return self._base

    def _load_scorers(self, base: Base) -> Scorers | None:
        from atelier.diffusion.dino import DinoScorer
        from atelier.diffusion.scorer import ClipScorer
        from services.trainer.training.evaluation import Scorers

        path, dino = self._config.scorers.get(base.name), self._config.dino
        if path is None:
            return None
        return Scorers(clip=ClipScorer(path, base), dino=DinoScorer(dino, base.device) if dino else None)

    def _training_job(self, assignment: Assignment) -> TrainingJob:
        return TrainingJob(
            method=assignment.method,
            config=self._config_of(assignment),
            concepts=tuple(
                Concept(
                    images=self._files.images(concept.images),
                    instance_prompt=concept.instance_prompt,
                    class_prompt=concept.class_prompt,
                    placeholder_token=concept.placeholder_token,
                    repeats=concept.repeats,
                )
                for concept in assignment.concepts
            ),
            dataset_digest=assignment.dataset_digest,
            validation_prompts=assignment.validation_prompts,
        )

    def _config_of(self, assignment: Assignment) -> TrainingConfig:
        """The stored hyperparameters that the method uses: those of an older job may be fewer than there are today."""
        used = find_method(assignment.method).fields
        stored = {name: value for name, value in assignment.config.items() if name in used}
        return resolve_config(assignment.method, stored, base_path=self._config.bases[assignment.base_name])
