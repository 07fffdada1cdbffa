"""Write everything that the service keeps into one file, while it runs or not.

The file holds the database, apps, models and the service's keys, and is readable by its owner only: keep it as safe as
the state itself. `restore --check` tells whether a copy of it is still whole.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from hub_service.backup import back_up
from hub_service.commands.files import new_private_file
from hub_service.settings import StateSettings

SUMMARY = "write everything that the service keeps into one file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="FILE", help="such as federation.tar; must not be there yet")


def run(arguments: argparse.Namespace, settings: StateSettings) -> int:
    artifacts = settings.artifacts.opened(settings.state_dir)
    with new_private_file(arguments.target) as file:
        made = back_up(file, settings.database_url, artifacts, settings.state_dir, datetime.now(UTC))
    megabytes = sum(entry.size for entry in made.files.values()) / 1e6
    sys.stdout.write(
        f"{arguments.target}: {len(made.files)} files, {megabytes:.1f} MB. The audit log has {made.audit_lines} lines; "
        f"the last hash is {made.audit_head}\n"
    )
    if made.missing:
        sys.stderr.write(f"Missing or damaged, and not in it: {', '.join(made.missing)}\n")
        return 1
    return 0
