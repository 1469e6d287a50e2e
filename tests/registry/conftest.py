"""The embedded base model, in the tests' own process and known to the registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.registry import RegistryServer


@pytest.fixture(scope="session")
def base(registry_server: RegistryServer):  # type: ignore[no-untyped-def]  # torch is imported only where it is needed
    """The base model emoji-sd."""
    import torch

    from atelier.diffusion.base_layers import describe_base
    from atelier.diffusion.families.stable_diffusion import StableDiffusion
    from tests.harness.inference import EMOJI_SD

    torch.set_num_threads(1)
    registry_server.register(describe_base(EMOJI_SD, "emoji-sd"))
    return StableDiffusion.load(EMOJI_SD, device=torch.device("cpu"), dtype=torch.float32, name="emoji-sd")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """Plain diffusers."""
    from tests.registry.formats import PlainDiffusers

    return PlainDiffusers(Path(tmp_path_factory.mktemp("plain")))
