"""What the Hub's administrator does at a shell: `python -m hub_service <command>`. Without a command, the service runs.

A command is a module with `SUMMARY`, `add_arguments` and `run`; `COMMANDS` names them all. Where the state lies is in
the same environment as the service's, or in the options that every command has.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Protocol

from hub_service.commands import backup, delete_project, end_aggregators, export_audit, migrate, restore, verify_audit
from hub_service.settings import STATE_DIR, StateSettings


class Command(Protocol):
    """One command, as its module offers it."""

    SUMMARY: str
    """One line, for the list of commands."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add what only this command takes. One that can do without a state sets `needs_state`, which is asked."""

    def run(self, arguments: argparse.Namespace, settings: StateSettings) -> int:
        """Do it; write what came of it to standard output. Returns the exit status.

        Raises FederationError, which `main` of the package tells on standard error.
        """


COMMANDS: Mapping[str, Command] = {
    "end-aggregators": end_aggregators,
    "backup": backup,
    "restore": restore,
    "migrate": migrate,
    "delete-project": delete_project,
    "export-audit": export_audit,
    "verify-audit": verify_audit,
}

_DESCRIPTION = """\
The federation service of a JupyterHub.

Without a command it serves, as the Hub starts it. With one it looks after the service's state: its database, its
apps and models, and its keys."""

_EPILOG = """\
Where the state lies, a command learns from the same variables as the service (FEDERATION_STATE_DIR and its like) or
from its options. With a deployment file at hand, this is shorter:

  python -m spawner.admin --config deployment.toml service backup federation.tar

docs/state.md tells more."""


def run(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Parse and run one command. Called by `hub_service.__main__`.

    Raises SystemExit, as argparse does, for what cannot be parsed; FederationError as the command.
    """
    parser = argparse.ArgumentParser(
        prog="python -m hub_service",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    offered = parser.add_subparsers(title="commands", metavar="<command>", required=True)
    for name, command in COMMANDS.items():
        own = offered.add_parser(
            name,
            help=command.SUMMARY,
            description=command.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        own.set_defaults(needs_state=lambda said: True)
        command.add_arguments(own)
        own.add_argument("--state-dir", metavar="FOLDER", help=f"the service's own folder; otherwise {STATE_DIR}")
        own.set_defaults(command=command)
    said = parser.parse_args(arguments)
    told = {STATE_DIR: said.state_dir} if said.state_dir else {}
    if not said.needs_state(said):
        told.setdefault(STATE_DIR, ".")
    settings = StateSettings.from_environment({**environment, **told})
    status: int = said.command.run(said, settings)
    return status
