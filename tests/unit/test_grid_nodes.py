"""Who is connected comes with the replies: the strategy that asks at once costs the SuperLink no request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from federator.framing import pack
from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import GetNodesResponse, PullAppMessagesResponse
from flwr.supercore.runtime import RuntimeHttpClient

from hub_service.aggregators import observing_grid
from hub_service.aggregators.mailbox import Mailbox
from hub_service.aggregators.observer import MessageSeen, Observer
from hub_service.aggregators.observing_grid import ObservingGrid, _Open, _reply_metadata
from tests.fakes.in_memory_grid import task_identity


class Superlink:
    """Has one reply at each pull, and these nodes."""

    def __init__(self) -> None:
        self.nodes = [1, 2]
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path.rpartition("/")[2])
        answer = GetNodesResponse(nodes=[NodeInfo(node_id=node_id) for node_id in self.nodes])
        nodes = pack([answer.SerializeToString(), json.dumps(self.nodes).encode(), b"{}"], {})
        if self.asked[-1] == "grid-nodes":
            return httpx.Response(200, content=nodes)
        reply = message_to_proto(make_message(metadata=_reply_metadata(asked().metadata), error=Error(1, "no data")))
        pulled = PullAppMessagesResponse(messages_list=[reply], message_object_trees=[ObjectTree()])
        return httpx.Response(200, content=pack([pulled.SerializeToString(), b"{}", nodes], {}))


def asked() -> Message:
    message = Message(RecordDict(), 1, "train")
    message.metadata.__dict__["_message_id"] = "asked"
    return message


@pytest.fixture
def superlink() -> Superlink:
    return Superlink()


@pytest.fixture
def grid(superlink: Superlink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObservingGrid]:
    client = RuntimeHttpClient.from_server_address("127.0.0.1:1", True, None, [])
    client._client = httpx.Client(transport=httpx.MockTransport(superlink))
    monkeypatch.setattr(ObservingGrid, "_runtime_client", client)
    observer = Observer(lambda _: None, lambda: 0.0)
    grid = ObservingGrid("127.0.0.1:1", "token", observer, lambda *_: None, Mailbox(tmp_path))
    grid.show([1, 2, 3])
    with task_identity():
        observer.sent("asked", MessageSeen(1, "train", 1))
        grid._open["asked"] = _Open(asked().metadata, ())
        yield grid


def ids(grid: ObservingGrid) -> list[int]:
    return [node.node_id for node in grid.get_nodes()]


def test_who_came_with_the_replies_is_not_asked_for(
    grid: ObservingGrid, superlink: Superlink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observing_grid, "_FRESH_S", 60.0)
    (reply,) = grid.pull_messages(["asked"])
    assert reply.error.reason == "no data"
    superlink.nodes.append(3)
    assert ids(grid) == [1, 2]
    assert superlink.asked == ["grid-pull"]


def test_after_a_while_the_superlink_is_asked(
    grid: ObservingGrid, superlink: Superlink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observing_grid, "_FRESH_S", 0.0)
    grid.pull_messages(["asked"])
    superlink.nodes.append(3)
    assert ids(grid) == [1, 2, 3]
    assert superlink.asked == ["grid-pull", "grid-nodes"]
