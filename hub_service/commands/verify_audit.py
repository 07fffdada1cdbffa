"""Check the audit log's chain of hashes: the database's, or that of an exported file.

A line that was changed, removed or moved is named. Lines that are missing at the end are found with --expect, by the
last hash that an export said. The service may run meanwhile.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from hub_service.audit import GENESIS, Fault, fault, fault_in_part, imported
from hub_service.commands.opened import opened_store
from hub_service.domain.errors import Invalid
from hub_service.settings import StateSettings
from hub_service.store.base import AuditLine

SUMMARY = "check that nobody has changed the audit log"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, nargs="?", metavar="FILE", help="an export; otherwise the database")
    parser.add_argument("--expect", metavar="HASH", help="of the last line")
    parser.add_argument(
        "--part", action="store_true", help="the file holds one project's lines: some between them are missing"
    )
    parser.set_defaults(needs_state=lambda said: said.source is None)


def run(arguments: argparse.Namespace, settings: StateSettings) -> int:
    lines = list(_stored(settings) if arguments.source is None else _in_file(arguments.source))
    found = fault_in_part(lines) if arguments.part else fault(lines)
    head = lines[-1].hash if lines else GENESIS
    if found is None and arguments.expect and arguments.expect != head:
        found = Fault(
            lines[-1].sequence + 1 if lines else 1, f"it may be missing: the last hash is {head}, another is expected"
        )
    if found is not None:
        sys.stderr.write(f"The audit log is not whole. Line {found.sequence}: {found.reason}.\n")
        return 1
    sys.stdout.write(f"{len(lines)} lines, all as they were written. The last hash is {head}\n")
    return 0


def _stored(settings: StateSettings) -> Iterable[AuditLine]:
    try:
        with opened_store(settings, reads_only=True) as store:
            return store.audit_lines()
    except (ValueError, TypeError) as error:
        raise Invalid("The database holds an audit line that cannot be read.", "Restore a backup.") from error


def _in_file(path: Path) -> Iterator[AuditLine]:
    try:
        # Byte by byte as it is: no other line ends, nothing that is replaced.
        with path.open(encoding="ascii", newline="\n") as file:
            yield from imported(file)
    except UnicodeDecodeError as error:
        raise Invalid(f"{path} is no export: it holds bytes that none has.", "Export the audit log again.") from error
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}.") from error
