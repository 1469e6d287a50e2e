"""diffusers' own example scripts: their command lines, and the folders and environment that they need. Needs no torch.

Settings are those of the scripts' README files; steps, batch, rank, vectors, class images and learning rates are the
plan's, the same for both sides. Four things stop the scripts or spoil them, and are seen to here:

- Their loader makes a short last batch: five images at batch 4 are batches of 4 and 1. The image folder holds every
  image as often as fills all batches, so that equal steps are equal images seen and equal work.
- A `metadata.jsonl` beside the images stops the DreamBooth scripts; the LoRA script reads its captions from it.
- The base model's weights are float16 on disk, and textual inversion trains the text encoder's embeddings in the type
  that they are stored in, up to NaN. The scripts get a float32 copy of the base model.
- The README file of the advanced script gives it `--snr_gamma=5`, whose weight is 0 / 0 in the last timestep of a base
  model with zero terminal SNR: every weight is NaN after the first such draw. It runs without.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from atelier.errors import FailedPreconditionError
from bench.methods.layout import ADAPTER
from bench.methods.plan import BATCH, CLASS_IMAGES, EMBEDDING_LEARNING_RATE, NEW_WORD, PLACEHOLDER, RANK, Run

_LAUNCHER = Path(__file__).resolve().parent / "standins" / "launch.py"
_SCRIPTS = {
    "dreambooth": "dreambooth/train_dreambooth.py",
    "dreambooth-lora": "dreambooth/train_dreambooth_lora.py",
    "lora": "text_to_image/train_text_to_image_lora.py",
    "textual-inversion": "textual_inversion/textual_inversion.py",
    "pivotal": "advanced_diffusion_training/train_dreambooth_lora_sd15_advanced.py",
}
_PACKAGES = {"lora": "datasets"}
"""What a script imports beside diffusers' own requirements."""
_NEVER = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A checkout's `examples` folder and the Python interpreter that runs it."""

    scripts: Path
    python: str
    base: Path
    """The float32 copy."""

    def command(self, run: Run, images: Path) -> list[str]:
        """The command line that trains a run, to be run in the run's folder."""
        script = self.scripts / _SCRIPTS[run.method.name]
        if not script.is_file():
            raise FailedPreconditionError(f"there is no script {script}", reason="PEER_SCRIPT_MISSING")
        options = {
            "pretrained_model_name_or_path": self.base,
            "output_dir": ADAPTER,
            "resolution": 128,
            "train_batch_size": BATCH,
            "max_train_steps": run.steps,
            "learning_rate": f"{run.learning_rate:g}",
            "seed": run.seed,
            "lr_scheduler": "constant",
            "lr_warmup_steps": 0,
            "checkpointing_steps": _NEVER,
            **_method_options(run, images),
            **(_prior_options(run) if run.contender.prior else {}),
        }
        arguments = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
        return [self.python, str(_LAUNCHER), str(script), *arguments]

    def check(self, run: Run) -> None:
        """Raises FailedPreconditionError, with its name, when a package that the script needs is missing."""
        package = _PACKAGES.get(run.method.name)
        if package and subprocess.run([self.python, "-c", f"import {package}"], capture_output=True).returncode:
            raise FailedPreconditionError(f"needs the package {package}", reason="PEER_PACKAGE_MISSING")


def environment(threads: int) -> dict[str, str]:
    """Of every process, of both sides: CPU only, no network, so many threads that do not spin while they wait."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def prepare_images(run: Run, folder: Path) -> Path:
    """Makes the image folder: every image as often as fills all batches, with captions for the LoRA script only."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths, captions = run.method.subject.image_paths, run.method.subject.captions
    rows = []
    for copy in range(BATCH // math.gcd(len(paths), BATCH)):
        for path in paths:
            name = f"{copy}-{path.name}"
            shutil.copy(path, folder / name)
            rows.append({"file_name": name, "text": captions[path.name]})
    if run.method.name == "lora":
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def prepare_base(source: Path, target: Path) -> Path:
    """A copy of a base model with float32 weights; made once."""
    if target.exists():
        return target
    making = target.with_name(f"{target.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    shutil.copytree(source, making)
    for path in making.rglob("*.safetensors"):
        weights = {name: np.asarray(value, np.float32) for name, value in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
    config = making / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2))
    making.rename(target)
    return target


def _method_options(run: Run, images: Path) -> Mapping[str, object]:
    method = run.method
    if method.name == "dreambooth":
        return {"instance_data_dir": images, "instance_prompt": method.instance_prompt}
    if method.name == "dreambooth-lora":
        return {"instance_data_dir": images, "instance_prompt": method.instance_prompt, "rank": RANK}
    if method.name == "lora":
        return {
            "train_data_dir": images,
            "caption_column": "text",
            "cache_dir": "datasets-cache",
            "rank": RANK,
            "lr_scheduler": "cosine",
        }
    if method.name == "textual-inversion":
        return {
            "train_data_dir": images,
            "learnable_property": "object",
            "placeholder_token": NEW_WORD,
            "initializer_token": method.initializer_word,
            "num_vectors": method.num_vectors,
            "save_steps": _NEVER,
        }
    return {
        "instance_data_dir": images,
        "instance_prompt": method.instance_prompt,
        "token_abstraction": PLACEHOLDER,
        "num_new_tokens_per_abstraction": method.num_vectors,
        "train_text_encoder_ti": True,
        "text_encoder_lr": EMBEDDING_LEARNING_RATE,
        "rank": RANK,
    }


def _prior_options(run: Run) -> Mapping[str, object]:
    return {
        "with_prior_preservation": True,
        "prior_loss_weight": 1.0,
        "class_data_dir": "class-images",
        "class_prompt": f"a photo of a {run.method.subject.class_words}",
        "num_class_images": CLASS_IMAGES,
    }
