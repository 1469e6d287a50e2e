"""Datasets: checked images in S3, captions and sizes in SQL."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from atelier.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.trainer.v1 import trainer_pb2 as pb
from atelier.rpc.call import current_tenant
from atelier.rpc.names import DATASET, TENANT, check_id, check_text, shown
from atelier.rpc.pages import Page
from atelier.rpc.uploads import check_files, receive_files
from atelier.storage.blobs import BlobStore
from atelier.storage.database import Database, to_timestamp
from atelier.storage.requests import earlier_result, remember
from services.trainer.images import MAX_FILE_BYTES, open_upright
from services.trainer.tables import DatasetRow, TrainerRequest

MAX_IMAGES = 100
MAX_CAPTION_CHARACTERS = 1000
_FIELD, _SUFFIX = "spec.dataset.images", ".file"


class Datasets:
    """Creates and finds the datasets of the caller's tenant.

    Args:
        spool_folder: uploads wait here for their end.
    """

    def __init__(self, database: Database, blobs: BlobStore, spool_folder: Path) -> None:
        self._database = database
        self._blobs = blobs
        self._spool_folder = spool_folder

    def check_spec(self, spec: pb.CreateDatasetSpec) -> None:
        """Refuses what is wrong before any byte has come, a taken name included."""
        TENANT.parse(spec.parent, "spec.parent")
        check_id(spec.dataset_id, "spec.dataset_id")
        images = spec.dataset.images
        if not 1 <= len(images) <= MAX_IMAGES:
            raise InvalidArgumentError(_FIELD, f"holds {len(images)} images; 1 to {MAX_IMAGES} are allowed")
        check_files([image.file for image in images], _FIELD, max_file_bytes=MAX_FILE_BYTES, suffix=_SUFFIX)
        for index, image in enumerate(images):
            if "/" in image.file.path:
                raise InvalidArgumentError(
                    f"{_FIELD}[{index}].file.path", f"is {shown(image.file.path)}; allowed is a plain file name"
                )
            check_text(image.caption, f"{_FIELD}[{index}].caption", max_characters=MAX_CAPTION_CHARACTERS)
        with self._database.transaction(read_only=True) as session:
            if earlier_result(session, TrainerRequest, current_tenant(), spec.request_id, spec) is None:
                _refuse_taken(session, spec.dataset_id)

    async def receive(self, spec: pb.CreateDatasetSpec, pieces: AsyncIterator[bytes]) -> pb.Dataset:
        """Takes the images in and creates the dataset."""
        with tempfile.TemporaryDirectory(prefix="dataset-", dir=self._spool_folder) as folder:
            files = [image.file for image in spec.dataset.images]
            paths = await receive_files(pieces, files, Path(folder), field=_FIELD, suffix=_SUFFIX)
            return await asyncio.to_thread(self._create, spec, paths)

    def _create(self, spec: pb.CreateDatasetSpec, paths: Sequence[Path]) -> pb.Dataset:
        images = [
            _image_record(image, path, f"{_FIELD}[{index}]{_SUFFIX}")
            for index, (image, path) in enumerate(zip(spec.dataset.images, paths, strict=True))
        ]
        for path, image in zip(paths, images, strict=True):
            self._blobs.put_content(path, image["sha256"])
        tenant = current_tenant()
        with self._database.transaction() as session:
            earlier = earlier_result(session, TrainerRequest, tenant, spec.request_id, spec)
            if earlier is not None:
                return to_proto(find(session, earlier))
            row = DatasetRow(tenant=tenant, dataset_id=spec.dataset_id, digest=_digest(images), images=images)
            session.add(row)
            try:
                session.flush()
            except IntegrityError as error:
                raise _taken(spec.dataset_id) from error
            remember(session, TrainerRequest, tenant, spec.request_id, spec, DATASET.format(dataset=row.dataset_id))
            return to_proto(row)

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
            file=File(path=image["path"], size_bytes=image["size_bytes"], sha256=image["sha256"]),
            caption=image["caption"],
            width=image["width"],
            height=image["height"],
        )
        for image in row.images
    ]
    return pb.Dataset(
        name=DATASET.format(tenant=row.tenant, dataset=row.dataset_id),
        images=images,
        digest=row.digest,
        create_time=to_timestamp(row.create_time),
    )


def _image_record(image: pb.DatasetImage, path: Path, field: str) -> dict[str, Any]:
    width, height = open_upright(path, field, image.file.path).size
    return {
        "path": image.file.path,
        "size_bytes": image.file.size_bytes,
        "sha256": image.file.sha256,
        "caption": image.caption,
        "width": width,
        "height": height,
    }


def _digest(images: Sequence[dict[str, Any]]) -> str:
    content = json.dumps([[image["path"], image["sha256"], image["caption"]] for image in images])
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def _refuse_taken(session: Session, dataset_id: str) -> None:
    query = select(DatasetRow.id).where(DatasetRow.tenant == current_tenant(), DatasetRow.dataset_id == dataset_id)
    if session.scalar(query) is not None:
        raise _taken(dataset_id)


def _taken(dataset_id: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"spec.dataset_id: {dataset_id!r} is taken", reason="DATASET_EXISTS", metadata={"dataset": dataset_id}
    )
