"""Requests are kept with their answers.

Those from before are forgotten, on the way up and down: their answers were not kept, and retries come within minutes.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the table anew."""
    _recreate(sa.Column("answer", sa.LargeBinary, nullable=False))
    op.create_index("requests_by_time", "requests", ["create_time"])


def downgrade() -> None:
    """Makes the table as it was."""
    _recreate(sa.Column("resource_name", sa.String(255), nullable=False))


def _recreate(column: sa.Column[object]) -> None:
    op.drop_table("requests")
    op.create_table(
        "requests",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("request_id", sa.String(36), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        column,
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    )
