"""`python -m hub_service`: started by the Hub, with its settings in the environment."""

from __future__ import annotations

import asyncio
import os
import sys

from hub_service import app
from hub_service.domain.errors import Invalid
from hub_service.settings import Settings


def main() -> int:
    app.set_up_logging()
    try:
        settings = Settings.from_environment(os.environ)
    except Invalid as error:
        sys.stderr.write(f"{error.message} {error.next_step}\n")
        return 2
    asyncio.run(app.serve(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
