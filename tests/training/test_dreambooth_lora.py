"""DreamBooth-LoRA from job to files, on the embedded base model, at 64 pixels to be quick."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atelier.diffusion.adapter_file import FILE_NAME, read_adapter_file, write_adapter_file
from atelier.diffusion.base import Base, encode_prompts
from atelier.diffusion.lowrank import weight_shapes
from atelier.diffusion.scorer import ClipScorer
from atelier.errors import CancelledError, FailedPreconditionError, InternalError, InvalidArgumentError
from services.trainer.methods import load_train, resolve_config
from services.trainer.methods.base import (
    CheckpointReady,
    Evaluated,
    Evaluating,
    Event,
    Finished,
    Preparing,
    Previews,
    StepDone,
    TrainingImage,
    TrainingJob,
)
from services.trainer.training.data import Examples, instance_examples, load_images, to_class_words, word_prompts
from services.trainer.training.loadback import check_load_back
from services.trainer.training.loop import TrainingLoop, learning_rate

_ROOT = Path(__file__).parents[2]
_FOX = _ROOT / "examples" / "fox"


def make_job(**config: Any) -> TrainingJob:
    """Two foxes, four steps; `config` are hyperparameters."""
    small = {
        "max_train_steps": 4,
        "train_batch_size": 2,
        "rank": 4,
        "num_class_images": 2,
        "resolution": 64,
        "checkpointing_steps": 2,
        "validation_steps": 3,
    }
    captions = [json.loads(line)["text"] for line in (_FOX / "metadata.jsonl").read_text().splitlines()]
    images = (
        TrainingImage(path="00.png", contents=(_FOX / "00.png").read_bytes(), caption=captions[0]),
        TrainingImage(path="01.png", contents=(_FOX / "01.png").read_bytes()),
    )
    return TrainingJob(
        method="dreambooth-lora",
        config=resolve_config("dreambooth-lora", small | config, base_path=_ROOT / "models" / "emoji-sd"),
        images=images,
        dataset_digest="sha256:" + "0" * 64,
        instance_prompt="a photo of a sks fox",
        class_prompt="a photo of a fox face",
        validation_prompts=("a photo of a sks fox on a red background",),
    )


@pytest.fixture(scope="module")
def run(base: Base, scorer: ClipScorer) -> Callable[..., list[Event]]:
    train = load_train("dreambooth-lora")
    return lambda job, **options: list(train(job, base, scorer, **options))


@pytest.fixture(scope="module")
def events(run: Callable[..., list[Event]]) -> list[Event]:
    """Of a job that ran undisturbed."""
    return run(make_job())


def finished(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def test_events_come_in_order(events: list[Event]) -> None:
    kinds = [kind.__name__ for kind, _ in itertools.groupby(map(type, events))]
    until_last_step = "Preparing StepDone CheckpointReady StepDone Previews StepDone"
    assert kinds == f"{until_last_step} CheckpointReady Evaluating Evaluated Finished".split()
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == [1, 2, 3, 4]
    assert all(event.total_steps == 4 and event.images_per_second > 0 for event in steps)
    assert steps[-1].eta_seconds == 0
    (previews,) = (event for event in events if isinstance(event, Previews))
    assert previews.step == 3
    assert previews.pngs[0].startswith(b"\x89PNG")


def test_the_files_are_complete_and_say_what_they_are(base: Base, events: list[Event]) -> None:
    files = finished(events).files
    assert set(files) == {FILE_NAME, "README.md", "recipe.json", "metrics.json", "samples/0.png"}
    factors = read_adapter_file(files[FILE_NAME], weight_shapes(base.unet))
    assert len(factors) == 128
    assert all(update.rank == 4 and update.b.any() for update in factors.values())
    recipe = json.loads(files["recipe.json"])
    assert recipe["base_model"]["digest"] == base.digest
    assert recipe["config"]["rank"] == 4
    (evaluated,) = (event for event in events if isinstance(event, Evaluated))
    scores = json.loads(files["metrics.json"])["evaluation"]
    assert scores["adapter"]["clip_i"] == pytest.approx(evaluated.adapter.clip_i)
    card = files["README.md"].decode()
    assert base.digest in card
    assert "load_lora_weights" in card


def test_a_base_without_a_scorer_trains_and_is_not_scored(base: Base, events: list[Event]) -> None:
    unscored = list(load_train("dreambooth-lora")(make_job(), base, None))
    assert not any(isinstance(event, Evaluated) for event in unscored)
    assert finished(unscored).files[FILE_NAME] == finished(events).files[FILE_NAME]
    assert json.loads(finished(unscored).files["metrics.json"])["evaluation"] is None


def test_a_killed_job_resumes_bit_for_bit(run: Callable[..., list[Event]], events: list[Event], base: Base) -> None:
    (checkpoint, _) = (event for event in events if isinstance(event, CheckpointReady))
    assert checkpoint.step == 2
    resumed = run(make_job(), resume=checkpoint.contents)
    assert [event.step for event in resumed if isinstance(event, StepDone)] == [3, 4]
    assert finished(resumed).files[FILE_NAME] == finished(events).files[FILE_NAME]
    losses = [[e.loss for e in part if isinstance(e, StepDone)][-2:] for part in (events, resumed)]
    assert losses[0] == losses[1]


def test_a_checkpoint_of_another_job_is_refused(run: Callable[..., list[Event]], events: list[Event]) -> None:
    checkpoint = next(event for event in events if isinstance(event, CheckpointReady))
    with pytest.raises(FailedPreconditionError, match="belongs to another job"):
        run(make_job(learning_rate=2e-4), resume=checkpoint.contents)
    with pytest.raises(InvalidArgumentError):
        run(make_job(), resume=checkpoint.contents[:-1])


def test_a_stop_is_heard_within_a_step_and_leaves_the_base_bare(base: Base, scorer: ClipScorer) -> None:
    seen: list[Event] = []

    def has_seen_step_2() -> bool:
        return isinstance(seen[-1], StepDone) and seen[-1].step == 2

    running = load_train("dreambooth-lora")(make_job(), base, scorer, should_stop=has_seen_step_2)
    with pytest.raises(CancelledError):
        seen.extend(running)
    assert len([event for event in seen if isinstance(event, StepDone)]) == 2
    assert not any(module._forward_hooks for module in base.unet.modules())


@pytest.mark.parametrize(
    "before",
    [
        lambda event: isinstance(event, Preparing),
        lambda event: isinstance(event, StepDone) and event.step == 3,
        lambda event: isinstance(event, Evaluating),
    ],
    ids=["class images", "previews", "evaluation"],
)
def test_a_stop_is_heard_while_images_are_drawn(
    base: Base, scorer: ClipScorer, before: Callable[[Event], bool]
) -> None:
    seen: list[Event] = []
    asked = 0

    def says_so_at_the_fifth_time() -> bool:
        nonlocal asked
        asked += before(seen[-1])
        return asked == 5

    job = make_job(seed=79)
    running = load_train("dreambooth-lora")(job, base, scorer, should_stop=says_so_at_the_fifth_time)
    with pytest.raises(CancelledError):
        seen.extend(running)
    assert before(seen[-1])
    assert asked == 5
    assert not any(module._forward_hooks for module in base.unet.modules())


def test_class_images_are_drawn_once_and_not_without_a_class_prompt(base: Base, scorer: ClipScorer) -> None:
    def preparations(job: TrainingJob) -> list[str]:
        running = load_train("dreambooth-lora")(job, base, scorer)
        return [
            e.what for e in itertools.takewhile(lambda e: isinstance(e, Preparing), running) if isinstance(e, Preparing)
        ]

    job = make_job(seed=77)
    assert any("class images" in what for what in preparations(job))
    assert not any("class images" in what for what in preparations(job))
    assert not any("class images" in what for what in preparations(replace(job, class_prompt="")))
    assert not any("class images" in what for what in preparations(make_job(seed=78, prior_loss_weight=0.0)))


def test_images_that_a_dataset_takes_are_learnt_from_as_they_look() -> None:
    def loaded(image: Image.Image, **options: Any) -> torch.Tensor:
        file = io.BytesIO()
        image.save(file, format="PNG", **options)
        images = (TrainingImage(path="a.png", contents=file.getvalue()),)
        return load_images(replace(make_job(), images=images))

    ramp = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    eight_bits = Image.fromarray(np.round(ramp / 257).astype(np.uint8))
    assert torch.equal(loaded(Image.fromarray(ramp)), loaded(eight_bits))
    assert torch.equal(loaded(eight_bits, exif=b"garbage"), loaded(eight_bits))


def test_an_image_that_cannot_be_decoded_is_named() -> None:
    images = (TrainingImage(path="a.png", contents=b"no image"),)
    with pytest.raises(InvalidArgumentError, match=r"job\.dataset: 'a\.png' is not a readable image"):
        load_images(replace(make_job(), images=images))


def test_training_lowers_the_loss_on_its_images(base: Base) -> None:
    job = make_job(max_train_steps=24, learning_rate=2e-3, snr_gamma=0.0)
    loop = TrainingLoop(base, job.config, instance_examples(base, job, load_images(job)), None)
    losses = [step.loss for step in loop.run()]
    loop.slots.close()
    assert losses[-1] < 0.8 * losses[0]


def test_a_loss_that_is_not_finite_ends_the_job(base: Base) -> None:
    job = make_job()
    examples = instance_examples(base, job, load_images(job))
    broken = Examples(examples.latents * torch.nan, examples.text)
    loop = TrainingLoop(base, job.config, broken, None)
    with pytest.raises(FailedPreconditionError, match="diverged at step 1") as failure:
        list(loop.run())
    loop.slots.close()
    assert failure.value.reason == "TRAINING_DIVERGED"


def test_the_load_back_gate_lets_only_the_trained_adapter_through(base: Base) -> None:
    job = make_job()
    loop = TrainingLoop(base, job.config, instance_examples(base, job, load_images(job)), None)
    text = encode_prompts(base, ["a photo of a sks fox", ""])
    untrained = loop.slots.factors(0)
    with pytest.raises(InternalError, match="no more than rounding"):
        check_load_back(base, untrained, write_adapter_file(untrained), text)
    list(loop.run())
    loop.slots.close()
    factors = loop.slots.factors(0)
    assert check_load_back(base, factors, write_adapter_file(factors), text) < 1e-4
    some = dict(list(factors.items())[:100])
    with pytest.raises(InternalError, match="loaded 200 of 256 tensors"):
        check_load_back(base, factors, write_adapter_file(some), text)
    larger = {name: replace(update, b=update.b * 3) for name, update in factors.items()}
    with pytest.raises(InternalError, match="differs from the trained one"):
        check_load_back(base, factors, write_adapter_file(larger), text)


def test_images_without_any_text_are_refused(run: Callable[..., list[Event]]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"job\.instance_prompt: is empty, but image 01\.png has no caption"):
        run(replace(make_job(), instance_prompt=""))


@pytest.mark.parametrize(
    ("prompt", "instance", "klass", "expected"),
    [
        (
            "a photo of a sks fox in snow",
            "a photo of a sks fox",
            "a photo of a fox face",
            "a photo of a fox face in snow",
        ),
        ("sks fox, red", "a sks fox", "a fox face", "fox face, red"),
        ("a sks dog runs", "a sks dog", "a dog", "a dog runs"),
        ("a cat", "a sks dog", "a dog", "a cat"),
        ("a sksy cat", "a sks dog", "a dog", "a sksy cat"),
        ("a sks dog", "a sks dog", "", "a sks dog"),
    ],
)
def test_class_words_take_the_place_of_the_instance_s(prompt: str, instance: str, klass: str, expected: str) -> None:
    job = replace(make_job(), instance_prompt=instance, class_prompt=klass)
    assert to_class_words(prompt, job) == expected


def test_random_words_are_whole_words_and_depend_on_the_seed(base: Base) -> None:
    prompts = word_prompts(base, 1)
    assert prompts == word_prompts(base, 1)
    assert prompts != word_prompts(base, 2)
    ids = base.tokenizer(prompts).input_ids
    assert all(len(row) == 2 + len(prompt.split()) for row, prompt in zip(ids, prompts, strict=True))


def test_learning_rates_warm_up_and_fall_to_zero() -> None:
    job = make_job(max_train_steps=10, lr_warmup_steps=2, learning_rate=1e-3)
    for name, middle in (("constant", 1e-3), ("linear", 5e-4), ("cosine", 5e-4)):
        config = replace(job.config, lr_scheduler=name)
        assert [learning_rate(config, step) for step in (0, 1, 2, 6)] == pytest.approx([5e-4, 1e-3, 1e-3, middle])
