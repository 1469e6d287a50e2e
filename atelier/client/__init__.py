"""The Python SDK: what other programs import to speak to Atelier.

    from atelier.client import Connection, RegistryClient, TrainerClient, InferenceClient

Methods raise `atelier.errors`, never grpc.RpcError. They block; for asyncio use the stubs in `atelier.pb`.
"""

from atelier.client.base_models import BaseModelClient
from atelier.client.connection import Connection
from atelier.client.inference import GenerationResult, InferenceClient
from atelier.client.maintenance import MaintenanceClient
from atelier.client.registry import RegistryClient
from atelier.client.tokens import TokenClient
from atelier.client.trainer import TrainerClient
from atelier.rpc.channel import ClientTls

__all__ = [
    "BaseModelClient",
    "ClientTls",
    "Connection",
    "GenerationResult",
    "InferenceClient",
    "MaintenanceClient",
    "RegistryClient",
    "TokenClient",
    "TrainerClient",
]
