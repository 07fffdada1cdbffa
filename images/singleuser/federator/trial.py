"""A trial: the real app in this server, with pretended sites, before anybody else is asked.

The ServerApp and each pretended site's ClientApp run in a process of their own (`federator.trial_process`), from the
same FAB that a project would have. This process passes their messages on, so it sees what would leave a site.
`federator.authoring` calls `try_app` and shows the `Trial`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from federator import service_client as api
from federator.contract import DeclaredOutput, Metrics, Round, RunDetail, RunStatus, RunSummary, SiteRound
from federator.cpu import THREADS_VARIABLE, usable_cores
from federator.outputs import merged, seen_in
from federator.trial_process import SERVER, Done, Failed, Job, Pull, Pushed, Replied, place_in_cells

PATIENCE = 1800.0  # seconds that a pretended site may work on one message
ROUNDS_KEY = "num-server-rounds"
_SEED_KEY = "seed"
_SEED_STEP = 1000  # between pretended sites that share a folder; rounds add to a site's seed, too
_LOOK_S = 0.5  # between two looks at the processes
_FAREWELL_S = 2.0  # for a process to end by itself
_DUMP_S = 0.5  # for a process to write where it is
_LOG_TAIL = 64 * 1024  # characters of a process's output that are kept
_START = "import sys; from federator.trial_process import main; main(int(sys.argv[1]))"
_NUM_EXAMPLES = "num-examples"
_ROUND = "server-round"

ConfigValue = str | int | float | bool


class TrialFailed(api.ServiceError):
    """The app failed in a trial; the message names the pretended site, the next step the cell and the line."""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What a trial has shown so far, or at its end.

    Attributes:
        detail: rounds with each pretended site's metrics, as a run's.
        outputs: all that the sites' answers held.
        bytes_by_message: of the largest answer, by type of message: arrays only.
        seconds: since the start.
        logs: the end of what each process printed, by its name; filled at the end.
    """

    detail: RunDetail
    outputs: tuple[DeclaredOutput, ...] = ()
    bytes_by_message: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    logs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is tried.

    Attributes:
        fab: the app.
        folders: the data folder of each pretended site, by its name.
        config: the run's configuration, rounds included.
        patience: seconds that a site may work on one message.
    """

    fab: bytes
    fab_hash: str
    folders: Mapping[str, Path]
    config: Mapping[str, ConfigValue]
    patience: float = PATIENCE

    @property
    def rounds(self) -> int:
        return int(self.config[ROUNDS_KEY])


def try_app(plan: Plan, show: Callable[[TrialResult], None]) -> TrialResult:
    """Run the app until its end. However this ends, an interrupt included, so do all processes.

    Args:
        show: called with each piece of news, from this thread.

    Raises:
        TrialFailed: a function of the app raised, or a process hung or was killed.
    """
    with tempfile.TemporaryDirectory(prefix="federator-trial-", ignore_cleanup_errors=True) as folder:
        unpacked = Path(folder).resolve() / "app"
        with zipfile.ZipFile(io.BytesIO(plan.fab)) as archive:
            archive.extractall(unpacked)
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(_running(job, plan, Path(folder))) for job in _jobs(plan, unpacked)]
            server, *sites = processes
            return _Switchboard(plan, server, sites, show).run()


def _jobs(plan: Plan, folder: Path) -> Iterator[Job]:
    """The server's, then each site's."""
    components = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]["components"]
    ids = range(1, len(plan.folders) + 1)
    yield Job(SERVER, folder, components["serverapp"], 0, {}, dict(plan.config), tuple(ids))
    for place, (node_id, (name, data)) in enumerate(zip(ids, plan.folders.items(), strict=True)):
        config = dict(plan.config)
        shares = list(plan.folders.values()).count(data) > 1
        if shares and isinstance(config.get(_SEED_KEY), int):
            config[_SEED_KEY] = int(config[_SEED_KEY]) + place * _SEED_STEP
        node_config: dict[str, ConfigValue] = {"dataset": data.name, "dataset-path": str(data), "site": name}
        yield Job(name, folder, components["clientapp"], node_id, node_config, config)


@dataclass(slots=True)
class _Process:
    job: Job
    popen: subprocess.Popen[bytes]
    connection: Connection
    log: Path
    queue: deque[Any] = field(default_factory=deque)  # messages that it has not been given
    at_work: Any = None  # the message
    since: float = 0.0

    @property
    def name(self) -> str:
        return self.job.name

    def text(self) -> str:
        return self.log.read_text("utf-8", "replace")[-_LOG_TAIL:]


@contextlib.contextmanager
def _running(job: Job, plan: Plan, folder: Path) -> Iterator[_Process]:
    """A process with its job. At the end it has a moment to end by itself, where nothing went wrong; then it is killed,
    with all that it has started."""
    ours, theirs = socket.socketpair()
    log = folder / f"{job.node_id}.log"
    threads = max(1, usable_cores(os.environ) // len(plan.folders))
    with theirs, log.open("wb") as output:
        popen = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs.fileno())],
            cwd=folder,
            env={**os.environ, THREADS_VARIABLE: str(threads)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with Connection(ours.detach()) as connection:
            connection.send(job)
            yield _Process(job, popen, connection, log)
        with contextlib.suppress(subprocess.TimeoutExpired):  # it hears that the connection is closed
            popen.wait(_FAREWELL_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()


class _Switchboard:
    """Passes messages between the server's process and the sites', and keeps what they show."""

    def __init__(
        self, plan: Plan, server: _Process, sites: Sequence[_Process], show: Callable[[TrialResult], None]
    ) -> None:
        self._plan = plan
        self._server = server
        self._sites = {one.job.node_id: one for one in sites}
        self._show = show
        self._replies: dict[str, Any] = {}
        self._pull: Pull | None = None  # the server's question that is not answered
        self._done = False
        self._started = time.monotonic()
        self._rounds: dict[int, dict[str, SiteRound]] = {}
        self._seen: dict[DeclaredOutput, None] = {}
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {}  # of the last models, by site and key
        self._bytes: dict[str, int] = {}

    def run(self) -> TrialResult:
        processes = {one.connection: one for one in (self._server, *self._sites.values())}
        self._show(self._result())
        while not self._done:
            for ready in wait(list(processes), _LOOK_S):
                self._hear(processes[ready])  # type: ignore[index]
            self._look_after(processes.values())
        return replace(self._result(), logs={one.name: one.text() for one in processes.values()})

    def _hear(self, process: _Process) -> None:
        try:
            said = process.connection.recv()
        except (EOFError, ConnectionResetError):
            raise _ended(process) from None
        match said:
            case Failed():
                raise self._failure(process, said)
            case Replied():
                self._take_reply(process, said)
            case Pushed():
                site = self._sites[said.message.metadata.dst_node_id]
                site.queue.append(said.message)
                self._give_work(site)
            case Pull():
                self._pull = said
                self._answer_server()
            case Done():
                self._done = True
        self._show(self._result())

    def _give_work(self, site: _Process) -> None:
        """One message at a time: a site that is at work reads nothing."""
        if site.at_work is None and site.queue:
            site.at_work, site.since = site.queue.popleft(), time.monotonic()
            with contextlib.suppress(BrokenPipeError):  # it has ended, which is heard next
                site.connection.send(site.at_work)

    def _take_reply(self, site: _Process, said: Replied) -> None:
        self._note(site, site.at_work, said)
        self._replies[site.at_work.metadata.message_id] = said.message
        site.at_work = None
        self._give_work(site)
        self._answer_server()

    def _answer_server(self) -> None:
        if self._pull is None:
            return
        there = [one for one in self._pull.message_ids if one in self._replies]
        if there or not self._pull.wait:
            self._pull = None
            self._server.connection.send([self._replies.pop(one) for one in there])

    # --- what is seen

    def _note(self, site: _Process, asked: Any, said: Replied) -> None:
        content, kind = said.message.content, asked.metadata.message_type
        self._seen.update(dict.fromkeys(seen_in(kind, content)))
        size = _array_bytes(content)
        self._bytes[kind] = max(size, self._bytes.get(kind, 0))
        number = _round_of(asked) or max(self._rounds, default=1)
        row = self._rounds.setdefault(number, {}).get(site.name, SiteRound(site.name))
        metrics = _metrics_of(content)
        examples = int(metrics.get(_NUM_EXAMPLES, 0))
        row = replace(
            row,
            seconds=row.seconds + said.seconds,
            bytes_in=row.bytes_in + _array_bytes(asked.content),
            bytes_out=row.bytes_out + size,
        )
        if kind.startswith("train"):
            row = replace(row, train=metrics, train_examples=examples)
            self._shapes[site.name] = {
                key: tuple(array.shape) for record in content.array_records.values() for key, array in record.items()
            }
        elif kind.startswith("evaluate"):
            row = replace(row, evaluate=metrics, evaluate_examples=examples)
        self._rounds[number][site.name] = row

    def _result(self) -> TrialResult:
        names = tuple(self._plan.folders)
        rounds = tuple(_round(number, rows, names) for number, rows in sorted(self._rounds.items()))
        status = RunStatus.FINISHED if self._done else RunStatus.RUNNING
        last = rounds[-1].number if rounds else 0
        summary = RunSummary("", 0, status, self._plan.rounds, last, self._phase(), "", "")
        return TrialResult(
            detail=RunDetail(summary, "", self._plan.fab_hash, 0, names, rounds, ()),
            outputs=merged(self._seen),
            bytes_by_message=dict(self._bytes),
            seconds=time.monotonic() - self._started,
        )

    def _phase(self) -> str:
        working = [f"{one.name}: {one.at_work.metadata.message_type}" for one in self._sites.values() if one.at_work]
        return ", ".join(working)

    # --- what goes wrong

    def _failure(self, process: _Process, failed: Failed) -> TrialFailed:
        if process is not self._server:
            return TrialFailed(f"{process.name}: {failed.what}", _mend(failed.where))
        if odd := self._odd_shape():
            return TrialFailed(f"The sites' models differ in shape, so they cannot be averaged: {odd}.", _SAME_SHAPE)
        return TrialFailed(f"The strategy, in the aggregator: {failed.what}", _mend(failed.where))

    def _odd_shape(self) -> str:
        """Two sites whose last models have another shape, or "". Asked once the aggregation has failed."""
        models = [(name, self._shapes[name]) for name in self._plan.folders if name in self._shapes]
        (first, expected), *others = models or [("", {})]
        for site, shapes in others:
            for key in expected.keys() & shapes.keys():
                if shapes[key] != expected[key]:
                    return f"“{key}” is {list(expected[key])} at {first} and {list(shapes[key])} at {site}"
        return ""

    def _look_after(self, processes: Iterable[_Process]) -> None:
        """Raise TrialFailed for a process that has gone, or that works too long."""
        if self._done:
            return
        for process in processes:
            if process.popen.poll() is not None and not process.connection.poll():
                raise _ended(process)
            if process.at_work is not None and time.monotonic() - process.since > self._plan.patience:
                raise _hangs(process, self._plan.patience)


_SAME_SHAPE = (
    "Let build_model() make the same model everywhere: sizes come from the code or CONFIG, never from a site's data."
)


def _mend(where: str) -> str:
    return (
        f"{where}\nCorrect it, run the cell, save the notebook and try again."
        if where
        else "Correct it, and try again."
    )


def _ended(process: _Process) -> TrialFailed:
    process.popen.wait()
    code = process.popen.returncode
    lines = [line.strip() for line in process.text().splitlines() if line.strip()]
    last = f" Its last words: {lines[-1]}" if lines else ""
    if code == -signal.SIGKILL:
        return TrialFailed(
            f"{process.name}: its process was killed (signal 9): the server may have run out of memory.{last}",
            "Try fewer sites (sites=2), a smaller batch or less data; or ask for a server with more memory.",
        )
    how = f"by signal {-code}" if code < 0 else f"with status {code}"
    return TrialFailed(f"{process.name}: its process ended {how}.{last}", "Correct what ended it, and try again.")


def _hangs(process: _Process, patience: float) -> TrialFailed:
    before = len(process.text())
    process.popen.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + _DUMP_S
    while time.monotonic() < deadline and len(process.text()) == before:
        time.sleep(_DUMP_S / 10)
    time.sleep(_DUMP_S / 10)
    return TrialFailed(
        f"{process.name} has worked on one “{process.at_work.metadata.message_type}” message for {patience:g} s; "
        "the trial was ended.",
        _mend(_where_it_is(process.text()[before:])),
    )


def _where_it_is(dump: str) -> str:
    """The innermost line of the notebook in faulthandler's dump, which has the innermost frames first."""
    for path, line in re.findall(r'File "(.+)", line (\d+) in ', dump):
        if Path(path).is_file() and (where := place_in_cells(Path(path), int(line))):
            return where
    return ""


