"""What is looked up of the service when its metrics are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from federator.contract import ClientState, RunStatus

from hub_service.machinery import Disk


@dataclass(frozen=True, slots=True)
class Figures:
    """See `hub_service.metrics`, which gives each a name.

    Attributes:
        runs: of runs in flight, by status.
        clients: number of active participations by (site, state of the client).
        traffic: bytes by (site, direction), "in" to the site and "out" of it, since the service started.
        aggregators: that run now; None where it cannot be told.
        orphans: of them, those whose project has no run in flight.
        notices: that wait to be sent.
        undelivered: notices that were given up.
        disk: of the service's state.
        followers: pages and notebooks that are shown each change as it happens.
        tasks: by name of a background task, whether it runs.
    """

    runs: Mapping[RunStatus, int] = field(default_factory=dict)
    clients: Mapping[tuple[str, ClientState], int] = field(default_factory=dict)
    traffic: Mapping[tuple[str, str], int] = field(default_factory=dict)
    aggregators: int | None = None
    orphans: int = 0
    notices: int = 0
    undelivered: int = 0
    disk: Disk = field(default_factory=Disk)
    followers: int = 0
    tasks: Mapping[str, bool] = field(default_factory=dict)
