"""Datasets: checked images and their masks in S3, captions and sizes in SQL."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from atelier.errors import AlreadyExistsError, FieldViolation, InvalidArgumentError, NotFoundError
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.trainer.v1 import trainer_pb2 as pb
from atelier.rpc.call import current_tenant
from atelier.rpc.names import DATASET, TENANT, check_id, check_text, shown
from atelier.rpc.pages import Page
from atelier.rpc.uploads import check_files, receive_files
from atelier.storage.blobs import BlobStore
from atelier.storage.database import Database, to_timestamp
from atelier.storage.requests import earlier_answer, perform
from services.trainer.image_checks import image_facts
from services.trainer.images import MAX_FILE_BYTES, open_mask, open_upright
from services.trainer.tables import DatasetRow, TrainerRequest

MAX_IMAGES = 100
MAX_CAPTION_CHARACTERS = 1000
_FIELD = "spec.dataset.images"
_FILES = "files"
"""Stands in errors of an upload for its files, until `_naming_fields` names their fields."""


class Datasets:
    """Creates and finds the datasets of the caller's tenant.

    Args:
        spool_folder: uploads wait here for their end.
    """

    def __init__(self, database: Database, blobs: BlobStore, spool_folder: Path) -> None:
        self._database = database
        self._blobs = blobs
        self._spool_folder = spool_folder

    def begin(self, spec: pb.CreateDatasetSpec) -> pb.Dataset | None:
        """Refuses what is wrong before any byte has come, a taken name included.

        Answers at once what needs no bytes: a request that was carried out before, or one that is `validate_only`.
        """
        _check_spec(spec)
        with self._database.transaction(read_only=True) as session:
            earlier = earlier_answer(session, TrainerRequest, spec, pb.Dataset)
            if earlier is not None:
                return earlier
            _refuse_taken(session, spec.dataset_id)
        if spec.validate_only:
            return pb.Dataset(name=DATASET.format(dataset=spec.dataset_id), images=spec.dataset.images)
        return None

    async def receive(self, spec: pb.CreateDatasetSpec, pieces: AsyncIterator[bytes]) -> pb.Dataset:
        """Takes the images and masks in and creates the dataset."""
        with tempfile.TemporaryDirectory(prefix="dataset-", dir=self._spool_folder) as folder:
            files = [file for _, file in _uploads(spec.dataset.images)]
            with _naming_fields(spec.dataset.images):
                paths = await receive_files(pieces, files, Path(folder), field=_FILES)
            return await asyncio.to_thread(self._create, spec, paths)

    def _create(self, spec: pb.CreateDatasetSpec, paths: Sequence[Path]) -> pb.Dataset:
        uploads, arrived = _uploads(spec.dataset.images), iter(paths)
        images = [_image_record(image, arrived, f"{_FIELD}[{i}]") for i, image in enumerate(spec.dataset.images)]
        for path, (_, file) in zip(paths, uploads, strict=True):
            self._blobs.put_content(path, file.sha256)

        def work(session: Session) -> pb.Dataset:
            row = DatasetRow(tenant=current_tenant(), dataset_id=spec.dataset_id, digest=_digest(images), images=images)
            session.add(row)
            try:
                session.flush()
            except IntegrityError as error:
                raise _taken(spec.dataset_id) from error
            return to_proto(row)

        return perform(self._database, TrainerRequest, spec, pb.Dataset, work)

    def get(self, name: str) -> pb.Dataset:
        """One dataset by its full name."""
        with self._database.transaction(read_only=True) as session:
            return to_proto(find(session, name))

    def list(self, page: Page) -> pb.ListDatasetsResponse:
        """A page of the tenant's datasets, by id."""
        query = select(DatasetRow).where(DatasetRow.tenant == current_tenant(), DatasetRow.dataset_id > page.after)
        with self._database.transaction(read_only=True) as session:
            rows = session.scalars(query.order_by(DatasetRow.dataset_id).limit(page.size + 1)).all()
        rows, token = page.cut(rows, key=lambda row: row.dataset_id)
        return pb.ListDatasetsResponse(datasets=map(to_proto, rows), next_page_token=token)


def find(session: Session, name: str, field: str = "name") -> DatasetRow:
    """The row of a dataset of the caller's tenant."""
    ids = DATASET.parse(name, field)
    query = select(DatasetRow).where(DatasetRow.tenant == ids["tenant"], DatasetRow.dataset_id == ids["dataset"])
    row = session.scalar(query)
    if row is None:
        raise NotFoundError(
            f"{field}: there is no dataset {shown(ids['dataset'])}",
            reason="DATASET_NOT_FOUND",
            metadata={"dataset": ids["dataset"]},
        )
    return row


