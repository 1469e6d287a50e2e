"""The Python SDK: what other programs import to speak to Atelier.

    from atelier.client import Connection, RegistryClient, TrainerClient, InferenceClient

Methods raise `atelier.errors`, never grpc.RpcError. They block; for asyncio use the stubs in `atelier.pb`.
"""

from atelier.client.connection import Connection
from atelier.client.inference import GenerationResult, InferenceClient
from atelier.client.registry import RegistryClient
from atelier.client.trainer import TrainerClient

__all__ = ["Connection", "GenerationResult", "InferenceClient", "RegistryClient", "TrainerClient"]
