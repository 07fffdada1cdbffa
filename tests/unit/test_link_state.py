"""What our state adds to Flower's in-memory one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from federator.node import _HEARTBEAT_INTERVAL_S, _HEARTBEAT_S
from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate import in_memory_linkstate, utils
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.date import now
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager

from hub_service.aggregators import link_state
from hub_service.aggregators.link_state import LinkState

KEYS = [b"-----BEGIN PUBLIC KEY-----\none\n", b"-----BEGIN PUBLIC KEY-----\ntwo\n"]


def state_in(folder: Path) -> LinkState:
    return LinkState(NoOpFederationManager(), InMemoryObjectStore(), node_ids=folder / "nodes.json")


def test_a_key_keeps_its_node_id(tmp_path: Path) -> None:
    before = state_in(tmp_path)
    ids = [before.create_node("owner", "name", key, 30.0) for key in KEYS]
    after = state_in(tmp_path)
    assert [after.create_node("owner", "name", key, 30.0) for key in reversed(KEYS)] == ids[::-1]
    assert [after.get_node_id_by_public_key(key) for key in KEYS] == ids
    assert after.activate_node(ids[0], 30.0)
    assert [info.node_id for info in after.get_node_info(node_ids=ids[:1])] == ids[:1]
    after.delete_node("owner", ids[1])
    assert len(set(ids)) == 2


@pytest.mark.parametrize("damaged", ["", "{", "[1]", "\0" * 20])
def test_a_file_of_ids_that_is_not_whole_counts_as_absent(tmp_path: Path, damaged: str) -> None:
    """As after a loss of power."""
    (tmp_path / "nodes.json").write_text(damaged)
    state = state_in(tmp_path)
    node_id = state.create_node("owner", "name", KEYS[0], 30.0)
    assert state_in(tmp_path).create_node("owner", "name", KEYS[0], 30.0) == node_id


def test_a_key_is_registered_once(tmp_path: Path) -> None:
    state = state_in(tmp_path)
    node_id = state.create_node("owner", "name", KEYS[0], 30.0)
    with pytest.raises(ValueError, match="already in use"):
        state.create_node("owner", "name", KEYS[0], 30.0)
    state.delete_node("owner", node_id)
    with pytest.raises(ValueError, match="already in use"):
        state.create_node("owner", "name", KEYS[0], 30.0)


def test_keys_are_registered_at_once(tmp_path: Path) -> None:
    """Flower's handlers come from several threads, and all write one file."""
    state = state_in(tmp_path)
    keys = [f"key {number}".encode() for number in range(200)]
    with ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(lambda key: state.create_node("owner", "name", key, 30.0), keys))
    after = state_in(tmp_path)
    assert [after.create_node("owner", "name", key, 30.0) for key in keys] == ids


def test_a_node_keeps_its_id_with_a_new_key(tmp_path: Path) -> None:
    """Also one that was taken out, and one that this process has never known. The earlier keys open nothing."""
    state = state_in(tmp_path)
    node_id = state.create_node("owner", "name", KEYS[0], 30.0)
    state.activate_node(node_id, 30.0)
    state.give_key(node_id, KEYS[1])
    assert [state.get_node_id_by_public_key(key) for key in KEYS] == [None, node_id]
    state.delete_node("owner", node_id)
    state.give_key(node_id, KEYS[0])
    assert [state.get_node_id_by_public_key(key) for key in KEYS] == [node_id, None]
    assert state.activate_node(node_id, 30.0)
    with pytest.raises(ValueError, match="already in use"):
        state.give_key(node_id + 1, KEYS[0])
    after = state_in(tmp_path)
    after.give_key(node_id, KEYS[1])
    assert after.get_node_id_by_public_key(KEYS[1]) == node_id
    assert state_in(tmp_path).create_node("owner", "name", KEYS[1], 30.0) == node_id