def to_proto(row: DatasetRow) -> pb.Dataset:
    """The contract's form of a row."""
    images = [
        pb.DatasetImage(
            file=_file(image),
            caption=image["caption"],
            width=image["width"],
            height=image["height"],
            mask=_file(image["mask"]) if "mask" in image else None,
        )
        for image in row.images
    ]
    return pb.Dataset(
        name=DATASET.format(tenant=row.tenant, dataset=row.dataset_id),
        images=images,
        digest=row.digest,
        create_time=to_timestamp(row.create_time),
    )


def _check_spec(spec: pb.CreateDatasetSpec) -> None:
    TENANT.parse(spec.parent, "spec.parent")
    check_id(spec.dataset_id, "spec.dataset_id")
    images = spec.dataset.images
    if not 1 <= len(images) <= MAX_IMAGES:
        raise InvalidArgumentError(_FIELD, f"holds {len(images)} images; 1 to {MAX_IMAGES} are allowed")
    uploads = _uploads(images)
    with _naming_fields(images):
        check_files([file for _, file in uploads], _FILES, max_file_bytes=MAX_FILE_BYTES)
    for field, file in uploads:
        if "/" in file.path:
            raise InvalidArgumentError(f"{field}.path", f"is {shown(file.path)}; allowed is a plain file name")
    for index, image in enumerate(images):
        check_text(image.caption, f"{_FIELD}[{index}].caption", max_characters=MAX_CAPTION_CHARACTERS)


def _uploads(images: Sequence[pb.DatasetImage]) -> list[tuple[str, File]]:
    """The files in the order of their bytes, each with the request's field that declares it."""
    uploads = []
    for index, image in enumerate(images):
        uploads.append((f"{_FIELD}[{index}].file", image.file))
        if image.HasField("mask"):
            uploads.append((f"{_FIELD}[{index}].mask", image.mask))
    return uploads


@contextmanager
def _naming_fields(images: Sequence[pb.DatasetImage]) -> Iterator[None]:
    """Names the fields of an upload's files as the request does: `files[1]` is perhaps the first image's mask."""
    fields = [field for field, _ in _uploads(images)]
    try:
        yield
    except InvalidArgumentError as error:
        first, *more = (FieldViolation(_own_field(v.field, fields), v.description) for v in error.violations)
        raise InvalidArgumentError(first.field, first.description, reason=error.reason, more=more) from error


def _own_field(field: str, fields: Sequence[str]) -> str:
    own = re.sub(rf"^{_FILES}\[(\d+)\]", lambda match: fields[int(match[1])], field)
    return _FIELD if own == _FILES else own


def _file(record: dict[str, Any]) -> File:
    return File(path=record["path"], size_bytes=record["size_bytes"], sha256=record["sha256"])


def _file_record(file: File) -> dict[str, Any]:
    return {"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}


def _image_record(image: pb.DatasetImage, arrived: Iterator[Path], field: str) -> dict[str, Any]:
    """What is kept of an image; takes its file, and its mask's if it has one, from those that `arrived`."""
    pixels = open_upright(next(arrived), f"{field}.file", image.file.path)
    record = {
        **_file_record(image.file),
        "caption": image.caption,
        "width": pixels.width,
        "height": pixels.height,
        **image_facts(pixels),
    }
    if image.HasField("mask"):
        mask = open_mask(next(arrived), f"{field}.mask", image.mask.path, size=pixels.size)
        record["mask"] = {**_file_record(image.mask), "is_black": mask.getextrema() == (0, 0)}
    return record


def _digest(images: Sequence[dict[str, Any]]) -> str:
    content = json.dumps([_digested(image) for image in images])
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def _digested(image: dict[str, Any]) -> list[str]:
    mask = [image["mask"]["sha256"]] if "mask" in image else []
    return [image["path"], image["sha256"], image["caption"], *mask]


def _refuse_taken(session: Session, dataset_id: str) -> None:
    query = select(DatasetRow.id).where(DatasetRow.tenant == current_tenant(), DatasetRow.dataset_id == dataset_id)
    if session.scalar(query) is not None:
        raise _taken(dataset_id)


def _taken(dataset_id: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"spec.dataset_id: {dataset_id!r} is taken", reason="DATASET_EXISTS", metadata={"dataset": dataset_id}
    )
