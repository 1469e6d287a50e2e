"""Contents, quotas, uploads, tokens, base models, tags, signatures, and deletion that can be undone.

Versions from before get the manifest that their digest was computed from, and no signatures. Their contents stay under
the keys that they have. Requests from before are forgotten: the answers that a retry would get were not kept.

Downgrading removes what is deleted, and is refused while a content lies under a key that the older registry would not
look for.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ADAPTER = ("tenant", "adapter_id")
_VERSION = (*_ADAPTER, "number")


def _table(name: str, *columns: str) -> sa.TableClause:
    return sa.table(name, *map(sa.column, columns), *([sa.column("metrics", sa.JSON)] if name == "versions" else []))


_files = _table("files", *_VERSION, "path", "size_bytes", "sha256")
_TEXTS = ("manifest", "base_model", "base_model_digest", "method", "instance_prompt", "source_job")
_versions = _table("versions", *_VERSION, *_TEXTS)
_metrics = _table("metrics", *_VERSION, "name", "value")
_blobs = _table("blobs", "sha256", "size_bytes", "object_key", "create_time", "scrub_time")


def upgrade() -> None:
    """Adds the tables and columns, filled for what is there."""
    _create_content_tables()
    _create_upload_tables()
    _create_other_tables()
    _widen_adapters()
    _widen_versions()
    _create_version_tables()
    _fill_versions()
    _fill_contents()
    with op.batch_alter_table("versions") as table:
        table.drop_column("metrics")
        for name in ("manifest", "signatures", "family", "weights"):
            table.alter_column(name, server_default=None)
    with op.batch_alter_table("files") as table:
        table.create_foreign_key("files_sha256_fkey", "blobs", ["sha256"], ["sha256"])
        table.drop_index("files_by_content")
        table.create_index("files_by_content", ["sha256", "tenant"])
    op.create_index("aliases_by_version", "aliases", [*_VERSION])
    _set_collation("C")  # text is in the order of its code points, as on SQLite, whatever the database's locale


def _create_content_tables() -> None:
    op.create_table(
        "blobs",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("object_key", sa.String(255), nullable=False),
        _time("create_time"),
        _time("unreferenced_time", nullable=True),
        _time("scrub_time"),
        _time("rot_time", nullable=True),
    )
    op.create_index("blobs_unreferenced", "blobs", ["unreferenced_time"])
    op.create_index("blobs_by_scrub", "blobs", ["scrub_time"])
    op.create_index("blobs_by_key", "blobs", ["object_key"])
    op.create_table(
        "tenants",
        *_key("tenant"),
        sa.Column("stored_bytes", sa.BigInteger, nullable=False),
        sa.Column("version_count", sa.BigInteger, nullable=False),
        sa.Column("max_stored_bytes", sa.BigInteger),
        sa.Column("max_versions", sa.BigInteger),
    )
    op.create_table(
        "tenant_blobs",
        *_key("tenant"),
        sa.Column("sha256", sa.String(64), sa.ForeignKey("blobs.sha256"), primary_key=True),
        sa.Column("file_count", sa.Integer, nullable=False),
    )


def _create_upload_tables() -> None:
    op.create_table(
        "uploads",
        *_key("tenant", "upload_id"),
        sa.Column("request", sa.LargeBinary, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        _time("create_time"),
        _time("expire_time"),
    )
    op.create_index("uploads_by_expire_time", "uploads", ["expire_time"])
    op.create_table(
        "upload_parts",
        *_key("tenant", "upload_id"),
        sa.Column("path", sa.String(200), primary_key=True),
        sa.Column("offset_bytes", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("object_key", sa.String(255), nullable=False),
        sa.ForeignKeyConstraint(["tenant", "upload_id"], ["uploads.tenant", "uploads.upload_id"], ondelete="CASCADE"),
    )


def _create_other_tables() -> None:
    op.create_table(
        "tokens",
        *_key("tenant", "token_id"),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("description", sa.String(200), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("old_secret_sha256", sa.String(64)),
        _time("old_expire_time", nullable=True),
        _time("create_time"),
        _time("rotate_time"),
        _time("expire_time"),
    )
    op.create_index("tokens_by_secret", "tokens", ["secret_sha256"], unique=True)
    op.create_index("tokens_by_old_secret", "tokens", ["old_secret_sha256"])
    op.create_table(
        "base_models",
        sa.Column("digest", sa.String(71), primary_key=True),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("family", sa.String(63), nullable=False),
        sa.Column("components", sa.JSON, nullable=False),
        _time("create_time"),
    )
    op.drop_table("requests")
    op.create_table(
        "requests", *_request_key(), sa.Column("answer", sa.LargeBinary, nullable=False), _time("create_time")
    )
    op.create_index("requests_by_time", "requests", ["create_time"])


def _widen_adapters() -> None:
    with op.batch_alter_table("adapters") as table:
        for name in ("last_number", "keep_last"):
            table.add_column(sa.Column(name, sa.Integer, nullable=False, server_default="0"))
        table.add_column(sa.Column("keep_younger_than", sa.Interval))
        _add_deletion(table)
        table.create_index("adapters_by_time", ["tenant", "create_time", "adapter_id"])
        table.create_index("adapters_by_purge_time", ["purge_time"])
    op.execute("UPDATE adapters SET last_number = latest_number")
    with op.batch_alter_table("adapters") as table:
        for name in ("last_number", "keep_last"):
            table.alter_column(name, server_default=None)


def _widen_versions() -> None:
    with op.batch_alter_table("versions") as table:
        table.alter_column("base_model", type_=sa.String(200), existing_type=sa.Text, existing_nullable=False)
        table.add_column(sa.Column("manifest", sa.Text, nullable=False, server_default=""))
        table.add_column(sa.Column("family", sa.String(63), nullable=False, server_default=""))
        for name in ("signatures", "weights"):
            table.add_column(sa.Column(name, sa.JSON, nullable=False, server_default="[]"))
        _add_deletion(table)
        table.create_index("versions_by_time", ["tenant", "create_time", *_VERSION[1:]])
        for index, column in (("base_model", "base_model"), ("base_digest", "base_model_digest")):
            table.create_index(f"versions_by_{index}", [column, "tenant", "create_time", *_VERSION[1:]])
        table.create_index("versions_by_source_job", ["tenant", "source_job"])
        table.create_index("versions_by_purge_time", ["purge_time"])


def _create_version_tables() -> None:
    op.create_table(
        "metrics",
        *_version_key(),
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("value", sa.Double, nullable=False),
        _refers_to("versions", _VERSION),
    )
    op.create_index("metrics_by_value", "metrics", ["name", "tenant", "value", "adapter_id", "number"])
    op.create_table(
        "trigger_words",
        *_version_key(),
        sa.Column("word", sa.String(100), primary_key=True),
        _refers_to("versions", _VERSION),
    )
    op.create_index("trigger_words_by_word", "trigger_words", ["word", "tenant", "adapter_id", "number"])
    op.create_table("tags", *_key(*_ADAPTER, "tag"), _refers_to("adapters", _ADAPTER))
    op.create_index("tags_by_tag", "tags", ["tag", "tenant", "adapter_id"])
    op.create_table(
        "alias_moves",
        sa.Column("id", sa.Integer, primary_key=True),
        *(sa.Column(name, sa.String(63), nullable=False) for name in (*_ADAPTER, "alias_id")),
        sa.Column("old_number", sa.Integer),
        sa.Column("new_number", sa.Integer),
        sa.Column("subject", sa.String(255), nullable=False),
        _time("move_time"),
        _refers_to("adapters", _ADAPTER),
    )
    op.create_index("alias_moves_by_adapter", "alias_moves", [*_ADAPTER, "id"])


def _fill_versions() -> None:
    """Writes every version's manifest, and its metrics as rows."""
    connection = op.get_bind()
    files = defaultdict(list)
    for file in connection.execute(sa.select(_files)):
        files[file.tenant, file.adapter_id, file.number].append(file)
    for version in connection.execute(sa.select(_versions)).all():
        key = dict(zip(_VERSION, (version.tenant, version.adapter_id, version.number), strict=True))
        text = _manifest(version, files[tuple(key.values())])
        connection.execute(_versions.update().where(_is(key.values())).values(manifest=text))
        rows = [{**key, "name": name, "value": float(value)} for name, value in version.metrics.items()]
        if rows:
            connection.execute(_metrics.insert(), rows)


