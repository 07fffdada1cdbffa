"""Runs a project's ServerApp against its SuperLink and reports what happens. One process a run.

    python -m hub_service.aggregators.serverapp --runtime-api-address 127.0.0.1:PORT --flower-run-id ID \\
        --run-folder DIR --nodes 1,2,3 --wait SECONDS [--compare]

It does what `flwr-serverapp` does, but hands the app an `ObservingGrid`. Phases, in one process and one Flower run:

    federated   the app with all nodes
    alone       with --compare: the app once for each node, which is then the only one it sees
    compare     the last evaluate message of the federated phase, replayed with each model to every node

The global model of a round is seen in the next message that carries it: the evaluate message of the round, or the
train message of the next. The last one, where no message follows, is taken from what `Strategy.start` returns.
"""

from __future__ import annotations

import argparse
import functools
import logging
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
from federator.framing import pack, unpack
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.cli.install import install_from_fab
from flwr.common.config import get_fused_config_from_dir, get_project_config
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto, fab_from_proto, message_to_proto, run_from_proto
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    GetNodesRequest,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
    PushTaskOutputRequest,
)
from flwr.serverapp import ServerApp
from flwr.serverapp.server_app import LoadServerAppError
from flwr.serverapp.strategy import Strategy
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents, pull_objects
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.object_ref import load_app
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from google.protobuf.message import Message as Protobuf

from hub_service.aggregators.events import MODEL_FILE, EventFile
from hub_service.aggregators.model_file import write_model
from hub_service.aggregators.observer import (
    ALONE,
    COMPARE,
    FEDERATED,
    Arrays,
    ArraySeen,
    Letter,
    Observer,
    odd_ones_out,
)

_log = logging.getLogger(__name__)

# How long to keep trying when the SuperLink does not answer, in seconds.
SUPERLINK_PATIENCE_S = 60.0
# How long the SuperLink holds a look for replies, in seconds; it answers at once when one comes.
_WAIT_S = 1.0
# As long for an app that looks by itself: it may do so without a pause.
_SHORT_WAIT_S = 0.05
# Waits between two looks for what comes by and by, in seconds.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.01, 0.2
# How long one request may take, in seconds: it carries all arrays of a round.
_CALL_TIMEOUT_S = 120.0
# An app that asks this often for nodes, is shown all of them, and sends nothing, waits for more than there are.
_PATIENT_ASKS = 8


class RunFailed(Exception):
    """The run cannot go on; the text is for a person."""


class TooFewSites(RunFailed):
    """The app waits for more sites than take part."""


