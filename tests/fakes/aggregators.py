"""Aggregators without processes: the test plays the ServerApp by writing events.

FakeAggregators             keeps to `hub_service.aggregators.base`
├── NeverStarts             its SuperLink does not come up
├── SlowToStart             its SuperLink comes up when the test says so
├── SlowToStop              what runs ends when the test says so
├── CannotStop              the system refuses to end what runs, until the test permits it
├── LosesItsEndpoint        its SuperLink is gone once the ServerApp was started
├── LosesServerApps         its ServerApps die once when told to, and start again while all is in order
│   └── EndsWhileItIsStopped  its ServerApp writes its last events when nobody looks any more
└── OutOfReach              nobody knows what runs there
FakeSuperLink               keeps to `hub_service.run_driver.FlowerControl`
├── RefusingSuperLink       takes no key
├── SlowToStartRuns         starts a run when the test says so
└── ForgetfulSuperLink      answers only every second call
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from hub_service.aggregators.base import AggregatorBackend, Endpoint, ServerAppSpec
from hub_service.aggregators.events import MODEL_FILE, SERVERAPP_LOG, EventFile
from hub_service.aggregators.plan import Plan
from hub_service.domain.errors import Conflict, Unavailable
from hub_service.domain.runs import EventKind, RunEvent


class FakeAggregators(AggregatorBackend):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._endpoints: dict[str, Endpoint] = {}
        self.started_beside: dict[str, str] = {}  # SuperLink's project -> the run whose ServerApp starts with it
        self.specs: dict[str, ServerAppSpec] = {}
        self.exits: dict[str, int] = {}
        self.stopped: list[str] = []
        self.warmed_up = 0

    def warm_up(self) -> None:
        self.warmed_up += 1

    async def start(self, project_id: str, run_id: str | None = None) -> Endpoint:
        if run_id is not None and project_id not in self._endpoints:
            self.started_beside[project_id] = run_id
            Plan.forget(self.run_folder(project_id, run_id))
        return self._endpoints.setdefault(project_id, Endpoint("127.0.0.1", 1000 + len(self._endpoints)))

    async def start_serverapp(self, project_id: str, spec: ServerAppSpec) -> None:
        folder = self.run_folder(project_id, spec.run_id)
        folder.mkdir(parents=True, exist_ok=True)
        Plan.of(spec, "").write(folder)
        self.specs[spec.run_id] = spec

    async def serverapp_exit(self, project_id: str, run_id: str) -> int | None:
        return self.exits.get(run_id)

    async def stop(self, project_id: str) -> None:
        self._endpoints.pop(project_id, None)
        self.stopped.append(project_id)

    async def check(self) -> None:
        """Nothing is away."""

    async def running(self) -> Sequence[str]:
        return list(self._endpoints)

    def endpoint(self, project_id: str) -> Endpoint | None:
        return self._endpoints.get(project_id)

    def project_folder(self, project_id: str) -> Path:
        return self._folder / project_id

    def run_folder(self, project_id: str, run_id: str) -> Path:
        return self._folder / project_id / run_id

    def newest_run_folder(self, project_id: str) -> Path | None:
        return None

    async def close(self) -> None:
        """Nothing is held."""

    # --- what the test does as the ServerApp

    def report(self, project_id: str, run_id: str, *events: RunEvent) -> None:
        file = EventFile(self.run_folder(project_id, run_id))
        for event in events:
            file.write(event)

    def write_model(self, project_id: str, run_id: str, content: bytes) -> None:
        (self.run_folder(project_id, run_id) / MODEL_FILE).write_bytes(content)

    def crash(self, project_id: str, run_id: str, log: str) -> None:
        (self.run_folder(project_id, run_id) / SERVERAPP_LOG).write_text(log)
        self.exits[run_id] = 1


class NeverStarts(FakeAggregators):
    async def start(self, project_id: str, run_id: str | None = None) -> Endpoint:
        raise Unavailable("The project's aggregator did not start.", "Ask the Hub's administrators.")


class IsKilledInItsFirstStart(FakeAggregators):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.starts = 0

    async def start(self, project_id: str, run_id: str | None = None) -> Endpoint:
        self.starts += 1
        if self.starts == 1:
            raise Unavailable("The project's aggregator does not answer.", "Try again.")
        return await super().start(project_id, run_id)


class SlowToStart(FakeAggregators):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked = asyncio.Event()
        self.may_start = asyncio.Event()

    async def start(self, project_id: str, run_id: str | None = None) -> Endpoint:
        self.asked.set()
        await self.may_start.wait()
        return await super().start(project_id, run_id)


class SlowToStop(FakeAggregators):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.may_stop = asyncio.Event()

    async def stop(self, project_id: str) -> None:
        await self.may_stop.wait()
        await super().stop(project_id)


class CannotStop(FakeAggregators):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.permitted = False

    async def stop(self, project_id: str) -> None:
        if not self.permitted:
            raise PermissionError(1, "Operation not permitted")
        await super().stop(project_id)


class LosesItsEndpoint(FakeAggregators):
    async def start_serverapp(self, project_id: str, spec: ServerAppSpec) -> None:
        await super().start_serverapp(project_id, spec)
        self._endpoints.clear()


class LosesServerApps(FakeAggregators):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.in_order = True

    def lose(self, run_id: str) -> None:
        self.exits[run_id] = -9

    async def start(self, project_id: str, run_id: str | None = None) -> Endpoint:
        if not self.in_order:
            raise Unavailable("The engine is away.")
        return await super().start(project_id, run_id)

    async def start_serverapp(self, project_id: str, spec: ServerAppSpec) -> None:
        self.exits.pop(spec.run_id, None)
        await super().start_serverapp(project_id, spec)


class EndsWhileItIsStopped(LosesServerApps):
    """Args: last: what it writes then."""

    def __init__(self, folder: Path, *last: RunEvent) -> None:
        super().__init__(folder)
        self._last = last

    async def stop(self, project_id: str) -> None:
        for run_id in self.specs:
            self.report(project_id, run_id, *self._last)
        await super().stop(project_id)


class OutOfReach(FakeAggregators):
    """Where aggregators run does not answer, until the test says so."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.reachable = False

    async def running(self) -> Sequence[str]:
        if not self.reachable:
            raise Unavailable("The engine does not answer.", "Ask the Hub's administrators.")
        return await super().running()


