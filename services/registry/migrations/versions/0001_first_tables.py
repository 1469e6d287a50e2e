"""Adapters, versions, files, aliases and requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ADAPTER = ("tenant", "adapter_id")
_VERSION = (*_ADAPTER, "number")


def upgrade() -> None:
    """Creates the tables."""
    op.create_table(
        "adapters",
        *_adapter_key(),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("latest_number", sa.Integer, nullable=False),
        sa.Column("etag", sa.String(16), nullable=False),
        _time("create_time"),
    )
    op.create_table(
        "versions",
        *_adapter_key(),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("base_model", sa.Text, nullable=False),
        sa.Column("base_model_digest", sa.String(71), nullable=False),
        sa.Column("method", sa.String(63), nullable=False),
        sa.Column("instance_prompt", sa.Text, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("source_job", sa.String(255), nullable=False),
        _time("create_time"),
        sa.ForeignKeyConstraint(_ADAPTER, [f"adapters.{column}" for column in _ADAPTER]),
    )
    op.create_index("versions_by_digest", "versions", ["tenant", "digest"])
    op.create_table(
        "files",
        *_adapter_key(),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("path", sa.String(200), primary_key=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(_VERSION, [f"versions.{column}" for column in _VERSION]),
    )
    op.create_index("files_by_content", "files", ["tenant", "sha256"])
    op.create_table(
        "aliases",
        *_adapter_key(),
        sa.Column("alias_id", sa.String(63), primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("etag", sa.String(16), nullable=False),
        _time("update_time"),
        sa.ForeignKeyConstraint(_VERSION, [f"versions.{column}" for column in _VERSION]),
    )
    op.create_table(
        "requests",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("request_id", sa.String(36), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("resource_name", sa.String(255), nullable=False),
        _time("create_time"),
    )


def downgrade() -> None:
    """Drops the tables, the dependent ones first."""
    for table in ("requests", "aliases", "files", "versions", "adapters"):
        op.drop_table(table)


def _adapter_key() -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(63), primary_key=True) for name in _ADAPTER]


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False)
