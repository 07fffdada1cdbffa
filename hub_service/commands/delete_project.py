"""Delete a project that its owner cannot delete any more. While the service runs, its pages and API do that.

All that the service keeps of the project goes, but for the lines of the audit log. Without --yes, it is only said what
that is.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import UTC, datetime

from hub_service.app import aggregators_of
from hub_service.artifacts import Artifacts
from hub_service.audit import AuditLog
from hub_service.changes import Changes
from hub_service.commands.opened import opened_store
from hub_service.deletion import contents_of, delete
from hub_service.domain.errors import NotFound
from hub_service.settings import StateSettings
from hub_service.store.base import Store
from hub_service.sweeper import Sweeper

SUMMARY = "delete a project and all that is kept of it"

_ACTOR = "the Hub's administrator"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", metavar="ID", help="as in the address of the project's page")
    parser.add_argument("--yes", action="store_true", help="delete it; this is for good")


def run(arguments: argparse.Namespace, settings: StateSettings) -> int:
    with opened_store(settings, reads_only=not arguments.yes) as store:
        project = store.project(arguments.project)
        if project is None:
            raise NotFound(f"There is no project {arguments.project}.", "Its id stands in the address of its page.")
        contents = contents_of(store, project)
        sys.stdout.write(
            f"{project.name}, owned by {project.owner}: {contents.versions} app versions, {contents.runs} runs, "
            f"{contents.models} models of {contents.model_bytes / 1e6:.1f} MB, {len(contents.sites)} sites.\n"
        )
        if not arguments.yes:
            sys.stdout.write("Nothing was deleted. With --yes, it will be.\n")
            return 0
        artifacts = settings.artifacts.opened(settings.state_dir)
        delete(contents, store, artifacts, AuditLog(store, _now), _ACTOR)
        asyncio.run(_sweep(store, artifacts, settings))
    sys.stdout.write("It is deleted.\n")
    return 0


async def _sweep(store: Store, artifacts: Artifacts, settings: StateSettings) -> None:
    backend = aggregators_of(settings.state_dir, settings.aggregator_engine)
    try:
        await backend.running()
        await Sweeper(store=store, artifacts=artifacts, backend=backend, changes=Changes(), clock=_now).sweep()
    finally:
        await backend.close()


def _now() -> datetime:
    return datetime.now(UTC)