class ObservingGrid(HttpGrid):
    """Flower's grid, restricted to some nodes, that reports all traffic to an Observer and polls without delay.

    Args:
        runtime_api_address: host:port of the SuperLink.
        token: the claim on the run's task, from AcquireTask.
        observer: is told of every message and decides which replies are left out.
        save: called with the global model of a round of the federated phase, as soon as it is seen.
    """

    def __init__(
        self,
        runtime_api_address: str,
        token: str,
        observer: Observer,
        save: Callable[[ArrayRecord, int], None],
    ) -> None:
        super().__init__(runtime_api_address, insecure=True, token=token)
        self._retry_invoker.max_time = SUPERLINK_PATIENCE_S
        self._observer = observer
        self._save = save
        self._shown: frozenset[int] = frozenset()
        self._asks = 0
        self._rounds = 0
        self._in_round: set[int] = set()
        self.model: ArrayRecord | None = None
        self.model_round = 0
        self.last_evaluate: Message | None = None

    def show(self, node_ids: Iterable[int]) -> None:
        """Begin a phase in which the app sees these nodes only."""
        self._shown = frozenset(node_ids)
        self._asks = self._rounds = self.model_round = 0
        self._in_round = set()
        self.model = self.last_evaluate = None

    def online(self) -> frozenset[int]:
        """All nodes that are connected to the SuperLink."""
        return frozenset(node.node_id for node in self._runtime_client.GetNodes(GetNodesRequest()).nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        nodes = [node for node in super().get_nodes() if node.node_id in self._shown]
        self._asks = self._asks + 1 if len(nodes) == len(self._shown) else 0
        if self._asks > _PATIENT_ASKS:
            raise TooFewSites(f"the app waits for more sites than the {len(self._shown)} that take part")
        return nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        if strangers := {message.metadata.dst_node_id for message in messages} - self._shown:
            raise RunFailed(f"the app sent a message to node {min(strangers)}, which does not take part")
        if not messages:
            return []
        self._asks = 0
        message_ids = list(super().push_messages(messages))
        for message_id, message in zip(message_ids, messages, strict=False):
            if message_id:
                self._observer.sent(message_id, _letter(message, message.metadata.dst_node_id, self._round_of(message)))
        self._note_outgoing(messages[0])
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._pulled(message_ids, _SHORT_WAIT_S)

    def _pulled(self, message_ids: Iterable[str], wait_s: float) -> list[Message]:
        """The replies that are there, as soon as there is one; none after `wait_s` seconds."""
        body = self._bulk("grid-pull", PullAppMessagesRequest(message_ids=message_ids), {}, wait_s)
        if not body:
            return []
        (envelopes,), contents = unpack(body, messages=1)
        answer = PullAppMessagesResponse.FromString(envelopes)
        return [
            self._checked(self._inflated(proto, tree, contents))
            for proto, tree in zip(answer.messages_list, answer.message_object_trees, strict=True)
        ]

    def _try_push_messages(self, run_id: int, messages: Iterable[Message]) -> list[str]:
        """As HttpGrid, in one request with all objects. Called by its `push_messages`."""
        request = PushAppMessagesRequest()
        objects: dict[str, bytes] = {}
        for message in messages:
            request.messages_list.append(message_to_proto(remove_content_from_message(message)))
            request.message_object_trees.append(get_object_tree(message))
            for object_id, item in get_all_nested_objects(message).items():
                if object_id not in objects:
                    objects[object_id] = item.deflate()
        (answer,), _ = unpack(self._bulk("grid-push", request, objects), messages=1)
        return list(PushAppMessagesResponse.FromString(answer).message_ids)

    def _bulk(self, operation: str, message: Protobuf, objects: Mapping[str, bytes], wait_s: float = 0.0) -> bytes:
        """Ask the SuperLink's bulk path, with the proofs and the patience of Flower's own client."""
        client = self._runtime_client
        content = pack([message.SerializeToString()], objects)

        def send() -> httpx.Response:
            request = client._client.build_request(
                "POST",
                f"{client._base_url}/v1/bulk/{operation}",
                content=content,
                headers={"prefer": f"wait={wait_s:g}"},
                timeout=_CALL_TIMEOUT_S,
            )
            response = client._send(ProtobufRequestContext(operation, message, request))
            response.raise_for_status()
            return response

        response: httpx.Response = self._retry_invoker.invoke(send)
        return response.content

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push all and wait for all replies, or until `timeout` seconds have passed.

        Raises RunFailed where every site failed to train: no strategy has anything to go on with then.
        """
        messages = list(messages)
        open_ids = {message_id for message_id in self.push_messages(messages) if message_id}
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while open_ids and (remaining := deadline - time.monotonic()) > 0:
            arrived = self._pulled(open_ids, min(_WAIT_S, remaining))
            replies += arrived
            open_ids -= {reply.metadata.reply_to_message_id for reply in arrived}
        for message_id in open_ids:
            self._observer.unanswered(message_id)
        replies = self._without_odd_ones(replies)
        if messages and _is_train(messages[0]) and all(reply.has_error() for reply in replies):
            reasons = sorted({reply.error.reason or "no reason given" for reply in replies}) or ["no site answered"]
            raise RunFailed(f"no site could train: {'; '.join(reasons)}")
        return replies

    def note_model(self, arrays: ArrayRecord, number: int) -> None:
        """Take `arrays` for the global model after round `number`."""
        if arrays is self.model or not arrays:
            return
        self.model, self.model_round = arrays, number
        if self._observer.phase == FEDERATED and number > 0:
            self._save(arrays, number)

    def note_result(self, arrays: ArrayRecord) -> None:
        """Take `arrays` for the model that the app ended with."""
        self.note_model(arrays, self._rounds)

    def _round_of(self, message: Message) -> int:
        """The app's own number of the round, where it says one; else how often its nodes have been sent to train."""
        if message.metadata.group_id.isdecimal():
            number = int(message.metadata.group_id)
        else:
            number = next((n for record in message.content.config_records.values() if (n := _said_round(record))), 0)
        if number:
            self._rounds = max(self._rounds, number)
            return number
        if _is_train(message):
            if not self._rounds or message.metadata.dst_node_id in self._in_round:
                self._rounds += 1
                self._in_round = set()
            self._in_round.add(message.metadata.dst_node_id)
        return self._rounds

    def _note_outgoing(self, message: Message) -> None:
        records = message.content.array_records
        if not records or not (_is_train(message) or _is_evaluate(message)):
            return
        arrays = max(records.values(), key=_size)
        if _is_evaluate(message):
            self.last_evaluate = message
            self.note_model(arrays, self._rounds)
        else:
            self.note_model(arrays, self._rounds - 1)

    def _inflated(self, proto: MessageProto, tree: ObjectTree, contents: Mapping[str, bytes]) -> Message:
        """The whole reply, or an error reply where its objects do not come."""
        message_id = proto.metadata.message_id
        object_ids = [item.object_id for item in iterate_object_tree(tree)]
        if not contents.keys() >= set(object_ids):
            try:
                contents = self._objects(proto, object_ids)
            except ObjectPullError as error:
                return _error_reply(
                    metadata_from_proto(proto.metadata),
                    ErrorCode.MESSAGE_UNAVAILABLE,
                    f"the site's answer did not arrive whole: {error}",
                )
        contents = {object_id: contents[object_id] for object_id in object_ids}
        message = cast(Message, inflate_object_from_contents(message_id, contents))
        message.metadata.__dict__["_message_id"] = message_id
        return message

    def _objects(self, proto: MessageProto, object_ids: list[str]) -> dict[str, bytes]:
        """The objects of a reply that a stock node is still sending, one by one. Raises ObjectPullError."""
        run_id = proto.metadata.run_id
        contents = pull_objects(
            object_ids,
            make_pull_object_fn_protobuf(self._runtime_client.PullObject, self.node, run_id),
            initial_backoff=_FIRST_WAIT_S,
            backoff_cap=_LONGEST_WAIT_S,
            max_tries_per_object=None,
            max_time=SUPERLINK_PATIENCE_S,
        )
        self._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.node, run_id=run_id, message_object_id=proto.metadata.message_id)
        )
        return contents

    def _checked(self, reply: Message) -> Message:
        source = reply.metadata.src_node_id
        fault = self._observer.replied(reply.metadata.reply_to_message_id, _letter(reply, source, 0))
        return _refused(reply, fault) if fault else reply

    def _without_odd_ones(self, replies: list[Message]) -> list[Message]:
        good = {reply.metadata.reply_to_message_id: _arrays(reply) for reply in replies if reply.has_content()}
        odd = odd_ones_out(good, {message_id: self._observer.sent_arrays(message_id) for message_id in good})
        for message_id, fault in odd.items():
            self._observer.left_out(message_id, fault)
        return [
            _refused(reply, odd[reply.metadata.reply_to_message_id])
            if reply.metadata.reply_to_message_id in odd
            else reply
            for reply in replies
        ]


