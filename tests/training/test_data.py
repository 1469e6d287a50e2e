"""What a job's batches hold: buckets, crops, flips, masks, repeats, concepts, captions and noise."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from atelier.diffusion.base import Base, load_base
from services.trainer.methods import load_train
from services.trainer.methods.base import Concept, Preparing, TrainingImage, TrainingJob
from services.trainer.training.cache import TensorCache
from services.trainer.training.examples import Example, instance_examples
from services.trainer.training.loss import Lessons
from services.trainer.training.noise import noise_process
from services.trainer.training.prior import Prior, prepare_prior
from tests.harness.families import tiny_stable_diffusion
from tests.harness.training import checkpoints, fox_images, make_job


def lessons(job: TrainingJob, base: Base, prior: Prior | None = None) -> Lessons:
    return Lessons(base, job.config, noise_process(base), instance_examples(base, job), prior)


def with_images(job: TrainingJob, *images: TrainingImage) -> TrainingJob:
    return replace(job, concepts=(replace(job.concepts[0], images=images),))


def changed(image: TrainingImage, change: Callable[[Image.Image], Image.Image]) -> bytes:
    file = io.BytesIO()
    change(Image.open(io.BytesIO(image.contents)).convert("RGB")).save(file, format="PNG")
    return file.getvalue()


def test_images_of_each_aspect_are_learnt_in_their_bucket_once_an_epoch(base: Base) -> None:
    wide, square, tall, other = fox_images(4)
    images = (
        replace(wide, contents=changed(wide, lambda image: image.resize((160, 80))), caption="wide"),
        replace(square, caption="square"),
        replace(tall, contents=changed(tall, lambda image: image.resize((80, 160))), caption="tall"),
        replace(other, contents=changed(other, lambda image: image.resize((320, 160))), caption="wide too"),
    )
    job = with_images(make_job("lora", base, aspect_ratio_buckets=True), *images)
    taught = lessons(job, base)
    shapes = {"wide": (4, 6, 10), "square": (4, 8, 8), "tall": (4, 10, 6), "wide too": (4, 6, 10)}
    for epoch in range(3):
        batches = [rows for index in (2 * epoch, 2 * epoch + 1) for rows in taught.batch(index)]
        seen = {prompt: tuple(rows.latents.shape[1:]) for rows in batches for prompt in rows.prompts}
        assert seen == shapes
        assert sum(len(rows.prompts) for rows in batches) == 4
        assert sum(rows.weights.numel() for rows in batches) == 4


def test_buckets_of_a_large_model_are_64_pixels_apart(tmp_path: Path) -> None:
    """One that draws 512 pixels by itself; asked for 256."""
    folder = tiny_stable_diffusion(tmp_path / "large")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"sample_size": 64}))
    large = load_base(folder, device=torch.device("cpu"), dtype=torch.float32)
    image = fox_images(1)[0]
    wide = replace(image, contents=changed(image, lambda each: each.resize((160, 80))))
    job = make_job("lora", large, aspect_ratio_buckets=True, resolution=256)
    (example,) = instance_examples(large, with_images(job, wide))
    assert example.latents.shape == (1, 4, 192 // 8, 320 // 8)


def test_a_job_of_several_aspects_trains(base: Base) -> None:
    first, second = fox_images()
    wide = replace(first, contents=changed(first, lambda image: image.resize((160, 80))))
    job = with_images(make_job("dreambooth-lora", base, aspect_ratio_buckets=True, max_train_steps=2), wide, second)
    saved = checkpoints(job, base)
    assert checkpoints(job, base, resume=saved[1])[2] == saved[2]


def test_flips_and_crops_are_all_used(base: Base) -> None:
    image = replace(fox_images(1)[0], contents=changed(fox_images(1)[0], lambda each: each.resize((160, 80))))
    job = with_images(make_job("lora", base, random_flip=True, random_crop=True), image)
    (example,) = instance_examples(base, job)
    assert len(example.latents) == 16
    assert len({tuple(each.flatten().tolist()) for each in example.latents}) == 16
    process, used = noise_process(base), set()
    taught = Lessons(base, replace(job.config, noise_offset=0.0), process, [_numbered(example)], None)
    for index in range(100):
        used |= set(taught.batch(index)[0].sizes[:, 0].tolist())
    assert used == set(range(16))


def _numbered(example: Example) -> Example:
    """With each variant's number as its first size condition."""
    sizes = example.sizes.clone()
    sizes[:, 0] = torch.arange(len(sizes))
    return replace(example, sizes=sizes)


