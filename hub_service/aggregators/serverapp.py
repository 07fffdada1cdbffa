"""Runs a project's ServerApp against its SuperLink and reports what happens. One process a run.

    python -m hub_service.aggregators.serverapp --run-folder DIR

It starts beside the SuperLink, imports what apps need, and waits until a plan stands in its run folder (`plan.py`).
Then it does what `flwr-serverapp` does, but hands the app an `ObservingGrid`. Phases, in one process and one Flower
run:

    federated   the app with all nodes
    alone       with --compare: the app once for each node, which is then the only one it sees
    compare     the last evaluate message of the federated phase, replayed with each model to every node

The global model of a round is seen in the next message that carries it: the evaluate message of the round, or the
train message of the next. The last one, where no message follows, is taken from what `Strategy.start` returns.

Where the run folder has events already, an earlier process of this run was lost. Then the run goes on behind the last
round that was finished: `checkpoint.py` and `strategy_calls.py` say how. A process whose SuperLink is gone ends without
a last word, and is begun anew.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from federator import logs
from federator.contract import OutagePolicy
from federator.logs import LogFormat
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.cli.install import install_from_fab
from flwr.common.config import get_fused_config_from_dir, get_project_config
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, fab_from_proto, run_from_proto
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
)
from flwr.serverapp import ServerApp
from flwr.serverapp.server_app import LoadServerAppError
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.object_ref import load_app
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from hub_service.aggregators.checkpoint import (
    Checkpoint,
    Checkpoints,
    FinishedPhase,
    Place,
    seed_generators,
)
from hub_service.aggregators.events import MODEL_FILE, EventFile, read_events, round_model_file
from hub_service.aggregators.mailbox import Mailbox
from hub_service.aggregators.mapped_array import numpy_view
from hub_service.aggregators.model_file import ModelWriter, keep_model, write_model
from hub_service.aggregators.observer import ALONE, COMPARE, FEDERATED, Observer
from hub_service.aggregators.observing_grid import (
    ObservingGrid,
    RunFailed,
    TooFewSites,
    counts_of,
    metrics_of,
    size_of_record,
)
from hub_service.aggregators.plan import Plan
from hub_service.aggregators.processes import NICENESS, lower_priority
from hub_service.aggregators.strategy_calls import Calls, StrategyCalls
from hub_service.domain.runs import WIRE_PRECISION_KEY, EventKind, WirePrecision
from hub_service.full_disk import is_full_disk

_log = logging.getLogger(__name__)

# Waits between two looks for connected nodes, and for the plan, in seconds.
_NODES_WAIT_S, _PLAN_WAIT_S = 0.03, 0.01
# How long to wait for a plan, in seconds: a SuperLink may take a minute to come up, and its service may be restarted.
PLAN_PATIENCE_S = 600.0
FINISHED, FAILED, GONE = 0, 1, 3
"""Exit statuses; the last one for a process whose SuperLink, or service, is gone."""

_PHASES = (FEDERATED, ALONE, COMPARE)
# What the apps of projects import. Not all are installed everywhere.
_PRELOADED = ("torch",)


@dataclass(frozen=True, slots=True)
class App:
    """An unpacked Flower app and how to start it."""

    folder: Path
    reference: str  # module:attribute of the ServerApp
    context: Callable[[], Context]

    def run(self, grid: ObservingGrid) -> None:
        """Run the ServerApp from fresh modules and with a fresh context: a phase inherits nothing from another."""
        self._forget()
        server_app = load_app(self.reference, LoadServerAppError, self.folder)
        if not isinstance(server_app, ServerApp):
            raise LoadServerAppError(f"{self.reference} is no ServerApp")
        server_app(grid=grid, context=self.context())

    def _forget(self) -> None:
        below = f"{self.folder}{os.sep}"
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(below):
                del sys.modules[name]

    def explain(self, error: BaseException) -> str:
        """Type, message and the app's own line. Our frames and Flower's say nothing to a user."""
        if isinstance(error, RunFailed):
            return str(error)
        text = f"{type(error).__name__}: {error}"
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if self.folder in Path(frame.filename).parents:
                return f"{text} ({Path(frame.filename).relative_to(self.folder)}:{frame.lineno})"
        return text


class Phases:
    """The phases of one run, each gone through once, whatever was lost in between.

    Args:
        found: what an earlier process had come to; None: there was none, or nothing was finished.
        until_written: returns once every model that the grid has saved is written. Raises OSError.
    """

    def __init__(
        self,
        app: App,
        grid: ObservingGrid,
        observer: Observer,
        checkpoints: Checkpoints,
        found: Checkpoint | None,
        until_written: Callable[[], None],
    ) -> None:
        self._app = app
        self._grid = grid
        self._observer = observer
        self._checkpoints = checkpoints
        self._found = found
        self._until_written = until_written
        self._place = found.place if found else Place()
        self._unkept = ""  # why no state is kept, or not all of it

    def run(self, plan: Plan) -> None:
        """Raises what the federated phase raises; later phases only report."""
        if not self._is_finished(FEDERATED):
            self._go_through(FEDERATED, 0, plan.nodes)
            if not plan.compare:
                return
            if evaluate := self._grid.last_evaluate:
                self._place.evaluate = evaluate.content, evaluate.metadata.message_type
            self._until_written()  # nobody sees the model again once the phase is finished
            self._finish()
        if len(plan.nodes) > 1:
            self._train_alone(plan.nodes)
        self._compare(plan.nodes)

    def _is_finished(self, phase: str, node: int = 0) -> bool:
        return any((one.phase, one.node) == (phase, node) for one in self._place.finished)

    def _go_through(self, phase: str, node: int, nodes: Sequence[int]) -> None:
        """Run the app in this phase. Raises what the app raises."""
        found = self._begin(phase, node, nodes)
        followed = StrategyCalls(found, self._keep, self._grid.note_strategy, self._grid.note_result)
        with followed.followed():
            self._app.run(self._grid)

    def _begin(self, phase: str, node: int, nodes: Sequence[int]) -> Callable[[], Calls]:
        """Enter the phase; return what reads its calls where it had been entered before."""
        found, self._found = self._found, None
        seed_generators([*self._checkpoints.seed(), _PHASES.index(phase), *divmod(node, 2**32)])
        self._grid.show(nodes)
        if found is not None and (found.place.phase, found.place.node) == (phase, node):
            self._grid.go_on(found.place.rounds)
            return found.calls
        self._observer.enter(phase, node)
        self._place.phase, self._place.node, self._place.round, self._place.rounds = phase, node, 0, 0
        return Calls

    def _finish(self, *, with_model: bool = True) -> None:
        """Note that the present phase is over."""
        place = self._place
        place.finished.append(FinishedPhase(place.phase, place.node, self._grid.model if with_model else None))
        self._keep(Calls(), place.round)

    def _keep(self, calls: Calls, number: int) -> None:
        """Keep a state behind this round. Where that cannot be, the run goes on, and says so once."""
        self._place.round, self._place.rounds = number, max(number, self._grid.rounds)
        try:
            self._checkpoints.write(self._place, calls)
        except OSError as error:
            self._note_unkept(f"this round's state could not be kept: {error.strerror}")
        except Exception as error:  # noqa: BLE001 - the owner's classes may refuse to be pickled in any way
            names = ", ".join(calls.leave_out_what_cannot_be_kept())
            if not names:
                _log.exception("no state is kept")
                self._note_unkept(f"this round's state could not be kept: {type(error).__name__}")
                return
            self._note_unkept(f"if the aggregator is lost, the strategy begins anew with its {names}")
            self._keep(calls, number)

    def _note_unkept(self, text: str) -> None:
        if text != self._unkept:
            self._unkept = text
            self._observer.note(text)

    def _train_alone(self, nodes: Sequence[int]) -> None:
        for node in nodes:
            if self._is_finished(ALONE, node):
                continue
            try:
                self._go_through(ALONE, node, [node])
            except TooFewSites as error:
                self._observer.note(f"this app cannot run with one site: {error}")
                return
            except (httpx.TransportError, RunNotRunningException):
                raise
            except Exception as error:
                if is_full_disk(error):
                    raise  # no fault of the site's or the app's
                _log.exception("training alone on node %d", node)
                self._observer.note(f"this site could not train alone: {self._app.explain(error)}")
                self._finish(with_model=False)
            else:
                self._finish()

    def _compare(self, nodes: Sequence[int]) -> None:
        self._begin(COMPARE, 0, nodes)
        if self._place.evaluate is None:
            self._observer.note("the app sends no evaluate messages: there is nothing to compare the models by")
            return
        for one in self._place.finished:
            if one.model is not None:
                name = FEDERATED if one.phase == FEDERATED else str(one.node)
                _score(name, one.model, self._place.evaluate, self._grid, self._observer, nodes)


def _score(
    name: str,
    model: ArrayRecord,
    evaluate: tuple[RecordDict, str],
    grid: ObservingGrid,
    observer: Observer,
    nodes: Sequence[int],
) -> None:
    """Send the evaluate message with `model` in it to every node, and report what each makes of it."""
    content, message_type = evaluate
    key = max(content.array_records, key=lambda key: size_of_record(content.array_records[key]))
    record = RecordDict({other: model if other == key else value for other, value in content.items()})
    messages = [Message(record, node, message_type) for node in nodes]
    for reply in grid.send_and_receive(messages):
        if reply.has_content():
            observer.score(name, reply.metadata.src_node_id, metrics_of(reply.content), counts_of(reply.content))


def wait_for_nodes(grid: ObservingGrid, observer: Observer, plan: Plan, *, again: bool) -> None:
    """Return when all nodes are connected. Raises RunFailed, naming the missing ones, after `plan.wait_s`.

    Args:
        again: the run had been under way. Then nobody is there to see that it fails, and the project's policy says how
            long sites are waited for: after a reboot it may take them a night to come back.
    """
    patience_s = plan.wait_s
    if again:
        patience_s = math.inf if plan.on_outage is OutagePolicy.WAIT else plan.grace_s
    deadline = time.monotonic() + patience_s
    reported: list[int] = []
    while missing := sorted(set(plan.nodes) - grid.online()):
        if missing != reported:
            observer.waiting(missing)
            reported = missing
        if time.monotonic() > deadline:
            if again and plan.on_outage is OutagePolicy.CONTINUE:
                return
            raise RunFailed(f"not all sites connected within {patience_s:g} s; missing: {', '.join(map(str, missing))}")
        time.sleep(_NODES_WAIT_S)


def acquire_task(address: str, flower_run_id: int) -> str:
    """Claim the run's pending task; return the token. Tasks of runs that were given up are passed by."""
    interceptors = [RuntimeVersionHttpInterceptor(component_name="SuperExec")]
    with RuntimeHttpClient.from_server_address(address, True, None, interceptors) as client:
        while (answer := client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))).token:
            if answer.task.run_id == flower_run_id:
                return str(answer.token)
    raise RunFailed("the aggregator does not know this run any more")


