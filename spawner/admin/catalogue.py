"""The sites that the Hub runs with, beside what its files say: a new one waits there for the Hub's next start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from spawner.admin.certificates import ENGINES_FOLDER, bundle_in
from spawner.admin.steps import Step, after_adding
from spawner.deployment import Deployment, DeploymentError, load
from spawner.sites import DockerSite, Site
from spawner.tables import Problem


class State(StrEnum):
    """How the Hub that runs and its files agree on a site."""

    IN_USE = "in use"
    NEW = "waits for the Hub's restart"
    CHANGED = "changed; in force after the Hub's restart"
    REMOVED = "taken out; gone after the Hub's restart"


@dataclass(frozen=True, slots=True)
class Entry:
    """A site, as the files say or else as the Hub runs it. `steps` lead to a new one's first server."""

    slug: str
    site: Site
    state: State
    steps: Sequence[Step] = ()


@dataclass(frozen=True, slots=True)
class Listing:
    """All sites. `problems` are what keeps the files from being read: the Hub would not start again with them."""

    entries: Sequence[Entry]
    problems: Sequence[Problem] = ()


def listing(running: Deployment, config: Path) -> Listing:
    """Compare the two; called by the Hub's page, in a thread, since it reads files.

    Args:
        running: what the Hub was started with.
        config: the deployment file.
    """
    try:
        files = load(config)
    except DeploymentError as error:
        entries = [Entry(slug, site, State.IN_USE) for slug, site in running.sites.items()]
        return Listing(entries, error.problems)
    sites = {**running.sites, **files.sites}
    return Listing([_entry(slug, site, running, files, config) for slug, site in sites.items()])


def _entry(slug: str, site: Site, running: Deployment, files: Deployment, config: Path) -> Entry:
    if slug not in files.sites:
        return Entry(slug, site, State.REMOVED)
    if slug in running.sites:
        return Entry(slug, site, State.IN_USE if running.sites[slug] == site else State.CHANGED)
    if not isinstance(site, DockerSite):
        return Entry(slug, site, State.NEW)
    bundle = bundle_in(config.resolve().with_name(ENGINES_FOLDER), slug)
    return Entry(slug, site, State.NEW, after_adding(slug, site, files.hub, bundle if bundle.exists() else None))
