"""One process of a trial: a pretended site with the real ClientApp, or the real ServerApp. See `federator.trial`.

`main` runs in a process of its own. Over the connection with its number comes one Job; then

    a site       takes Messages, and answers each with Replied or Failed
    the server   sends Pushed and asks with Pull, which is answered with the replies; at its end sends Done or Failed
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from federator.app_import import import_attribute

RUN_ID = 1
SERVER = "server"
_CELL = re.compile(r"# --- cell (\d+) ---")
_OWN_FUNCTION = re.compile(r"(\w+)\(\)")
_PARENT_CHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """What one process is to do.

    Attributes:
        name: of the pretended site, or SERVER.
        folder: where the app lies, unpacked.
        component: the ClientApp or ServerApp, as "module:attribute".
        node_id: of this process.
        sites: node ids of all sites; for the server.
    """

    name: str
    folder: Path
    component: str
    node_id: int
    node_config: dict[str, str | int | float | bool]
    run_config: dict[str, str | int | float | bool]
    sites: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """What the app raised. `where` is such as "Cell 5, line 3: loss.backward()", or ""."""

    what: str
    where: str


@dataclass(frozen=True, slots=True)
class Replied:
    message: Any
    seconds: float


@dataclass(frozen=True, slots=True)
class Pushed:
    message: Any


@dataclass(frozen=True, slots=True)
class Pull:
    """Asks for replies; with `wait` for at least one."""

    message_ids: tuple[str, ...]
    wait: bool


@dataclass(frozen=True, slots=True)
class Done:
    pass


class TrialGrid(Grid):
    """The sites' processes, as the ServerApp sees them."""

    def __init__(self, connection: Connection, sites: Sequence[int]) -> None:
        self._connection = connection
        self._sites = sites
        self._numbers = count(1)

    def set_run(self, run: Run) -> None:
        """Nothing depends on it here."""

    @property
    def run(self) -> Run:
        raise RuntimeError("a trial has no run of a SuperLink")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._sites)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        message_id = f"message-{next(self._numbers)}"
        message.metadata.__dict__["_message_id"] = message_id  # a SuperLink's part
        self._connection.send(Pushed(message))
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._pull(message_ids, wait=False)

    def _pull(self, message_ids: Iterable[str], *, wait: bool) -> list[Message]:
        self._connection.send(Pull(tuple(message_ids), wait))
        replies: list[Message] = self._connection.recv()
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Waits for all: a site that never answers is told of by the trial. Replies come in the sites' order."""
        missing = set(self.push_messages(messages))
        replies: list[Message] = []
        while missing:
            arrived = self._pull(missing, wait=True)
            missing -= {reply.metadata.reply_to_message_id for reply in arrived}
            replies += arrived
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)


def main(descriptor: int) -> None:
    """Do the job that comes over the connection, until it is closed."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    with Connection(descriptor) as connection:
        job: Job = connection.recv()
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, job.node_id
        context = Context(RUN_ID, job.node_id, dict(job.node_config), RecordDict(), dict(job.run_config))
        try:
            app: Any = import_attribute(job.component, job.folder)
            if job.name == SERVER:
                app(grid=TrialGrid(connection, job.sites), context=context)
                connection.send(Done())
            else:
                _serve(connection, app, context)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the app is the author's code: it may raise anything
            traceback.print_exc()
            connection.send(Failed(_what(error), place_of(error, job.folder)))


def _serve(connection: Connection, app: Any, context: Context) -> None:
    while True:
        try:
            message: Message = connection.recv()
        except EOFError:
            return
        started = time.monotonic()
        reply = app(message=message, context=context)
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp answered with {type(reply).__name__}, not with a Message")
        connection.send(Replied(reply, time.monotonic() - started))


def _end_with_parent(parent: int) -> None:
    """A kernel that was killed takes its trial with it."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)


def _what(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


# --- where in the notebook


def place_of(error: BaseException, folder: Path) -> str:
    """Where the app's own code was when it failed: in a cell of the notebook, else in a file. "" if nowhere."""
    own = [(Path(one.filename), one.lineno or 0) for one in traceback.extract_tb(error.__traceback__)]
    own = [(path, line) for path, line in own if folder in path.parents]
    if isinstance(error, SyntaxError) and error.filename and folder in Path(error.filename).parents:
        own.append((Path(error.filename), error.lineno or 0))
    in_cells = [text for path, line in own if (text := place_in_cells(path, line))]
    if in_cells:
        return in_cells[-1]
    return _place_of_function(str(error), own) or (
        f"{own[-1][0].relative_to(folder)}, line {own[-1][1]}" if own else ""
    )


def place_in_cells(path: Path, line: int) -> str:
    """ "Cell 5, line 3: code" for a line of the module that holds a notebook's cells; "" for any other file."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.name == "notebook.py" else []
    for number in range(min(line, len(lines)), 0, -1):
        if match := _CELL.fullmatch(lines[number - 1]):
            return f"Cell {match[1]}, line {line - number}: {lines[line - 1].strip()}"
    return ""


def _place_of_function(text: str, own: Sequence[tuple[Path, int]]) -> str:
    """Where the function is defined that the text begins with, such as "train(): the metric ...": it has returned."""
    match = _OWN_FUNCTION.match(text)
    if match is None or not own:
        return ""
    path = own[0][0].parent / "notebook.py"
    if not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8").split("\n")
    found = [number for number, line in enumerate(lines, start=1) if line.startswith(f"def {match[1]}(")]
    return place_in_cells(path, found[-1]) if found else ""
