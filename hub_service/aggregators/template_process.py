"""The template of aggregators' processes: has imported what they need, and becomes one of them by fork.

    python -m hub_service.aggregators.template_process

A SuperLink or a ServerApp takes seconds to import and a few milliseconds to fork. One JSON object a line, both ways:

    on standard input    {"order": 1, ...} with the fields of `template.Order`
    on standard output   {"ready": true}, once everything is imported
                         {"order": 1, "pid": 4711}, or {"order": 1, "error": "why there is no process"}
                         {"pid": 4711, "status": 0} when it has ended; minus the signal's number where one ended it

It ends when its standard input does; what it has started goes on. It has one thread, and refuses to work with more: a
fork copies the thread that forks and the locks that the others hold.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
from contextlib import suppress
from operator import attrgetter
from typing import Any

from hub_service.aggregators import serverapp, superlink_process
from hub_service.aggregators.processes import SERVERAPP_MODULE, SUPERLINK_MODULE
from hub_service.aggregators.template import Order

# What these import at their first use.
_LAZY = (
    "anyio._backends._asyncio",
    "cryptography.hazmat.backends.openssl.backend",
    "h11",
    "httpcore",
    "numpy.random",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
)
_MAINS = {SUPERLINK_MODULE: superlink_process.main, SERVERAPP_MODULE: serverapp.main}
# A fork inherits the state of its template's random numbers: two projects would draw the same noise.
_RESEED = {"numpy": "random.seed", "torch": "seed"}

_AT_ONCE = 1 << 16  # bytes


class Template:
    """Forks on order. Args: requests, answers: the file descriptors of the two sides; they are closed in a fork."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests = requests
        self._answers = answers
        self._ended, self._wake = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._pending = b""

    def serve(self) -> Order | None:
        """Fork for each order until there are no more. Returns None then, and in each fork the order it has to fill."""
        self._listen_for_ends()
        self._say(ready=True)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._ended:
                    self._reap()
                    continue
                lines = self._lines()
                if lines is None:
                    return None
                for line in lines:
                    if order := self._fork(json.loads(line)):
                        return order

    def _listen_for_ends(self) -> None:
        for end in (self._ended, self._wake):
            end.setblocking(False)
        self._selector.register(self._requests, selectors.EVENT_READ)
        self._selector.register(self._ended, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, or nothing wakes

    def _lines(self) -> list[bytes] | None:
        """The whole lines that have come; None at the end of the input."""
        data = os.read(self._requests, _AT_ONCE)
        if not data:
            return None
        *lines, self._pending = (self._pending + data).split(b"\n")
        return lines

    def _fork(self, request: dict[str, Any]) -> Order | None:
        number = request.pop("order")
        before, behind = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(before)
            os.close(behind)
            self._say(order=number, error=str(error.strerror))
            return None
        if not pid:
            os.setsid()
            os.close(before)
            os.close(behind)
            self._let_go()
            return Order(**request)
        os.close(behind)
        os.read(before, 1)  # until it leads its own group, no signal to the group would reach it
        os.close(before)
        try:
            self._say(order=number, pid=pid)
        except BrokenPipeError:  # whoever ordered it is gone, and nobody knows of it
            os.killpg(pid, signal.SIGKILL)
            raise
        return None

    def _reap(self) -> None:
        self._ended.recv(_AT_ONCE)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._say(pid=pid, status=os.waitstatus_to_exitcode(status))

    def _say(self, **answer: Any) -> None:
        os.write(self._answers, json.dumps(answer).encode() + b"\n")

    def _let_go(self) -> None:
        """What is the template's own, in a fork."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        self._ended.close()
        self._wake.close()
        os.close(self._requests)
        os.close(self._answers)


def become(order: Order) -> None:
    """Make this fork what `python -m` would have made of the order, but for the imports."""
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(log, descriptor)
    os.close(log)
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    sys.argv[:] = [order.module, *order.arguments]
    for name, seed in _RESEED.items():
        if name in sys.modules:
            attrgetter(seed)(sys.modules[name])()


def _threads() -> int:
    """Those that Python knows and those of libraries."""
    return max(threading.active_count(), len(os.listdir("/proc/self/task")))


def main() -> int:
    """Preload, serve; in a fork, run the module that was ordered. Standard input and output are the two pipes."""
    requests, answers = os.dup(sys.stdin.fileno()), os.dup(sys.stdout.fileno())
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what an import prints is no answer
    for name in _LAZY:
        with suppress(ImportError):
            importlib.import_module(name)
    serverapp.preload()
    if (threads := _threads()) > 1:
        sys.stderr.write(f"{threads} threads after the imports: nothing can be forked safely\n")
        return 1
    gc.collect()
    gc.freeze()  # the collector would write to every page that forks share
    order = Template(requests, answers).serve()
    if order is None:
        return 0
    become(order)
    return _MAINS[order.module]() or 0


if __name__ == "__main__":
    sys.exit(main())