def unpack_app(grid: ObservingGrid, folder: Path) -> App:
    """Fetch the task's input, tell Flower who we are, and unpack the app below `folder`."""
    answer = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
    context = context_from_proto(answer.context)
    TaskIdentity.task_id = answer.task_id
    TaskIdentity.run_id = answer.run.run_id
    TaskIdentity.node_id = context.node_id
    run: Run = run_from_proto(answer.run)
    grid.set_run(run)
    app_folder = install_from_fab(fab_from_proto(answer.fab).content, install_dir=folder, skip_prompt=True).resolve()
    config = get_fused_config_from_dir(app_folder, run.override_config)

    def fresh_context() -> Context:
        return Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config=dict(context.node_config),
            state=RecordDict(),
            run_config=dict(config),
            series_id=context.series_id,
        )

    reference = get_project_config(app_folder)["tool"]["flwr"]["app"]["components"]["serverapp"]
    return App(app_folder, reference, fresh_context)


def wire_precision(config: Mapping[str, object]) -> WirePrecision:
    """What the app's config says. Raises RunFailed for what is neither."""
    said = config.get(WIRE_PRECISION_KEY, WirePrecision.EXACT)
    try:
        return WirePrecision(said)  # type: ignore[arg-type]
    except ValueError as error:
        allowed = " or ".join(repr(one.value) for one in WirePrecision)
        raise RunFailed(f"the app's config has {WIRE_PRECISION_KEY} = {said!r}; it may be {allowed}") from error


