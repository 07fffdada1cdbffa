"""Faults for a running stack: its processes, found and killed as an operating system would, and what came of it.

Used by the recovery tests and by the soak. Everything that a stack started carries the stack's folder in its
environment, so that nothing is missed that has lost its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx
import psutil
from safetensors.numpy import load

from examples.demo.browser import Browser, StepError
from examples.demo.people import RESEARCHERS, STEWARDS, Researcher
from examples.demo.scenario import all_ready
from examples.demo.stack import Stack

PATIENCE_S = 240.0  # nothing is measured by it: a machine may have other work
LOOK_EVERY_S = 0.1
OVER = ("finished", "failed", "stopped")


class Kind(StrEnum):
    """What a process of the stack is."""

    HUB = "Hub"
    PROXY = "proxy"
    KEEPER = "keeper"
    SERVICE = "service"
    TEMPLATE = "template of aggregators"
    AGGREGATOR = "aggregator"
    SERVER = "notebook server"
    KERNEL = "client kernel"
    OTHER = "other"


IN_COMMAND_LINE = (
    ("configurable-http-proxy", Kind.PROXY),
    ("hub_service.keeper", Kind.KEEPER),
    ("hub_service.aggregators", Kind.TEMPLATE),
    ("jupyterhub.singleuser", Kind.SERVER),
    ("federator.kernel", Kind.KERNEL),
)


@dataclass(frozen=True)
class Machine:
    """A stack with embedded sites, seen as the processes of one machine."""

    stack: Stack

    @property
    def state(self) -> Path:
        """The service's folder."""
        return self.stack.folder / "hub" / "federation"

    def processes(self) -> dict[Kind, list[psutil.Process]]:
        """All that lives of the stack, but for the identity provider: that is another institution's."""
        mark, projects = str(self.stack.folder).encode(), self.state / "projects"
        found = defaultdict(list)
        for process in psutil.process_iter():
            try:
                if mark not in Path(f"/proc/{process.pid}/environ").read_bytes():
                    continue
                # Not by the service's records: one that it has forgotten is to be seen. A fork's command line is its
                # template's.
                works_there = Path(process.cwd()).is_relative_to(projects)
                kind = Kind.AGGREGATOR if works_there else kind_of(process.cmdline())
            except (OSError, psutil.Error):  # it ended in between, or is no longer more than a number
                continue
            found[kind].append(process)
        return found

    def kill(self, *kinds: Kind, only_one: bool = False) -> set[Kind]:
        """SIGKILL to all of these at once, or to one of each kind. What they had started is not told.

        Returns the kinds of which anything was hit.
        """
        processes, end = self.processes(), 1 if only_one else None
        hit = set()
        for kind in kinds:
            for process in processes[kind][:end] if kind is not Kind.HUB else ():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
                    hit.add(kind)
        if Kind.HUB in kinds:
            self.stack.crash_hub(alone=True)
            hit.add(Kind.HUB)
        return hit

    def times_begun_anew(self, run_id: str) -> int:
        """How often the run's aggregator was lost and begun anew, as the service has written it down."""
        with contextlib.closing(sqlite3.connect(f"file:{self.state / 'federation.db'}?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT resumed FROM runs WHERE id = ?", [run_id]).fetchone()[0])

    def sweep(self) -> None:
        """Kill all that is left, once the stack was stopped. A test that fails in the middle of a fault leaves much."""
        for processes in self.processes().values():
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    async def answers(self) -> None:
        """Return once the service answers through the proxy, and has opened everything."""
        async with httpx.AsyncClient(base_url=self.stack.origin, timeout=5) as http:
            async with asyncio.timeout(PATIENCE_S):
                while not await _is_ready(http):  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(LOOK_EVERY_S)

    def memory(self) -> dict[Kind, int]:
        """Resident bytes of a process of each kind, in the mean. Aggregators share most of theirs, which is counted."""
        found = {}
        for kind, processes in self.processes().items():
            sizes = []
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    sizes.append(process.memory_info().rss)
            if sizes:
                found[kind] = sum(sizes) // len(sizes)
        return found


def kind_of(command_line: Sequence[str]) -> Kind:
    line = " ".join(command_line)
    for text, kind in IN_COMMAND_LINE:
        if text in line:
            return kind
    if command_line[-1:] == ["hub_service"]:
        return Kind.SERVICE
    return Kind.HUB if "-m jupyterhub" in line else Kind.OTHER


async def _is_ready(http: httpx.AsyncClient) -> bool:
    try:
        answer = await http.get("/services/federation/health")
        return answer.status_code == httpx.codes.OK and answer.json()["status"] == "ready"
    except (httpx.TransportError, ValueError, KeyError):
        return False


# --- faults


