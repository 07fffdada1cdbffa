"""What the whole suite shares: which tests this machine can run, and saying so.

A test that needs more than Python carries a marker. Where the machine lacks it, the test is left out and the
summary names it with the reason; with `--require-all` (CI) the run fails instead.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.fakes import postgresql
from tests.fakes.engines import ENGINES, BuildEngine

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = "/usr/bin/chromium"
ENGINES_DISK_BYTES = 18 << 30


def _no_browser() -> str | None:
    return None if Path(CHROMIUM).exists() else f"no {CHROMIUM}: apt-get install chromium"


def _no_node() -> str | None:
    proxy = ROOT / ".node" / "node_modules" / ".bin" / "configurable-http-proxy"
    return None if proxy.exists() and shutil.which("make") else "no configurable-http-proxy: make setup"


def _no_docker() -> str | None:
    if os.geteuid() != 0:
        return "no right to start Docker engines: run as root"
    missing = [name for name in ("dockerd", "docker", "iptables", "ip", "mmdebstrap") if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install docker.io iptables iproute2 mmdebstrap"
    free = shutil.disk_usage(ROOT).free
    if free < ENGINES_DISK_BYTES and not ENGINES.exists():
        return f"{free >> 30} GiB of disk free: the engines' images need {ENGINES_DISK_BYTES >> 30}"
    return None


def _no_compose() -> str | None:
    return None if shutil.which("docker-compose") else "no docker-compose: apt-get install docker-compose"


def _no_namespaces() -> str | None:
    able = os.geteuid() == 0 and shutil.which("ip") and Path("/dev/net/tun").exists()
    return None if able else "no network namespaces: needs root, iproute2 and /dev/net/tun"


def _no_mounts() -> str | None:
    return None if os.geteuid() == 0 else "mounting a small file system needs root"


def _no_postgresql() -> str | None:
    return None if postgresql.binaries() else "no PostgreSQL: apt-get install postgresql"


REQUIREMENTS: dict[str, Callable[[], str | None]] = {
    "needs_browser": _no_browser,
    "needs_node": _no_node,
    "needs_docker": _no_docker,
    "needs_postgresql": _no_postgresql,
    "needs_mounts": _no_mounts,
    "needs_compose": _no_compose,
    "needs_namespaces": _no_namespaces,
}
_left_out: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-all", action="store_true", help="fail where the machine lacks what a test needs")
    parser.addoption("--tries", type=int, default=1, help="how often each fault of the recovery tests is tried")
    parser.addoption("--database-seconds", type=float, default=0.0, help="how long a run's database stays away")
    parser.addoption("--cut-seconds", type=float, default=20.0, help="how long a site is cut off")
    parser.addoption("--soak-minutes", type=float, default=10.0, help="how long the soak takes")


def pytest_configure() -> None:
    """A shell's background job ignores SIGINT, and so does all that it starts; the programs under test listen to it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "attempt" in metafunc.fixturenames:
        metafunc.parametrize("attempt", range(metafunc.config.getoption("tries")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this machine cannot run."""
    kept, dropped = [], []
    for item in items:
        lacking = [
            reason for marker, check in REQUIREMENTS.items() if item.get_closest_marker(marker) and (reason := check())
        ]
        if lacking and config.getoption("--require-all"):
            raise pytest.UsageError(f"{item.nodeid} cannot run here: {'; '.join(lacking)}")
        (dropped if lacking else kept).append(item)
        _left_out.update(lacking[:1])
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def pytest_collection_finish() -> None:
    """Modules are no garbage: some of Flower's strategies look through all objects several times a round."""
    gc.freeze()


@pytest.fixture(scope="session")
def build_engine() -> Iterator[BuildEngine]:
    """The engine that has all test images, built when something in them has changed. One for the whole suite."""
    with BuildEngine(ENGINES / "build") as engine:
        engine.build_test_images()
        yield engine


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgresql.Cluster]:
    """A PostgreSQL server, for tests with the marker `needs_postgresql`. Whoever stops it starts it again."""
    with postgresql.Cluster() as cluster:
        yield cluster


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines: Sequence[str] = [f"{count} tests left out: {reason}" for reason, count in sorted(_left_out.items())]
    for line in lines:
        terminalreporter.write_line(line, yellow=True)
