"""Draft the next revision of the database: `.venv/bin/python -m scripts.revision "What it adds"`.

Alembic compares `hub_service/store/tables.py` with a new database that has all revisions so far, and writes the
difference. Read what it wrote: it knows no renamed column, and no value for a new one that must not be empty.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import cast

from alembic import command
from alembic.script import Script

from hub_service.store import migrating
from hub_service.store.database import Database

VERSIONS = Path(migrating.__file__).parent / "migrations" / "versions"


def draft(message: str, folder: Path = VERSIONS) -> Path:
    """Write a revision that follows the newest one; the file."""
    with tempfile.TemporaryDirectory() as scratch, closing(Database(f"sqlite:///{scratch}/new.db")) as database:
        migrating.upgrade(database)
        with database.transaction() as connection:
            config = migrating.alembic_config(connection)
            config.set_main_option("file_template", "r%%(rev)s_%%(slug)s")
            config.set_main_option("version_locations", f"{VERSIONS}\n{folder}".replace("%", "%%"))
            config.set_main_option("path_separator", "newline")
            number = f"{int(migrating.newest()) + 1:04d}"
            written = command.revision(
                config, message, autogenerate=True, rev_id=number, head="head", version_path=str(folder)
            )
    return Path(cast(Script, written).path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    sys.stdout.write(f"{draft(sys.argv[1])}\n")
