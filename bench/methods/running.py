"""Making what is not there yet: a run's adapter with its measurements, its images and scores, and the base's. No torch.

A run that failed leaves `failure.txt` in its folder and is tried again the next time; what was trained is not trained
again, and what was scored by the present prompts and settings is skipped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from atelier.errors import AtelierError, FailedPreconditionError
from bench.methods.layout import ADAPTER, FAILURE, LOG, MEASURED, base_folder, peer_images_folder, run_folder
from bench.methods.peers import Peer, environment, prepare_images
from bench.methods.plan import Run
from bench.methods.process import Measured, run_measured
from bench.methods.results import is_scored
from bench.methods.subjects import ROOT, Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Makes runs below a folder."""

    out: Path
    base: Path
    """The float32 copy."""
    peer: Peer | None
    threads: int
    say: Callable[[str], None]

    def make_base(self, subject: Subject) -> None:
        """The bare base model's images and scores, and the ceiling's."""
        folder = base_folder(self.out, subject)
        if not is_scored(folder, subject):
            folder.mkdir(parents=True, exist_ok=True)
            self._score(subject, subject.class_words or "-", folder, [])

    def make(self, run: Run) -> None:
        """A run, or what is missing of it; a failure is said and written down, not raised."""
        folder = run_folder(self.out, run)
        if is_scored(folder, run.method.subject):
            return
        self.say(f"{run.method.name}, {run.contender.name}, rate {run.learning_rate:g}, seed {run.seed}")
        try:
            if not (folder / MEASURED).is_file():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                measured = self._train(run, folder)
                (folder / MEASURED).write_text(json.dumps(asdict(measured)))
            base_images = base_folder(self.out, run.method.subject)
            options = [f"--adapter={folder / ADAPTER}", f"--base-images={base_images}"]
            self._score(run.method.subject, run.method.word or "-", folder, options)
        except AtelierError as error:
            (folder / FAILURE).write_text(error.message)
            self.say(f"  not done: {error.message}")

    def _train(self, run: Run, folder: Path) -> Measured:
        is_peer = run.contender.is_peer
        command = self._peer_command(run) if is_peer else self._own_command(run, folder)
        # A peer's output folder is relative, as the advanced script wants it.
        where = folder if is_peer else ROOT
        return run_measured(command, env=environment(self.threads), cwd=where, log=folder / LOG)

    def _peer_command(self, run: Run) -> list[str]:
        if self.peer is None:
            raise FailedPreconditionError("no --peer-scripts are given", reason="PEER_SCRIPT_MISSING")
        self.peer.check(run)
        return self.peer.command(run, prepare_images(run, peer_images_folder(self.out, run.method)))

    def _own_command(self, run: Run, folder: Path) -> list[str]:
        options = {
            "method": run.method.name,
            "contender": run.contender.name,
            "learning-rate": run.learning_rate,
            "seed": run.seed,
            "steps": run.steps,
            "threads": self.threads,
            "folder": folder,
        }
        return [sys.executable, "-m", "bench.methods.ours", *(f"--{name}={value}" for name, value in options.items())]

    def _score(self, subject: Subject, word: str, folder: Path, options: list[str]) -> None:
        command = [
            *(sys.executable, "-m", "bench.methods.scores", f"--subject={subject.name}", f"--word={word}"),
            *(f"--base={self.base}", f"--threads={self.threads}", f"--folder={folder}", *options),
        ]
        env = environment(self.threads)
        result = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
        if result.returncode:
            raise FailedPreconditionError(f"scoring failed: {result.stderr[-1500:]}", reason="SCORING_FAILED")
