"""Plain diffusers pipelines, whose families differ in how learned words are loaded and an image is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from atelier.diffusion.base import Base, TextTower
from atelier.diffusion.families.stable_cascade import StableCascade, decoder_seed
from atelier.diffusion.sampler import SamplingConfig
from atelier.diffusion.words import token_names


def load_plain_words(base: Base, pipeline: Any, tower: TextTower, table: torch.Tensor) -> None:
    """Loads the vectors [vectors, width] of one tower's learned words into a pipeline."""
    names, part = token_names(len(table)), base.part_of(tower.component)
    tokenizer = getattr(pipeline, part.replace("text_encoder", "tokenizer"))
    text_encoder = getattr(pipeline, part)
    if hasattr(pipeline, "load_textual_inversion"):
        pipeline.load_textual_inversion(list(table), token=names, text_encoder=text_encoder, tokenizer=tokenizer)
        return
    tokenizer.add_tokens(names)
    text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    vectors = text_encoder.get_input_embeddings().weight
    vectors.data[tokenizer.convert_tokens_to_ids(names)] = table.to(vectors)


@torch.no_grad()
def draw_plain(base: Base, pipeline: Any, prompt: str, seed: int, config: SamplingConfig) -> torch.Tensor:
    """The pipeline's image, uint8 [height, width, 3], that `sampler.sample` draws with the same settings."""
    options = {
        "prompt": prompt,
        "negative_prompt": config.negative_prompt or None,
        "height": config.size,
        "width": config.size,
        "num_inference_steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "generator": [torch.Generator("cpu").manual_seed(seed)],
    }
    if not isinstance(base, StableCascade):
        return torch.from_numpy(np.array(pipeline(**options).images[0]))
    prior = pipeline.prior_pipe(**options)
    image = pipeline.decoder_pipe(
        image_embeddings=prior.image_embeddings,
        prompt_embeds=prior.prompt_embeds,
        prompt_embeds_pooled=prior.prompt_embeds_pooled,
        negative_prompt_embeds=prior.negative_prompt_embeds,
        negative_prompt_embeds_pooled=prior.negative_prompt_embeds_pooled,
        num_inference_steps=12,
        guidance_scale=0.0,
        generator=[torch.Generator("cpu").manual_seed(decoder_seed(seed))],
        output_type="pil",
    ).images[0]
    return torch.from_numpy(np.array(image))
