"""The keeper: what it begins anew, what it ends with, and that nothing outlives the process above it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hub_service import keeper as keeper_module
from hub_service.keeper import Keeper, keepers_id

PATIENCE_S = 20

# Writes its id into the folder, as its nth line; ends as the file "end-n" says: by that status, or minus that signal.
CHILD = """
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
with (folder / "lives").open("a") as lives:
    lives.write(f"{os.getpid()}\\n")
end = folder / f"end-{len((folder / 'lives').read_text().split())}"
while not end.exists():
    time.sleep(0.01)
status = int(end.read_text())
os.kill(os.getpid(), -status) if status < 0 else sys.exit(status)
"""


def eventually(look: Callable[[], list[int]]) -> list[int]:
    deadline = time.monotonic() + PATIENCE_S
    while not (seen := look()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return seen


def lives(folder: Path, count: int) -> list[int]:
    """The process ids of the child's lives, once there are so many."""

    def look() -> list[int]:
        path = folder / "lives"
        seen = path.read_text().splitlines() if path.exists() else []
        return [int(one) for one in seen] if len(seen) >= count else []

    return eventually(look)


def end_life(folder: Path, number: int, status: int) -> None:
    lives(folder, number)
    partial = folder / f"partial-{number}"
    partial.write_text(str(status))
    partial.rename(folder / f"end-{number}")


class Kept:
    """A keeper in a thread of its own."""

    def __init__(self, folder: Path, first_pause_s: float) -> None:
        command = [sys.executable, "-c", CHILD, str(folder)]
        self.keeper = Keeper(command, steady_after_s=PATIENCE_S, first_pause_s=first_pause_s)
        self._status: list[int] = []
        self._thread = threading.Thread(target=lambda: self._status.append(self.keeper.keep()))
        self._thread.start()

    def status(self) -> int:
        self._thread.join(PATIENCE_S)
        assert self._status, "the keeper still runs"
        return self._status[0]


@pytest.fixture
def kept(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Kept]:
    it = Kept(tmp_path, getattr(request, "param", 0.01))
    yield it
    it.keeper.end(signal.SIGKILL)
    it.status()


def test_a_command_that_is_killed_begins_anew(kept: Kept, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        end_life(tmp_path, number, -signal.SIGKILL)
    assert len(set(lives(tmp_path, 4))) == 4
    end_life(tmp_path, 4, 0)
    assert kept.status() == 0


def test_a_command_that_ends_by_itself_is_not_begun_anew(kept: Kept, tmp_path: Path) -> None:
    end_life(tmp_path, 1, 7)
    assert kept.status() == 7
    assert len(lives(tmp_path, 1)) == 1


def test_asked_to_end_it_passes_that_on(kept: Kept, tmp_path: Path) -> None:
    [child] = lives(tmp_path, 1)
    kept.keeper.end(signal.SIGTERM)
    assert kept.status() == 0
    assert not psutil.pid_exists(child)


@pytest.mark.parametrize("kept", [PATIENCE_S * 2], indirect=True)
def test_a_pause_is_cut_short_when_it_is_asked_to_end(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(keeper_module, "_tell", said.append)
    end_life(tmp_path, 1, -signal.SIGKILL)
    end_life(tmp_path, 2, -signal.SIGKILL)
    eventually(lambda: [len(said)] if len(said) == 2 else [])
    assert "in 0 s" in said[0]
    assert "in 16 s" in said[1]
    kept.keeper.end(signal.SIGTERM)
    assert kept.status() == 0
    assert len(lives(tmp_path, 2)) == 2


ORPHAN = """
import os, sys, time
from hub_service.keeper import end_with
{before}
end_with(os.getppid())
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize(
    "before",
    [
        "",
        # One that does not end when it is asked to.
        "import signal, hub_service.keeper as it; signal.signal(15, signal.SIG_IGN); it._ORPHANS_GRACE_S = 0.1",
    ],
    ids=["ends", "is-stuck"],
)
def test_a_process_ends_with_the_one_above_it(before: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, ORPHAN.format(before=before)], stdout=subprocess.PIPE, cwd=os.getcwd()
    )
    assert parent.stdout is not None
    with parent:
        orphan = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    orphan.wait(PATIENCE_S)


SLOW_SERVICE = """
import os, sys
from pathlib import Path
with (Path(sys.argv[1]) / "lives").open("a") as lives:
    lives.write(f"{os.getpid()}\\n")
keeper = os.getppid()
while os.getppid() == keeper:  # as one that still imports
    pass
import time
from hub_service.keeper import end_with, keepers_id
end_with(keepers_id(os.environ))
time.sleep(60)
"""
KEEPER = "import sys; from hub_service.keeper import Keeper; Keeper([sys.executable, '-c', *sys.argv[1:]]).keep()"


def test_a_service_whose_keeper_is_killed_while_it_imports_ends_too(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KEEPER, SLOW_SERVICE, str(tmp_path)]) as keeper:
        [service] = lives(tmp_path, 1)
        orphan = psutil.Process(service)
        keeper.kill()
    orphan.wait(PATIENCE_S)


def test_the_keepers_id_is_handed_to_nobody_else() -> None:
    environment = {"FEDERATION_KEEPER_ID": "7", "PATH": "/bin"}
    assert keepers_id(environment) == 7
    assert environment == {"PATH": "/bin"}
    assert keepers_id(environment) == os.getppid()


def test_it_ends_as_a_service_that_cannot_start() -> None:
    """What is missing will be missing again; the Hub says so, and ends too."""
    kept = subprocess.run(
        [sys.executable, "-m", "hub_service.keeper"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert kept.returncode == 1
    assert "JUPYTERHUB_SERVICE_URL is not set." in kept.stderr
