from __future__ import annotations

import torch

from services.trainer.training.cache import TensorCache


def tensor(value: int) -> torch.Tensor:
    """Of 40 bytes."""
    return torch.full((10,), float(value))


def held(cache: TensorCache, keys: str) -> list[float | None]:
    """What the cache has under each key."""
    found = [cache.get(key) for key in keys]
    return [None if tensor is None else tensor[0].item() for tensor in found]


def test_the_least_recently_used_goes_first() -> None:
    cache = TensorCache(max_bytes=100)
    cache.put("a", tensor(0))
    cache.put("b", tensor(1))
    cache.get("a")
    cache.put("c", tensor(2))
    assert held(cache, "abc") == [0, None, 2]


def test_what_is_larger_than_the_cache_is_not_kept_and_drives_nothing_out() -> None:
    cache = TensorCache(max_bytes=100)
    cache.put("a", tensor(0))
    cache.put("b", torch.zeros(26))
    assert held(cache, "ab") == [0, None]


def test_a_key_counts_once() -> None:
    cache = TensorCache(max_bytes=100)
    for _ in range(5):
        cache.put("a", tensor(0))
    cache.put("b", tensor(1))
    assert held(cache, "ab") == [0, 1]
