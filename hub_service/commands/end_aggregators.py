"""End every aggregator. A service that was stopped leaves them running, so that the next one goes on with their runs.

For a Hub that is not to come back, or not soon. Where the service starts again, it begins anew, at their last finished
round, those runs that have not ended. The service must not run meanwhile: it would do so at once.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from hub_service.app import aggregators_of
from hub_service.settings import StateSettings

SUMMARY = "end the aggregators that a stopped service has left running"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes nothing more than every command does."""
    del parser


def run(arguments: argparse.Namespace, settings: StateSettings) -> int:
    del arguments
    ended = asyncio.run(_end(settings))
    sys.stdout.write(f"{ended} aggregators ended.\n")
    return 0


async def _end(settings: StateSettings) -> int:
    backend = aggregators_of(settings.state_dir, settings.aggregator_engine)
    try:
        running = await backend.running()
        for project_id in running:
            await backend.stop(project_id)
        return len(running)
    finally:
        await backend.close()
