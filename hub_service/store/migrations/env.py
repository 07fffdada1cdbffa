"""Run by Alembic, with the connection that `hub_service.store.migrating` hands it; never from a shell."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext

from hub_service.store import tables
from hub_service.store.migrating import CONNECTION, VERSION_TABLE


def _as_the_database_has_it(kind: str, item: Any, _: AutogenContext) -> str | Literal[False]:
    """A revision names no class of ours: what it creates is what was created then."""
    return "sa.DateTime()" if kind == "type" and isinstance(item, tables.UtcDateTime) else False


connection = context.config.attributes[CONNECTION]
context.configure(
    connection=connection,
    target_metadata=tables.metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
    # SQLite cannot change a column: the table is made anew and filled from the old one.
    render_as_batch=connection.dialect.name == "sqlite",
    render_item=_as_the_database_has_it,
)
with context.begin_transaction():
    context.run_migrations()
