"""What every aggregator backend must do, with real SuperLinks; and how the local one fails."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from federator.ports import free_port
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from hub_service.aggregators.base import AggregatorBackend, Endpoint, ServerAppSpec
from hub_service.aggregators.local import LocalAggregators
from hub_service.aggregators.plan import PLAN_FILE
from hub_service.aggregators.processes import LOST, NICENESS, answers, environment, flower_run_id, superlink_arguments
from hub_service.aggregators.superlink import SuperLink
from hub_service.domain.errors import Conflict, Invalid, Unavailable
from tests.fakes.aggregator_places import DockerPlace, LocalPlace, Place, processes_below
from tests.fakes.fleet import local_aggregators
from tests.fakes.flower_apps import averaging_app
from tests.fakes.measured import module_command

PROJECT = "p1"
Restart = Callable[[], AggregatorBackend]


@pytest.fixture(scope="module", params=["local", pytest.param("docker", marks=pytest.mark.needs_docker)])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    state_dir = tmp_path_factory.mktemp("state")
    if request.param == "local":
        return LocalPlace(state_dir)
    return DockerPlace(state_dir, request.getfixturevalue("engine"))


@pytest.fixture
async def restart(place: Place) -> AsyncIterator[Restart]:
    """The backend as a restarted service makes it."""
    made: list[AggregatorBackend] = []

    def make() -> AggregatorBackend:
        made.append(place.backend())
        return made[-1]

    yield make
    for backend in made:
        await backend.close()


@pytest.fixture
async def backend(restart: Restart) -> AsyncIterator[AggregatorBackend]:
    backend = restart()
    yield backend
    await backend.stop(PROJECT)


def new_key() -> bytes:
    return bytes(public_key_to_bytes(ec.generate_private_key(ec.SECP256R1()).public_key()))


async def exit_status(backend: AggregatorBackend, run_id: str) -> int:
    async with asyncio.timeout(60):
        while (status := await backend.serverapp_exit(PROJECT, run_id)) is None:  # noqa: ASYNC110 - the interface
            await asyncio.sleep(0.05)
    return status


async def test_nothing_runs_until_it_is_started(backend: AggregatorBackend) -> None:
    assert backend.endpoint(PROJECT) is None
    assert await backend.running() == []
    assert await backend.serverapp_exit(PROJECT, "r1") == LOST
    await backend.stop(PROJECT)
    with pytest.raises(Unavailable):
        await backend.start_serverapp(PROJECT, ServerAppSpec("r1", 1, (1,), 1, False, 1.0))


async def test_one_life(backend: AggregatorBackend, place: Place, restart: Restart) -> None:
    """Start, start again, restart of the service, stop, start: one process at a time, and node ids that stay."""
    endpoint, again = await asyncio.gather(backend.start(PROJECT), backend.start(PROJECT))
    assert endpoint == again == backend.endpoint(PROJECT)
    assert list(await backend.running()) == [PROJECT]
    assert place.alive() == 1
    superlink = SuperLink(endpoint)
    key = new_key()
    node_id = await superlink.register_node(key)
    assert await superlink.register_node(key) == node_id

    later = restart()
    assert list(await later.running()) == [PROJECT]
    assert later.endpoint(PROJECT) == endpoint
    assert await later.start(PROJECT) == endpoint
    await later.stop(PROJECT)
    assert later.endpoint(PROJECT) is None
    assert place.alive() == 0

    fresh = await later.start(PROJECT)
    assert fresh != endpoint
    assert await SuperLink(fresh).register_node(key) == node_id
    await later.stop(PROJECT)


async def test_a_lost_superlink_is_noticed_and_replaced(backend: AggregatorBackend, place: Place) -> None:
    await backend.start(PROJECT)
    await place.kill_superlink()
    assert list(await backend.running()) == []
    assert await SuperLink(await backend.start(PROJECT)).node_id(new_key()) is None


async def test_a_lost_superlink_is_told_at_once_and_a_new_attempt_begins_with_a_new_plan(
    backend: AggregatorBackend, place: Place
) -> None:
    """The same run at the next SuperLink: Flower's id of it stays, and the first plan is not read again."""
    flower_run_ids = []
    for _ in range(2):
        superlink = SuperLink(await backend.start(PROJECT, "r6"))
        absent = await superlink.register_node(new_key())
        flower_run_ids.append(await superlink.start_run(averaging_app(), {"num-server-rounds": 1}))
        plan = backend.run_folder(PROJECT, "r6") / PLAN_FILE
        assert not plan.exists()
        await backend.start_serverapp(PROJECT, ServerAppSpec("r6", flower_run_ids[-1], (absent,), 1, False, 600.0))
        assert str(absent) in plan.read_text()
        assert await backend.serverapp_exit(PROJECT, "r6") is None
        await place.kill_superlink()
        assert await exit_status(backend, "r6") == LOST
        await backend.stop(PROJECT)
        assert place.alive() == 0
    assert flower_run_ids[0] == flower_run_ids[1] == flower_run_id("r6")


