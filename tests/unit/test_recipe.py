"""The recipe that is published with an adapter."""

from __future__ import annotations

import torch

import atelier
from atelier.diffusion.base import Base
from services.trainer.methods import resolve_config
from services.trainer.methods.base import Concept, TrainingJob
from services.trainer.training.outputs import recipe


def test_a_recipe_names_the_code_that_followed_it(base: Base) -> None:
    config = resolve_config("dreambooth-lora", {}, base_path=base.path)
    job = TrainingJob(
        method="dreambooth-lora",
        config=config,
        concepts=(Concept(images=(), instance_prompt="a sks fox"),),
        dataset_digest="",
    )
    versions = recipe(job, base)["versions"]
    assert (versions["atelier"], versions["torch"]) == (atelier.__version__, torch.__version__)
    assert {"diffusers", "transformers", "safetensors"} < versions.keys()
