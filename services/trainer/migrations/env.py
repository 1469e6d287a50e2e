"""Alembic's entry point: runs the migrations on the connection that `Database.migrate` opened."""

from __future__ import annotations

from alembic import context

from services.trainer.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,  # SQLite alters tables by copying them
)
with context.begin_transaction():
    context.run_migrations()
