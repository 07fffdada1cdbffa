"""`python -m hub_service`: started by the Hub, with its settings in the environment."""

from __future__ import annotations

import asyncio
import os
import sys

from hub_service import app
from hub_service.domain.errors import FederationError
from hub_service.settings import Settings


def main() -> int:
    app.set_up_logging()
    try:
        asyncio.run(app.serve(Settings.from_environment(os.environ)))
    except FederationError as error:
        sys.stderr.write(f"The federation service cannot start. {error.message} {error.next_step} {error.debug}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