class FakeSuperLink:
    """All SuperLinks in one: keys and runs of every project."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, int] = {}
        self.unregistered: list[int] = []
        self.runs: list[tuple[bytes, dict[str, object]]] = []

    def __call__(self, endpoint: Endpoint) -> FakeSuperLink:
        """Stands for the class: called with an endpoint where a client of it is made."""
        return self

    async def register_node(self, public_key: bytes) -> int:
        return self.nodes.setdefault(public_key, 7000 + len(self.nodes))

    async def give_key(self, node_id: int, public_key: bytes) -> None:
        self.nodes = {key: one for key, one in self.nodes.items() if one != node_id} | {public_key: node_id}

    async def unregister_node(self, node_id: int) -> None:
        self.unregistered.append(node_id)

    async def start_run(self, fab: bytes, config: Mapping[str, str | int | float | bool]) -> int:
        self.runs.append((fab, dict(config)))
        return len(self.runs)


class RefusingSuperLink(FakeSuperLink):
    async def register_node(self, public_key: bytes) -> int:
        raise Conflict("This node's key was removed before.", "Restart the Flower client kernel.")


class SlowToStartRuns(FakeSuperLink):
    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.may_start = asyncio.Event()
        self.may_start.set()

    async def start_run(self, fab: bytes, config: Mapping[str, str | int | float | bool]) -> int:
        if not self.may_start.is_set():
            self.asked.set()
        await self.may_start.wait()
        return await super().start_run(fab, config)


class ForgetfulSuperLink(FakeSuperLink):
    """Every second call finds it busy."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    async def unregister_node(self, node_id: int) -> None:
        self.calls += 1
        if self.calls % 2:
            raise Unavailable("The project's aggregator does not answer.")
        await super().unregister_node(node_id)


def sent(node_id: int, number: int, message_type: str = "train", size: int = 100) -> RunEvent:
    return RunEvent(EventKind.SENT, 1.0, "federated", number, message_type, node_id, size=size)


def reply(
    node_id: int,
    number: int,
    message_type: str = "train",
    *,
    examples: int = 10,
    text: str = "",
    size: int = 90,
    **metrics: float,
) -> RunEvent:
    return RunEvent(
        EventKind.REPLY,
        2.0,
        "federated",
        number,
        message_type,
        node_id,
        metrics=metrics,
        examples=examples,
        seconds=0.5,
        size=size,
        text=text,
    )
