"""The hyperparameters that each method uses, by name."""

from __future__ import annotations

_EVERY_METHOD = {
    "max_train_steps",
    "train_batch_size",
    "lr_scheduler",
    "lr_warmup_steps",
    "resolution",
    "seed",
    "snr_gamma",
    "max_grad_norm",
    "checkpointing_steps",
    "validation_steps",
    "optimizer",
    "adam_beta1",
    "adam_beta2",
    "precision",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "noise_offset",
    "caption_dropout",
    "random_flip",
    "random_crop",
    "aspect_ratio_buckets",
    "unmasked_weight",
    "publish_weights",
    "early_stopping",
    "repeats",
}
_WEIGHTS = {"learning_rate", "adam_weight_decay"}
_LOW_RANK = {"rank", "lora_alpha", "lora_layers", "use_rslora", "use_dora", "lora_dropout"}
_TEXT_ENCODER = {"train_text_encoder", "text_encoder_learning_rate"}
_PRIOR = {"prior_loss_weight", "num_class_images"}
_EMBEDDINGS = {"num_vectors", "initializer_word", "embedding_learning_rate"}

DREAMBOOTH = frozenset(_EVERY_METHOD | _WEIGHTS | _TEXT_ENCODER | _PRIOR | {"ema_decay"})
DREAMBOOTH_LORA = frozenset(_EVERY_METHOD | _WEIGHTS | _LOW_RANK | _TEXT_ENCODER | _PRIOR)
LORA = frozenset(_EVERY_METHOD | _WEIGHTS | _LOW_RANK | _TEXT_ENCODER)
TEXTUAL_INVERSION = frozenset(_EVERY_METHOD | _EMBEDDINGS)
PIVOTAL = frozenset(_EVERY_METHOD | _WEIGHTS | _LOW_RANK | _PRIOR | _EMBEDDINGS | {"pivot_fraction"})