def _round_of(message: Any) -> int:
    """The round that Flower's strategies write into each message; 0 where there is none."""
    rounds = [record[_ROUND] for record in message.content.config_records.values() if _ROUND in record]
    return int(rounds[0]) if rounds else 0


def _array_bytes(content: Any) -> int:
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def _metrics_of(content: Any) -> Metrics:
    """The plain numbers of all metric records of an answer."""
    return {
        key: value
        for record in content.metric_records.values()
        for key, value in record.items()
        if isinstance(value, int | float)
    }


def _round(number: int, rows: Mapping[str, SiteRound], names: Sequence[str]) -> Round:
    sites = tuple(rows[name] for name in names if name in rows)
    return Round(
        number,
        sites,
        train=_together([(one.train, one.train_examples) for one in sites]),
        evaluate=_together([(one.evaluate, one.evaluate_examples) for one in sites]),
    )


def _together(measured: Sequence[tuple[Metrics, int]]) -> Metrics:
    """Each metric's mean, weighted by examples."""
    names = dict.fromkeys(name for metrics, _ in measured for name in metrics if name != _NUM_EXAMPLES)
    means = {}
    for name in names:
        parts = [(metrics[name], examples) for metrics, examples in measured if name in metrics]
        if total := sum(examples for _, examples in parts):
            means[name] = sum(value * examples for value, examples in parts) / total
    return means