def test_a_flip_is_the_mirror_image(base: Base) -> None:
    image = fox_images(1)[0]
    mirror = replace(image, contents=changed(image, ImageOps.mirror))
    (flipped,) = instance_examples(base, with_images(make_job("lora", base, random_flip=True), image))
    (mirrored,) = instance_examples(base, with_images(make_job("lora", base), mirror))
    assert len(flipped.latents) == 2
    torch.testing.assert_close(flipped.latents[1:], mirrored.latents, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("outside", [0.0, 0.1, 1.0])
def test_what_a_mask_leaves_out_counts_as_little_as_asked_for(outside: float, base: Base) -> None:
    image = fox_images(1)[0]
    half = Image.new("L", Image.open(io.BytesIO(image.contents)).size, 0)
    half.paste(255, (0, 0, half.width // 2, half.height))
    mask = io.BytesIO()
    half.save(mask, format="PNG")
    job = with_images(make_job("lora", base, unmasked_weight=outside), replace(image, mask=mask.getvalue()))
    (rows,) = lessons(job, base).batch(0)
    predictions = (rows.target + 1).requires_grad_()  # the same error everywhere
    rows.loss(predictions).backward()
    assert predictions.grad is not None
    white, black = predictions.grad[..., :4], predictions.grad[..., 4:]
    assert (white > 0).all()
    torch.testing.assert_close(black, white * outside)


def test_repeats_and_concepts_come_as_often_as_asked_for(base: Base) -> None:
    fox, dog = fox_images()
    concepts = (
        Concept(images=(fox,), instance_prompt="a sks fox", class_prompt="a fox", repeats=3),
        Concept(images=(replace(dog, caption="a zwx dog in snow"),), instance_prompt="a zwx dog", class_prompt="a dog"),
        Concept(images=(dog,), instance_prompt="in the style of qrt"),
    )
    job = replace(make_job("dreambooth-lora", base, train_batch_size=5, num_class_images=2, seed=5), concepts=concepts)
    taught = lessons(job, base)
    for epoch in range(2):
        counts = Counter(prompt for rows in taught.batch(epoch) for prompt in rows.prompts)
        assert counts == {"a sks fox": 3, "a zwx dog in snow": 1, "in the style of qrt": 1}
    prior = prior_of(job, base)
    assert [example.prompt for example in prior.examples] == ["a fox", "a fox", "a dog", "a dog in snow"]


def prior_of(job: TrainingJob, base: Base) -> Prior:
    (*_, prior) = prepare_prior(base, job, TensorCache(max_bytes=2**20), lambda: None)
    assert isinstance(prior, Prior)
    return prior


def test_the_prior_is_what_the_bare_base_predicts_of_class_images_and_words(base: Base) -> None:
    job = make_job("dreambooth-lora", base, prior_loss_weight=0.5, snr_gamma=0.0)
    prior = prior_of(job, base)
    (rows,) = lessons(job, base, prior).batch(0)
    assert rows.prompts[:2] == ["a photo of a sks fox"] * 2
    assert rows.prompts[2] in prior.word_prompts
    assert rows.prompts[3] == "a photo of a fox face"
    assert rows.weights.tolist() == [0.5, 0.5, 0.25, 0.25]
    with torch.no_grad():
        bare = base.predict(rows.latents, rows.timesteps, base.encode_prompts(rows.prompts).with_sizes(rows.sizes))
    torch.testing.assert_close(bare[2:], rows.target[2:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(bare[:2], rows.target[:2], atol=1e-2)


def test_class_images_are_drawn_once_for_a_store(base: Base) -> None:
    def drawn(job: TrainingJob, store: TensorCache) -> int:
        running = load_train(job.method)(job, base, None, store=store)
        seen = []
        for event in running:
            assert isinstance(event, Preparing)
            seen.append(event.what)
            if "rehearsal" in event.what:
                break
        running.close()  # type: ignore[attr-defined]
        return sum(what.startswith("class images") for what in seen)

    store, job = TensorCache(max_bytes=2**20), make_job("dreambooth-lora", base)
    other = replace(job, concepts=(replace(job.concepts[0], class_prompt="a photo of a fox"),))
    none = replace(job, concepts=(replace(job.concepts[0], class_prompt=""),))
    assert [drawn(each, store) for each in (job, job, other, none)] == [1, 0, 1, 0]
    assert drawn(make_job("dreambooth-lora", base, prior_loss_weight=0.0, seed=9), store) == 0
    assert drawn(make_job("lora", base, seed=9), store) == 0


def test_class_images_that_captions_had_a_part_in_stay_out_of_the_shared_store(base: Base) -> None:
    class Shared(dict[str, torch.Tensor]):
        put = dict.__setitem__

    def drawn(job: TrainingJob, store: Shared) -> list[int]:
        return [made for made in prepare_prior(base, job, store, lambda: None) if isinstance(made, int)]

    store, job = Shared(), make_job("dreambooth-lora", base, seed=6)
    captioned = with_images(job, *(replace(image, caption="a sks fox in snow") for image in fox_images()))
    assert drawn(captioned, store) == [2]
    assert not store
    assert drawn(captioned, store) == [], "the process still has them"
    assert drawn(job, store) == [2]
    assert len(store) == 1


def test_captions_are_dropped_as_often_as_asked_for_and_the_prior_s_never(base: Base) -> None:
    job = make_job("dreambooth-lora", base, caption_dropout=0.3)
    taught, prior = lessons(job, base), prior_of(job, base)
    prompts = [prompt for index in range(300) for rows in taught.batch(index) for prompt in rows.prompts]
    assert prompts.count("") / len(prompts) == pytest.approx(0.3, abs=0.06)
    with_prior = [rows for index in range(10) for rows in lessons(job, base, prior).batch(index)]
    assert all("" not in rows.prompts[2:] for rows in with_prior)


def test_noise_offset_shifts_the_mean_of_each_channel(base: Base) -> None:
    """What the base predicts, velocity, is linear in the noise."""
    (plain,) = lessons(make_job("lora", base), base).batch(0)
    (shifted,) = lessons(make_job("lora", base, noise_offset=0.5), base).batch(0)
    difference = shifted.target - plain.target
    means = difference.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(difference, means.expand_as(difference), atol=1e-5, rtol=0)
    assert (means.abs() > 1e-3).all()


def test_images_are_learnt_as_they_look(base: Base) -> None:
    """An upright image and one that only its EXIF orientation makes upright are the same."""
    image = fox_images(1)[0]
    file = io.BytesIO()
    turned = Image.open(io.BytesIO(image.contents)).convert("RGB").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(file, format="PNG", exif=exif)
    job = make_job("lora", base)
    (upright,) = instance_examples(base, with_images(job, image))
    (righted,) = instance_examples(base, with_images(job, replace(image, contents=file.getvalue())))
    assert torch.equal(upright.latents, righted.latents)
