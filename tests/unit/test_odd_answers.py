"""One site's answer, however odd, is that site's fault: it is told by name, and the round goes on with the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_to_proto
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.runtime import RuntimeHttpClient

from hub_service.aggregators.mailbox import Mailbox
from hub_service.aggregators.observer import Observer
from hub_service.aggregators.observing_grid import ObservingGrid, _Open, _reply_metadata
from hub_service.aggregators.strategy_calls import Calls, StrategyCalls
from hub_service.domain.runs import EventKind, RunEvent
from tests.fakes.in_memory_grid import task_identity

SHAPE = (2, 3)


@pytest.fixture(autouse=True)
def as_a_task() -> Iterator[None]:
    with task_identity():
        yield


class ScriptedGrid(ObservingGrid):
    """Its nodes answer at once, with what the test gave them.

    Args:
        answers: by node id, to messages to train.
    """

    def __init__(self, folder: Path, answers: dict[int, RecordDict]) -> None:
        self.events: list[RunEvent] = []
        self.observer = Observer(self.events.append, lambda: 0.0)
        super().__init__("127.0.0.1:1", "token", self.observer, lambda *_: None, Mailbox(folder))
        self._answers = answers
        self._replies: dict[str, Message] = {}
        self.show(answers)

    @property
    def faults(self) -> dict[int, str]:
        return {one.node_id: one.text for one in self.events if one.kind is EventKind.REPLY and one.text}

    def _all_nodes(self) -> Sequence[NodeInfo]:
        self._letter_nodes = frozenset(self._answers)
        return [NodeInfo(node_id=node_id) for node_id in self._answers]

    def _sent(self, messages: Sequence[Message]) -> list[str]:
        for message in messages:
            message_id = f"message-{len(self._replies)}"
            message.metadata.__dict__["_message_id"] = message_id
            self._open[message_id] = _Open(message.metadata, ())
            content = self._answers[message.metadata.dst_node_id]
            self._replies[message_id] = make_message(metadata=_reply_metadata(message.metadata), content=content)
        return [message.metadata.message_id for message in messages]

    def _pulled(self, message_ids: Iterable[str], wait_s: float) -> list[Message]:
        return [self._checked(self._replies[message_id]) for message_id in message_ids]


def content(array: Array, metrics: dict[str, Any], **more: Any) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"w": array}), "metrics": MetricRecord(metrics), **more})


def array_of(value: float) -> Array:
    return Array(np.full(SHAPE, value, np.float32))


def lying(header: dict[str, Any], says: str = "float32", version: bytes = b"\x01\x00") -> Array:
    """An array that says one thing, and whose file says another."""
    text = repr({"descr": "<f4", "fortran_order": False, "shape": SHAPE} | header).encode().ljust(117) + b"\n"
    size = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return Array(says, SHAPE, "numpy.ndarray", b"\x93NUMPY" + version + size + text + bytes(96))


def without_arrays() -> RecordDict:
    return RecordDict({"metrics": MetricRecord({"loss": 1.0, "num-examples": 10})})


GOOD = {"loss": 1.0, "num-examples": 10}
ODD = {
    "a shape beyond all numbers": (content(lying({"shape": (2**62, 4)}), GOOD), "array 'w' cannot be read"),
    "a shape beyond all memory": (
        content(lying({"shape": (2**44,)}, version=b"\x03\x00"), GOOD),
        "array 'w' cannot be read",
    ),
    "texts": (content(lying({"descr": "|S4"}), GOOD), "array 'w' is of dtype bytes32, not float32 as it says"),
    "times": (content(lying({"descr": "<M8[s]"}), GOOD), "array 'w' is of dtype datetime64[s], not float32 as it says"),
    "rows": (content(lying({"descr": [("a", "<f4")]}), GOOD), "array 'w' is of dtype void32, not float32 as it says"),
    "texts for whole numbers": (
        content(lying({"descr": "|S4"}, says="int64"), GOOD),
        "array 'w' is of dtype bytes32, not int64 as it says",
    ),
    "whole numbers": (content(Array(np.ones(SHAPE, np.int64)), GOOD), "floating array 'w' is missing"),
    "complex numbers": (content(Array(np.ones(SHAPE, np.complex64)), GOOD), "floating array 'w' is missing"),
    "a metric left out": (content(array_of(9), {"num-examples": 10}), "metric 'loss' is missing"),
    "a metric more": (content(array_of(9), GOOD | {"auc": 0.5}), "metric 'auc' is not what other sites send"),
    "a list for a metric": (content(array_of(9), GOOD | {"loss": [1.0]}), "metric 'loss' is missing"),
    "no weight": (content(array_of(9), {"loss": 1.0}), "metric 'num-examples' is missing"),
    "a list of weights": (content(array_of(9), GOOD | {"num-examples": [10]}), "'num-examples' is a list"),
    "another record of metrics": (
        content(array_of(9), GOOD, more=MetricRecord()),
        "metric record 'more' is not what other sites send",
    ),
    "another record of arrays": (
        content(array_of(9), GOOD, more=ArrayRecord()),
        "array record 'more' is not what other sites send",
    ),
    "no record of arrays": (without_arrays(), "array record 'arrays' is missing"),
}


def averaged(grid: ScriptedGrid, strategy: Strategy, rounds: int = 1) -> Result:
    """As the ServerApp goes through it."""
    with StrategyCalls(Calls, lambda *_: None, grid.note_strategy, grid.note_result).followed():
        return strategy.start(grid, ArrayRecord({"w": array_of(0)}), rounds)


class Patient(FedAvg):
    """An app's own, which takes what differs."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = [reply for reply in replies if reply.has_content()]
        return cast(ArrayRecord, replies[0].content["arrays"]), MetricRecord({"answers": len(replies)})


