"""The tables of the SQL store, in SQLAlchemy Core. `docs` of what they hold: `hub_service.domain` and `store.base`.

`place` columns keep the order in which rows were first put. Lists and maps are JSON: nothing looks inside them.

Every change here needs a revision in `migrations/versions`: CONTRIBUTING.md says how to write one, and
`tests/contract/test_migrations.py` that it agrees.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)


class UtcDateTime(TypeDecorator[datetime]):
    """A time with its zone. Kept in UTC without one: SQLite has no zones."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


# SQLite's integers have 64 bits and its texts any length, whatever a column says; PostgreSQL means what it says.
Whole = BigInteger().with_variant(Integer(), "sqlite")  # counts of bytes, and numbers that an app's own code reports
Label = Text().with_variant(String(16), "sqlite")  # words of an app's own code

metadata = MetaData()


def _place() -> Column[int]:
    return Column("place", Integer, primary_key=True, autoincrement=True)


def _project_id() -> Column[str]:
    return Column("project_id", ForeignKey("projects.id"), nullable=False, index=True)


# One row, which says 4 for good: services of before Alembic look here, and refuse what they do not know.
schema = Table("schema_version", metadata, Column("version", Integer, primary_key=True))

projects = Table(
    "projects",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("on_outage", String(16), nullable=False),
    Column("grace_s", Float, nullable=False),
)

members = Table(
    "members",
    metadata,
    _place(),
    _project_id(),
    Column("user", Text, nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("invited_by", Text, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    UniqueConstraint("project_id", "user"),
)

app_versions = Table(
    "app_versions",
    metadata,
    _place(),
    _project_id(),
    Column("number", Integer, nullable=False),
    Column("fab_hash", String(64), nullable=False),
    Column("title", Text, nullable=False),
    Column("source", String(16), nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("size", Whole, nullable=False),
    Column("cells", JSON, nullable=False),
    Column("files", JSON, nullable=False),
    Column("imports", JSON, nullable=False),
    Column("config_keys", JSON, nullable=False),
    UniqueConstraint("project_id", "fab_hash"),
    UniqueConstraint("project_id", "number"),
)

participations = Table(
    "participations",
    metadata,
    _place(),
    Column("id", String(64), nullable=False, unique=True),
    _project_id(),
    Column("user", Text, nullable=False, index=True),
    Column("site", Text, nullable=False, index=True),
    Column("dataset", Text, nullable=False),
    Column("kernel_id", String(64), nullable=False),
    Column("active", Boolean, nullable=False),
    Column("public_key", LargeBinary, nullable=True),
    # A SuperLink's node ids have 64 bits without a sign, more than SQL's integers hold.
    Column("node_id", String(20), nullable=True),
    Column("client", String(16), nullable=False),
    Column("client_detail", Text, nullable=False),
    Column("joined_at", UtcDateTime, nullable=False),
    Column("key_by", Text, nullable=False),
    Column("key_at", UtcDateTime, nullable=True),
    Index("participations_by_key", "public_key"),
)

approvals = Table(
    "approvals",
    metadata,
    _place(),
    _project_id(),
    Column("fab_hash", String(64), nullable=False),
    Column("site", Text, nullable=False),
    Column("dataset", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("steward", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("decided_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=True),
    Column("conditions", JSON, nullable=False),
    Column("first_steward", Text, nullable=False),
    UniqueConstraint("project_id", "fab_hash", "site", "dataset"),
)

runs = Table(
    "runs",
    metadata,
    _place(),
    Column("id", String(64), nullable=False, unique=True),
    _project_id(),
    Column("number", Integer, nullable=False),
    Column("fab_hash", String(64), nullable=False),
    Column("rounds", Integer, nullable=False),
    Column("compare", Boolean, nullable=False),
    Column("target", String(16), nullable=False),
    Column("status", String(16), nullable=False, index=True),
    Column("phase", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("started_by", Text, nullable=False),
    Column("sites", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime, nullable=True),
    Column("model_sha256", String(64), nullable=False),
    Column("model_size", Whole, nullable=False),
    Column("model_round", Whole, nullable=False),
    Column("round", Whole, nullable=False),
    Column("nodes", JSON, nullable=False),
    Column("seed", Whole, nullable=True),
    Column("models", JSON, nullable=False),
    Column("on_outage", String(16), nullable=False),
    Column("grace_s", Float, nullable=False),
    Column("resumed", Integer, nullable=False),
    UniqueConstraint("project_id", "number"),
)

run_events = Table(
    "run_events",
    metadata,
    _place(),
    Column("run_id", ForeignKey("runs.id"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("at", Float, nullable=False),
    Column("phase", Label, nullable=False),
    Column("round", Whole, nullable=False),
    Column("message_type", Label, nullable=False),
    Column("node_id", String(20), nullable=False),
    Column("model", Text, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("examples", Whole, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("size", Whole, nullable=False),
    Column("text", Text, nullable=False),
    Column("counts", JSON, nullable=False),
)

site_packages = Table(
    "site_packages",
    metadata,
    _place(),
    Column("site", Text, nullable=False, unique=True),
    Column("distributions", JSON, nullable=False),
    Column("modules", JSON, nullable=False),
    Column("reported_by", Text, nullable=False),
    Column("reported_at", UtcDateTime, nullable=False),
)

audit_lines = Table(
    "audit_lines",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", String(32), nullable=False),
    Column("project_id", Text, nullable=False, index=True),
    Column("detail", JSON, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
)
