"""A worker's output has no prompt in it: the model libraries, which quote those that are too long, are silent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.harness.families import tiny_stable_diffusion

_WORD = "xylophonist"
# As the worker runs a job, with a prompt longer than the tokenizer's window of 77 tokens, which each place that
# encodes it cuts off: training, class images, previews, the load-back check and the samples.
_RUN = f"""
import dataclasses, sys
from pathlib import Path
import torch
from atelier.diffusion.base import load_base
from atelier.diffusion.quiet import silence_libraries
from services.trainer.methods.base import Finished
from tests.harness.training import make_job, run_job

silence_libraries()
torch.set_num_threads(1)
base = load_base(Path(sys.argv[1]), device=torch.device("cpu"), dtype=torch.float32)
job = make_job("dreambooth-lora", base, max_train_steps=1, validation_steps=1, num_class_images=1, resolution=64)
tail = " in the snow" * 40 + " beside a {_WORD}"
concept = dataclasses.replace(
    job.concepts[0], instance_prompt="a sks fox" + tail, class_prompt="a fox" + tail
)
job = dataclasses.replace(job, concepts=(concept,), validation_prompts=("a sks fox in the city" + tail,))
assert isinstance(run_job(job, base)[-1], Finished)
print("finished")
"""


def test_no_prompt_reaches_a_worker_s_output(tmp_path: Path) -> None:
    folder = tiny_stable_diffusion(tmp_path / "tiny")
    command = [sys.executable, "-c", _RUN, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert result.stdout == "finished\n"
    assert _WORD not in result.stderr
    assert "snow" not in result.stderr