def test_an_apps_own_strategy_may_take_answers_that_differ(tmp_path: Path) -> None:
    answers = {node: content(array_of(1), GOOD | more) for node, more in enumerate(({}, {"auc": 0.5}, {}), start=1)}
    grid = ScriptedGrid(tmp_path, answers)
    result = averaged(grid, Patient(fraction_evaluate=0.0))
    assert result.train_metrics_clientapp[1]["answers"] == 3
    assert grid.faults == {}


@pytest.mark.parametrize("name", ODD)
def test_a_site_with_an_odd_answer_is_left_out_and_the_others_go_on(tmp_path: Path, name: str) -> None:
    odd, fault = ODD[name]
    grid = ScriptedGrid(tmp_path, {1: content(array_of(1), GOOD), 2: odd, 3: content(array_of(3), GOOD)})
    result = averaged(grid, FedAvg(fraction_evaluate=0.0))
    np.testing.assert_array_equal(result.arrays["w"].numpy(), np.full(SHAPE, 2.0))
    assert list(grid.faults) == [2]
    assert fault in grid.faults[2]


def test_of_two_sites_the_one_that_leaves_something_out_is_odd(tmp_path: Path) -> None:
    grid = ScriptedGrid(tmp_path, {1: content(array_of(1), {"num-examples": 10}), 2: content(array_of(2), GOOD)})
    result = averaged(grid, FedAvg(fraction_evaluate=0.0))
    np.testing.assert_array_equal(result.arrays["w"].numpy(), np.full(SHAPE, 2.0))
    assert list(grid.faults) == [1]


@pytest.mark.parametrize(
    ("message_type", "metrics"),
    [
        ("train", [{"auc-a": 1.0}, {"auc-b": 1.0}, {"auc-c": 1.0}]),
        ("query", [{"melanoma": 1}, {"melanoma": 1}, {"carcinoma": 1}]),
    ],
    ids=["each its own", "an app's own question"],
)
def test_what_an_app_means_so_is_not_odd(tmp_path: Path, message_type: str, metrics: list[dict[str, Any]]) -> None:
    answers = {node: RecordDict({"m": MetricRecord(one)}) for node, one in enumerate(metrics, start=1)}
    grid = ScriptedGrid(tmp_path, answers)
    messages = [Message(RecordDict(), node, message_type) for node in answers]
    assert [reply.has_content() for reply in grid.send_and_receive(messages)] == [True] * 3
    assert grid.faults == {}


