"""The RPCs of the inference service."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from grpc.aio import ServicerContext
from PIL import Image

from atelier.diffusion.base import Base
from atelier.diffusion.schedulers import scheduler_names
from atelier.diffusion.slots import PackedFactors
from atelier.errors import InvalidArgumentError, UnavailableError
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.inference.v1 import inference_pb2 as pb
from atelier.pb.inference.v1.inference_pb2_grpc import InferenceServiceServicer
from atelier.rpc.names import shown

