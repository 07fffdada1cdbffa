"""Bring the service's database to the schema of this version. The service does so itself when it starts.

With --check nothing is changed, and the service may run meanwhile: the exit status is 1 where the database must be
brought up to date, and 0 where it need not. Without it, end the service first. An SQLite file is copied before.
"""

from __future__ import annotations

import argparse
import sys

from hub_service.settings import StateSettings
from hub_service.store import migrating
from hub_service.store.database import Database

SUMMARY = "bring the database to this version's schema"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="only say whether it is needed")


def run(arguments: argparse.Namespace, settings: StateSettings) -> int:
    if arguments.check:
        return _check(settings.database_url)
    database = Database(settings.database_url)
    try:
        done = migrating.upgrade(database)
    finally:
        database.close()
    if done is None:
        said = f"The database has revision {migrating.newest()} already. Nothing was changed."
    elif not done.before:
        said = f"The database was empty. It has revision {done.after} now."
    else:
        kept = f" As it was, it is in {done.copy}." if done.copy else ""
        said = f"The database had revision {done.before}, and has {done.after} now.{kept}"
    sys.stdout.write(f"{said}\n")
    return 0


def _check(url: str) -> int:
    found, needed = migrating.check(url)
    if found == needed:
        sys.stdout.write(f"The database has revision {needed}, as this version of the service needs it.\n")
        return 0
    sys.stdout.write(f"The database has revision {found or 'none'}; this version of the service needs {needed}.\n")
    return 1
