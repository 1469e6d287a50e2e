"""Alembic's entry point."""

from __future__ import annotations

from atelier.storage.database import run_migrations
from services.registry import content_tables, token_tables  # noqa: F401  # their tables are in the same metadata
from services.registry.tables import Table

run_migrations(Table.metadata)