@dataclass(frozen=True)
class Fault:
    """What is killed at once, by SIGKILL, as soon as there is something of each kind: a fault that hits nothing tells
    nothing.

    Attributes:
        kills: all processes of these kinds.
        anew: kinds of which other processes than before are there, once it has been recovered from.
        only_one: of each kind one process is killed, whichever the operating system names first.
    """

    kills: Collection[Kind]
    anew: Collection[Kind] = ()
    only_one: bool = False

    async def strike(self, machine: Machine) -> float:
        """Kill, and return once the service answers as before. Returns the seconds that this took.

        A killed Hub is begun anew at once, as systemd or Docker does it.
        """
        wanted = set(self.kills) - MAY_BE_AWAY
        async with asyncio.timeout(PATIENCE_S):
            while not wanted <= machine.processes().keys():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(LOOK_EVERY_S)
        before = {kind: pids(machine, kind) for kind in self.anew}
        began = time.monotonic()
        hit = machine.kill(*self.kills, only_one=self.only_one)
        assert wanted <= hit, f"nothing was killed of {wanted - hit}"
        if Kind.HUB in self.kills:
            await asyncio.to_thread(machine.stack.start_hub_again)
        async with asyncio.timeout(PATIENCE_S):
            for kind, old in before.items():
                while not (now := pids(machine, kind)) or now & old:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(LOOK_EVERY_S)
        await machine.answers()
        return time.monotonic() - began


def pids(machine: Machine, kind: Kind) -> set[int]:
    return {process.pid for process in machine.processes()[kind]}


MAY_BE_AWAY = {Kind.TEMPLATE, Kind.OTHER}
HUBS_OWN = (Kind.HUB, Kind.PROXY, Kind.KEEPER, Kind.SERVICE)
REBOOT = "machine rebooted"
FAULTS: Mapping[str, Fault] = {
    "service killed": Fault([Kind.SERVICE], [Kind.SERVICE]),
    "service and keeper killed": Fault([Kind.SERVICE, Kind.KEEPER], [Kind.SERVICE, Kind.KEEPER]),
    "keeper killed": Fault([Kind.KEEPER], [Kind.SERVICE, Kind.KEEPER]),
    "proxy killed": Fault([Kind.PROXY], [Kind.PROXY]),
    "Hub killed": Fault([Kind.HUB], HUBS_OWN),
    "all three killed": Fault(HUBS_OWN, HUBS_OWN),
    # Servers and kernels of the embedded sites are gone too; people start their servers again.
    REBOOT: Fault([*Kind], HUBS_OWN),
    "aggregator killed": Fault([Kind.AGGREGATOR]),
    "client kernel killed": Fault([Kind.KERNEL], only_one=True),
}


# --- a project and its runs


@dataclass
class People:
    """The demonstration's researchers, one of each site that takes part, and their stewards; logged in."""

    researchers: Sequence[Browser]
    stewards: Sequence[Browser]

    async def start_servers(self) -> None:
        """Each presses the button; again where the answer was cut off, as on a connection from before a reboot."""
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*map(_start_server_whatever_happens, self.researchers))


async def _start_server_whatever_happens(researcher: Browser) -> None:
    while True:
        with contextlib.suppress(httpx.TransportError):
            return await researcher.start_server()
        await asyncio.sleep(LOOK_EVERY_S)


@contextlib.asynccontextmanager
async def people(origin: str, sites: int = len(RESEARCHERS)) -> AsyncIterator[People]:
    """Those of so many sites, logged in; their servers are not started."""
    researchers, stewards = (
        [Browser(one.username, one.subject, origin) for one in group[:sites]] for group in (RESEARCHERS, STEWARDS)
    )
    everybody = [*researchers, *stewards]
    try:
        await asyncio.gather(*(one.log_in() for one in everybody))
        yield People(researchers, stewards)
    finally:
        await asyncio.gather(*(one.close() for one in everybody))