def _manifest(version: sa.Row[Any], files: list[sa.Row[Any]]) -> str:
    """As atelier.manifest wrote it when the version was published."""
    manifest = {
        "format": "atelier.adapter/v1",
        "base_model": {"model": version.base_model, "digest": version.base_model_digest},
        "method": version.method,
        "instance_prompt": version.instance_prompt,
        "files": [
            {"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}
            for file in sorted(files, key=lambda file: file.path)  # by code points, whatever the database's collation
        ],
        "metrics": {name: float(value) for name, value in version.metrics.items()},
        "source_job": version.source_job,
    }
    return json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _fill_contents() -> None:
    """Writes who has which contents, and how many bytes and versions that makes."""
    now = datetime.now(UTC)
    key = sa.literal("sha256/") + sa.func.substr(_files.c.sha256, 1, 2) + "/" + _files.c.sha256
    times = sa.literal(now, sa.DateTime(timezone=True))
    distinct = sa.select(_files.c.sha256, sa.func.max(_files.c.size_bytes), key, times, times).group_by(_files.c.sha256)
    op.execute(
        _blobs.insert().from_select(["sha256", "size_bytes", "object_key", "create_time", "scrub_time"], distinct)
    )
    op.execute(
        "INSERT INTO tenant_blobs (tenant, sha256, file_count) "
        "SELECT tenant, sha256, count(*) FROM files GROUP BY tenant, sha256"
    )
    op.execute(
        "INSERT INTO tenants (tenant, stored_bytes, version_count) SELECT tenant, "
        "(SELECT coalesce(sum(size_bytes), 0) FROM tenant_blobs JOIN blobs USING (sha256)"
        " WHERE tenant_blobs.tenant = versions.tenant), count(*) FROM versions GROUP BY tenant"
    )


def _set_collation(collation: str) -> None:
    """Of all text, on PostgreSQL."""
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    query = (
        "SELECT relname, attname, format_type(atttypid, atttypmod) FROM pg_attribute JOIN pg_class ON "
        "attrelid = pg_class.oid WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace AND attnum > 0 "
        "AND NOT attisdropped AND attcollation <> 0 AND relname <> 'alembic_version' ORDER BY relname, attnum"
    )
    for table, columns in groupby(connection.execute(sa.text(query)).all(), key=lambda column: column[0]):
        changes = (f'ALTER COLUMN {name} TYPE {kind} COLLATE "{collation}"' for _, name, kind in columns)
        op.execute(f"ALTER TABLE {table} {', '.join(changes)}")


def downgrade() -> None:
    """Goes back to the first tables."""
    connection = op.get_bind()
    if connection.scalar(sa.select(_blobs.c.object_key).where(_blobs.c.object_key.not_like("sha256/%")).limit(1)):
        raise RuntimeError(
            "there are contents under registry/blobs/, where revision 0001 does not look: copy each object to "
            "sha256/<first two digits>/<SHA-256> and set blobs.object_key, then downgrade again"
        )
    _remove_deleted()
    op.drop_index("aliases_by_version", "aliases")
    with op.batch_alter_table("files") as table:
        table.drop_constraint("files_sha256_fkey", type_="foreignkey")
        table.drop_index("files_by_content")
        table.create_index("files_by_content", ["tenant", "sha256"])
    _narrow_versions()
    for table_name in ("metrics", "trigger_words", "tags", "alias_moves", "tenant_blobs", "blobs", "tenants"):
        op.drop_table(table_name)
    for table_name in ("upload_parts", "uploads", "tokens", "base_models", "requests"):
        op.drop_table(table_name)
    _narrow_adapters()
    op.create_table(
        "requests",
        *_request_key(),
        sa.Column("resource_name", sa.String(255), nullable=False),
        _time("create_time"),
    )
    _set_collation("default")


def _remove_deleted() -> None:
    """Removes for good what revision 0001 would show as if it were not deleted."""
    gone = (
        "(SELECT v.tenant, v.adapter_id, v.number FROM versions v JOIN adapters a USING (tenant, adapter_id) "
        "WHERE v.delete_time IS NOT NULL OR a.delete_time IS NOT NULL)"
    )
    for table in ("aliases", "files", "metrics", "trigger_words", "versions"):
        op.execute(f"DELETE FROM {table} WHERE (tenant, adapter_id, number) IN {gone}")
    gone = "(SELECT tenant, adapter_id FROM adapters WHERE delete_time IS NOT NULL)"
    for table in ("alias_moves", "tags", "adapters"):
        op.execute(f"DELETE FROM {table} WHERE (tenant, adapter_id) IN {gone}")


def _narrow_versions() -> None:
    connection = op.get_bind()
    with op.batch_alter_table("versions") as table:
        table.add_column(sa.Column("metrics", sa.JSON, nullable=False, server_default="{}"))
    scores: dict[tuple[Any, ...], dict[str, float]] = defaultdict(dict)
    for tenant, adapter_id, number, name, value in connection.execute(sa.select(_metrics)):
        scores[tenant, adapter_id, number][name] = value
    for key, metrics in scores.items():
        connection.execute(_versions.update().where(_is(key)).values(metrics=metrics))
    with op.batch_alter_table("versions") as table:
        for name in ("by_time", "by_base_model", "by_base_digest", "by_source_job", "by_purge_time"):
            table.drop_index(f"versions_{name}")
        for name in ("manifest", "signatures", "family", "weights", "delete_time", "purge_time"):
            table.drop_column(name)
        table.alter_column("metrics", server_default=None)
        table.alter_column("base_model", type_=sa.Text, existing_type=sa.String(200), existing_nullable=False)


def _narrow_adapters() -> None:
    with op.batch_alter_table("adapters") as table:
        for name in ("by_time", "by_purge_time"):
            table.drop_index(f"adapters_{name}")
        for name in ("last_number", "keep_last", "keep_younger_than", "delete_time", "purge_time"):
            table.drop_column(name)


def _add_deletion(table: Any) -> None:
    for name in ("delete_time", "purge_time"):
        table.add_column(_time(name, nullable=True))


def _is(key: Iterable[Any]) -> sa.ColumnElement[bool]:
    return sa.and_(*(_versions.c[name] == value for name, value in zip(_VERSION, key, strict=True)))


def _key(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(63), primary_key=True) for name in names]


def _version_key() -> list[sa.Column[Any]]:
    return [*_key(*_ADAPTER), sa.Column("number", sa.Integer, primary_key=True, autoincrement=False)]


def _request_key() -> list[sa.Column[str]]:
    fingerprint = sa.Column("fingerprint", sa.String(64), nullable=False)
    return [*_key("tenant"), sa.Column("request_id", sa.String(36), primary_key=True), fingerprint]


def _refers_to(table: str, columns: tuple[str, ...]) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(columns, [f"{table}.{column}" for column in columns])


def _time(name: str, *, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)
