"""A job's own files in S3: checkpoints and preview images. A dataset's images come from here too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from atelier.errors import NotFoundError
from atelier.storage.blobs import BlobStore, content_key, verified
from services.trainer.methods.base import TrainingImage


class JobFiles:
    """Reads and writes what a job keeps while it runs."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def images(self, records: Sequence[Mapping[str, Any]]) -> tuple[TrainingImage, ...]:
        """The images of a dataset with their masks, each file checked against its digest."""
        return tuple(
            TrainingImage(
                path=record["path"],
                contents=self._file(record),
                caption=record["caption"],
                mask=self._file(record["mask"]) if record.get("mask") else None,
            )
            for record in records
        )

    def _file(self, record: Mapping[str, Any]) -> bytes:
        sha256 = record["sha256"]
        return verified(self._blobs.get(content_key(sha256)), sha256, f"image {record['path']}")

    def save_checkpoint(self, uid: str, step: int, contents: bytes) -> None:
        """Stores a checkpoint; once this returns, the job can be resumed from it."""
        self._blobs.put(_checkpoint_key(uid, step), contents)

    def checkpoint(self, uid: str, step: int) -> bytes | None:
        """The checkpoint of a step; None for step 0, before which there is none."""
        return self._blobs.get(_checkpoint_key(uid, step)) if step else None

    def delete_checkpoints(self, uid: str, *, before_step: int | None) -> None:
        """Deletes a job's checkpoints of earlier steps; all of them for None."""
        self._delete(_checkpoint_folder(uid), None if before_step is None else _checkpoint_key(uid, before_step))

    def save_previews(self, uid: str, step: int, pngs: Sequence[bytes]) -> None:
        """Stores the previews of a step."""
        for index, png in enumerate(pngs):
            self._blobs.put(_preview_key(uid, step, index), png)

    def previews(self, uid: str, step: int, count: int) -> list[bytes]:
        """The previews of a step; none when they have been replaced meanwhile."""
        try:
            return [self._blobs.get(_preview_key(uid, step, index)) for index in range(count)]
        except NotFoundError:
            return []

    def delete_previews(self, uid: str, *, before_step: int) -> None:
        """Deletes a job's previews of earlier steps."""
        self._delete(_preview_folder(uid), _preview_key(uid, before_step, 0))

    def _delete(self, folder: str, before_key: str | None) -> None:
        for key in list(self._blobs.keys(folder)):
            if before_key is None or key < before_key:
                self._blobs.delete(key)


def _checkpoint_folder(uid: str) -> str:
    return f"jobs/{uid}/checkpoints/"


def _checkpoint_key(uid: str, step: int) -> str:
    return f"{_checkpoint_folder(uid)}{step:06d}.safetensors"


def _preview_folder(uid: str) -> str:
    return f"jobs/{uid}/previews/"


def _preview_key(uid: str, step: int, index: int) -> str:
    return f"{_preview_folder(uid)}{step:06d}-{index:02d}.png"
