"""Flower's state of a project's aggregator: in memory, but for the ids of its nodes.

Messages, runs and tasks end with the process, as the run does. A node keeps its id: a stock SuperNode waits with it
from one run to the next, and a participation keeps it when its client comes back with a new key.

Nobody is answered for here. Flower's state answers with an error in the place of a node that has been offline for a
minute, or has said goodbye; how long a lost node is waited for is the project's policy, which the ServerApp's grid
keeps to (`outages.py`). It asks here for how long each node has been silent.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from logging import WARNING
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.server.superlink.linkstate import in_memory_linkstate
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.server.superlink.linkstate.utils import verify_message_ids
from flwr.supercore import log
from flwr.supercore.constant import NodeStatus
from flwr.supercore.date import now


def _read(node_ids: Path) -> dict[str, int]:
    """What the file says; nothing where there is none, or a machine that lost power has left one that is not whole."""
    try:
        return dict(json.loads(node_ids.read_text()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        log(WARNING, "%s cannot be read, and counts as absent: %s", node_ids, error)
        return {}


@contextmanager
def _first_number_drawn_here(wanted: int) -> Iterator[None]:
    """While this is open, the first id that Flower's state makes up in this thread, which is the run's, is this one."""
    drawn, here = in_memory_linkstate.generate_rand_int_from_bytes, threading.get_ident()  # type: ignore[attr-defined]
    numbers = iter([wanted])

    def number(*sizes: Any, **named: Any) -> int:
        given = next(numbers, None) if threading.get_ident() == here else None
        return drawn(*sizes, **named) if given is None else given

    in_memory_linkstate.generate_rand_int_from_bytes = number  # type: ignore[attr-defined]
    try:
        yield
    finally:
        in_memory_linkstate.generate_rand_int_from_bytes = drawn  # type: ignore[attr-defined]


class LinkState(InMemoryLinkState):
    """Flower's in-memory state with node ids that survive it.

    Args:
        node_ids: a JSON file, public key in PEM -> node id; read now, written when a key is new.
        run_id: of the first run; None: Flower chooses.
    """

    def __init__(self, *flowers: Any, node_ids: Path, run_id: int | None = None) -> None:
        super().__init__(*flowers)
        self._file = node_ids
        self._run_id = run_id
        self._known: dict[str, int] = _read(node_ids)
        self._heard: dict[int, float] = {}  # node id -> when it was last heard of, by the monotonic clock

    @classmethod
    def with_node_ids_in(cls, path: Path, run_id: int | None = None) -> Callable[..., LinkState]:
        """What makes a state of Flower's own arguments."""
        return lambda *flowers: cls(*flowers, node_ids=path, run_id=run_id)

    def create_run(self, *flowers: Any, **named: Any) -> int:
        """As Flower; the first run has the id that it had at the SuperLink before this one.

        Nodes keep what belongs to a run, such as an app's own state, by this id.
        """
        wanted, self._run_id = self._run_id, None
        if wanted is None:
            return super().create_run(*flowers, **named)
        with _first_number_drawn_here(wanted):
            return super().create_run(*flowers, **named)

    def create_node(self, owner_aid: str, owner_name: str, public_key: bytes, *flowers: Any, **named: Any) -> int:
        """As Flower, with the id that the key had before. Raises ValueError for a key that has been here before."""
        with self.lock:  # Flower's handlers come from several threads
            node_id = super().create_node(owner_aid, owner_name, public_key, *flowers, **named)
            key = public_key.decode("ascii")
            if key not in self._known:
                self._known[key] = node_id
                self._remember()
            return self._renamed(node_id, self._known[key], owner_aid)

    def _renamed(self, node_id: int, wanted: int, owner_aid: str) -> int:
        if node_id != wanted:
            info = self.nodes.pop(node_id)
            info.node_id = wanted
            self.nodes[wanted] = info
            self.node_public_key_to_node_id[info.public_key] = wanted
            self.owner_to_node_ids[owner_aid].discard(node_id)
            self.owner_to_node_ids[owner_aid].add(wanted)
        return wanted

    def give_key(self, node_id: int, public_key: bytes) -> None:
        """Let the node with this id have this key from now on, in place of an earlier one.

        A node that is not known here, or was taken out, is registered anew: its client has come back. Raises ValueError
        where the key is another node's.
        """
        with self.lock:
            if self.node_public_key_to_node_id.get(public_key, node_id) != node_id:
                raise ValueError("Public key already in use")
            self._known = {key: one for key, one in self._known.items() if one != node_id}
            self._known[public_key.decode("ascii")] = node_id
            info = self.nodes.get(node_id)
            if info is None or info.status == NodeStatus.UNREGISTERED:
                self._forget(node_id)
                self.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key, 0)
            elif info.public_key != public_key:
                del self.node_public_key_to_node_id[info.public_key]
                self.node_public_key_to_node_id[public_key] = node_id
                info.public_key = public_key
            self._remember()

    def _forget(self, node_id: int) -> None:
        """A node that was taken out: another may have its id."""
        info = self.nodes.pop(node_id, None)
        if info is not None:
            self.node_public_key_to_node_id.pop(info.public_key, None)
            self.owner_to_node_ids[info.owner_aid].discard(node_id)

    def _remember(self) -> None:
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(self._known))
        partial.replace(self._file)

    # --- who is here

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        self._heard[node_id] = time.monotonic()
        return super().activate_node(node_id, heartbeat_interval)

    def deactivate_node(self, node_id: int) -> bool:
        self._heard[node_id] = time.monotonic()
        return super().deactivate_node(node_id)

    def acknowledge_node_heartbeat(self, node_id: int, heartbeat_interval: float) -> bool:
        self._heard[node_id] = time.monotonic()
        return super().acknowledge_node_heartbeat(node_id, heartbeat_interval)

    def silent_nodes(self) -> Mapping[int, float]:
        """Nodes that may take part and are not connected now -> seconds since each was last heard of.

        A node counts as connected until it has missed Flower's two heartbeats, or its connection was lost.
        """
        away = self.get_node_info(statuses=[NodeStatus.REGISTERED, NodeStatus.OFFLINE])
        present = time.monotonic()
        return {one.node_id: present - self._heard.setdefault(one.node_id, present) for one in away}

    # --- messages

    def get_message_res(self, message_ids: set[str], run_id: int) -> list[Message]:
        """As Flower's state in a database: one that has expired is answered with an error.

        One whose node is offline is not; one whose node was taken out is.
        """
        with self.lock:
            self._check_stored_messages(message_ids, run_id)
            gone = message_ids - self.message_ins_store.keys()
            answers = verify_message_ids(
                inquired_message_ids=set(gone),  # which Flower empties
                found_message_ins_dict={},
                run_id=run_id,
                current_time=now().timestamp(),
            )
            for answer in answers.values():
                self._store_generated_message(answer)
            with self._all_online():
                return [*answers.values(), *super().get_message_res(message_ids - gone, run_id)]

    @contextmanager
    def _all_online(self) -> Iterator[None]:
        """While this is open, no node that may take part looks lost to Flower's own method."""
        infos = [one for one in self.nodes.values() if one.status != NodeStatus.UNREGISTERED]
        until = [one.online_until for one in infos]
        for one in infos:
            one.online_until = float("inf")
        try:
            yield
        finally:
            for one, before in zip(infos, until, strict=True):
                one.online_until = before

    def replied(self, message_ids: Collection[str]) -> int:
        """How many of these messages have a reply that waits for the ServerApp."""
        with self.lock:
            replies = map(self.message_ins_id_to_message_res_id.get, message_ids)
            return sum(one is not None and not self.message_res_store[one].metadata.delivered_at for one in replies)

    def has_reply(self, message_id: str, reply_id: str) -> bool:
        """Whether this reply to the message was stored and waits for the ServerApp."""
        with self.lock:
            return self.message_ins_id_to_message_res_id.get(message_id) == reply_id
