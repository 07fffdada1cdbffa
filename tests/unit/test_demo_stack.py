"""One demo at a time, and none that outlives its terminal."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from federator.ports import free_port

from examples.demo.stack import ROOT, StackError, start_stack


def no_deployment(*args: object) -> Path:
    raise AssertionError("nothing is to be started")


def test_a_second_demo_leaves_the_first_ones_files_alone(tmp_path: Path) -> None:
    folder = tmp_path / ".demo"
    folder.mkdir()
    (folder / "hub.log").touch()
    with (tmp_path / ".demo.lock").open("ab") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(StackError, match="A demo is running already"):
            start_stack(folder, no_deployment, port=free_port())
    assert (folder / "hub.log").exists()


UP = """
import asyncio, sys
from types import SimpleNamespace
from examples.demo import __main__ as demo

async def go_on(*args):
    print("up", flush=True)
    await asyncio.Event().wait()

demo.prepare_study = lambda data: (SimpleNamespace(skew=""), None)
demo.embedded_sites = lambda dataset: None
demo.start_stack = lambda *args, **named: SimpleNamespace(origin="", stop=lambda: print("all is ended", flush=True))
demo.run_journey = go_on
sys.argv = ["demo"]
sys.exit(demo.main())
"""


@pytest.mark.parametrize("ending", [signal.SIGHUP, signal.SIGTERM])
def test_what_was_started_ends_with_the_terminal(ending: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", UP], cwd=ROOT, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert "up\n" in iter(demo.stdout.readline, "")
        demo.send_signal(ending)
        rest, _ = demo.communicate(timeout=30)
    assert "all is ended" in rest
    assert demo.returncode == 128 + ending
