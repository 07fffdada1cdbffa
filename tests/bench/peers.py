"""Other products, each installed on first use in an environment of its own below test-output/peers."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from examples.demo.stack import ROOT

PEERS = ROOT / "test-output" / "peers"
_INSTALL_S = 600
_DONE = "installed"


class NotInstalled(Exception):
    """A peer could not be installed. The text is for a person."""


def environment(name: str, *requirements: str) -> Path:
    """The Python of the environment of this name, in which the requirements are installed.

    It also sees this environment's packages, after its own: torch is there once, and the same for all.

    Raises:
        NotInstalled: no network, or no such package; with pip's last line.
    """
    folder = PEERS / name
    python = folder / "bin" / "python"
    if (folder / _DONE).exists():
        return python
    try:
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no output"])[-1]
        raise NotInstalled(f"could not install {' '.join(requirements)}: {last}") from error
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"could not install {' '.join(requirements)} in {_INSTALL_S} s") from error
    ours = sysconfig.get_path("purelib")
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "bench.pth").write_text(f"{ours}\n")
    (folder / _DONE).touch()
    return python


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_S)
