"""Tables of the trainer: the truth about datasets, jobs and batches."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from atelier.storage.database import Model, utc_now
from atelier.storage.requests import RequestRow


class Table(Model):
    """Base class of the trainer's tables."""

    __abstract__ = True
    metadata = MetaData()


class State(StrEnum):
    """What a job is doing; the names of the contract's JobState."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"


TERMINAL = (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class DatasetRow(Table):
    """A dataset; the images' bytes are in S3 under their digests."""

    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("tenant", "dataset_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(String(63))
    dataset_id: Mapped[str] = mapped_column(String(63))
    digest: Mapped[str] = mapped_column(String(71))
    images: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    """Of each image: path, size_bytes, sha256, caption, width, height; unless it is older than that, what
    `image_checks.image_facts` says; and of one with a mask, mask: path, size_bytes, sha256, is_black."""
    create_time: Mapped[datetime] = mapped_column(default=utc_now)


class BatchRow(Table):
    """Jobs that were submitted together."""

    __tablename__ = "batches"
    __table_args__ = (UniqueConstraint("tenant", "batch_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(String(63))
    batch_id: Mapped[str] = mapped_column(String(63))
    create_time: Mapped[datetime] = mapped_column(default=utc_now)
    jobs: Mapped[list[JobRow]] = relationship(back_populates="batch", order_by="JobRow.id")


class JobRow(Table):
    """A job: what was asked for, and how far it is."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("tenant", "job_id"),
        Index("ix_jobs_queue", "state", "not_before"),
        Index("ix_jobs_sweep", "is_swept"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(String(63))
    job_id: Mapped[str] = mapped_column(String(63))
    uid: Mapped[str] = mapped_column(String(32), unique=True)
    """Part of the job's keys in S3; never used again."""
    batch_key: Mapped[int | None] = mapped_column(ForeignKey("batches.id"), index=True)
    batch: Mapped[BatchRow | None] = relationship(back_populates="jobs")

    method: Mapped[str] = mapped_column(String(63))
    dataset_key: Mapped[int] = mapped_column(ForeignKey("datasets.id"))
    dataset: Mapped[DatasetRow] = relationship()
    adapter: Mapped[str] = mapped_column(String(63))
    base_name: Mapped[str] = mapped_column(String(255))
    base_digest: Mapped[str] = mapped_column(String(71))
    instance_prompt: Mapped[str] = mapped_column(Text)
    class_prompt: Mapped[str] = mapped_column(Text)
    validation_prompts: Mapped[list[str]] = mapped_column(JSON)
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    recipe: Mapped[str] = mapped_column(String(63), default="")
    placeholder_token: Mapped[str] = mapped_column(String(32), default="")
    concepts: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    """Of each further concept: dataset_id, instance_prompt, class_prompt, placeholder_token, repeats."""
    warnings: Mapped[list[str]] = mapped_column(JSON, default=list)

    state: Mapped[State] = mapped_column(String(16), default=State.QUEUED)
    attempt: Mapped[int] = mapped_column(default=0)
    lost_workers: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[datetime] = mapped_column(default=utc_now)
    """A waiting job is not begun before this moment."""
    lease_expire_time: Mapped[datetime | None]
    """A running job whose lease has expired has lost its trainer and is begun again."""

    stage: Mapped[str] = mapped_column(String(16), default="waiting")
    step: Mapped[int] = mapped_column(default=0)
    loss: Mapped[float] = mapped_column(default=0.0)
    images_per_second: Mapped[float] = mapped_column(default=0.0)
    eta_seconds: Mapped[float] = mapped_column(default=0.0)
    checkpoint_step: Mapped[int] = mapped_column(default=0)
    """Step of the newest whole checkpoint in S3; 0 when there is none."""
    preview_step: Mapped[int] = mapped_column(default=0)
    swept_step: Mapped[int] = mapped_column(default=0)
    """Files of earlier steps than this are deleted."""
    is_swept: Mapped[bool] = mapped_column(default=False)
    """The job has ended and its checkpoints are deleted."""
    preview_prompts: Mapped[list[str]] = mapped_column(JSON, default=list)

    evaluation: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    adapter_version: Mapped[str] = mapped_column(String(255), default="")
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """google.rpc.Status as JSON."""
    create_time: Mapped[datetime] = mapped_column(default=utc_now)
    start_time: Mapped[datetime | None]
    end_time: Mapped[datetime | None]


class TrainerRequest(RequestRow, Table):
    """Requests that were carried out (AIP-155)."""
