"""What a project's runs do when a site is lost, and how often a run was begun anew."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    # As projects and runs were before there was a choice.
    for table in ("projects", "runs"):
        op.add_column(table, sa.Column("on_outage", sa.String(length=16), nullable=False, server_default="wait"))
        op.add_column(table, sa.Column("grace_s", sa.Float(), nullable=False, server_default="120"))
    op.add_column("runs", sa.Column("resumed", sa.Integer(), nullable=False, server_default="0"))
    op.execute("UPDATE schema_version SET version = 4")  # an older service refuses the database from now on