async def test_a_serverapp_is_started_once_and_ends_with_its_aggregator(
    backend: AggregatorBackend, place: Place, restart: Restart
) -> None:
    superlink = SuperLink(await backend.start(PROJECT))
    absent = await superlink.register_node(new_key())
    number = await superlink.start_run(averaging_app(), {"num-server-rounds": 1})
    spec = ServerAppSpec("r1", number, (absent,), 1, False, 600.0)
    await backend.start_serverapp(PROJECT, spec)
    await backend.start_serverapp(PROJECT, spec)
    assert await backend.serverapp_exit(PROJECT, "r1") is None
    assert place.alive() == 2
    assert await restart().serverapp_exit(PROJECT, "r1") is None
    await superlink.stop_run(number)
    await superlink.stop_run(number)
    await backend.stop(PROJECT)
    assert place.alive() == 0
    assert await backend.serverapp_exit(PROJECT, "r1") == LOST


async def test_a_serverapp_starts_beside_its_superlink_and_waits_for_its_plan(
    backend: AggregatorBackend, place: Place, restart: Restart
) -> None:
    endpoint = await backend.start(PROJECT, "r3")
    assert place.alive() == 2
    assert backend.newest_run_folder(PROJECT) == backend.run_folder(PROJECT, "r3")
    assert await backend.start(PROJECT, "r3") == endpoint
    later = restart()
    assert await later.start(PROJECT, "r3") == endpoint
    assert place.alive() == 2
    assert await later.serverapp_exit(PROJECT, "r3") is None
    events = later.run_folder(PROJECT, "r3") / "events.jsonl"
    assert not events.exists()
    await later.start_serverapp(PROJECT, ServerAppSpec("r3", 12345, (1,), 1, False, 1.0))
    async with asyncio.timeout(60):
        while await later.serverapp_exit(PROJECT, "r3") is None:  # noqa: ASYNC110 - the interface
            await asyncio.sleep(0.05)
    assert "does not know this run" in events.read_text()
    assert place.alive() == 1

    await later.start(PROJECT, "r4")
    assert place.alive() == 2
    await later.stop(PROJECT)
    assert place.alive() == 0


async def test_what_a_serverapp_printed_can_be_read(backend: AggregatorBackend) -> None:
    assert (await backend.serverapp_log(PROJECT, "r5", 0)).data == b""
    await backend.start(PROJECT)
    await backend.start_serverapp(PROJECT, ServerAppSpec("r5", 12345, (1,), 1, False, 1.0))
    async with asyncio.timeout(60):
        while await backend.serverapp_exit(PROJECT, "r5") is None:  # noqa: ASYNC110 - the interface
            await asyncio.sleep(0.05)
    printed = await backend.serverapp_log(PROJECT, "r5", 0)
    assert b"does not know this run" in printed.data
    assert (await backend.serverapp_log(PROJECT, "r5", printed.end)).data == b""