def test_nobody_is_answered_for_but_a_node_that_was_taken_out(tmp_path: Path) -> None:
    """Where Flower's own state answers with an error at once."""
    state = state_in(tmp_path)
    ids = [state.create_node("owner", "name", key, 30.0) for key in KEYS]
    for node_id in ids:
        state.activate_node(node_id, 30.0)
    run_id = state.create_run("", "", "", {}, NOOP_FEDERATION_ID, None, "owner", "serverapp")
    messages = [stored(state, run_id, node_id, str(place) * 64) for place, node_id in enumerate(ids)]
    assert not state.silent_nodes()
    state.deactivate_node(ids[0])
    assert state.get_message_res(set(messages), run_id) == []
    assert state.silent_nodes().keys() == {ids[0]}
    state.acknowledge_node_heartbeat(ids[0], 30.0)
    assert not state.silent_nodes()
    state.delete_node("owner", ids[1])
    (answer,) = state.get_message_res(set(messages), run_id)
    assert answer.metadata.reply_to_message_id == messages[1]
    assert answer.error.code == ErrorCode.NODE_UNAVAILABLE


def test_an_expired_message_is_answered_with_an_error(tmp_path: Path) -> None:
    state = state_in(tmp_path)
    node_id = state.create_node("owner", "name", KEYS[0], 30.0)
    state.activate_node(node_id, 30.0)
    run_id = state.create_run("", "", "", {}, NOOP_FEDERATION_ID, None, "owner", "serverapp")
    kept, old = (stored(state, run_id, node_id, message_id) for message_id in ("0" * 64, "1" * 64))
    state.message_ins_store[old].metadata.ttl = 1e-9
    (answer,) = state.get_message_res({old, kept}, run_id)
    assert answer.metadata.reply_to_message_id == old
    assert answer.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert not state.has_reply(kept, "0" * 64)


def test_a_node_that_trains_for_an_hour_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a simulated clock, with our nodes' heartbeats: it is connected all the time, and its answer counts once."""
    began, seconds = now(), 0.0
    for module in (in_memory_linkstate, utils, link_state):
        monkeypatch.setattr(module, "now", lambda: began + timedelta(seconds=seconds))
    monkeypatch.setattr(link_state.time, "monotonic", lambda: seconds)
    state = state_in(tmp_path)
    node_id = state.create_node("owner", "name", KEYS[0], 30.0)
    state.activate_node(node_id, 30.0)
    run_id = state.create_run("", "", "", {}, NOOP_FEDERATION_ID, None, "owner", "serverapp")
    message_id = stored(state, run_id, node_id, "0" * 64)
    TaskIdentity.node_id = node_id
    (message,) = state.get_message_ins(node_id, limit=1)
    while seconds < 3600:
        seconds += _HEARTBEAT_S
        assert not state.silent_nodes()
        assert state.get_message_res({message_id}, run_id) == []
        assert state.acknowledge_node_heartbeat(node_id, _HEARTBEAT_INTERVAL_S)
    seconds += 2.5 * _HEARTBEAT_INTERVAL_S
    assert state.silent_nodes() == {node_id: 2.5 * _HEARTBEAT_INTERVAL_S}

    reply = Message(RecordDict(), reply_to=message)
    reply.metadata.__dict__["_message_id"] = "1" * 64
    for _ in range(2):  # as a node whose connection broke sends it again
        state.store_message_and_object_tree(reply, ObjectTree(object_id="1" * 64), state.start_session(run_id))
    assert state.has_reply(message_id, "1" * 64)
    (answer,) = state.get_message_res({message_id}, run_id)
    assert not answer.has_error()
    assert state.get_message_res({message_id}, run_id) == []


@pytest.fixture(autouse=True)
def _nobodys_process_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower keeps whose process this is where every test would find it."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, None)


def stored(state: LinkState, run_id: int, node_id: int, message_id: str) -> str:
    """A new message to the node."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, SUPERLINK_NODE_ID
    message = Message(RecordDict(), node_id, "train")
    message.metadata.__dict__["_message_id"] = message_id
    tree = ObjectTree(object_id=message_id)
    assert state.store_message_and_object_tree(message, tree, state.start_session(run_id)) == (True, [message_id])
    return message_id
