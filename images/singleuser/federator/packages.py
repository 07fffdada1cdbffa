"""What this server's image can import, told to the service once, so that nobody waits for a site that lacks something.

Names and versions of distributions and of their top-level modules; nothing of what they are used for.
"""

from __future__ import annotations

import asyncio
import csv
import random
from collections.abc import Callable, Iterator
from importlib import metadata
from logging import Logger
from typing import Any, TypeVar

from federator import service_client as api
from federator.delay import Delay

_Told = TypeVar("_Told")


def installed() -> dict[str, str]:
    """Version by name of each distribution."""
    found = _told_by_each(lambda one: (one.metadata["Name"], one.version))
    return {name: version for name, version in found if name and version}


def importable() -> tuple[str, ...]:
    """Top-level modules of all distributions, sorted."""
    names = set().union(*_told_by_each(_modules))
    return tuple(sorted(name for name in names if name.isidentifier()))


def _told_by_each(ask: Callable[[metadata.Distribution], _Told]) -> Iterator[_Told]:
    """What can be read: one distribution with files of another encoding must not hide all others."""
    for one in metadata.distributions():
        try:
            told = ask(one)
        except (OSError, ValueError, csv.Error):
            continue
        yield told


def _modules(one: metadata.Distribution) -> set[str]:
    """As `metadata.packages_distributions` finds them."""
    declared = (one.read_text("top_level.txt") or "").split()
    files = (file for file in one.files or () if file.suffix == ".py")
    return set(declared) or {file.parts[0] if len(file.parts) > 1 else file.stem for file in files}


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
