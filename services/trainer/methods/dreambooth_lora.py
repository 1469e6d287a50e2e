"""DreamBooth-LoRA: a subject bound to a rare word (Ruiz et al. 2023) by low-rank updates (Hu et al. 2021) of the UNet.

The base model stays as it is; the job's slot is all that is trained, not the text encoder. Prior preservation draws
images of the class with the bare base and holds the adapter to the base's own predictions on them, with prompts of
the class and of random words, so that neither the class nor its neighbours take on the subject's looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator

import torch

from atelier.diffusion.adapter_file import write_adapter_file
from atelier.diffusion.base import Base, encode_prompts
from atelier.diffusion.images import encode_png
from atelier.diffusion.scorer import ClipScorer
from atelier.errors import InvalidArgumentError
from services.trainer.methods.base import (
    CheckpointReady,
    Evaluating,
    Event,
    Finished,
    Preparing,
    Previews,
    TrainingJob,
)
from services.trainer.training.checkpoint import load_checkpoint, save_checkpoint
from services.trainer.training.data import Prior, instance_examples, load_images, prepare_prior
from services.trainer.training.evaluation import draw, evaluate, validation_prompts
from services.trainer.training.guard import guarded, stop_check
from services.trainer.training.loadback import check_load_back
from services.trainer.training.loop import TrainingLoop
from services.trainer.training.outputs import adapter_files

_TITLE = "DreamBooth-LoRA"
# A glimpse, not an evaluation: training waits while they are drawn.
_MAX_PREVIEWS = 4


def train(
    job: TrainingJob,
    base: Base,
    scorer: ClipScorer | None,
    *,
    resume: bytes | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Trains a job and yields what happens, at last `Finished`.

    Args:
        resume: a checkpoint of the same job, to go on from there.
        should_stop: asked after every event but the last, and at every denoising step of the images that are drawn.

    Raises:
        CancelledError: `should_stop` said so.
        InvalidArgumentError: the images or captions will not do.
        FailedPreconditionError: the training diverged, or `resume` is another job's.
        ResourceExhaustedError: the GPU's memory ran out.
        InternalError: the adapter did not pass the load-back check.
    """
    check_stop = stop_check(should_stop)
    yield from guarded(_events(job, base, scorer, resume, check_stop), check_stop)


def _events(
    job: TrainingJob, base: Base, scorer: ClipScorer | None, resume: bytes | None, check_stop: Callable[[], None]
) -> Generator[Event, None, None]:
    _check_captions(job)
    yield Preparing(what=f"{len(job.images)} training images")
    images = load_images(job)
    instances = instance_examples(base, job, images)
    prior: Prior | None = None
    if job.class_prompt and job.config.prior_loss_weight > 0:
        for made in prepare_prior(base, job, check_stop):
            if isinstance(made, Prior):
                prior = made
            else:
                yield Preparing(what=f"class images: {made} of {job.config.num_class_images}")
    loop = TrainingLoop(base, job.config, instances, prior)
    try:
        if resume is not None:
            load_checkpoint(resume, loop, job)
        yield from _train(loop, job, check_stop)
        yield from _finish(loop, job, scorer, images, check_stop)
    finally:
        loop.slots.close()


def _train(loop: TrainingLoop, job: TrainingJob, check_stop: Callable[[], None]) -> Iterator[Event]:
    config = job.config
    for event in loop.run():
        yield event
        if loop.step == config.max_train_steps:
            return
        if loop.step % config.checkpointing_steps == 0:
            yield CheckpointReady(step=loop.step, contents=save_checkpoint(loop, job))
        if config.validation_steps and loop.step % config.validation_steps == 0:
            yield _previews(loop, job, check_stop)


def _previews(loop: TrainingLoop, job: TrainingJob, check_stop: Callable[[], None]) -> Previews:
    prompts = validation_prompts(job)[:_MAX_PREVIEWS]
    images = draw(loop.base, job, prompts, loop.slots, per_prompt=1, check_stop=check_stop)
    return Previews(step=loop.step, prompts=tuple(prompts), pngs=tuple(encode_png(image) for image in images))


def _finish(
    loop: TrainingLoop,
    job: TrainingJob,
    scorer: ClipScorer | None,
    images: torch.Tensor,
    check_stop: Callable[[], None],
) -> Iterator[Event]:
    base = loop.base
    # Everything from here can be done again from this checkpoint.
    yield CheckpointReady(step=loop.step, contents=save_checkpoint(loop, job))
    yield Evaluating()
    factors = loop.slots.factors(0)
    weights = write_adapter_file(factors)
    text = encode_prompts(base, [validation_prompts(job)[0], ""])
    difference = check_load_back(base, factors, weights, text)
    check_stop()
    started = time.perf_counter()
    evaluation = evaluate(base, scorer, job, loop.slots, images, check_stop)
    if evaluation.scores is not None:
        yield evaluation.scores
    measured = {
        "loss": loop.smoothed_loss,
        "load_back_difference": difference,
        "evaluation_seconds": time.perf_counter() - started,
    }
    yield Finished(files=adapter_files(job, base, weights, evaluation, measured, _TITLE))


def _check_captions(job: TrainingJob) -> None:
    if not job.images:
        raise InvalidArgumentError("job.dataset", "has no images; at least one is needed")
    bare = [image.path for image in job.images if not image.caption]
    if bare and not job.instance_prompt:
        raise InvalidArgumentError(
            "job.instance_prompt", f"is empty, but image {bare[0]} has no caption; give one of the two"
        )
