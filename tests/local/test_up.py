"""`atelier up`, as a user runs it: the whole story, its end, and its second start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from atelier.local.process import free_ports, is_port_free, wait_until
from atelier.local.stack import MODELS
from tests.harness.trainer import EXAMPLES

UP_SECONDS = 240
PROMPT = "a photo of a sks fox on a red background"
QUICK = {"max_train_steps": 4, "train_batch_size": 1, "rank": 4, "checkpointing_steps": 4, "validation_steps": 0}


class Installation:
    """A data folder, and `atelier` commands that find what runs over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log_path = folder / "up.log"
        self._env = {**os.environ, "ATELIER_PROFILE": str(folder / "profile.json"), "COLUMNS": "200"}
        self._program = [str(Path(sys.executable).parent / "atelier")]
        self._up: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        """Starts `atelier up`. Its folder's name has a space, as users' folders have."""
        command = ["up", "--data-dir", str(self.folder / "the data"), "--port", str(_six_free_ports())]
        with self.log_path.open("w") as log:
            self._up = subprocess.Popen(
                [*self._program, *command], env=self._env, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def up(self) -> None:
        """Starts `atelier up` and waits for its addresses."""
        self.begin()
        assert self._up is not None
        assert self._up.stdout is not None
        lines = [self._up.stdout.readline() for _ in range(4)]
        assert [line.partition("=")[0] for line in lines] == [
            f"export ATELIER_{name}" for name in ("REGISTRY", "TRAINER", "INFERENCE", "TOKEN")
        ], self.log_path.read_text()

    def end(self, signal_number: int) -> tuple[int, list[psutil.Process]]:
        """Sends a signal; returns the exit status and the processes that are left."""
        assert self._up is not None
        family = psutil.Process(self._up.pid).children(recursive=True)
        assert family
        self._up.send_signal(signal_number)
        status = self._up.wait(UP_SECONDS)
        _, alive = psutil.wait_procs(family, timeout=5)
        return status, [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]

    def run(self, *arguments: str) -> Any:
        """Runs a command with --json and returns its document."""
        done = subprocess.run(
            [*self._program, *arguments, "--json"], env=self._env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A running installation that has learnt a fox."""
    installation = Installation(tmp_path_factory.mktemp("up"))
    installation.up()
    installation.run("dataset", "create", str(EXAMPLES / "fox"), "--name", "fox")
    settings = [part for name, value in QUICK.items() for part in ("--set", f"{name}={value}")]
    prompts = ["--instance-prompt", "a photo of a sks fox"]
    installation.run("train", "dreambooth-lora", "--dataset", "fox", "--adapter", "fox", *prompts, *settings, "--watch")
    yield installation
    installation.end(signal.SIGKILL)


def _generate(installation: Installation, out: str, *adapter: str) -> Image.Image:
    options = ["--seed", "7", "--steps", "6", "--guidance", "4", "--out", str(installation.folder / out)]
    installation.run("generate", "--prompt", PROMPT, *adapter, *options)
    (path,) = (installation.folder / out).glob("*.png")
    return Image.open(path)


def test_the_published_folder_gives_the_same_image_in_plain_diffusers(installation: Installation) -> None:
    """Tolerance: 2 of 255 a channel, in float32."""
    served = _generate(installation, "served", "--adapter", "fox")
    installation.run("adapters", "pull", "fox", "--out", str(installation.folder / "pulled"))
    pipeline = StableDiffusionPipeline.from_pretrained(MODELS / "emoji-sd", dtype=torch.float32)
    pipeline.load_lora_weights(installation.folder / "pulled")
    generator = torch.Generator("cpu").manual_seed(7)
    plain = pipeline(PROMPT, num_inference_steps=6, guidance_scale=4.0, generator=generator).images[0]
    assert _largest_difference(served, plain) <= 2
    assert _largest_difference(served, _generate(installation, "base")) > 2


def test_everything_is_there_after_a_restart_and_no_process_was_left(installation: Installation) -> None:
    before = _generate(installation, "before", "--adapter", "fox").tobytes()
    assert installation.end(signal.SIGINT) == (0, [])
    installation.up()
    assert _generate(installation, "after", "--adapter", "fox").tobytes() == before
    assert [job["state"] for job in installation.run("jobs", "list")["jobs"]] == ["JOB_STATE_SUCCEEDED"]
    assert installation.end(signal.SIGTERM) == (0, [])
    installation.up()


def test_ctrl_c_ends_a_start_that_is_under_way(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    installation.begin()
    wait_until(
        lambda: "Ray is ready" in installation.log_path.read_text(), timeout_seconds=UP_SECONDS, what="Ray is ready"
    )
    assert installation.end(signal.SIGINT) == (0, [])
    assert "inference is ready" not in installation.log_path.read_text()


def test_a_killed_up_takes_its_processes_along(installation: Installation) -> None:
    _, left = installation.end(signal.SIGKILL)
    wait_until(
        lambda: all(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in left),
        timeout_seconds=60,
        what="the services have ended",
    )
    installation.up()


def _largest_difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def _six_free_ports() -> int:
    """The first of six neighbouring ports that nobody listens on."""
    while True:
        first = free_ports(1)[0]
        if first < 65000 and all(is_port_free(port) for port in range(first, first + 6)):
            return first
