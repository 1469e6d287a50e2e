"""Datasets: whole or not at all, whatever is sent."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import uuid
import zlib
from collections.abc import Iterator

import grpc
import pytest
from PIL import ExifTags, Image

from atelier.client import TrainerClient
from atelier.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, PermissionDeniedError
from atelier.local.seaweedfs import SeaweedFS
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.trainer.v1 import trainer_pb2 as pb
from atelier.pb.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from atelier.rpc.status import translated_errors
from atelier.storage.blobs import BlobStore, content_key
from tests.harness.trainer import EXAMPLES, TrainerServer, image_bytes


def _bomb() -> bytes:
    """A PNG of 16,000 × 16,000 pixels in a few hundred kilobytes."""
    side = 16_000
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0),
        b"IDAT": zlib.compress(b"\0" * (side + 1) * side, 9),
        b"IEND": b"",
    }
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _animated() -> bytes:
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    return _saved(frames[0], save_all=True, append_images=frames[1:])


def _turned() -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return _saved(Image.new("RGB", (64, 32)), "JPEG", exif=exif)


BAD_IMAGES = {
    "text named .png": (b"this is not an image", "IMAGE_UNREADABLE"),
    "gif named .png": (image_bytes(kind="GIF"), "IMAGE_UNREADABLE"),
    "truncated": (image_bytes()[:-4000], "IMAGE_DAMAGED"),
    "corrupt": (image_bytes()[:200] + b"\xff" * 100 + image_bytes()[300:], "IMAGE_DAMAGED"),
    "one pixel": (image_bytes(size=(1, 1)), "IMAGE_SIZE"),
    "too long": (image_bytes(size=(32, 9000)), "IMAGE_SIZE"),
    "bomb": (_bomb(), "IMAGE_SIZE"),
    "animated": (_animated(), "IMAGE_ANIMATED"),
}


def test_a_dataset_comes_back_as_it_was_sent(trainer: TrainerClient) -> None:
    contents = [
        (path.name, path.read_bytes(), f"caption of {path.stem}") for path in sorted(EXAMPLES.glob("fox/*.png"))
    ]
    created = trainer.create_dataset("fox", contents)
    assert trainer.dataset("fox") == created
    assert [image.caption for image in created.images] == [caption for _, _, caption in contents]
    assert [image.file.sha256 for image in created.images] == [hashlib.sha256(c).hexdigest() for _, c, _ in contents]
    assert {(image.width, image.height) for image in created.images} == {(128, 128)}


def _mask(size: tuple[int, int] = (64, 64), *, level: int = 255) -> bytes:
    return _saved(Image.new("L", size, level))


def test_masks_come_back_and_count_in_the_digest(trainer: TrainerClient, seaweedfs: SeaweedFS) -> None:
    images = [("a.png", image_bytes(0), "a fox"), ("b.png", image_bytes(1), "")]
    plain = trainer.create_dataset("plain", images)
    masked = trainer.create_dataset("masked", images, masks={"b.png": ("b-mask.png", _mask())})
    assert trainer.dataset("masked") == masked
    assert [image.HasField("mask") for image in masked.images] == [False, True]
    mask = masked.images[1].mask
    assert (mask.path, mask.size_bytes, mask.sha256) == (
        "b-mask.png",
        len(_mask()),
        hashlib.sha256(_mask()).hexdigest(),
    )
    assert BlobStore(seaweedfs.s3_config("trainer")).get(content_key(mask.sha256)) == _mask()
    other = trainer.create_dataset("other", images, masks={"b.png": ("b-mask.png", _mask(level=9))})
    assert len({plain.digest, masked.digest, other.digest}) == 3


def test_the_digest_of_a_dataset_without_masks_is_over_names_contents_and_captions(trainer: TrainerClient) -> None:
    content = image_bytes()
    created = trainer.create_dataset("digest", [("a.png", content, "a fox")])
    listed = json.dumps([["a.png", hashlib.sha256(content).hexdigest(), "a fox"]])
    assert created.digest == f"sha256:{hashlib.sha256(listed.encode()).hexdigest()}"


BAD_MASKS = {
    "another size": (("m.png", _mask((64, 32))), "MASK_SIZE", "spec.dataset.images[1].mask"),
    "no image": (("m.png", b"this is not an image"), "IMAGE_UNREADABLE", "spec.dataset.images[1].mask"),
    "empty": (("m.png", b""), "INVALID_FIELD", "spec.dataset.images[1].mask.size_bytes"),
    "the image's name": (("b.png", _mask()), "INVALID_FIELD", "spec.dataset.images[1].mask.path"),
    "in a folder": (("masks/b.png", _mask()), "INVALID_FIELD", "spec.dataset.images[1].mask.path"),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_a_bad_mask_is_refused_by_its_field(trainer: TrainerClient, case: str) -> None:
    mask, reason, field = BAD_MASKS[case]
    images = [("a.png", image_bytes(), ""), ("b.png", image_bytes(1), ""), ("c.png", image_bytes(2), "")]
    with pytest.raises(InvalidArgumentError) as caught:
        trainer.create_dataset("bad", images, masks={"a.png": ("a-mask.png", _mask()), "b.png": mask})
    assert (caught.value.reason, caught.value.violations[0].field) == (reason, field)
    with pytest.raises(NotFoundError):
        trainer.dataset("bad")


def test_a_bad_image_after_a_mask_is_refused_by_its_own_field(trainer: TrainerClient) -> None:
    images = [("a.png", image_bytes(), ""), ("b.png", b"", "")]
    with pytest.raises(InvalidArgumentError) as caught:
        trainer.create_dataset("bad", images, masks={"a.png": ("a-mask.png", _mask())})
    assert caught.value.violations[0].field == "spec.dataset.images[1].file.size_bytes"


GOOD_IMAGES = {
    "jpeg": (image_bytes(kind="JPEG"), (64, 64)),
    "webp": (image_bytes(kind="WEBP"), (64, 64)),
    "16 bits": (_saved(Image.new("I;16", (64, 64))), (64, 64)),
    "broken EXIF": (_saved(Image.new("RGB", (64, 64)), exif=b"garbage"), (64, 64)),
    "on its side": (_turned(), (32, 64)),
    "jpeg with a second picture": (
        _saved(Image.new("RGB", (64, 64)), "MPO", save_all=True, append_images=[Image.new("RGB", (32, 32))]),
        (64, 64),
    ),
    "48 megapixels": (_saved(Image.new("1", (8000, 6000))), (8000, 6000)),
}


@pytest.mark.parametrize("name", GOOD_IMAGES)
def test_all_these_are_images(trainer: TrainerClient, name: str) -> None:
    content, size = GOOD_IMAGES[name]
    (image,) = trainer.create_dataset("good", [("a", content, "")]).images
    assert (image.width, image.height) == size


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_named_and_nothing_is_kept(trainer: TrainerClient, name: str) -> None:
    content, reason = BAD_IMAGES[name]
    with pytest.raises(InvalidArgumentError) as caught:
        trainer.create_dataset("bad", [("good.png", image_bytes(), ""), ("bad.png", content, "")])
    assert caught.value.reason == reason
    assert caught.value.violations[0].field == "spec.dataset.images[1].file"
    assert "bad.png" in caught.value.violations[0].description
    with pytest.raises(NotFoundError):
        trainer.dataset("bad")


@pytest.mark.parametrize(
    ("images", "field"),
    [
        ([], "spec.dataset.images"),
        ([("a.png", image_bytes(), "")] * 2, "spec.dataset.images[1].file.path"),
        ([("../a.png", image_bytes(), "")], "spec.dataset.images[0].file.path"),
        ([("b/a.png", image_bytes(), "")], "spec.dataset.images[0].file.path"),
        ([("a.png", b"", "")], "spec.dataset.images[0].file.size_bytes"),
        ([("a.png", image_bytes(), "x" * 1001)], "spec.dataset.images[0].caption"),
        ([(f"{i}.png", b"x", "") for i in range(101)], "spec.dataset.images"),
    ],
    ids=["none", "duplicate name", "path outside", "folder", "empty file", "long caption", "too many"],
)
def test_a_bad_declaration_is_refused(trainer: TrainerClient, images: list[tuple[str, bytes, str]], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        trainer.create_dataset("bad", images)
    assert caught.value.violations[0].field == field


def test_a_taken_name_is_refused(trainer: TrainerClient) -> None:
    trainer.create_dataset("twice", [("a.png", image_bytes(), "")])
    with pytest.raises(AlreadyExistsError) as caught:
        trainer.create_dataset("twice", [("a.png", image_bytes(1), "")])
    assert caught.value.metadata["dataset"] == "twice"


def _spec(content: bytes, *, request_id: str = "") -> pb.CreateDatasetSpec:
    file = File(path="a.png", size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    dataset = pb.Dataset(images=[pb.DatasetImage(file=file)])
    return pb.CreateDatasetSpec(parent="tenants/-", dataset_id="raw", dataset=dataset, request_id=request_id)


def _send(stub: TrainerServiceStub, spec: pb.CreateDatasetSpec, *pieces: bytes) -> pb.Dataset:
    messages = [pb.CreateDatasetRequest(spec=spec), *(pb.CreateDatasetRequest(data=piece) for piece in pieces)]
    with translated_errors():
        return stub.CreateDataset(iter(messages))


def test_a_wrong_checksum_is_refused(trainer_stub: TrainerServiceStub, trainer: TrainerClient) -> None:
    content = image_bytes()
    spec = _spec(content)
    spec.dataset.images[0].file.sha256 = "0" * 64
    with pytest.raises(InvalidArgumentError) as caught:
        _send(trainer_stub, spec, content)
    assert caught.value.reason == "CHECKSUM_MISMATCH"
    with pytest.raises(NotFoundError):
        trainer.dataset("raw")


@pytest.mark.parametrize(("end", "reason"), [(-10, "UPLOAD_INCOMPLETE"), (None, "UPLOAD_TOO_LONG")])
def test_an_upload_of_the_wrong_length_is_refused(
    trainer_stub: TrainerServiceStub, end: int | None, reason: str
) -> None:
    content = image_bytes()
    sent = content[:end] if end else content + b"more"
    with pytest.raises(InvalidArgumentError) as caught:
        _send(trainer_stub, _spec(content), sent)
    assert caught.value.reason == reason


def test_an_upload_that_breaks_off_leaves_nothing(
    trainer_stub: TrainerServiceStub, trainer: TrainerClient, trainer_server: TrainerServer
) -> None:
    content = image_bytes()

    def messages() -> Iterator[pb.CreateDatasetRequest]:
        yield pb.CreateDatasetRequest(spec=_spec(content))
        yield pb.CreateDatasetRequest(data=content[:100])
        raise ConnectionError("the client's line broke")

    with pytest.raises(grpc.RpcError):
        trainer_stub.CreateDataset(messages())
    trainer_server.wait_until_idle()
    with pytest.raises(NotFoundError):
        trainer.dataset("raw")
    assert trainer.create_dataset("raw", [("a.png", content, "")]).images


def test_the_same_request_id_answers_the_same(trainer_stub: TrainerServiceStub) -> None:
    content = image_bytes()
    spec = _spec(content, request_id=str(uuid.uuid4()))
    assert _send(trainer_stub, spec, content) == _send(trainer_stub, spec, content)
    spec.dataset_id = "another"
    with pytest.raises(InvalidArgumentError, match="request_id"):
        _send(trainer_stub, spec, content)


def test_data_must_follow_a_spec(trainer_stub: TrainerServiceStub) -> None:
    with pytest.raises(InvalidArgumentError, match="spec"), translated_errors():
        trainer_stub.CreateDataset(iter([pb.CreateDatasetRequest(data=b"x")]))


def test_datasets_are_listed_page_by_page(trainer: TrainerClient, trainer_stub: TrainerServiceStub) -> None:
    for index in range(3):
        trainer.create_dataset(f"d{index}", [("a.png", image_bytes(), "")])
    request = pb.ListDatasetsRequest(parent="tenants/-", page_size=2)
    first = trainer_stub.ListDatasets(request)
    request.page_token = first.next_page_token
    second = trainer_stub.ListDatasets(request)
    assert [d.name[-2:] for d in (*first.datasets, *second.datasets)] == ["d0", "d1", "d2"]
    assert not second.next_page_token


def test_another_tenants_dataset_is_out_of_reach(trainer_server: TrainerServer, trainer: TrainerClient) -> None:
    mine = trainer.create_dataset("mine", [("a.png", image_bytes(), "")])
    with trainer_server.connect("somebody-else") as connection:
        with pytest.raises(PermissionDeniedError), translated_errors():
            TrainerServiceStub(connection.channel).GetDataset(pb.GetDatasetRequest(name=mine.name))
        with pytest.raises(NotFoundError):
            TrainerClient(connection).dataset("mine")
