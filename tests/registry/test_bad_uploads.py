"""What must not be published: the field is named, and nothing is left behind."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator

import pytest

from atelier.client import RegistryClient
from atelier.errors import InvalidArgumentError, PermissionDeniedError
from atelier.pb.common.v1.common_pb2 import BaseModel, File
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from atelier.storage.blobs import BlobStore
from services.registry.storing import BLOBS_PREFIX
from tests.harness.files import BASE_DIGEST, WEIGHTS, adapter_files, png, safetensors, safetensors_of, version, zipped
from tests.harness.registry import RegistryServer
from tests.registry.uploads import OWN_FOX, declared, upload

PICKLE = pickle.dumps({"weights": [1.0, 2.0]})
ONE_TENSOR = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.fixture(autouse=True)
def nothing_is_left(registry: RegistryClient, registry_blobs: BlobStore) -> Iterator[None]:
    """After every refusal the adapter and the bucket are as they were, and the next upload works."""
    created = registry.create_adapter("fox")
    objects = set(registry_blobs.keys(BLOBS_PREFIX))
    yield
    assert set(registry_blobs.keys(BLOBS_PREFIX)) == objects
    assert registry.adapter("fox") == created
    assert list(registry.versions("fox")) == []
    assert registry.publish("fox", version(), adapter_files()).name.endswith("/versions/1")


def refusal(stub: RegistryServiceStub, messages: Iterator[pb.PublishVersionRequest]) -> InvalidArgumentError:
    """How the registry refuses these messages."""
    with pytest.raises(InvalidArgumentError) as caught, translated_errors():
        stub.PublishVersion(messages)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"base_model": BaseModel(digest=BASE_DIGEST)}, "spec.version.base_model.model"),
        ({"base_model": BaseModel(model="emoji-sd")}, "spec.version.base_model.digest"),
        ({"base_model": BaseModel(model="emoji-sd", digest="sha256:AB")}, "spec.version.base_model.digest"),
        ({"base_model": BaseModel(model="emoji-sd", digest=BASE_DIGEST + "\n")}, "spec.version.base_model.digest"),
        ({"method": ""}, "spec.version.method"),
        ({"method": "x" * 64}, "spec.version.method"),
        ({"instance_prompt": "x" * 100_000}, "spec.version.instance_prompt"),
        ({"metrics": {"clip_i": float("nan")}}, "spec.version.metrics['clip_i']"),
        ({"metrics": {"clip_i": float("inf")}}, "spec.version.metrics['clip_i']"),
        ({"metrics": {"": 1.0}}, "spec.version.metrics"),
        ({"metrics": {f"m{i}": 1.0 for i in range(101)}}, "spec.version.metrics"),
        ({"source_job": "jobs/1"}, "spec.version.source_job"),
        ({"trigger_words": ["sks", ""]}, "spec.version.trigger_words[1]"),
        ({"trigger_words": [" sks"]}, "spec.version.trigger_words[0]"),
        ({"trigger_words": ["x" * 101]}, "spec.version.trigger_words[0]"),
        ({"trigger_words": ["sks", "sks"]}, "spec.version.trigger_words[1]"),
        ({"trigger_words": [f"w{i}" for i in range(65)]}, "spec.version.trigger_words"),
    ],
)
def test_wrong_field_of_the_version_is_named(
    registry_stub: RegistryServiceStub, fields: dict[str, object], field: str
) -> None:
    wrong = version(**fields, files=declared(adapter_files()))
    assert refusal(registry_stub, upload(wrong, adapter_files().values())).violations[0].field == field
    assert refusal(registry_stub, upload(wrong, validate_only=True)).violations[0].field == field


def test_job_of_another_tenant_is_no_source(registry: RegistryClient) -> None:
    with pytest.raises(PermissionDeniedError):
        registry.publish("fox", version(source_job="tenants/other/jobs/j1"), adapter_files())


@pytest.mark.parametrize("subject", ["test", "j1", "jobs/j2", "jobs/j1/x", "oidc:jobs/j1", "trainer"])
def test_job_is_named_by_nobody_else(registry_server: RegistryServer, tenant: str, subject: str) -> None:
    named = version(source_job=f"tenants/{tenant}/jobs/j1")
    files = declared(adapter_files())
    with registry_server.connect(tenant, subject=subject) as connection:
        stub, client = RegistryServiceStub(connection.channel), RegistryClient(connection)
        with pytest.raises(PermissionDeniedError) as caught:
            client.publish("fox", named, adapter_files())
        assert caught.value.reason == "SOURCE_JOB_REFUSED"
        spec = pb.ImportVersionSpec(parent=OWN_FOX, version=named, file=files[0])
        with pytest.raises(PermissionDeniedError), translated_errors():
            stub.ImportVersion(iter([pb.ImportVersionRequest(spec=spec)]))
        named.files.extend(files)
        with pytest.raises(PermissionDeniedError), translated_errors():
            stub.CreateUpload(pb.CreateUploadRequest(parent=OWN_FOX, version=named))


@pytest.mark.parametrize(
    "path",
    [
        *("../x.json", "/x.json", "a/../x.json", "a//x.json", "a/./x.json", "./x.json", "a\\x.json", "a%2e/x.json"),
        *("x\0.json", "é.json", "a b.json", ".hidden.json", "x.json/", "x.json\n", "", "x#y.json", "x" * 200 + ".json"),
    ],
)
def test_paths_that_lead_elsewhere_are_refused(registry: RegistryClient, path: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        registry.publish("fox", version(), {**adapter_files(), path: b"{}"})
    assert caught.value.violations[0].field.endswith("].path")


def test_files_below_another_file_are_refused(registry: RegistryClient) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        registry.publish("fox", version(), {**adapter_files(), "README.md/0.png": png()})
    assert caught.value.violations[0].field.endswith("].path")


@pytest.mark.parametrize("name", ["weights.bin", "model.pt", "x.PTH", "x.ckpt", "optimizer.pkl", "x.npz", "x.zip"])
def test_files_that_could_hold_pickles_are_refused_by_name(registry: RegistryClient, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="safetensors only") as caught:
        registry.publish("fox", version(), {**adapter_files(), name: PICKLE})
    assert caught.value.reason == "PICKLE_REFUSED"


@pytest.mark.parametrize("name", ["run.py", "weights", "x.JSON", "model.safetensors.gz", "photo.jpg"])
def test_unknown_kinds_of_files_are_refused(registry: RegistryClient, name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        registry.publish("fox", version(), {**adapter_files(), name: b"x"})
    assert caught.value.reason == "FILE_KIND_REFUSED"


def test_version_without_weights_is_refused(registry: RegistryClient) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        registry.publish("fox", version(), {"README.md": b"nothing else"})
    assert (caught.value.reason, caught.value.violations[0].field) == ("WEIGHTS_MISSING", "spec.version.files")


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"{", b""),
        (b"[]", b""),
        (b"{}", b""),
        (b"[" * 100_000, b""),
        (b'{"w": 1}', b""),
        (ONE_TENSOR, b"\0" * 7),
        (ONE_TENSOR, b"\0" * 9),
        ({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"\0" * 8),
        ({"w": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}}, b"\0" * 8),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, b"\0" * 16),
        ({"w": {"dtype": "PICKLE", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
        (b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},' + json.dumps(ONE_TENSOR).encode()[1:], b"\0" * 8),
    ],
)
def test_corrupt_safetensors_header_is_refused(registry: RegistryClient, header: object, data: bytes) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        registry.publish("fox", version(), {WEIGHTS: safetensors_of(header, data)})  # type: ignore[arg-type]
    assert caught.value.violations[0].field == "spec.version.files[0]"


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (WEIGHTS, PICKLE),
        (WEIGHTS, pickle.dumps({"weights": "x" * 100}, protocol=0)),
        (WEIGHTS, zipped()),
        (WEIGHTS, png()),
        (WEIGHTS, b"x"),
        (WEIGHTS, safetensors({"w": (100,)})[:-50]),
        ("samples/0.png", b"only text"),
        ("samples/0.png", PICKLE),
        ("samples/0.png", png()[:-5]),
        ("samples/0.png", png() + zipped()),
        ("samples/0.png", b"\x89PNG\r\n\x1a\n"),
        ("samples/0.png", png().replace(b"IDAT", b"IDAX")),
        ("recipe.json", PICKLE),
        ("recipe.json", b"{'steps': 100}"),
        ("recipe.json", b'{"steps": NaN}'),
        ("recipe.json", b"[" * 100_000),
        ("README.md", b"\xff\xfe\x00"),
        ("README.md", zipped()),
        ("notes.txt", b"a\0b"),
        ("recipe.json", b'{"_name_or_path": "/home/alice/sd"}'),
    ],
)
def test_content_decides_and_not_the_name(registry: RegistryClient, path: str, content: bytes) -> None:
    files = {**adapter_files(), path: content}
    with pytest.raises(InvalidArgumentError) as caught:
        registry.publish("fox", version(), files)
    assert caught.value.violations[0].field == f"spec.version.files[{sorted(files).index(path)}]"


def test_headers_that_would_fill_the_memory_are_refused(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    many = safetensors({f"w{index}": (1,) for index in range(20_000)})
    with pytest.raises(InvalidArgumentError) as caught:
        registry.publish("fox", version(), {f"unet/{index}.safetensors": many for index in range(3)} | adapter_files())
    assert caught.value.reason == "TOO_MANY_TENSORS"
    described = ONE_TENSOR | {"__metadata__": {"format": "pt" * 40_000}}
    with pytest.raises(InvalidArgumentError) as caught:
        registry.publish("fox", version(), {WEIGHTS: safetensors_of(described, bytes(8))})
    assert caught.value.reason == "METADATA_REFUSED"
    assert "80006 characters" in caught.value.message
    shards = declared(adapter_files() | {f"unet/{index}.safetensors": b"x" for index in range(100)})
    assert refusal(registry_stub, upload(version(files=shards))).violations[0].field == "spec.version.files"


def test_wrong_checksum_is_refused(registry_stub: RegistryServiceStub) -> None:
    files = adapter_files()
    wrong = declared(files)
    wrong[1].sha256 = "0" * 64
    error = refusal(registry_stub, upload(version(files=wrong), files.values()))
    assert (error.reason, error.violations[0].field) == ("CHECKSUM_MISMATCH", "spec.version.files[1].sha256")


def test_more_bytes_than_declared_are_refused(registry_stub: RegistryServiceStub) -> None:
    files = adapter_files()
    error = refusal(registry_stub, upload(version(files=declared(files)), [*files.values(), b"x"]))
    assert error.reason == "UPLOAD_TOO_LONG"


@pytest.mark.parametrize(
    "declare",
    [
        lambda files: [],
        lambda files: [*files, files[0]],
        lambda files: [*files, File(path="x.json", size_bytes=0, sha256="0" * 64)],
        lambda files: [*files, File(path="x.json", size_bytes=-1, sha256="0" * 64)],
        lambda files: [*files, File(path="x.json", size_bytes=1, sha256="0" * 63)],
        lambda files: [*files, File(path="x.json", size_bytes=1, sha256="A" * 64)],
        lambda files: [*files, File(path="x.json", size_bytes=2**22 + 1, sha256="0" * 64)],
        lambda files: [*files, File(path="x.safetensors", size_bytes=2**63 - 1, sha256="0" * 64)],
        lambda files: [*files, *(File(path=f"{i}.safetensors", size_bytes=2**35, sha256="0" * 64) for i in "ab")],
        lambda files: [*files, *(File(path=f"{i}.json", size_bytes=1, sha256="0" * 64) for i in range(1000))],
    ],
)
def test_declarations_that_no_upload_can_fulfil_are_refused(registry_stub: RegistryServiceStub, declare) -> None:  # type: ignore[no-untyped-def]
    files = declare(declared(adapter_files()))
    error = refusal(registry_stub, upload(version(files=files), validate_only=True))
    assert error.violations[0].field.startswith("spec.version.files")


def test_messages_out_of_order_are_refused(registry_stub: RegistryServiceStub) -> None:
    spec = next(upload(version(files=declared(adapter_files()))))
    data = pb.PublishVersionRequest(data=b"x")
    large = pb.PublishVersionRequest(data=bytes(2 * 1024**2 + 1))
    for messages, field in (
        ([], "spec"),
        ([data], "spec"),
        ([pb.PublishVersionRequest()], "spec"),
        ([spec, spec], "data"),
        ([spec, pb.PublishVersionRequest()], "data"),
        ([spec, large], "data"),
    ):
        assert refusal(registry_stub, iter(messages)).violations[0].field == field