def _is_train(message: Message) -> bool:
    return message.metadata.message_type.partition(".")[0] == "train"


def _is_evaluate(message: Message) -> bool:
    return message.metadata.message_type.partition(".")[0] == "evaluate"


def _said_round(record: ConfigRecord) -> int:
    number = record.get("server-round")
    return number if isinstance(number, int) else 0


def _size(record: ArrayRecord) -> int:
    return sum(len(array.data) for array in record.values())


def _letter(message: Message, node_id: int, number: int) -> Letter:
    message_type = message.metadata.message_type
    if message.has_error():
        return Letter(node_id, message_type, number, error=message.error.reason or f"error {message.error.code}")
    return Letter(
        node_id,
        message_type,
        number,
        arrays=_arrays(message),
        metrics=_metrics(message.content),
        size=sum(map(_size, message.content.array_records.values())),
    )


def _arrays(message: Message) -> Arrays:
    return {
        name: {
            key: ArraySeen(array.dtype, tuple(array.shape), functools.partial(_read, array))
            for key, array in record.items()
        }
        for name, record in message.content.array_records.items()
    }


def _read(array: Array) -> Any:
    try:
        return array.numpy()
    except (TypeError, EOFError) as error:
        raise ValueError(str(error)) from error


def _metrics(content: RecordDict) -> dict[str, float]:
    """All single numbers of all metric records. Lists have no place in an event."""
    return {
        name: value
        for record in content.metric_records.values()
        for name, value in record.items()
        if not isinstance(value, list)
    }


