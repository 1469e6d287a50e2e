"""Every RPC of every service: what is registered, a well-formed request for each, and a way to call any of them.

Tests that walk all RPCs take their requests from here, so that an RPC which is new has none and fails them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from atelier.client import Connection
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.inference.v1 import inference_pb2
from atelier.pb.registry.v1 import base_models_pb2, maintenance_pb2, registry_pb2, tokens_pb2
from atelier.pb.trainer.v1 import trainer_pb2
from atelier.rpc.scopes import READER
from atelier.rpc.status import translated_errors
from tests.harness.files import adapter_files, fake_base, version

REGISTRY = (
    registry_pb2.DESCRIPTOR.services_by_name["RegistryService"],
    base_models_pb2.DESCRIPTOR.services_by_name["BaseModelService"],
    maintenance_pb2.DESCRIPTOR.services_by_name["MaintenanceService"],
    tokens_pb2.DESCRIPTOR.services_by_name["TokenService"],
)
TRAINER = (trainer_pb2.DESCRIPTOR.services_by_name["TrainerService"],)
INFERENCE = (inference_pb2.DESCRIPTOR.services_by_name["InferenceService"],)
OF_NO_TENANT = frozenset(
    {
        *("RegisterBaseModel", "GetBaseModel", "ListBaseModels", "ListModels"),
        *("CollectGarbage", "Scrub", "GetQuota", "UpdateQuota", "VerifyToken"),
        "Generate",  # names adapters by their ids, in the caller's tenant
    }
)
"""RPCs whose requests name nothing of a tenant: they are about the installation, or about the caller's own."""
MAY_BE_EMPTY = frozenset({"ListBaseModels", "ListModels", "CollectGarbage", "Scrub", "VerifyToken"})
"""RPCs whose requests have no field that must be there; to VerifyToken every secret that is none is the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ids:
    """What the requests are about: the last parts of its names."""

    adapter: str = "fox"
    version: str = "1"
    alias: str = "prod"
    upload: str = "0" * 32
    token: str = "ci"
    dataset: str = "small"
    job: str = "first"
    batch: str = "all"


USUAL = Ids()
MISSING = Ids(
    adapter="nothing",
    version="99",
    alias="nothing",
    upload="f" * 32,
    token="nothing",
    dataset="nothing",
    job="nothing",
    batch="nothing",
)
"""Of nothing that any test creates."""


def methods(services: Iterable[ServiceDescriptor]) -> list[MethodDescriptor]:
    """All RPCs of the services."""
    return [method for service in services for method in service.methods]


def fields_of(method: MethodDescriptor) -> set[str]:
    """The fields of a method's request; of a stream, of the spec that begins it."""
    message = method.input_type
    if method.client_streaming:
        message = message.fields_by_name["spec"].message_type or message
    return set(message.fields_by_name)


def registered_services(address: str) -> set[str]:
    """Full names of the services that a server's reflection lists."""
    with grpc.insecure_channel(address) as channel:
        return set(ProtoReflectionDescriptorDatabase(channel).get_services())


