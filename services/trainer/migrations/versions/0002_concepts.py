"""Jobs of several concepts, by a recipe, with warnings.

Jobs from before have one concept and no warnings; those that have not ended begin again, since their checkpoints are of
another form. Downgrading keeps of every job its first concept.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns, filled for the jobs that are there."""
    for name, length in (("recipe", 63), ("placeholder_token", 32)):
        op.add_column("jobs", sa.Column(name, sa.String(length), nullable=False, server_default=""))
    for name in ("concepts", "warnings"):
        op.add_column("jobs", sa.Column(name, sa.JSON, nullable=False, server_default="[]"))
    op.execute("UPDATE jobs SET checkpoint_step = 0, step = 0 WHERE state NOT IN ('SUCCEEDED', 'FAILED', 'CANCELLED')")


def downgrade() -> None:
    """Drops them."""
    for name in ("recipe", "placeholder_token", "concepts", "warnings"):
        op.drop_column("jobs", name)