def _refused(reply: Message, fault: str) -> Message:
    return _error_reply(reply.metadata, ErrorCode.MOD_FAILED_PRECONDITION, fault)


def _error_reply(metadata: Metadata, code: int, reason: str) -> Message:
    """An error in the place of the reply that has this metadata."""
    return make_message(metadata=metadata, error=Error(code, reason))


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
        for name, module in list(sys.modules.items()):
            origin = getattr(module, "__file__", None)
            if origin and self.folder in Path(origin).parents:
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


@dataclass(frozen=True, slots=True)
class Plan:
    """The command line."""

    runtime_api_address: str
    flower_run_id: int
    run_folder: Path
    nodes: tuple[int, ...]
    wait_s: float
    compare: bool


def run_phases(app: App, grid: ObservingGrid, observer: Observer, plan: Plan) -> None:
    """Run the app through all phases. Raises what the federated phase raises; later phases only report."""
    observer.enter(FEDERATED)
    grid.show(plan.nodes)
    with _results_told_to(grid):
        app.run(grid)
        if not plan.compare:
            return
        evaluate = grid.last_evaluate
        models = {FEDERATED: grid.model}
        if len(plan.nodes) > 1:
            models |= _train_alone(app, grid, observer, plan.nodes)
    observer.enter(COMPARE)
    grid.show(plan.nodes)
    if evaluate is None:
        observer.note("the app sends no evaluate messages: there is nothing to compare the models by")
        return
    for name, model in models.items():
        if model is not None:
            _score(name, model, evaluate, grid, observer, plan.nodes)


def _train_alone(
    app: App, grid: ObservingGrid, observer: Observer, nodes: Sequence[int]
) -> dict[str, ArrayRecord | None]:
    models: dict[str, ArrayRecord | None] = {}
    for node in nodes:
        observer.enter(ALONE, node)
        grid.show([node])
        try:
            app.run(grid)
        except TooFewSites as error:
            observer.note(f"this app cannot run with one site: {error}")
            break
        except Exception as error:  # noqa: BLE001 - the app is the owner's code: it may raise anything
            _log.exception("training alone on node %d", node)
            observer.note(f"this site could not train alone: {app.explain(error)}")
        else:
            models[str(node)] = grid.model
    return models


def _score(
    name: str, model: ArrayRecord, evaluate: Message, grid: ObservingGrid, observer: Observer, nodes: Sequence[int]
) -> None:
    """Send the evaluate message with `model` in it to every node, and report what each makes of it."""
    content = evaluate.content
    key = max(content.array_records, key=lambda key: _size(content.array_records[key]))
    record = RecordDict({other: model if other == key else value for other, value in content.items()})
    messages = [Message(record, node, evaluate.metadata.message_type) for node in nodes]
    for reply in grid.send_and_receive(messages):
        if reply.has_content():
            observer.score(name, reply.metadata.src_node_id, _metrics(reply.content))