@pytest.mark.parametrize("own_loop", [False, True])
def test_of_a_message_that_is_over_nothing_is_kept(tmp_path: Path, own_loop: bool) -> None:
    """A description of all arrays for each message of each round would fill the memory of a long run."""
    grid = ScriptedGrid(tmp_path, {1: content(array_of(1), GOOD), 2: without_arrays(), 3: content(array_of(3), GOOD)})
    if own_loop:
        messages = [Message(content(array_of(0), {}), node, "train") for node in (1, 2, 3)]
        assert len(list(grid.pull_messages(grid.push_messages(messages)))) == 3
    else:
        averaged(grid, FedAvg(fraction_evaluate=0.0), 2)
    assert grid._replies
    for message_id in grid._replies:
        with pytest.raises(KeyError):
            grid.observer.sent_arrays(message_id)


def test_the_superlink_knows_a_request_that_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []

    def breaks_once(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        if len(keys) == 1:
            raise httpx.ReadError("connection reset")
        return httpx.Response(204)

    client = RuntimeHttpClient.from_server_address("127.0.0.1:1", True, None, [])
    client._client = httpx.Client(transport=httpx.MockTransport(breaks_once))
    monkeypatch.setattr(ObservingGrid, "_runtime_client", client)
    grid = ObservingGrid("127.0.0.1:1", "token", Observer(print, lambda: 0.0), lambda *_: None, Mailbox(tmp_path))
    for _ in range(2):
        assert grid._pulled(["message"], 0.0) == []
    first, again, another = keys
    assert first == again != another


# --- stock nodes, whose answers come as Flower's objects


def objects_of(message: Message) -> dict[str, bytes]:
    return {object_id: item.deflate() for object_id, item in get_all_nested_objects(message).items()}


def stock_reply(record: RecordDict) -> Message:
    asked = Message(RecordDict(), 2, "train")
    asked.metadata.__dict__["_message_id"] = "asked"
    reply = make_message(metadata=_reply_metadata(asked.metadata), content=record)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return reply


def opened(folder: Path, reply: Message, contents: dict[str, bytes]) -> Message:
    proto, tree = message_to_proto(reply), get_object_tree(reply)
    proto.ClearField("content")
    return ScriptedGrid(folder, {2: RecordDict()})._opened(proto, tree, {}, contents)


def test_a_stock_nodes_answer_is_put_together(tmp_path: Path) -> None:
    reply = stock_reply(content(array_of(5), GOOD))
    got = opened(tmp_path, reply, objects_of(reply))
    np.testing.assert_array_equal(got.content["arrays"]["w"].numpy(), np.full(SHAPE, 5.0))
    assert (got.metadata.src_node_id, got.metadata.message_id) == (2, reply.metadata.message_id)


def no_such_object(objects: dict[str, bytes], message_id: str) -> None:
    objects[message_id] = objects[message_id].replace(b"Message", b"Massage")


def no_message(objects: dict[str, bytes], message_id: str) -> None:
    objects[message_id] = RecordDict().deflate()


def no_records(objects: dict[str, bytes], message_id: str) -> None:
    for object_id in objects:
        if object_id != message_id:
            objects[object_id] = b"nonsense"


@pytest.mark.parametrize("spoil", [no_such_object, no_message, no_records])
def test_objects_that_make_no_message_are_the_stock_nodes_fault(tmp_path: Path, spoil: Any) -> None:
    reply = stock_reply(content(array_of(5), GOOD))
    objects = objects_of(reply)
    spoil(objects, reply.metadata.message_id)
    got = opened(tmp_path, reply, objects)
    assert got.has_error()
    assert "the site's answer cannot be read" in got.error.reason
    assert (got.metadata.src_node_id, got.metadata.reply_to_message_id) == (2, "asked")
