"""Atelier's side, as a process of its own: `python -m bench.methods.ours` trains one run and saves the adapter's files.

A job is run as the trainer's worker runs it, without services: no checkpoints are stored, no previews drawn, and the
evaluation at the end, whose scores this bench does not read, is for one prompt. The load-back check is part of it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import torch
from tqdm.auto import tqdm

from atelier.diffusion.base import load_base
from bench.methods.layout import ADAPTER
from bench.methods.plan import BATCH, CLASS_IMAGES, EMBEDDING_LEARNING_RATE, METHODS, PLACEHOLDER, RANK, Run
from bench.methods.subjects import BASE
from services.trainer.methods import find_method, load_train, resolve_config
from services.trainer.methods.base import Concept, Finished, StepDone, TrainingImage, TrainingJob
from services.trainer.training.config import TrainingConfig


@click.command()
@click.option("--method", "method_name", required=True)
@click.option("--contender", "contender_name", required=True)
@click.option("--learning-rate", type=float, required=True)
@click.option("--seed", type=int, required=True)
@click.option("--steps", type=int, required=True)
@click.option("--threads", type=int, required=True)
@click.option("--folder", type=click.Path(path_type=Path), required=True)
def main(
    method_name: str,
    contender_name: str,
    learning_rate: float,
    seed: int,
    steps: int,
    threads: int,
    folder: Path,
) -> None:
    """Trains one run."""
    torch.set_num_threads(threads)
    method = METHODS[method_name]
    contender = method.contender(contender_name)
    run = Run(method=method, contender=contender, learning_rate=learning_rate, seed=seed, steps=steps)
    config = _config(run)
    (folder / "config.json").write_text(
        json.dumps({name: getattr(config, name) for name in config.__slots__}, indent=2)
    )
    _train(_job(run, config), folder / ADAPTER)


def _config(run: Run) -> TrainingConfig:
    """What the plan sets of the fields that the method uses, over Atelier's defaults."""
    method = run.method
    planned = {
        "max_train_steps": run.steps,
        "train_batch_size": BATCH,
        "rank": RANK,
        "num_class_images": CLASS_IMAGES,
        "num_vectors": method.num_vectors,
        "initializer_word": method.initializer_word,
        "embedding_learning_rate": EMBEDDING_LEARNING_RATE,
        "seed": run.seed,
        "checkpointing_steps": 20_000,
        "validation_steps": 0,
        # Textual inversion has the learning rate of its embeddings and no other.
        "embedding_learning_rate" if method.name == "textual-inversion" else "learning_rate": run.learning_rate,
    }
    used = find_method(method.name).fields
    overrides = {name: value for name, value in planned.items() if name in used} | dict(run.contender.overrides)
    return resolve_config(method.name, overrides, base_path=BASE)


def _job(run: Run, config: TrainingConfig) -> TrainingJob:
    method, subject = run.method, run.method.subject
    # As for the peer, captions are for the method that learns from captions.
    captions = subject.captions if method.name == "lora" else {}
    concept = Concept(
        images=tuple(
            TrainingImage(path=path.name, contents=path.read_bytes(), caption=captions.get(path.name, ""))
            for path in subject.image_paths
        ),
        instance_prompt=method.instance_prompt,
        class_prompt=f"a photo of a {subject.class_words}" if run.contender.prior and subject.class_words else "",
        placeholder_token=PLACEHOLDER if method.num_vectors else "",
    )
    prompt = method.instance_prompt or next(iter(captions.values()))
    return TrainingJob(
        method=method.name, config=config, concepts=(concept,), dataset_digest="", validation_prompts=(prompt,)
    )


def _train(job: TrainingJob, folder: Path) -> None:
    base = load_base(BASE, device=torch.device("cpu"), dtype=torch.float32)
    # The bar is what the steps are timed by, as the peer's is.
    with tqdm(total=job.config.max_train_steps, desc="Steps") as bar:
        for event in load_train(job.method)(job, base, None):
            if isinstance(event, StepDone):
                bar.update(event.step - bar.n)
                bar.set_postfix(loss=event.loss)
            if isinstance(event, Finished):
                # Files on disk are there until the generator goes on.
                _save(event, folder)


def _save(finished: Finished, folder: Path) -> None:
    for name, contents in finished.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(contents, Path):
            shutil.copy(contents, path)
        else:
            path.write_bytes(contents)


if __name__ == "__main__":
    main()