@contextmanager
def _results_told_to(grid: ObservingGrid) -> Iterator[None]:
    """While this is open, the grid hears what arrays each `Strategy.start` ends with.

    Without an evaluate message after the last round nothing else shows them.
    """
    start = Strategy.start

    @functools.wraps(start)
    def telling_start(self: Strategy, *args: Any, **kwargs: Any) -> Any:
        result = start(self, *args, **kwargs)
        grid.note_result(result.arrays)
        return result

    Strategy.start = telling_start  # type: ignore[method-assign]
    try:
        yield
    finally:
        Strategy.start = start  # type: ignore[method-assign]


def wait_for_nodes(grid: ObservingGrid, observer: Observer, plan: Plan) -> None:
    """Return when all nodes are connected. Raises RunFailed, naming the missing ones, after `plan.wait_s`."""
    deadline = time.monotonic() + plan.wait_s
    reported: list[int] = []
    while missing := sorted(set(plan.nodes) - grid.online()):
        if missing != reported:
            observer.waiting(missing)
            reported = missing
        if time.monotonic() > deadline:
            raise RunFailed(
                f"not all sites connected within {plan.wait_s:g} s; missing: {', '.join(map(str, missing))}"
            )
        time.sleep(_LONGEST_WAIT_S / 2)


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


def execute(plan: Plan, observer: Observer) -> bool:
    """The whole run; True if it finished. Whatever goes wrong becomes one FAILED event."""

    def save(arrays: ArrayRecord, number: int) -> None:
        named = {name: array.numpy() for name, array in arrays.items()}
        metadata = {"round": str(number), "flower-run-id": str(plan.flower_run_id)}
        try:
            sha256, size = write_model(plan.run_folder / MODEL_FILE, named, metadata)
        except ValueError as error:
            observer.note(f"the model of round {number} was not kept: {error}")
        else:
            observer.model(sha256, size, number)

    app: App | None = None
    grid: ObservingGrid | None = None
    failure = ""
    try:
        token = acquire_task(plan.runtime_api_address, plan.flower_run_id)
        grid = ObservingGrid(plan.runtime_api_address, token, observer, save)
        with _heartbeats(grid):
            app = unpack_app(grid, plan.run_folder)
            wait_for_nodes(grid, observer, plan)
            run_phases(app, grid, observer, plan)
    except (KeyboardInterrupt, RunNotRunningException):
        failure = "the run was stopped"
    except httpx.TransportError:
        _log.exception("the SuperLink is gone")
        failure = "the aggregator's SuperLink does not answer any more; start the run again"
    except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
        _log.exception("the run failed")
        failure = app.explain(error) if app else f"{type(error).__name__}: {error}"
    if grid is not None:
        _report_end(grid, failure)
    if failure:
        observer.failed(failure)
        return False
    observer.finished()
    return True


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


def parse_arguments(arguments: Sequence[str]) -> Plan:
    parser = argparse.ArgumentParser(prog="serverapp", description="Run a project's ServerApp and report its events.")
    parser.add_argument("--runtime-api-address", required=True, help="host:port of the project's SuperLink")
    parser.add_argument("--flower-run-id", required=True, type=int, help="the SuperLink's id of the run")
    parser.add_argument("--run-folder", required=True, type=Path, help="where events, model and app go")
    parser.add_argument("--nodes", required=True, help="ids of the nodes that take part, with commas between")
    parser.add_argument("--wait", required=True, type=float, help="how long to wait for the nodes, in seconds")
    parser.add_argument("--compare", action="store_true", help="train each node alone too, and score every model")
    given = parser.parse_args(arguments)
    nodes = tuple(int(node) for node in given.nodes.split(","))
    return Plan(
        given.runtime_api_address, given.flower_run_id, given.run_folder.resolve(), nodes, given.wait, given.compare
    )


def main(arguments: Sequence[str]) -> int:
    logging.basicConfig(level=logging.INFO)
    # Flower's heartbeat interrupts this process; one started in the background may have inherited SIGINT as ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    plan = parse_arguments(arguments)
    observer = Observer(EventFile(plan.run_folder).write, time.time)
    return 0 if execute(plan, observer) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
