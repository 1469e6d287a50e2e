"""One inference service for all tests here, over the run's registry; a fresh tenant a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from atelier.client import InferenceClient
from atelier.diffusion.base_layers import describe_base
from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.pb.inference.v1.inference_pb2_grpc import InferenceServiceStub
from atelier.signing import public_key_path
from tests.harness.inference import EMOJI_SD, InferenceServer
from tests.harness.registry import RegistryServer

NUM_SLOTS = 4
MAX_BATCH_ROWS = 8
MAX_QUEUED_REQUESTS = 6


@pytest.fixture(scope="session")
def base() -> StableDiffusion:
    """The embedded base model in the tests' own process."""
    torch.set_num_threads(1)  # the service needs the other core
    return StableDiffusion.load(EMOJI_SD, device=torch.device("cpu"), dtype=torch.float32, name="emoji-sd")


@pytest.fixture(scope="session")
def inference_server(
    registry_server: RegistryServer,
    signing_key_file: Path,
    manifest_key_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[InferenceServer]:
    """The service's process, with room for three adapters and four images under guidance at once.

    The registry knows its base model, and signs what it requires to be signed.
    """
    registry_server.register(describe_base(EMOJI_SD, "emoji-sd"))
    options = {
        "num-slots": NUM_SLOTS,
        "max-rank": 16,
        "max-batch-rows": MAX_BATCH_ROWS,
        "max-queued-requests": MAX_QUEUED_REQUESTS,
        "max-size": 256,
        "trusted-key-file": public_key_path(manifest_key_file),
        "signature-policy": "require",
    }
    folder = tmp_path_factory.mktemp("inference")
    server = InferenceServer(folder, registry_server.address, signing_key_file, options)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def inference(inference_server: InferenceServer, tenant: str) -> Iterator[InferenceClient]:
    """The test's tenant at the service, through the SDK."""
    with inference_server.connect(tenant) as connection:
        yield InferenceClient(connection)


@pytest.fixture
def inference_stub(inference_server: InferenceServer, tenant: str) -> Iterator[InferenceServiceStub]:
    """The test's tenant at the service, for calls that are cancelled or have a deadline."""
    with inference_server.connect(tenant) as connection:
        yield InferenceServiceStub(connection.channel)