@dataclass
class Project:
    """A project of an app in which all researchers take part.

    Attributes:
        patience_s: how long one of its runs may take, faults and all.
    """

    id: str
    people: People
    patience_s: float = PATIENCE_S

    @property
    def owner(self) -> Browser:
        return self.people.researchers[0]

    async def start(self, rounds: int, seed: int) -> str:
        wanted = {"rounds": rounds, "seed": seed, "compare": False}
        return str((await self.owner.post(f"api/projects/{self.id}/runs", wanted))["id"])

    async def start_whatever_happens(self, rounds: int, seed: int) -> str:
        """`start` while faults go on. An answer that was cut off may have been a yes: then that run is the one."""
        async with asyncio.timeout(self.patience_s):
            while True:
                with contextlib.suppress(StepError, httpx.TransportError):
                    return await self.start(rounds, seed)
                detail = await self._asked(f"api/projects/{self.id}")
                if detail is not None and detail["runs"] and detail["runs"][0]["status"] not in OVER:
                    return str(detail["runs"][0]["id"])
                await asyncio.sleep(1)

    @contextlib.asynccontextmanager
    async def run(self, rounds: int, seed: int) -> AsyncIterator[str]:
        """A run that begins with every site and is over behind the block: what goes wrong with it is not the next one's
        fault."""
        await self.ready()
        run_id = await self.start(rounds, seed)
        try:
            yield run_id
        finally:
            with contextlib.suppress(StepError, httpx.TransportError):  # it is over already, or cannot be asked to stop
                await self.owner.post(f"api/runs/{run_id}/stop", {})
            await self.end_of(run_id)

    async def end_of(self, run_id: str) -> dict[str, Any]:
        """The run's detail once it is over. Asked for again and again: a stream would be cut by the faults."""
        detail: dict[str, Any] = {"summary": {"status": "unknown"}}
        try:
            async with asyncio.timeout(self.patience_s):
                while detail["summary"]["status"] not in OVER:
                    await asyncio.sleep(0.2)
                    detail = await self._asked(f"api/runs/{run_id}") or detail
        except TimeoutError:
            raise AssertionError(f"run {run_id} is not over: {json.dumps(detail)[:4000]}") from None
        return detail

    async def round_of(self, run_id: str, number: int) -> None:
        """Return once the run is in this round."""
        async with asyncio.timeout(self.patience_s):
            reached = 0
            while reached < number:
                await asyncio.sleep(LOOK_EVERY_S)
                detail = await self._asked(f"api/runs/{run_id}")
                reached = detail["summary"]["round"] if detail else reached

    async def model_of(self, run_id: str) -> dict[str, bytes]:
        """The bits of its global model's arrays. The file has the run's id too."""
        model = await self.owner.download(f"api/runs/{run_id}/model")
        return {name: array.tobytes() for name, array in load(model).items()}

    async def model_whatever_happens(self, run_id: str) -> dict[str, bytes]:
        """`model_of` while faults go on."""
        async with asyncio.timeout(self.patience_s):
            while True:
                with contextlib.suppress(StepError, httpx.TransportError):
                    return await self.model_of(run_id)
                await asyncio.sleep(1)

    async def _asked(self, path: str) -> dict[str, Any] | None:
        try:
            answer = await self.owner.request("GET", path)
            return dict(answer.json()) if answer.status_code == httpx.codes.OK else None
        except (httpx.TransportError, ValueError):
            return None

    async def ready(self) -> None:
        """Return once every client stands ready. One that was killed has failed for a moment."""
        async with asyncio.timeout(self.patience_s):
            while True:
                try:
                    return await all_ready(self.owner, self.id, len(self.people.researchers))
                except StepError:
                    await asyncio.sleep(1)


async def new_project(them: People, name: str, app: bytes, dataset: str, folder: Path, patience_s: float) -> Project:
    """Created, joined by everybody, approved everywhere, and ready."""
    owner, *others = them.researchers
    project = Project((await owner.post("api/projects", {"name": name, "description": ""}))["id"], them, patience_s)
    path = folder / f"{project.id}.fab"
    path.write_bytes(app)
    version = await owner.upload(f"api/projects/{project.id}/apps", path)
    for one in others:
        await owner.post(f"api/projects/{project.id}/invitations", {"user": one.username})
    for one, steward in zip(them.researchers, them.stewards, strict=True):
        part = await one.post(f"api/projects/{project.id}/participation", {"dataset": dataset})
        decision = {"project_id": project.id, "fab_hash": version["fab_hash"], "state": "approved", "reason": ""}
        await steward.post("api/approvals", {**decision, "site": part["site"], "dataset": dataset})
    await project.ready()
    return project


def check_rounds(detail: Mapping[str, Any], rounds: int, people: Sequence[Researcher] = RESEARCHERS) -> None:
    """The run finished by itself; each round is there once, with each site once in it."""
    summary = detail["summary"]
    assert summary["status"] == "finished", summary
    assert [one["number"] for one in detail["rounds"]] == list(range(1, rounds + 1)), detail["rounds"]
    sites = sorted(one.site for one in people)
    for one in detail["rounds"]:
        assert sorted(part["site"] for part in one["sites"]) == sites, one
        assert not any(part["error"] for part in one["sites"]), one


async def settled(machine: Machine, expected: Mapping[Kind, int]) -> None:
    """Return once exactly these processes live, and no zombie is among the stack's; fail where that does not come."""
    seen: dict[str, int] = {}
    zombies: list[int] = []
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        living = machine.processes()
        seen = {str(kind): len(living[kind]) for kind in Kind}
        zombies = zombie_children(living)
        # A service has a template, or none where it has needed none for a while.
        spare = min(len(living[Kind.TEMPLATE]), expected.get(Kind.SERVICE, 0))
        if seen == {str(kind): expected.get(kind, 0) for kind in Kind} | {str(Kind.TEMPLATE): spare} and not zombies:
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"not settled: {seen}, zombies {zombies}; expected {dict(expected)}")


def zombie_children(living: Mapping[Kind, Sequence[psutil.Process]]) -> list[int]:
    """Children that ended and that their parents, which live, did not take note of."""
    parents = {process.pid for processes in living.values() for process in processes}
    found = []
    for process in psutil.process_iter(["status", "ppid"]):
        if process.info["status"] == psutil.STATUS_ZOMBIE and process.info["ppid"] in parents:
            found.append(process.pid)
    return found
