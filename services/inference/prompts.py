"""Text embeddings of prompts, remembered: negative prompts, and prompts under other seeds, come again and again."""

from __future__ import annotations

import threading

import torch

from atelier.diffusion.families.stable_diffusion import StableDiffusion
from services.inference.lru import LruCache

MAX_PROMPTS = 256


class PromptEncoder:
    """Encodes with one base model's text encoder, one prompt at a time, from any thread.

    A prompt is always encoded alone, so that its embedding depends on nothing else.
    """

    def __init__(self, base: StableDiffusion) -> None:
        self._base = base
        self._cache: LruCache[torch.Tensor] = LruCache(MAX_PROMPTS, lambda _: 1)
        self._lock = threading.Lock()

    def encode(self, prompt: str) -> torch.Tensor:
        """The embedding [1, tokens, width]."""
        embedding = self._cache.get(prompt)
        if embedding is None:
            # Tokenizers with padding and truncation cannot be used by two threads at once.
            with self._lock:
                embedding = self._base.encode_prompts([prompt]).text
            self._cache.put(prompt, embedding)
        return embedding