async def test_a_serverapp_that_cannot_start_tells_its_status(backend: AggregatorBackend) -> None:
    await backend.start(PROJECT)
    await backend.start_serverapp(PROJECT, ServerAppSpec("r2", 12345, (1,), 1, False, 1.0))
    assert await exit_status(backend, "r2") == 1
    assert await exit_status(backend, "r2") == 1
    folder = backend.run_folder(PROJECT, "r2")
    assert "does not know this run" in (folder / "events.jsonl").read_text()
    assert "does not know this run" in (folder / "serverapp.log").read_text()


async def test_the_superlink_refuses_what_flower_refuses(backend: AggregatorBackend) -> None:
    superlink = SuperLink(await backend.start(PROJECT))
    with pytest.raises(Invalid):
        await superlink.start_run(averaging_app(), {"no-such-key": 1})
    with pytest.raises(Invalid):
        await superlink.register_node(b"no key")
    edwards = ed25519.Ed25519PrivateKey.generate().public_key()
    with pytest.raises(Invalid):
        await superlink.register_node(edwards.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


async def test_an_unregistered_key_does_not_come_back(backend: AggregatorBackend) -> None:
    superlink = SuperLink(await backend.start(PROJECT))
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    node_id = await superlink.register_node(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    assert await superlink.node_id(public_key_to_bytes(key)) == node_id
    await superlink.unregister_node(node_id)
    await superlink.unregister_node(node_id)
    with pytest.raises(Conflict):
        await superlink.register_node(public_key_to_bytes(key))


@pytest.mark.parametrize("path", [None, Path("/no/such/folder/superlink.sock"), Path("/no-such.sock")])
async def test_a_superlink_that_is_gone_is_unavailable(path: Path | None) -> None:
    with pytest.raises(Unavailable):
        await SuperLink(Endpoint("127.0.0.1", 9, path)).stop_run(1)


async def test_a_superlink_on_a_unix_socket_tells_a_serverapp_nothing_by_tcp(tmp_path: Path) -> None:
    """The socket's path is longer than the system takes."""
    folder = tmp_path / ("a" * 100)
    folder.mkdir()
    endpoint = Endpoint("127.0.0.1", free_port(), folder / "superlink.sock")
    process = await asyncio.create_subprocess_exec(
        *module_command("hub_service.aggregators.superlink_process"),
        *("--unix-socket", "superlink.sock"),
        *superlink_arguments(endpoint.host, endpoint.port, "node-ids.json"),
        cwd=folder,
        env=environment(str(folder)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(60):
            await answers(endpoint)
        assert (folder / "superlink.sock").stat().st_mode & 0o777 == 0o600
        assert await SuperLink(endpoint).register_node(new_key())
        with pytest.raises(Unavailable):
            await SuperLink(Endpoint(endpoint.host, endpoint.port)).register_node(new_key())
        async with Endpoint(endpoint.host, endpoint.port).client(timeout=httpx.Timeout(10.0)) as client:
            refused = ("/health", "/v1/control/list-nodes", "/v1/fleet/register-node", "/v1/bulk/pull", "/docs")
            assert {(await client.post(path)).status_code for path in refused} == {403}
            answered = ("/v1/runtime/get-nodes", "/v1/bulk/grid-pull")
            assert 403 not in {(await client.post(path)).status_code for path in answered}
    finally:
        process.terminate()
        await process.wait()


# --- the local backend


def script(folder: Path, text: str) -> tuple[str, ...]:
    path = folder / "fake_superlink.py"
    path.write_text(text)
    return (sys.executable, str(path))


async def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    backend = LocalAggregators(tmp_path, template_command=None, superlink_command=("/no/such/flower-superlink",))
    with pytest.raises(Unavailable, match="/no/such/flower-superlink"):
        await backend.start(PROJECT)
    assert await backend.running() == []


async def test_a_superlink_that_ends_at_once_shows_the_end_of_its_log_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "hush")
    command = script(tmp_path, "import os; print(*(f'{k}={v}' for k, v in os.environ.items())); print('disk is full')")
    with pytest.raises(Unavailable) as caught:
        await LocalAggregators(tmp_path, template_command=None, superlink_command=command).start(PROJECT)
    assert "disk is full" in caught.value.next_step
    log = (tmp_path / "projects" / PROJECT / "superlink.log").read_text()
    assert "FLWR_TELEMETRY_ENABLED=0" in log
    assert "JUPYTERHUB" not in log


async def test_a_projects_own_processes_come_after_the_service(tmp_path: Path) -> None:
    backend = local_aggregators(tmp_path)
    try:
        await backend.start(PROJECT)
        assert [one.nice() >= NICENESS for one in processes_below(tmp_path / "projects")] == [True]
    finally:
        await backend.stop(PROJECT)
        await backend.close()


async def test_a_superlink_that_never_answers_is_killed_with_all_it_started(tmp_path: Path) -> None:
    sleeper = shutil.which("sleep")
    never_answers = (
        "import signal, subprocess, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"child = subprocess.Popen([{sleeper!r}, '600'])\n"
        "open('child', 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    backend = LocalAggregators(
        tmp_path,
        template_command=None,
        superlink_command=script(tmp_path, never_answers),
        start_timeout_s=1.0,
        stop_timeout_s=0.2,
    )
    with pytest.raises(Unavailable, match="did not answer within 1 s"):
        await backend.start(PROJECT)
    child = int((tmp_path / "projects" / PROJECT / "child").read_text())
    assert processes_below(tmp_path) == []
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("with_template", [True, False])
async def test_what_a_killed_service_started_and_did_not_write_down_is_ended(
    tmp_path: Path, *, with_template: bool
) -> None:
    """It was killed between the two. Two ServerApps of one run would take its one task from each other."""
    template = module_command("hub_service.aggregators.template_process") if with_template else None
    first = LocalAggregators(tmp_path, template_command=template)
    await first.start(PROJECT)
    record = tmp_path / "projects" / PROJECT / "processes.json"
    superlink_only = record.read_bytes()
    await first.start(PROJECT, "r1")
    assert len(processes_below(tmp_path / "projects")) == 2
    record.write_bytes(superlink_only)
    second = LocalAggregators(tmp_path, template_command=template)
    await until_below(tmp_path, 1)
    await second.start(PROJECT, "r1")
    assert len(processes_below(tmp_path / "projects")) == 2

    record.unlink()
    third = LocalAggregators(tmp_path, template_command=template)
    assert await third.running() == []
    await until_below(tmp_path, 0)
    for backend in (first, second, third):
        await backend.close()


async def until_below(folder: Path, number: int) -> None:
    """Return once so many aggregators' processes live."""
    async with asyncio.timeout(30):
        while len(processes_below(folder / "projects")) != number:  # noqa: ASYNC110 - killed processes tell nobody
            await asyncio.sleep(0.02)


async def test_what_an_earlier_service_left_of_a_dead_superlink_is_cleared(tmp_path: Path) -> None:
    project = tmp_path / "projects" / PROJECT
    project.mkdir(parents=True)
    record = {"port": 1, "answers": True, "superlink": [1, 0.0], "serverapps": {"r1": [1, 0.0]}}
    (project / "processes.json").write_text(json.dumps(record))
    backend = LocalAggregators(tmp_path)
    assert await backend.running() == []
    assert not (project / "processes.json").exists()


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"port": 1}'])
async def test_a_record_of_processes_that_is_not_whole_counts_as_absent(tmp_path: Path, damaged: str) -> None:
    """As after a loss of power: the service has to start."""
    project = tmp_path / "projects" / PROJECT
    project.mkdir(parents=True)
    (project / "processes.json").write_text(damaged)
    backend = LocalAggregators(tmp_path)
    assert await backend.running() == []
    assert not (project / "processes.json").exists()


ANSWERING = """
import http.server, sys

class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy).serve_forever()
"""
WORKING = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"


def quick_aggregators(folder: Path) -> LocalAggregators:
    """Their processes are up at once, and do nothing. A ServerApp has a child."""
    return LocalAggregators(
        folder,
        template_command=None,
        superlink_command=script(folder, ANSWERING),
        serverapp_command=(sys.executable, "-c", WORKING),
    )


async def test_a_superlink_that_cannot_be_written_down_is_ended(tmp_path: Path) -> None:
    """The next service would not find it."""
    backend = quick_aggregators(tmp_path)
    (tmp_path / "projects" / PROJECT / "processes.partial").mkdir(parents=True)
    with pytest.raises(Unavailable, match="cannot write to its disk"):
        await backend.start(PROJECT)
    assert processes_below(tmp_path / "projects") == []
    assert await backend.running() == []


async def test_a_serverapp_that_cannot_be_written_down_is_ended(tmp_path: Path) -> None:
    """The next service would start another one beside it."""
    backend = quick_aggregators(tmp_path)
    await backend.start(PROJECT)
    refusing = tmp_path / "projects" / PROJECT / "processes.partial"
    refusing.mkdir()
    with pytest.raises(Unavailable, match="cannot write to its disk"):
        await backend.start(PROJECT, "r1")
    assert len(processes_below(tmp_path / "projects")) == 1
    refusing.rmdir()
    await backend.start(PROJECT, "r1")
    assert await backend.serverapp_exit(PROJECT, "r1") is None
    await backend.stop(PROJECT)
    assert processes_below(tmp_path / "projects") == []


@pytest.mark.parametrize("refusing", ["plan.json", "plan.json.partial"])
async def test_a_disk_that_takes_no_plan_is_named(tmp_path: Path, refusing: str) -> None:
    backend = quick_aggregators(tmp_path)
    await backend.start(PROJECT)
    (backend.run_folder(PROJECT, "r1") / refusing).mkdir(parents=True)
    with pytest.raises(Unavailable, match="cannot write to its disk"):
        await backend.start_serverapp(PROJECT, ServerAppSpec("r1", 7, (1,), 1, False, 30.0))
    await backend.stop(PROJECT)


async def test_a_disk_without_room_for_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "projects").write_bytes(b"")
    with pytest.raises(Unavailable, match="cannot write to its disk"):
        await quick_aggregators(tmp_path).start(PROJECT)


async def test_nobody_who_has_the_id_of_a_dead_process_is_ended_in_its_place(tmp_path: Path) -> None:
    """Ids of processes are used again. What the dead one left in its group is ended."""
    first = quick_aggregators(tmp_path)
    await first.start(PROJECT, "r1")
    async with asyncio.timeout(30):
        while len(below := processes_below(tmp_path / "projects")) < 3:  # noqa: ASYNC110 - it starts a child
            await asyncio.sleep(0.01)
    record = tmp_path / "projects" / PROJECT / "processes.json"
    recorded = json.loads(record.read_text())
    leader = recorded["serverapps"]["r1"][0]
    stranger = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import time; time.sleep(600)", cwd="/", start_new_session=True
    )
    try:
        recorded["serverapps"]["r2"] = [stranger.pid, 0.0]
        record.write_text(json.dumps(recorded))
        os.kill(leader, signal.SIGKILL)
        await until_below(tmp_path, len(below) - 1)
        second = quick_aggregators(tmp_path)
        await second.stop(PROJECT)
        await until_below(tmp_path, 0)
        assert psutil.Process(stranger.pid).status() != psutil.STATUS_ZOMBIE
    finally:
        stranger.kill()
        await stranger.wait()