def call(
    connection: Connection | grpc.Channel,
    method: MethodDescriptor,
    request: Message,
    metadata: Iterable[tuple[str, str]] = (),
) -> list[Any]:
    """Calls a method to its end and returns its answers; raises `atelier.errors`."""
    channel = connection.channel if isinstance(connection, Connection) else connection
    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
    }
    prepare: Callable[..., Any] = kinds[method.client_streaming, method.server_streaming]
    rpc = prepare(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    with translated_errors():
        answer = rpc(iter([request]) if method.client_streaming else request, metadata=tuple(metadata))
        return list(answer) if method.server_streaming else [answer]


def empty_request(method: MethodDescriptor) -> Message:
    """A request that says nothing."""
    return GetMessageClass(method.input_type)()


def request_for(method: MethodDescriptor, tenant: str, ids: Ids = USUAL) -> Message:
    """A well-formed request about a tenant's resources."""
    found = [each for each in _requests(f"tenants/{tenant}", ids) if each.DESCRIPTOR is method.input_type]
    assert len(found) == 1, f"{method.full_name} has {len(found)} requests in tests/harness/calls.py; give it one"
    return found[0]


def _requests(parent: str, ids: Ids) -> list[Message]:
    return [
        *_adapter_requests(parent, ids),
        *_upload_requests(parent, ids),
        *_other_requests(parent, ids),
        *_trainer_requests(parent, ids),
    ]


def _adapter_requests(parent: str, ids: Ids) -> list[Message]:
    pb = registry_pb2
    adapter = f"{parent}/adapters/{ids.adapter}"
    number, alias = f"{adapter}/versions/{ids.version}", f"{adapter}/aliases/{ids.alias}"
    return [
        pb.GetTenantRequest(name=parent),
        pb.CreateAdapterRequest(parent=parent, adapter_id=ids.adapter),
        pb.GetAdapterRequest(name=adapter),
        pb.ListAdaptersRequest(parent=parent),
        pb.UpdateAdapterRequest(adapter=pb.Adapter(name=adapter), update_mask={"paths": ["description"]}),
        pb.DeleteAdapterRequest(name=adapter, force=True),
        pb.UndeleteAdapterRequest(name=adapter),
        pb.GetVersionRequest(name=number),
        pb.ListVersionsRequest(parent=adapter),
        pb.ResolveVersionRequest(adapter=adapter),
        pb.DeleteVersionRequest(name=number),
        pb.UndeleteVersionRequest(name=number),
        pb.PurgeDeletedRequest(parent=adapter),
        pb.ApplyRetentionRequest(parent=adapter, policy=pb.RetentionPolicy(keep_last=1)),
        pb.DownloadFileRequest(version=number, path="README.md"),
        pb.SignDownloadRequest(version=number, path="README.md"),
        pb.ExportVersionRequest(version=number, format=pb.ExportVersionRequest.FORMAT_KOHYA),
        pb.UpdateAliasRequest(alias=pb.Alias(name=alias, version=number), allow_missing=True),
        pb.GetAliasRequest(name=alias),
        pb.ListAliasesRequest(parent=adapter),
        pb.DeleteAliasRequest(name=alias),
        pb.ListAliasMovesRequest(parent=adapter),
    ]


def _upload_requests(parent: str, ids: Ids) -> list[Message]:
    pb = registry_pb2
    adapter, upload = f"{parent}/adapters/{ids.adapter}", f"{parent}/uploads/{ids.upload}"
    files = [_declared(path, content) for path, content in adapter_files().items()]
    weights = next(file for file in files if file.path.endswith(".safetensors"))
    return [
        pb.PublishVersionRequest(spec=pb.PublishVersionSpec(parent=adapter, version=version(files=files))),
        pb.ImportVersionRequest(spec=pb.ImportVersionSpec(parent=adapter, version=version(), file=weights)),
        pb.CreateUploadRequest(parent=adapter, version=version(files=files)),
        pb.WriteUploadRequest(spec=pb.WriteUploadSpec(upload=upload, path=weights.path)),
        pb.GetUploadRequest(name=upload),
        pb.CompleteUploadRequest(name=upload),
        pb.DeleteUploadRequest(name=upload),
    ]


def _other_requests(parent: str, ids: Ids) -> list[Message]:
    pb = tokens_pb2
    token = f"{parent}/tokens/{ids.token}"
    return [
        base_models_pb2.RegisterBaseModelRequest(base_model=fake_base()),
        base_models_pb2.GetBaseModelRequest(name=f"baseModels/{'ab' * 32}"),
        base_models_pb2.ListBaseModelsRequest(),
        maintenance_pb2.CollectGarbageRequest(validate_only=True),
        maintenance_pb2.ScrubRequest(limit_bytes=1),
        maintenance_pb2.GetQuotaRequest(name="quotas/acme"),
        maintenance_pb2.UpdateQuotaRequest(quota=maintenance_pb2.Quota(name="quotas/acme"), validate_only=True),
        pb.CreateTokenRequest(parent=parent, token_id=ids.token, token=pb.Token(scopes=[READER])),
        pb.ListTokensRequest(parent=parent),
        pb.RotateTokenRequest(name=token),
        pb.RevokeTokenRequest(name=token),
        pb.VerifyTokenRequest(secret="atl_" + "x" * 43),
        inference_pb2.GenerateRequest(prompt="a fox", num_inference_steps=1),
        inference_pb2.ListModelsRequest(),
    ]


def _trainer_requests(parent: str, ids: Ids) -> list[Message]:
    pb = trainer_pb2
    dataset, name = f"{parent}/datasets/{ids.dataset}", f"{parent}/jobs/{ids.job}"
    job = pb.Job(method="dreambooth-lora", dataset=dataset, adapter=ids.adapter, instance_prompt="a photo of a sks fox")
    return [
        pb.CreateDatasetRequest(spec=pb.CreateDatasetSpec(parent=parent, dataset_id=ids.dataset)),
        pb.GetDatasetRequest(name=dataset),
        pb.ListDatasetsRequest(parent=parent),
        pb.CreateJobRequest(parent=parent, job_id=ids.job, job=job),
        pb.GetJobRequest(name=name),
        pb.ListJobsRequest(parent=parent),
        pb.WatchJobRequest(name=name),
        pb.CancelJobRequest(name=name),
        pb.CreateBatchRequest(parent=parent, batch_id=ids.batch, jobs=[job]),
        pb.GetBatchRequest(name=f"{parent}/batches/{ids.batch}"),
        pb.ListBatchesRequest(parent=parent),
    ]


def _declared(path: str, content: bytes) -> File:
    return File(path=path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
