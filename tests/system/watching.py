"""All processes of a running stack, looked at again and again while something else goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil

from examples.demo.stack import Stack


class Watch:
    """While the block runs, shows each process of the stack to `look`, which may find that it has just ended.

    Args:
        every_s: how long to wait between two looks at all of them.
    """

    def __init__(self, stack: Stack, look: Callable[[psutil.Process], None], every_s: float) -> None:
        self._stack = stack
        self._look = look
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            for process in list(self._processes()):
                with suppress(psutil.Error):
                    self._look(process)

    def _processes(self) -> Iterator[psutil.Process]:
        for started in self._stack.processes:
            with suppress(psutil.Error):
                parent = psutil.Process(started.popen.pid)
                yield parent
                yield from parent.children(recursive=True)
