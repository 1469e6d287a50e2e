"""Versions in and out of the registry, beside the bare `minio` client on the same S3 server.

The peer moves the same file between disk and the bucket with its defaults. Atelier's client hashes the file before it
is sent and while it arrives, and the registry hashes what it receives and looks at every number in it: all of that is
in Atelier's figures. Each upload is of bytes that nobody has stored before.
"""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np
import urllib3
from minio import Minio

from atelier.client import RegistryClient
from atelier.client.base_models import BaseModelClient
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.base_models_pb2 import BaseModelDescription, Component, Layer
from atelier.rpc.uploads import PIECE_BYTES
from atelier.storage.blobs import BlobStore
from bench.measure import Result, take_turns
from bench.registry_server import Registry

BASE = BaseModel(model="bench", digest=f"sha256:{'be' * 32}")
WEIGHTS = "pytorch_lora_weights.safetensors"
WIDTH, RANK, NUM_LAYERS = 8192, 1024, 64
LAYER_BYTES = 2 * 4 * WIDTH * RANK
"""Of a layer's factors in float32: 64 MiB."""


class Transfers:
    """The contenders, with a file between them.

    Args:
        size_mib: of the file, a multiple of 64.
    """

    def __init__(self, registry: Registry, size_mib: int) -> None:
        self._registry = registry
        self._client = RegistryClient(registry.connection)
        s3 = registry.s3
        self._minio = Minio(s3.endpoint, s3.access_key, s3.secret_key, secure=False, region=s3.region)
        self._bucket = s3.bucket
        self._http = urllib3.PoolManager(timeout=urllib3.Timeout(connect=3.0, read=600.0))
        self._path = registry.folder / f"{size_mib}.safetensors"
        self._target = registry.folder / "pulled"
        self._write_file(size_mib * 2**20 // LAYER_BYTES)
        self._turn = 0
        self._stored_key = ""
        self._published = pb.Version()

    def upload(self, *, turns: int) -> list[Result]:
        """Seconds from a file on disk to a version that is published, or to an object."""
        contenders = {
            "minio client, fput_object": self._put_with_minio,
            "Atelier, PublishVersion": self._publish,
            "Atelier, WriteUpload and CompleteUpload": self._write_upload,
            "Atelier, signed PUT and CompleteUpload": self._put_signed,
        }
        return take_turns(contenders, turns=turns)

    def download(self, *, turns: int) -> list[Result]:
        """Seconds from what `upload` stored to a file on disk."""
        contenders = {
            "minio client, fget_object": self._get_with_minio,
            "minio client, fget_object, then SHA-256": self._get_and_hash,
            "Atelier, DownloadFile (pull)": self._pull,
            "Atelier, signed GET": self._get_signed,
        }
        return take_turns(contenders, turns=turns)

    def _put_with_minio(self) -> None:
        self._renew()
        self._stored_key = f"bench/{self._turn}"
        self._minio.fput_object(self._bucket, self._stored_key, str(self._path))

    def _get_with_minio(self) -> None:
        self._minio.fget_object(self._bucket, self._stored_key, str(self._target))

    def _get_and_hash(self) -> None:
        self._get_with_minio()
        with self._target.open("rb") as file:
            hashlib.file_digest(file, "sha256")

    def _publish(self) -> None:
        self._renew()
        self._published = self._client.publish("large", _version(), {WEIGHTS: self._path})

    def _pull(self) -> None:
        self._client.pull(self._published, self._registry.folder / "pull")

    def _write_upload(self) -> None:
        self._renew()
        self._published = self._client.upload("large", _version(), {WEIGHTS: self._path})

    def _put_signed(self) -> None:
        self._renew()
        self._published = self._client.upload_signed("large", _version(), {WEIGHTS: self._path})

    def _get_signed(self) -> None:
        version, digest = self._published, hashlib.sha256()
        signed = self._client.sign_download(version, WEIGHTS)
        answer = self._http.request("GET", signed.url, preload_content=False)
        with self._target.open("wb") as file:
            for piece in answer.stream(PIECE_BYTES):
                digest.update(piece)
                file.write(piece)
        answer.release_conn()
        assert digest.hexdigest() == version.files[0].sha256

    def _renew(self) -> None:
        """Makes the file one that is stored nowhere."""
        self._turn += 1
        with self._path.open("r+b") as file:
            file.seek(-4, 2)
            file.write(struct.pack("<f", self._turn))

    def _write_file(self, num_layers: int) -> None:
        header, end = {}, 0
        for layer in range(num_layers):
            for factor, shape in (("A", (RANK, WIDTH)), ("B", (WIDTH, RANK))):
                begin, end = end, end + LAYER_BYTES // 2
                entry = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
                header[f"unet.{_layer_name(layer)}.lora_{factor}.weight"] = entry
        text = json.dumps(header).encode()
        numbers = np.random.default_rng(0).standard_normal(LAYER_BYTES // 4, np.float32).tobytes()
        with self._path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for _ in range(num_layers):
                file.write(numbers)


def prepare(registry: Registry) -> None:
    """Makes the adapter that the contenders publish to, and the base model that they name."""
    layers = [Layer(name=_layer_name(index), weight_shape=[WIDTH, WIDTH]) for index in range(NUM_LAYERS)]
    text = Component(component="text_encoder", layers=layers[:1], embedding_size=WIDTH)
    components = [Component(component="unet", layers=layers), text]
    description = BaseModelDescription(base_model=BASE, family="stable-diffusion", components=components)
    BaseModelClient(registry.connection).register(description)
    RegistryClient(registry.connection).create_adapter("large")
    BlobStore(registry.s3).create_bucket()


def _version() -> pb.Version:
    return pb.Version(base_model=BASE, method="bench")


def _layer_name(index: int) -> str:
    return f"blocks.{index}.to_q"
