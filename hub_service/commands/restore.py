"""Make the state that was backed up, in an empty folder and an empty database.

Stop the Hub first. SQLite or PostgreSQL, a folder or S3: the backup does not care where it came from. With --check,
nothing is written: every byte of the file is compared with its manifest, and its audit log is verified.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from hub_service.backup import checked, require_empty, restore
from hub_service.settings import StateSettings
from hub_service.store.sql import SqlStore

SUMMARY = "make the state that was backed up, or only --check the file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FILE", help="from `backup`")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.set_defaults(needs_state=lambda said: not said.check)


def run(arguments: argparse.Namespace, settings: StateSettings) -> int:
    if not arguments.check:
        require_empty(settings.state_dir)  # before a large file is read
    with checked(arguments.source) as backup:
        manifest = backup.manifest
        if not arguments.check:
            restore(
                backup,
                settings.state_dir,
                settings.database_url,
                settings.artifacts.opened,
                lambda: SqlStore(settings.database_url),
                lambda: datetime.now(UTC),
            )
    done = "is whole" if arguments.check else f"is restored to {settings.state_dir}"
    sys.stdout.write(f"The backup of {manifest.made_at} {done}: {len(manifest.files)} files.\n")
    if manifest.missing:
        sys.stderr.write(f"These were missing when it was made: {', '.join(manifest.missing)}\n")
    return 0
