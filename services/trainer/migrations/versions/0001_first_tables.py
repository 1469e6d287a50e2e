"""Datasets, jobs, batches and requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the tables."""
    op.create_table(
        "batches",
        sa.Column("id", sa.Integer, primary_key=True),
        _text("tenant", 63),
        _text("batch_id", 63),
        _time("create_time"),
        sa.UniqueConstraint("tenant", "batch_id"),
    )
    op.create_table(
        "datasets",
        sa.Column("id", sa.Integer, primary_key=True),
        _text("tenant", 63),
        _text("dataset_id", 63),
        _text("digest", 71),
        sa.Column("images", sa.JSON, nullable=False),
        _time("create_time"),
        sa.UniqueConstraint("tenant", "dataset_id"),
    )
    op.create_table(
        "requests",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("request_id", sa.String(36), primary_key=True),
        _text("fingerprint", 64),
        _text("resource_name", 255),
        _time("create_time"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer, primary_key=True),
        *_request_columns(),
        *_queue_columns(),
        *_progress_columns(),
        sa.UniqueConstraint("tenant", "job_id"),
        sa.UniqueConstraint("uid"),
    )
    op.create_index("ix_jobs_batch_key", "jobs", ["batch_key"])
    op.create_index("ix_jobs_queue", "jobs", ["state", "not_before"])
    op.create_index("ix_jobs_sweep", "jobs", ["is_swept"])


def downgrade() -> None:
    """Drops them."""
    for table in ("jobs", "requests", "datasets", "batches"):
        op.drop_table(table)


def _request_columns() -> list[sa.Column]:
    return [
        _text("tenant", 63),
        _text("job_id", 63),
        _text("uid", 32),
        sa.Column("batch_key", sa.Integer, sa.ForeignKey("batches.id")),
        _text("method", 63),
        sa.Column("dataset_key", sa.Integer, sa.ForeignKey("datasets.id"), nullable=False),
        _text("adapter", 63),
        _text("base_name", 255),
        _text("base_digest", 71),
        sa.Column("instance_prompt", sa.Text, nullable=False),
        sa.Column("class_prompt", sa.Text, nullable=False),
        sa.Column("validation_prompts", sa.JSON, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
    ]


def _queue_columns() -> list[sa.Column]:
    return [
        _text("state", 16),
        _whole("attempt"),
        _whole("lost_workers"),
        _time("not_before"),
        _time("lease_expire_time", nullable=True),
    ]


def _progress_columns() -> list[sa.Column]:
    return [
        _text("stage", 16),
        _whole("step"),
        *(sa.Column(name, sa.Double, nullable=False) for name in ("loss", "images_per_second", "eta_seconds")),
        _whole("checkpoint_step"),
        _whole("preview_step"),
        _whole("swept_step"),
        sa.Column("is_swept", sa.Boolean, nullable=False),
        sa.Column("preview_prompts", sa.JSON, nullable=False),
        sa.Column("evaluation", sa.JSON),
        _text("adapter_version", 255),
        sa.Column("error", sa.JSON),
        _time("create_time"),
        _time("start_time", nullable=True),
        _time("end_time", nullable=True),
    ]


def _text(name: str, length: int) -> sa.Column:
    return sa.Column(name, sa.String(length), nullable=False)


def _whole(name: str) -> sa.Column:
    return sa.Column(name, sa.Integer, nullable=False)


def _time(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)
