"""The inference service as a process, and adapters for it that are made in a moment."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from atelier.client import RegistryClient
from atelier.diffusion.adapter_file import FILE_NAME, write_adapter_file
from atelier.diffusion.base import Base
from atelier.diffusion.lowrank import LowRank, weight_shapes
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.inference.v1 import inference_pb2 as pb
from atelier.pb.registry.v1 import registry_pb2
from atelier.rpc.identity import TokenAuthority
from tests.harness.files import version
from tests.harness.service import ServiceProcess

EMOJI_SD = Path(__file__).parents[2] / "models" / "emoji-sd"
STEPS = 5
MAX_DIFFERENCE = 2
"""Of 255, for each channel of each pixel: what rounding in batches of other sizes may amount to."""


class InferenceServer(ServiceProcess):
    """An inference service whose adapter cache and log are in `folder`.

    Args:
        folder: the same folder again finds the cached adapters again.
        registry_address: `host:port`.
        key_file: signs the tokens.
        options: more command-line options.
    """

    def __init__(
        self, folder: Path, registry_address: str, key_file: Path, options: Mapping[str, object] | None = None
    ) -> None:
        self.cache_folder = folder / "cache"
        every = {
            "registry": registry_address,
            "base": f"emoji-sd={EMOJI_SD}",
            "cache-dir": self.cache_folder,
            "signing-key-file": key_file,
            "torch-threads": 2,
            **(options or {}),
        }
        # Threads that spin while they wait slow each other down many times over when the cores are shared.
        env = {"OMP_WAIT_POLICY": "passive"}
        super().__init__("services.inference", folder, TokenAuthority.from_file(key_file), every, env)

    def loads(self, source: str) -> float:
        """How many adapters were found in `source` so far."""
        return self.metrics().get(f'atelier_inference_adapter_loads_total{{source="{source}"}}', 0.0)


def random_factors(
    base: Base, *, seed: int, rank: int = 4, layers: str = "", strength: float = 0.04
) -> dict[str, LowRank]:
    """An adapter with random factors for the layers whose name holds `layers`, strong enough to be seen."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, (out, *inner) in weight_shapes(base.denoiser).items():
        if layers in name:
            a = torch.randn(rank, *inner, generator=generator) / inner[0] ** 0.5
            factors[name] = LowRank(a=a, b=torch.randn(out, rank, generator=generator) * strength)
    return factors


def publish(
    registry: RegistryClient, base: Base, adapter: str, factors: Mapping[str, LowRank], **fields: object
) -> registry_pb2.Version:
    """Publishes an adapter's next version, for this base model unless `fields` say otherwise."""
    return publish_file(registry, base, adapter, write_adapter_file({"unet": factors}), **fields)


def publish_file(
    registry: RegistryClient, base: Base, adapter: str, contents: bytes, **fields: object
) -> registry_pb2.Version:
    """The same with a weights file of any kind."""
    if adapter not in (known.name.rpartition("/")[2] for known in registry.adapters()):
        registry.create_adapter(adapter)
    own_base = BaseModel(model=base.name, digest=base.digest)
    return registry.publish(adapter, version(**{"base_model": own_base, **fields}), {FILE_NAME: contents})


def request(*adapters: str | tuple[str, float], **fields: object) -> pb.GenerateRequest:
    """A small request with these adapters, or pairs of adapter and weight; `fields` replace what it says."""
    uses = [
        pb.AdapterUse(adapter=use) if isinstance(use, str) else pb.AdapterUse(adapter=use[0], weight=use[1])
        for use in adapters
    ]
    usual = {"prompt": "a cat face on a red background", "seed": 7, "num_inference_steps": STEPS, "adapters": uses}
    return pb.GenerateRequest(**{**usual, **fields})  # type: ignore[arg-type]


def pixels(png: bytes) -> np.ndarray:
    """A PNG file's channels [height, width, 3] as signed numbers."""
    return np.asarray(Image.open(io.BytesIO(png))).astype(np.int16)


def difference(one: bytes, other: bytes) -> int:
    """The largest difference of two PNG files in any channel, of 255."""
    return int(np.abs(pixels(one) - pixels(other)).max())