def execute(plan: Plan, folder: Path, observer: Observer, *, again: bool = False) -> int:
    """The whole run; the process's exit status. What goes wrong is one FAILED event. Where the SuperLink is gone or the
    disk is full there is none: the run is begun anew where this process got to.

    Args:
        again: another process of this run was lost.
    """

    def write(arrays: Mapping[str, NDArray[Any]], number: int) -> None:
        metadata = {"round": str(number), "flower-run-id": str(plan.flower_run_id)}
        try:
            size = write_model(folder / MODEL_FILE, arrays, metadata)
            keep_model(folder / MODEL_FILE, folder / round_model_file(number))
        except ValueError as error:
            observer.note(f"the model of round {number} was not kept: {error}")
        else:
            observer.model(size, number)

    def save(arrays: ArrayRecord, number: int) -> None:
        models.write({name: numpy_view(array) for name, array in arrays.items()}, number)

    models = ModelWriter(write)
    app: App | None = None
    grid: ObservingGrid | None = None
    failure = ""
    try:
        mailbox = Mailbox(folder)
        checkpoints = Checkpoints(folder, mailbox)
        found = _found(folder, checkpoints, mailbox, observer) if again else None
        token = acquire_task(plan.runtime_api_address, plan.flower_run_id)
        grid = ObservingGrid(plan.runtime_api_address, token, observer, save, mailbox, plan.on_outage, plan.grace_s)
        with _heartbeats(grid):
            app = unpack_app(grid, folder)
            mailbox.half = wire_precision(app.context().run_config) is WirePrecision.HALF
            wait_for_nodes(grid, observer, plan, again=again)
            if mailbox.half:
                observer.note("models travel in half precision")
            try:
                Phases(app, grid, observer, checkpoints, found, models.wait).run(plan)
            finally:
                models.wait()  # the service asks for no model any more once it hears of the end
    except (KeyboardInterrupt, RunNotRunningException):
        failure = "the run was stopped"
    except httpx.TransportError:
        _log.exception("the SuperLink is gone")
        return GONE
    except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
        _log.exception("the run failed")
        if is_full_disk(error):
            return GONE
        failure = app.explain(error) if app else f"{type(error).__name__}: {error}"
    if grid is not None:
        _report_end(grid, failure)
    if failure:
        observer.failed(failure)
        return FAILED
    observer.finished()
    return FINISHED


