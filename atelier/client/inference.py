"""Client of the inference service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from atelier.client.connection import Connection
from atelier.pb.inference.v1 import inference_pb2 as pb
from atelier.pb.inference.v1.inference_pb2_grpc import InferenceServiceStub
from atelier.rpc.status import translated_errors


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationResult:
    """Everything that one Generate call brought."""

    images: list[pb.Image]
    """By index."""
    summary: pb.Summary


class InferenceClient:
    """Generates images with the caller's adapters."""

    def __init__(self, connection: Connection) -> None:
        self._stub = InferenceServiceStub(connection.channel)

    def stream(self, request: pb.GenerateRequest) -> Iterator[pb.GenerateResponse]:
        """Progress, then images, then a summary, as they come."""
        with translated_errors():
            yield from self._stub.Generate(request)

    def generate(
        self, request: pb.GenerateRequest, *, on_progress: Callable[[pb.Progress], None] | None = None
    ) -> GenerationResult:
        """The images and the summary, when all are there."""
        images: dict[int, pb.Image] = {}
        summary = pb.Summary()
        for response in self.stream(request):
            content = response.WhichOneof("content")
            if content == "image":
                images[response.image.index] = response.image
            elif content == "summary":
                summary = response.summary
            elif on_progress is not None:
                on_progress(response.progress)
        return GenerationResult(images=[images[index] for index in sorted(images)], summary=summary)

    def models(self) -> list[pb.Model]:
        """The warm base models, the default first."""
        with translated_errors():
            return list(self._stub.ListModels(pb.ListModelsRequest()).models)
