"""What a ServerApp process is to do, as a file in its run folder: the process starts before that is known.

Written by the backend for each process, read once by `serverapp.py`, before any code of the project's owner runs in it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from federator.contract import OutagePolicy

from hub_service.aggregators.base import ServerAppSpec
from hub_service.domain.projects import GRACE_S

PLAN_FILE = "plan.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """One ServerApp's run.

    Attributes:
        runtime_api_address: host:port of the SuperLink, as the ServerApp sees it.
        flower_run_id, nodes, wait_s, compare, on_outage, grace_s: as in `ServerAppSpec`.
    """

    runtime_api_address: str
    flower_run_id: int
    nodes: tuple[int, ...]
    wait_s: float
    compare: bool
    on_outage: OutagePolicy = OutagePolicy.WAIT
    grace_s: float = GRACE_S

    @classmethod
    def of(cls, spec: ServerAppSpec, address: str) -> Plan:
        return cls(address, spec.flower_run_id, spec.node_ids, spec.wait_s, spec.compare, spec.on_outage, spec.grace_s)

    @staticmethod
    def stands_in(folder: Path) -> bool:
        """Whether the run folder's process has been told what to do, or will be at once."""
        return os.path.lexists(folder / PLAN_FILE)

    @staticmethod
    def forget(folder: Path) -> None:
        """Remove the plan of a process that was lost, before another one is started. Raises OSError."""
        (folder / PLAN_FILE).unlink(missing_ok=True)

    def write(self, folder: Path) -> None:
        """Put the plan into the run folder, whole at once; a folder that has one already keeps it. Follows no link.

        Raises OSError where the disk refuses.
        """
        if self.stands_in(folder):
            return
        partial = folder / f"{PLAN_FILE}.partial"
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "w") as file:
            json.dump(dataclasses.asdict(self), file)
        partial.replace(folder / PLAN_FILE)

    @classmethod
    def read(cls, folder: Path) -> Plan | None:
        """The run folder's plan, or None where it has none yet."""
        try:
            fields = json.loads((folder / PLAN_FILE).read_text())
        except FileNotFoundError:
            return None
        return cls(
            **{**fields, "nodes": tuple(fields["nodes"]), "on_outage": OutagePolicy(fields["on_outage"])},
        )
