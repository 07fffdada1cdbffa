"""Flower's state of a project's aggregator: in memory, but for the ids of its nodes.

Messages, runs and tasks end with the process, as the run does. A node keeps its id: a stock SuperNode waits with it
from one run to the next.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.server.superlink.linkstate.utils import verify_message_ids
from flwr.supercore.date import now


class LinkState(InMemoryLinkState):
    """Flower's in-memory state with node ids that survive it.

    Args:
        node_ids: a JSON file, public key in PEM -> node id; read now, written when a key is new.
    """

    def __init__(self, *flowers: Any, node_ids: Path) -> None:
        super().__init__(*flowers)
        self._file = node_ids
        self._known: dict[str, int] = json.loads(node_ids.read_text()) if node_ids.exists() else {}

    @classmethod
    def with_node_ids_in(cls, path: Path) -> Callable[..., LinkState]:
        """What makes a state of Flower's own arguments."""
        return lambda *flowers: cls(*flowers, node_ids=path)

    def create_node(self, owner_aid: str, owner_name: str, public_key: bytes, *flowers: Any, **named: Any) -> int:
        """As Flower, with the id that the key had before. Raises ValueError for a key that has been here before."""
        node_id = super().create_node(owner_aid, owner_name, public_key, *flowers, **named)
        key = public_key.decode("ascii")
        if key not in self._known:
            self._known[key] = node_id
            self._remember()
        return self._renamed(node_id, self._known[key], owner_aid)

    def _renamed(self, node_id: int, wanted: int, owner_aid: str) -> int:
        if node_id != wanted:
            with self.lock:
                info = self.nodes.pop(node_id)
                info.node_id = wanted
                self.nodes[wanted] = info
                self.node_public_key_to_node_id[info.public_key] = wanted
                self.owner_to_node_ids[owner_aid].discard(node_id)
                self.owner_to_node_ids[owner_aid].add(wanted)
        return wanted

    def _remember(self) -> None:
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(self._known))
        partial.replace(self._file)

    def get_message_res(self, message_ids: set[str], run_id: int) -> list[Message]:
        """As Flower's state in a database: one that has expired is answered with an error."""
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
            return [*answers.values(), *super().get_message_res(message_ids - gone, run_id)]

    def has_reply(self, message_id: str, reply_id: str) -> bool:
        """Whether this reply to the message was stored and waits for the ServerApp."""
        with self.lock:
            return self.message_ins_id_to_message_res_id.get(message_id) == reply_id
