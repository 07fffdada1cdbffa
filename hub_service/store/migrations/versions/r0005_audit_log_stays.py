"""The database itself refuses to change or remove a line of the audit log."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"

_REASON = "lines of the audit log are never changed or removed"


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_lines_stay_{change.lower()} BEFORE {change} ON audit_lines "
                f"BEGIN SELECT RAISE(ABORT, '{_REASON}'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION audit_lines_stay() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_REASON}'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_lines_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_lines "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_lines_stay()"
    )
