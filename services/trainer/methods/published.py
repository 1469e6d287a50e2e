"""Published settings, first of the methods that learn weights: full fine-tuning and low-rank matrices.

A recipe holds what bears on the result, as its guide's commands have it and not as a script's argument parser
defaults. What only spares memory (8-bit AdamW, gradient checkpointing, half precision) is the job's choice. Rates that
a guide scales by its batch (`scale_lr`) are given scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.trainer.training.base_facts import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Published settings, and where they come from."""

    name: str
    source: str
    method: str
    families: tuple[Family, ...]
    settings: Mapping[str, Any]


# What diffusers' example commands have in common, and their scripts do unless told otherwise.
DIFFUSERS: Mapping[str, Any] = {
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "snr_gamma": 0.0,
    "max_grad_norm": 1.0,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 1,
}
_DIFFUSERS_PRIOR = {"prior_loss_weight": 1.0, "num_class_images": 200, "max_train_steps": 800}
_DIFFUSERS_LORA = {"learning_rate": 1e-4, "rank": 4, "lora_layers": "attention"}


WEIGHT_RECIPES = (
    Recipe(
        name="dreambooth-paper",
        source="Ruiz et al. 2023, arXiv 2208.12242, section 4.1 and supplement (Stable Diffusion)",
        method="dreambooth",
        families=("stable-diffusion",),
        settings={
            **DIFFUSERS,
            "learning_rate": 5e-6,
            "adam_weight_decay": 0.01,
            "max_train_steps": 1000,
            "prior_loss_weight": 1.0,
            "num_class_images": 1000,
        },
    ),
    Recipe(
        name="diffusers-dreambooth-sd15",
        source="diffusers examples/dreambooth/README.md, first command; for jobs without a class prompt",
        method="dreambooth",
        families=("stable-diffusion",),
        settings={**DIFFUSERS, "learning_rate": 5e-6, "adam_weight_decay": 0.01, "max_train_steps": 400},
    ),
    Recipe(
        name="diffusers-dreambooth-prior-sd15",
        source="diffusers examples/dreambooth/README.md, training with prior-preservation loss",
        method="dreambooth",
        families=("stable-diffusion",),
        settings={**DIFFUSERS, **_DIFFUSERS_PRIOR, "learning_rate": 5e-6, "adam_weight_decay": 0.01},
    ),
    Recipe(
        name="diffusers-dreambooth-text-encoder-sd15",
        source="diffusers examples/dreambooth/README.md, fine-tune text encoder with the UNet",
        method="dreambooth",
        families=("stable-diffusion",),
        settings={
            **DIFFUSERS,
            **_DIFFUSERS_PRIOR,
            "learning_rate": 2e-6,
            "train_text_encoder": True,
            "text_encoder_learning_rate": 2e-6,
            "adam_weight_decay": 0.01,
        },
    ),
    Recipe(
        name="diffusers-dreambooth-lora-sd15",
        source="diffusers examples/dreambooth/README.md, training with LoRA",
        method="dreambooth-lora",
        families=("stable-diffusion",),
        settings={**DIFFUSERS, **_DIFFUSERS_LORA, "adam_weight_decay": 0.01, "max_train_steps": 500},
    ),
    Recipe(
        name="diffusers-dreambooth-lora-sdxl",
        source="diffusers examples/dreambooth/README_sdxl.md; text encoder rate and weight decay of its script",
        method="dreambooth-lora",
        families=("stable-diffusion-xl",),
        settings={
            **DIFFUSERS,
            **_DIFFUSERS_LORA,
            "text_encoder_learning_rate": 5e-6,
            "adam_weight_decay": 1e-4,
            "gradient_accumulation_steps": 4,
            "max_train_steps": 500,
        },
    ),
    Recipe(
        name="diffusers-lora-sd15",
        source="Hugging Face blog, `lora.md`: text-to-image on captioned images",
        method="lora",
        families=("stable-diffusion",),
        settings={
            **DIFFUSERS,
            **_DIFFUSERS_LORA,
            "lr_scheduler": "cosine",
            "adam_weight_decay": 0.01,
            "gradient_accumulation_steps": 4,
            "random_flip": True,
            "max_train_steps": 15_000,
        },
    ),
    Recipe(
        name="kohya-lora-sdxl",
        source="kohya-ss/sd-scripts docs/sdxl_train_network.md, UNet only, as train_SDXL-en.md recommends",
        method="lora",
        families=("stable-diffusion-xl",),
        settings={
            "learning_rate": 1e-4,
            "text_encoder_learning_rate": 1e-5,
            "rank": 32,
            "lora_alpha": 16.0,
            "lora_layers": "linear",
            "lr_scheduler": "constant",
            "lr_warmup_steps": 0,
            "snr_gamma": 0.0,
            "aspect_ratio_buckets": True,
        },
    ),
    Recipe(
        name="onetrainer-lora",
        source="OneTrainer training_presets, `sd 1.5 LoRA` and `sdxl 1.0 LoRA`",
        method="lora",
        families=("stable-diffusion", "stable-diffusion-xl"),
        settings={
            "learning_rate": 3e-4,
            "rank": 16,
            "lora_alpha": 1.0,
            "lora_layers": "linear",
            "train_batch_size": 4,
            "lr_scheduler": "constant",
            "lr_warmup_steps": 200,
            "snr_gamma": 0.0,
            "adam_weight_decay": 0.01,
            "aspect_ratio_buckets": True,
        },
    ),
    Recipe(
        name="simpletuner-cascade-lora",
        source="SimpleTuner documentation/quickstart/STABLE_CASCADE_C.md",
        method="lora",
        families=("stable-cascade",),
        settings={
            "learning_rate": 1e-4,
            "rank": 16,
            "lora_layers": "attention",
            "lr_scheduler": "cosine",
            "train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "precision": "fp32",
            "random_crop": True,
            "aspect_ratio_buckets": True,
        },
    ),
)
