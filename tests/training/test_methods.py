"""Every method from job to files, on the embedded base model, at 64 pixels to be quick."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from atelier.diffusion.adapter_file import FILE_NAME, read_adapter_file
from atelier.diffusion.base import Base
from atelier.diffusion.lowrank import weight_shapes
from atelier.diffusion.sampler import SamplingConfig, sample
from atelier.diffusion.words import read_words_file
from services.trainer.methods.base import Evaluated, Previews, Scores, StepDone
from services.trainer.training.evaluation import Scorers
from tests.harness.training import ALL_METHODS, LEARN_WORDS, files_of, make_job, run_job, traces

_DESCRIBING = {"README.md", "recipe.json", "metrics.json", "samples/0.png", "samples/grid.png"}
_WEIGHTS = {
    "dreambooth": {"model_index.json", "unet/diffusion_pytorch_model.safetensors", f"lora/{FILE_NAME}"},
    "dreambooth-lora": {FILE_NAME},
    "lora": {FILE_NAME},
    "pivotal": {FILE_NAME, "learned_embeds.safetensors"},
    "textual-inversion": {"learned_embeds.safetensors"},
}
_LOADERS = {
    "dreambooth": {"from_pretrained"},
    "dreambooth-lora": {"from_pretrained", "load_lora_weights"},
    "lora": {"from_pretrained", "load_lora_weights"},
    "pivotal": {"from_pretrained", "load_lora_weights", "load_textual_inversion"},
    "textual-inversion": {"from_pretrained", "load_textual_inversion"},
}


class Run:
    """A finished job, and what the bare base model drew before and after it."""

    def __init__(self, method: str, base: Base, scorers: Scorers, **config: Any) -> None:
        self.job = make_job(method, base, **config)
        before = _draw(base)
        self.events = run_job(self.job, base, scorers)
        self.files = files_of(self.events)
        self.drawn = (before, _draw(base))


def _draw(base: Base) -> torch.Tensor:
    return sample(base, ["a photo of a sks fox"], [0], SamplingConfig(size=64, steps=3))


@pytest.fixture(scope="module", params=ALL_METHODS)
def finished(request: pytest.FixtureRequest, base: Base, scorers: Scorers) -> Run:
    return Run(request.param, base, scorers, checkpointing_steps=2)


def test_events_come_in_order(finished: Run) -> None:
    kinds = [kind.__name__ for kind, _ in itertools.groupby(map(type, finished.events))]
    until_last_step = "Preparing StepDone CheckpointReady StepDone Previews StepDone"
    assert kinds == f"{until_last_step} CheckpointReady Evaluating Evaluated Finished".split()
    steps = [event for event in finished.events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == [1, 2, 3, 4]
    assert all(event.total_steps == 4 and event.images_per_second > 0 for event in steps)
    assert steps[-1].eta_seconds == 0
    (previews,) = (event for event in finished.events if isinstance(event, Previews))
    assert previews.step == 3
    assert previews.prompts == (*finished.job.validation_prompts, "")
    assert all(png.startswith(b"\x89PNG") for png in previews.pngs)


def test_the_files_are_complete(finished: Run) -> None:
    weights = _WEIGHTS[finished.job.method]
    if finished.job.method == "dreambooth":
        assert weights | _DESCRIBING < finished.files.keys()
        assert {path.partition("/")[0] for path in finished.files} > {"vae", "text_encoder", "tokenizer", "scheduler"}
    else:
        assert finished.files.keys() == weights | _DESCRIBING
    assert not any(path.endswith((".bin", ".ckpt", ".pt", ".pkl")) for path in finished.files)


def test_the_weights_are_what_was_learnt(finished: Run, base: Base) -> None:
    files = finished.files
    for path in (path for path in files if path.endswith(FILE_NAME)):
        factors = read_adapter_file(files[path], {"unet": weight_shapes(base.denoiser)})["unet"]
        assert len(factors) == (56 if finished.job.method == "lora" else 128), "attention alone, or all layers"
        assert all(update.b.any() for update in factors.values())
    if finished.job.method in LEARN_WORDS:
        (table,) = read_words_file(files["learned_embeds.safetensors"], base).values()
        assert len(table) == finished.job.config.num_vectors == 2


def test_the_recipe_has_all_that_was_asked_for(finished: Run, base: Base) -> None:
    recipe, job = json.loads(finished.files["recipe.json"]), finished.job
    assert recipe["base_model"] == {"model": "emoji-sd", "digest": base.digest, "family": "stable-diffusion"}
    assert recipe["method"] == job.method
    assert recipe["config"]["max_train_steps"] == 4
    assert recipe["dataset_digest"] == job.dataset_digest
    (concept,) = recipe["concepts"]
    assert concept["placeholder_token"] == job.concepts[0].placeholder_token
    assert [image["path"] for image in concept["images"]] == ["00.png", "01.png"]


def test_the_metrics_have_the_scores_that_were_told(finished: Run) -> None:
    metrics = json.loads(finished.files["metrics.json"])
    (evaluated,) = (event for event in finished.events if isinstance(event, Evaluated))
    for who in ("base", "adapter"):
        scores: Scores = getattr(evaluated, who)
        assert scores == Scores(**metrics["evaluation"][who])
        assert all(getattr(scores, name) is not None for name in ("clip_i", "clip_t", "nearest", "pres", "div"))
        assert scores.dino is None, "there is no DINO model"
    assert metrics["steps"] == metrics["published_step"] == 4
    assert metrics["early_stopping"] == {"stopped": False, "saved_steps": 0}
    assert metrics["effect"] > 0
    assert metrics["load_back_difference"] < 0.01
    assert metrics["loss"] == [event.loss for event in finished.events if isinstance(event, StepDone)][-1]
    if finished.job.method == "dreambooth":
        assert 0.5 < metrics["extraction"]["explained"]["unet"] <= 1


def test_the_card_says_how_to_load_it(finished: Run, base: Base) -> None:
    card = finished.files["README.md"].decode()
    assert base.digest in card
    code = card.partition("```python\n")[2].partition("```")[0]
    compile(code, "README.md", "exec")
    loaders = {name for name in ("from_pretrained", "load_lora_weights", "load_textual_inversion") if name in code}
    assert loaders == _LOADERS[finished.job.method]
    assert "TOK" not in code
    assert ("<s0><s1>" in code) == (finished.job.method in LEARN_WORDS)


def test_the_base_is_as_it_was(finished: Run, base: Base) -> None:
    assert not traces(base)
    assert torch.equal(*finished.drawn)


def test_a_base_without_a_scorer_trains_and_is_not_scored(base: Base) -> None:
    job = make_job("lora", base, validation_steps=0, publish_weights="best")
    events = run_job(job, base)
    assert not any(isinstance(event, Evaluated | Previews) for event in events)
    files = files_of(events)
    assert b"there is no scorer" in files["README.md"]
    assert json.loads(files["metrics.json"])["evaluation"] is None


def test_the_best_weights_are_published_where_asked_for(base: Base, scorers: Scorers) -> None:
    """A rate that wrecks the model makes its first validation the best."""
    rates = {"learning_rate": 0.1, "lr_warmup_steps": 0, "lr_scheduler": "constant"}
    job = make_job("lora", base, publish_weights="best", validation_steps=1, max_train_steps=2, **rates)
    best = files_of(run_job(job, base, scorers))
    assert json.loads(best["metrics.json"])["published_step"] == 1
    last = files_of(run_job(replace(job, config=replace(job.config, publish_weights="last")), base, scorers))
    assert best[FILE_NAME] != last[FILE_NAME]
