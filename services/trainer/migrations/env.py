"""Alembic's entry point."""

from __future__ import annotations

from atelier.storage.database import run_migrations
from services.trainer.tables import Table

run_migrations(Table.metadata)
