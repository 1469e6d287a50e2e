"""The service's own hyperparameters, for each method by what the base model is. Needs no torch.

Those of small models were measured on `emoji-sd`; those of others are what the guides of the field agree on, whose
published settings are the recipes. Every function gives all fields but those that follow from others; what its method
does not use has some value too.
"""

from __future__ import annotations

from typing import Any

from services.trainer.training.base_facts import BaseFacts

_COMMON: dict[str, Any] = {
    "lr_scheduler": "cosine",
    # The prior's target is the base's own prediction, so its errors are small: 3 keeps neighbours apart where 1
    # lets the subject's looks leak into them, at the same fidelity.
    "prior_loss_weight": 3.0,
    "seed": 0,
    "snr_gamma": 5.0,
    "max_grad_norm": 1.0,
    "adam_weight_decay": 0.01,
    "checkpointing_steps": 100,
    "validation_steps": 100,
    "optimizer": "adamw",
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "precision": "",
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "noise_offset": 0.0,
    "caption_dropout": 0.0,
    "random_flip": False,
    "random_crop": False,
    "aspect_ratio_buckets": False,
    "unmasked_weight": 0.1,
    "use_rslora": False,
    "use_dora": False,
    "lora_dropout": 0.0,
    "train_text_encoder": False,
    "initializer_word": "",
    "ema_decay": 0.0,
    "publish_weights": "best",
    "early_stopping": False,
    "repeats": 1,
}
_SMALL: dict[str, Any] = {
    **_COMMON,
    "max_train_steps": 300,
    "train_batch_size": 4,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 10,
    "rank": 16,
    "lora_layers": "all",
    "num_class_images": 16,
    "text_encoder_learning_rate": 1e-4,
    "num_vectors": 2,
    "embedding_learning_rate": 5e-3,
    "pivot_fraction": 0.4,
}
_LARGE: dict[str, Any] = {
    **_COMMON,
    "max_train_steps": 800,
    "train_batch_size": 4,
    "learning_rate": 1e-4,
    "lr_warmup_steps": 20,
    "rank": 16,
    "lora_layers": "attention",
    "num_class_images": 100,
    "text_encoder_learning_rate": 5e-6,
    "num_vectors": 2,
    "embedding_learning_rate": 3e-4,
    "pivot_fraction": 0.5,
}


def dreambooth(facts: BaseFacts) -> dict[str, Any]:
    """Of full fine-tuning: rates hundreds of times below those of low-rank matrices."""
    if facts.is_small:
        rates = {"learning_rate": 5e-5, "text_encoder_learning_rate": 5e-6}
        return {**_SMALL, **rates, "max_train_steps": 200}
    rate = {"stable-diffusion": 2e-6, "stable-diffusion-xl": 1e-6, "stable-cascade": 1e-5}[facts.family]
    rates = {"learning_rate": rate, "text_encoder_learning_rate": min(rate, 2e-6)}
    return {**_large(facts), **rates, "num_class_images": 200}


def dreambooth_lora(facts: BaseFacts) -> dict[str, Any]:
    """Of a subject bound to a word by low-rank matrices."""
    return dict(_SMALL) if facts.is_small else _large(facts)


def lora(facts: BaseFacts) -> dict[str, Any]:
    """Of a style or domain learnt from captions: no prior, more images, more steps.

    Attention alone learns a style as well as all layers do, and reaches prompts that name another style less
    (docs/quality.md): nothing else holds them back.
    """
    return {**_SMALL, "lora_layers": "attention"} if facts.is_small else {**_large(facts), "max_train_steps": 1500}


def textual_inversion(facts: BaseFacts) -> dict[str, Any]:
    """Of embeddings alone. The rate is diffusers' 5e-4 times the batch of 4, as its `scale_lr` makes it."""
    own = {"adam_weight_decay": 0.0}
    if facts.is_small:
        return {**_SMALL, **own}
    steps = 3000 if facts.family == "stable-diffusion" else 1000
    return {**_large(facts), **own, "embedding_learning_rate": 2e-3, "max_train_steps": steps}


def pivotal(facts: BaseFacts) -> dict[str, Any]:
    """Of embeddings first, then low-rank matrices."""
    if facts.is_small:
        return {**_SMALL, "max_train_steps": 400}
    rate = 5e-4 if facts.family == "stable-diffusion" else 3e-4
    return {**_large(facts), "max_train_steps": 1000, "rank": 32, "embedding_learning_rate": rate}


def _large(facts: BaseFacts) -> dict[str, Any]:
    """Stage C of Cascade overflows in half precision, as SimpleTuner warns."""
    return {**_LARGE, "precision": "fp32"} if facts.family == "stable-cascade" else dict(_LARGE)
