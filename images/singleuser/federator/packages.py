"""What this server's image can import, told to the service once, so that nobody waits for a site that lacks something.

Names and versions of distributions and of their top-level modules; nothing of what they are used for.
"""

from __future__ import annotations

import asyncio
import random
from importlib import metadata
from logging import Logger
from typing import Any

from federator import service_client as api
from federator.delay import Delay


def installed() -> dict[str, str]:
    """Version by name of each distribution."""
    found = ((one.metadata["Name"], one.version) for one in metadata.distributions())
    return {name: version for name, version in found if name and version}


def importable() -> tuple[str, ...]:
    """Top-level modules of all distributions, sorted."""
    return tuple(sorted(name for name in metadata.packages_distributions() if name.isidentifier()))


async def report_packages(service: api.AsyncServiceClient, log: Logger) -> None:
    """Tell the service, again and again until it has heard. Called by `federator.extension`, at the server's start."""
    # It reads some files of every package: not in the event loop.
    distributions, modules = await asyncio.gather(asyncio.to_thread(installed), asyncio.to_thread(importable))
    request: api.Request[Any] = api.report_packages(distributions, modules)
    delay = Delay(random.random)
    while True:
        try:
            await service.call(request)
        except api.Unreachable:
            await asyncio.sleep(delay.next())
        except api.ServiceError as refusal:
            log.warning("The service did not take the list of this server's packages: %s", refusal)
            return
        else:
            return
