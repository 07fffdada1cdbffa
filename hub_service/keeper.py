"""Keeps the service running: `python -m hub_service.keeper`, which the Hub starts as its managed service.

    Hub ── keeper ── python -m hub_service

The Hub looks after its services once in 30 s, so one that was killed would be missed for half a minute. The keeper
waits for its end and begins it anew at once. It ends as the service does where that ended by itself: an end with a
reason is the Hub's to handle.

A Hub that is killed takes nobody along, and the next one starts a service of its own, on the same port. So both
processes here watch the one that started them, and end with it. Standard library only: it is there for as long as the
Hub is, and is to weigh nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import MutableMapping, Sequence
from types import FrameType

SERVICE_COMMAND = (sys.executable, "-m", "hub_service")

_KEEPERS_ID = "FEDERATION_KEEPER_ID"
_LOOK_EVERY_S = 0.5
_ORPHANS_GRACE_S = 15.0  # a new service waits longer than this for its port
_STEADY_AFTER_S = 30.0  # a service that lived as long has no part in the next one's end
_LONGEST_PAUSE_S = 16.0


def keepers_id(environment: MutableMapping[str, str]) -> int:
    """The process that started this one, by what a keeper has handed over, which nobody else is to inherit.

    A keeper that was killed while the service was still importing is nobody's parent any more when the service asks.
    """
    return int(environment.pop(_KEEPERS_ID, os.getppid()))


def end_with(parent: int) -> None:
    """From now on, end this process by SIGTERM when the one that started it has ended; by SIGKILL if that is too slow.

    The system tells no one of a parent's end in a portable way, but gives its children another parent.
    """
    threading.Thread(target=_watch, args=(parent,), name="watch for the parent's end", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_ORPHANS_GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)


class Keeper:
    """Runs a command until it ends by itself or is asked to.

    Args:
        command: what is run.
        steady_after_s: a command that was killed sooner than this is begun anew after a pause, which doubles each time.
        first_pause_s: the first such pause, in seconds.
    """

    def __init__(
        self,
        command: Sequence[str] = SERVICE_COMMAND,
        *,
        steady_after_s: float = _STEADY_AFTER_S,
        first_pause_s: float = 1.0,
    ) -> None:
        self._command = list(command)
        self._steady_after_s = steady_after_s
        self._first_pause_s = first_pause_s
        self._child: subprocess.Popen[bytes] | None = None
        self._asked_to_end = threading.Event()

    def keep(self) -> int:
        """Return the command's exit status, once it has one of its own."""
        pause_s = 0.0
        while True:
            began = time.monotonic()
            status = self._run()
            if status >= 0 or self._asked_to_end.is_set():
                return max(status, 0)
            steady = time.monotonic() - began >= self._steady_after_s
            pause_s = 0.0 if steady else pause_s
            _tell(f"The federation service was ended by signal {-status}; it begins anew in {pause_s:g} s.")
            if self._asked_to_end.wait(pause_s):
                return 0
            pause_s = min(2 * pause_s or self._first_pause_s, _LONGEST_PAUSE_S)

    def end(self, number: int, frame: FrameType | None = None) -> None:
        """A signal's handler: pass it on, and begin nothing any more."""
        del frame
        self._asked_to_end.set()
        if self._child is not None:
            self._child.send_signal(number)

    def _run(self) -> int:
        self._child = subprocess.Popen(self._command, env={**os.environ, _KEEPERS_ID: str(os.getpid())})
        if self._asked_to_end.is_set():  # between its being decided on and its start
            self._child.terminate()
        return self._child.wait()


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> int:
    """Keep the service until it or the Hub ends. Returns the exit status."""
    keeper = Keeper()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, keeper.end)
    end_with(os.getppid())
    return keeper.keep()


if __name__ == "__main__":
    sys.exit(main())