def _found(folder: Path, checkpoints: Checkpoints, mailbox: Mailbox, observer: Observer) -> Checkpoint | None:
    """What the process that was lost had come to. Says so before anything else happens."""
    mailbox.empty()
    found = checkpoints.read()
    place = found.place if found else Place()
    begun, _ = read_events(folder)
    observer.resume(place.phase, place.node, place.rounds)
    if found is None and any(one.kind is EventKind.SENT and one.round > 1 for one in begun):
        observer.note(
            "the aggregator was lost; this app goes through its rounds by itself, so it begins again with the first"
        )
    return found


@contextmanager
def _heartbeats(grid: ObservingGrid) -> Iterator[None]:
    """Keep the claim on the task. Flower's sender raises SIGINT here when the claim is lost or the run stopped."""
    sender = HeartbeatSender(make_task_heartbeat_fn_http(grid._runtime_client))
    sender.start()
    try:
        yield
    finally:
        if sender.is_running:
            sender.stop()


def _report_end(grid: ObservingGrid, failure: str) -> None:
    grid._retry_invoker.max_tries = 1
    status = SubStatus.FAILED if failure else SubStatus.COMPLETED
    try:
        grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=failure))
    except (httpx.HTTPError, KeyboardInterrupt):  # Flower's client interrupts us where the claim was lost
        _log.exception("the SuperLink was not told of the end")
    grid.close()


def preload() -> None:
    """Import what the app of a project is likely to import, where it is installed."""
    for name in _PRELOADED:
        if importlib.util.find_spec(name):
            importlib.import_module(name)


def wait_for_plan(folder: Path) -> Plan | None:
    """The run folder's plan, once it is there; None where none comes."""
    deadline = time.monotonic() + PLAN_PATIENCE_S
    while (plan := Plan.read(folder)) is None and time.monotonic() <= deadline:
        time.sleep(_PLAN_WAIT_S)
    return plan


def follow_plan(folder: Path) -> int:
    """Wait for the plan and do what it says; the process's exit status."""
    events = EventFile(folder)
    preload()
    plan = wait_for_plan(folder)
    if plan is None:
        _log.error("the service did not say within %g s what to do", PLAN_PATIENCE_S)
        return GONE
    return execute(plan, folder, Observer(events.write, time.time), again=events.begun)


def parse_arguments(arguments: Sequence[str]) -> Path:
    """The run folder."""
    parser = argparse.ArgumentParser(prog="serverapp", description="Run a project's ServerApp and report its events.")
    parser.add_argument(
        "--run-folder", required=True, type=Path, help="where the plan is, and events, model and app go"
    )
    folder: Path = parser.parse_args(arguments).run_folder
    return folder.resolve()


def main() -> int:
    """Called by `python -m`, and in a fork of `template_process`."""
    logs.begin_process(os.environ)
    logs.set_up(LogFormat.TEXT)  # members read it
    logging.getLogger("flwr").propagate = False  # it writes to the same log by a handler of its own
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request says nothing
    # Flower's heartbeat interrupts this process; one started in the background may have inherited SIGINT as ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = parse_arguments(sys.argv[1:])
    lower_priority(NICENESS)
    return follow_plan(folder)


if __name__ == "__main__":
    sys.exit(main())
