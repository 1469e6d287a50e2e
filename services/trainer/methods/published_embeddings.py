"""Published settings of the methods that learn embeddings: textual inversion and pivotal tuning."""

from __future__ import annotations

from services.trainer.methods.published import DIFFUSERS, Recipe

_ADVANCED = {**DIFFUSERS, "lora_layers": "attention", "snr_gamma": 5.0, "num_vectors": 2, "max_train_steps": 1000}

EMBEDDING_RECIPES = (
    Recipe(
        name="diffusers-textual-inversion-sd15",
        source="diffusers examples/textual_inversion/README.md",
        method="textual-inversion",
        families=("stable-diffusion",),
        settings={
            **DIFFUSERS,
            "embedding_learning_rate": 2e-3,
            "gradient_accumulation_steps": 4,
            "num_vectors": 1,
            "max_train_steps": 3000,
        },
    ),
    Recipe(
        name="diffusers-textual-inversion-sdxl",
        source="diffusers examples/textual_inversion/README_sdxl.md",
        method="textual-inversion",
        families=("stable-diffusion-xl",),
        settings={
            **DIFFUSERS,
            "embedding_learning_rate": 2e-3,
            "gradient_accumulation_steps": 4,
            "num_vectors": 1,
            "max_train_steps": 500,
            "resolution": 768,
        },
    ),
    Recipe(
        name="rinongal-textual-inversion-sd15",
        source="rinongal/textual_inversion configs/stable-diffusion/v1-finetune.yaml",
        method="textual-inversion",
        families=("stable-diffusion",),
        settings={
            **DIFFUSERS,
            "embedding_learning_rate": 1e-2,
            "train_batch_size": 2,
            "num_vectors": 1,
            "max_train_steps": 6100,
        },
    ),
    Recipe(
        name="diffusers-pivotal-sdxl-adamw",
        source="Hugging Face blog, `sdxl_lora_advanced_script.md`; weight decay of diffusers' advanced script",
        method="pivotal",
        families=("stable-diffusion-xl",),
        settings={
            **_ADVANCED,
            "learning_rate": 1e-4,
            "embedding_learning_rate": 3e-4,
            "rank": 32,
            "train_batch_size": 4,
            "adam_weight_decay": 1e-4,
            "pivot_fraction": 0.5,
        },
    ),
    Recipe(
        name="diffusers-pivotal-sdxl-prodigy",
        source="diffusers examples/advanced_diffusion_training/README.md; beta2 and weight decay of the same blog post",
        method="pivotal",
        families=("stable-diffusion-xl",),
        settings={
            **_ADVANCED,
            "optimizer": "prodigy",
            "learning_rate": 1.0,
            "embedding_learning_rate": 1.0,
            "adam_beta2": 0.99,
            "adam_weight_decay": 0.01,
            "rank": 8,
            "train_batch_size": 3,
            "pivot_fraction": 0.5,
        },
    ),
    Recipe(
        name="cog-sdxl",
        source="replicate/cog-sdxl train.py; with a pivot where it lets the embeddings' rate fade",
        method="pivotal",
        families=("stable-diffusion-xl",),
        settings={
            **_ADVANCED,
            "learning_rate": 1e-4,
            "embedding_learning_rate": 3e-4,
            "rank": 32,
            "train_batch_size": 4,
            "lr_warmup_steps": 100,
            "snr_gamma": 0.0,
            "adam_weight_decay": 1e-4,
            "pivot_fraction": 0.5,
            "resolution": 768,
        },
    ),
    Recipe(
        name="cloneofsimo-pti-sd15",
        source="cloneofsimo/lora README.md, `lora_pti`; without its training of the text encoder",
        method="pivotal",
        families=("stable-diffusion",),
        settings={
            **DIFFUSERS,
            "lr_scheduler": "linear",
            "learning_rate": 4e-4,
            "embedding_learning_rate": 2e-3,
            "rank": 1,
            "lora_layers": "attention",
            "gradient_accumulation_steps": 4,
            "adam_weight_decay": 1e-3,
            "num_vectors": 2,
            "max_train_steps": 2000,
            "pivot_fraction": 0.5,
        },
    ),
)
