"""Write the audit log as JSON lines, and say its last hash.

Note that hash elsewhere: `verify-audit --expect HASH` then finds lines that are missing at the end, too. The service
may run meanwhile.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hub_service.audit import GENESIS, exported
from hub_service.commands.files import new_private_file
from hub_service.commands.opened import opened_store
from hub_service.settings import StateSettings

SUMMARY = "write the audit log as JSON lines"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, nargs="?", metavar="FILE", help="standard output, if none is named")
    parser.add_argument("--project", metavar="ID", help="the lines of this project only")


def run(arguments: argparse.Namespace, settings: StateSettings) -> int:
    with opened_store(settings, reads_only=True) as store:
        lines = store.audit_lines_of(arguments.project) if arguments.project else store.audit_lines()
    text = "".join(f"{exported(line)}\n" for line in lines)
    if arguments.target is None:
        sys.stdout.write(text)
    else:
        with new_private_file(arguments.target) as file:
            file.write(text.encode())
    sys.stderr.write(f"{len(lines)} lines; the last hash is {lines[-1].hash if lines else GENESIS}\n")
    return 0
