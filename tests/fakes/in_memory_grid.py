"""A Flower app in this process: installed as Flower does, its messages go straight from grid to ClientApp."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.cli.install import install_from_fab
from flwr.clientapp import ClientApp
from flwr.common.config import get_project_config
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.object_ref import load_app
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RUN_ID = 7
_SUPERLINK_NODE = 1


class InMemoryGrid(Grid):
    """Runs each message at once, in order. `sent` and `replies` keep everything that went over it.

    Args:
        folders: node id -> the node's data folder.
    """

    def __init__(self, client_app: ClientApp, folders: Mapping[int, Path], run_config: UserConfig) -> None:
        self._client_app = client_app
        self._contexts = {
            node_id: Context(RUN_ID, node_id, {"dataset-path": str(folder)}, RecordDict(), dict(run_config))
            for node_id, folder in folders.items()
        }
        self._ids = count(1)
        self.sent: list[Message] = []
        self.replies: list[Message] = []

    def set_run(self, run: Run) -> None:
        raise AssertionError("no app sets the run of its grid")

    @property
    def run(self) -> Run:
        raise AssertionError("no app reads the run of its grid")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        return [reply for reply in self.replies if reply.metadata.reply_to_message_id in wanted]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> str:
        message.metadata.__dict__["_message_id"] = f"message-{next(self._ids)}"  # a SuperLink's part
        self.sent.append(message)
        drawn = np.random.get_state()  # a site is another process: it does not draw from the ServerApp's numbers
        try:
            reply = self._client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # noqa: BLE001 - a SuperNode, too, answers for whatever an app raises
            reply = Message(Error(code=2, reason=f"{type(error).__name__}: {error}"), reply_to=message)
        finally:
            np.random.set_state(drawn)
        self.replies.append(reply)
        return message.metadata.message_id


@contextmanager
def task_identity() -> Iterator[None]:
    """Be the ServerApp's task, as Flower needs of whoever makes messages; leave no trace."""
    before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, _SUPERLINK_NODE
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


@dataclass(frozen=True)
class LoadedApp:
    client: ClientApp
    server: ServerApp


@contextmanager
def loaded(fab: bytes, folder: Path) -> Iterator[LoadedApp]:
    """Install a FAB as Flower does and load both its apps into this process; unload them at the end."""
    path, modules = list(sys.path), set(sys.modules)
    installed = install_from_fab(fab, folder, skip_prompt=True)
    components = get_project_config(installed)["tool"]["flwr"]["app"]["components"]
    try:
        yield LoadedApp(
            client=load_app(components["clientapp"], ImportError, installed),
            server=load_app(components["serverapp"], ImportError, installed),
        )
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(f"{installed}{os.sep}"):
                del sys.modules[name]


def run(app: LoadedApp, folders: Sequence[Path], config: dict[str, object]) -> InMemoryGrid:
    """One run over one node for each folder, node ids from 1."""
    grid = InMemoryGrid(app.client, dict(enumerate(folders, start=1)), config)
    app.server(grid, Context(RUN_ID, 1, {}, RecordDict(), config))
    return grid


def metrics(replies: Sequence[Message], message_type: str) -> list[dict[str, Any]]:
    """What the nodes answered. Fails where one answered with an error."""
    assert not [reply.error.reason for reply in replies if reply.has_error()]
    return [dict(reply.content["metrics"]) for reply in replies if reply.metadata.message_type == message_type]
