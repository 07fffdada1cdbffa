"""`python -m hub_service`: started by the Hub, with its settings in the environment; with a command, run by hand."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from hub_service import app, commands
from hub_service.domain.errors import FederationError
from hub_service.keeper import end_with, keepers_id
from hub_service.settings import Settings, log_format


def main(arguments: Sequence[str] = ()) -> int:
    """Serve, or run the command that the arguments name. Returns the exit status."""
    return _command(arguments) if arguments else _serve()


def _serve() -> int:
    try:
        end_with(keepers_id(os.environ))
        app.set_up_logging(log_format(os.environ))
        settings = Settings.from_environment(os.environ)
        asyncio.run(app.serve(settings))
    except FederationError as error:
        _tell(f"The federation service cannot start. {error.message} {error.next_step} {error.debug}")
        return 1
    return 0


def _command(arguments: Sequence[str]) -> int:
    try:
        return commands.run(arguments, os.environ)
    except FederationError as error:
        _tell(f"{error.message} {error.next_step} {error.debug}")
        return 1


def _tell(text: str) -> None:
    sys.stderr.write(f"{text.strip()}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
