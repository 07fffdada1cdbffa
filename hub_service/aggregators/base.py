"""What runs a project's SuperLink and its ServerApp. One implementation a way of running processes.

Called by `hub_service.reconciler` only. `tests/contract/test_aggregator.py` holds every implementation to this text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a project's SuperLink listens, as the service reaches it. Plain HTTP on loopback or a private network."""

    host: str
    port: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ServerAppSpec:
    """What one ServerApp process must do.

    Attributes:
        run_id: our run's id; names the run folder.
        flower_run_id: the SuperLink's id of the run, from `superlink.start_run`.
        node_ids: the nodes that take part; the ServerApp waits for them and sees no others.
        compare: train each node alone too, and score every model on every node.
        wait_s: how long to wait for the nodes, in seconds.
    """

    run_id: str
    flower_run_id: int
    node_ids: tuple[int, ...]
    rounds: int
    compare: bool
    wait_s: float


class AggregatorBackend(ABC):
    """Starts and stops aggregators, one for each project. Every method is idempotent."""

    @abstractmethod
    async def start(self, project_id: str) -> Endpoint:
        """Start the project's SuperLink, or find the running one; return once its API answers.

        The SuperLink's database is kept in the project's folder, so node ids stay the same from run to run.
        Raises Unavailable with the last lines of its log where it does not come up.
        """

    @abstractmethod
    async def start_serverapp(self, project_id: str, spec: ServerAppSpec) -> None:
        """Start the ServerApp process for a run that the SuperLink already knows. Returns once it was launched."""

    @abstractmethod
    async def serverapp_exit(self, project_id: str, run_id: str) -> int | None:
        """The ServerApp's exit status, or None while it runs. A lost process counts as -1."""

    @abstractmethod
    async def stop(self, project_id: str) -> None:
        """End the ServerApp and the SuperLink; return when nothing of them is left."""

    @abstractmethod
    async def running(self) -> Sequence[str]:
        """Ids of the projects whose SuperLink runs now, those of an earlier service process included."""

    @abstractmethod
    def endpoint(self, project_id: str) -> Endpoint | None:
        """Where the project's SuperLink listens, or None. No I/O; called for each Fleet request."""

    @abstractmethod
    def run_folder(self, project_id: str, run_id: str) -> Path:
        """Where the ServerApp writes `events.jsonl`, `model.safetensors` and `serverapp.log`."""
