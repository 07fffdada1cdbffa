"""What only the Docker backend promises: containers that can do little, limits that hold, and engines that fail."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from docker.models.containers import Container
from federator.contract import ClientState

from hub_service.aggregators import docker as backend_module
from hub_service.aggregators.base import Limits, ServerAppSpec
from hub_service.aggregators.docker import INSTANCE, PROJECT, DockerAggregators
from hub_service.aggregators.events import round_model_file
from hub_service.aggregators.processes import LOST
from hub_service.aggregators.superlink import SuperLink
from hub_service.domain.errors import Unavailable
from hub_service.domain.runs import EventKind
from tests.fakes.aggregator_places import IMAGE, DockerPlace
from tests.fakes.bad_engines import full_engine, relay_to
from tests.fakes.engines import ROOT, Engine, client_of
from tests.fakes.federation import new_key
from tests.fakes.fleet import PROJECT as P1
from tests.fakes.fleet import Fleet, fleet
from tests.fakes.flower_apps import averaging_app

pytestmark = [
    pytest.mark.needs_docker,
    # docker-py leaves the socket of a refused connection to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

LIMITS = Limits(memory_bytes=1024**3, cpus=1.5, disk_bytes=64 * 1024**2, hours=10)
HOURS_LATER = 11


@pytest.fixture
def place(tmp_path: Path, engine: str) -> DockerPlace:
    return DockerPlace(tmp_path, engine)


@asynccontextmanager
async def opened(place: DockerPlace, **settings: Any) -> AsyncIterator[DockerAggregators]:
    """A backend that leaves nothing behind."""
    backend = place.backend(**settings)
    try:
        yield backend
    finally:
        await backend.stop(P1)
        await backend.close()


async def exit_status(backend: DockerAggregators, run_id: str) -> int:
    async with asyncio.timeout(60):
        while (status := await backend.serverapp_exit(P1, run_id)) is None:  # noqa: ASYNC110 - the interface
            await asyncio.sleep(0.05)
    return status


def last_line(backend: DockerAggregators, run_id: str) -> str:
    return (backend.run_folder(P1, run_id) / "serverapp.log").read_text().splitlines()[-1]


def waiting(run_id: str, flower_run_id: int = 1) -> ServerAppSpec:
    return ServerAppSpec(run_id, flower_run_id, (1,), 1, False, 600.0)


# --- whole runs, with real nodes that come by the gateway


@pytest.fixture(scope="module")
def fleet_place(tmp_path_factory: pytest.TempPathFactory, engine: str) -> DockerPlace:
    return DockerPlace(tmp_path_factory.mktemp("fleet"), engine)


@pytest.fixture(scope="module")
async def crew(fleet_place: DockerPlace) -> AsyncIterator[Fleet]:
    async with opened(fleet_place, limits=LIMITS) as backend, fleet(fleet_place.state_dir, backend=backend) as it:
        yield it
    assert fleet_place.alive() == 0


async def start(crew: Fleet, run_id: str, server: str) -> None:
    """Start a run whose ServerApp does this, with the site a."""
    app = averaging_app(server=f"{HEAD}\n\n@app.main()\ndef main(grid, context):\n{indented(server)}")
    member = crew.members.get("a") or crew.start_node("a", 1.0, app)
    member.approve(app)
    await member.reaches(ClientState.READY)
    await crew.start_run(app, [member], run_id=run_id)


HEAD = """
import json, os, pathlib, socket, time, urllib.request

from flwr.serverapp import ServerApp

app = ServerApp()


def tried(action, *arguments):
    try:
        return str(action(*arguments))
    except Exception as error:
        return type(error).__name__
"""


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip("\n").splitlines())


async def test_a_run_from_nodes_by_gateway_and_socket_to_serverapp_and_back(crew: Fleet) -> None:
    app = averaging_app()
    a = crew.members.get("a") or crew.start_node("a", 1.0, app)
    b = crew.start_node("b", 3.0, app)
    a.approve(app)
    await crew.start_run(app, [a, b], rounds=3, compare=True, run_id="whole")
    events = await crew.end_of_run("whole")
    assert events[-1].kind is EventKind.FINISHED, events[-1]
    replies = [event for event in events if event.kind is EventKind.REPLY and event.phase == "federated"]
    assert {(event.round, event.node_id) for event in replies} == {
        (number, member.node_id) for number in (1, 2, 3) for member in (a, b)
    }
    assert {event.phase for event in events} >= {"federated", "alone", "compare"}
    folder = crew.backend.run_folder(P1, "whole")
    assert (folder / "model.safetensors").read_bytes() == (folder / round_model_file(3)).read_bytes()
    assert (folder / round_model_file(1)).stat().st_nlink == (folder / round_model_file(2)).stat().st_nlink == 1
    assert await exit_status(crew.backend, "whole") == 0
    assert "Traceback" not in (folder / "serverapp.log").read_text()


TALKING = """
print("one", flush=True)
while not os.path.exists("go-on"):
    time.sleep(0.02)
print("two", flush=True)
"""


async def test_what_a_serverapp_prints_can_be_read_while_it_runs_and_after(crew: Fleet) -> None:
    await start(crew, "talking", TALKING)
    async with asyncio.timeout(60):
        while b"one\n" not in (printed := await crew.backend.serverapp_log(P1, "talking", 0)).data:  # noqa: ASYNC110 - the interface
            await asyncio.sleep(0.05)
    assert (await crew.backend.serverapp_log(P1, "talking", printed.end)).data == b""
    (crew.backend.run_folder(P1, "talking") / "go-on").touch()
    assert await exit_status(crew.backend, "talking") == 0
    ended = (await crew.backend.serverapp_log(P1, "talking", 0)).data.splitlines()
    assert [line for line in ended if line in (b"one", b"two")] == [b"one", b"two"]


CURIOUS = """
found = {}
found["interfaces"] = [name for _, name in socket.if_nameindex()]
found["environment"] = dict(os.environ)
found["status"] = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
found["commands"] = [path.read_text() for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")]
found["files"] = [
    os.path.join(folder, name)
    for folder, _, names in os.walk("/")
    for name in names
    if name in ("node-ids.json", "secret.txt") or name.endswith(".sock")
]
found["written"] = {
    path: tried(pathlib.Path(path).write_text, "mine")
    for path in ("/mine", "/etc/mine", "/var/tmp/mine", "/proc/sys/kernel/core_pattern", "serverapp.log")
}
found["log"] = [
    tried(os.unlink, "serverapp.log"),
    tried(os.rename, "serverapp.log", "other.log"),
    tried(os.replace, "findings", "serverapp.log"),
]
found["reached"] = {
    address: tried(socket.create_connection, tuple(address), 2)
    for address in [("127.0.0.1", LISTENER), ("10.0.0.1", 80), ("169.254.169.254", 80), ("1.1.1.1", 53)]
}
found["reached"] = [[*address, answer] for address, answer in found["reached"].items()]
found["resolved"] = tried(socket.gethostbyname, "example.org")
found["control"] = {}
for path in ("control/list-nodes", "control/start-run", "fleet/register-node", "bulk/pull"):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:9091/v1/{path}", data=b"")
    except urllib.error.HTTPError as error:
        found["control"][path] = error.code
pathlib.Path("findings.json").write_text(json.dumps(found))
"""


async def test_a_curious_serverapp_finds_its_own_run_and_nothing_else(
    crew: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "hush")
    monkeypatch.setenv("FEDERATION_STATE_DIR", "hush")
    other = crew.backend.run_folder(P1, "other")
    other.mkdir(parents=True)
    (other / "secret.txt").write_text("another run's")
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        await start(crew, "curious", "import urllib.error\nLISTENER = " + str(port) + CURIOUS)
        assert await exit_status(crew.backend, "curious") == 0, last_line(crew.backend, "curious")
        socket.create_connection(("127.0.0.1", port), 2).close()  # there is something to be reached
    found = json.loads((crew.backend.run_folder(P1, "curious") / "findings.json").read_text())
    assert found["interfaces"] == ["lo"]
    assert not [name for name in found["environment"] if name.startswith(("JUPYTERHUB", "FEDERATION"))]
    assert "hush" not in found["environment"].values()
    status = found["status"]
    assert status["Uid"].split() == status["Gid"].split() == ["10001"] * 4
    assert status["Groups"].split() in ([], ["10001"])
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    assert not [command for command in found["commands"] if "superlink_process" in command]
    assert found["files"] == []
    assert set(found["written"].values()) <= {"OSError", "PermissionError"}
    assert set(found["log"]) <= {"OSError", "FileNotFoundError"}
    assert {answer for *_, answer in found["reached"]} <= {"ConnectionRefusedError", "OSError"}
    assert found["resolved"] == "gaierror"
    assert found["control"] == {
        "control/list-nodes": 403,
        "control/start-run": 403,
        "fleet/register-node": 403,
        "bulk/pull": 403,
    }


TOO_MUCH_WRITTEN = "It wrote more than 0.0625 GB to its run folder and was ended."
GREEDY = {
    "memory": (
        "held = []\nwhile True:\n    held.append(bytearray(b'x' * 30_000_000))",
        "It needed more than 1 GB of memory and was ended.",
    ),
    "disk": (
        "number = 0\n"
        "while True:\n"
        "    pathlib.Path(f'part-{(number := number + 1)}').write_bytes(bytes(2_000_000))\n"
        "    time.sleep(0.005)",
        TOO_MUCH_WRITTEN,
    ),
    "inodes": ("number = 0\nwhile True:\n    pathlib.Path(f'{(number := number + 1)}').touch()", TOO_MUCH_WRITTEN),
    "depth": (
        "while True:\n    os.mkdir('a' * 200)\n    os.chdir('a' * 200)\n    time.sleep(0.005)",
        "It made a folder that cannot be counted (File name too long) and was ended.",
    ),
}


@pytest.mark.parametrize("what", GREEDY)
async def test_a_greedy_serverapp_is_ended_with_the_reason(crew: Fleet, what: str) -> None:
    server, reason = GREEDY[what]
    await start(crew, what, server)
    assert await exit_status(crew.backend, what) == 137
    assert last_line(crew.backend, what) == reason


async def test_one_file_has_a_limit_too(crew: Fleet) -> None:
    await start(crew, "file", "open('big', 'wb').truncate(100_000_000)")
    events = await crew.end_of_run("file")
    assert "File too large" in events[-1].text


async def test_the_time_limit_holds_across_a_restart_of_the_service(place: DockerPlace) -> None:
    async with opened(place, limits=LIMITS) as backend, opened(place, limits=LIMITS) as later:
        superlink = SuperLink(await backend.start(P1))
        flower_run_id = await superlink.start_run(averaging_app(), {})
        await backend.start_serverapp(P1, waiting("r1", flower_run_id))
        place.hours_later = HOURS_LATER
        assert await exit_status(later, "r1") == 137
        assert last_line(later, "r1") == "It ran for more than 10 hours and was ended."


# --- what stays and what goes


async def test_a_restarted_service_learns_how_a_serverapp_ended_meanwhile(place: DockerPlace) -> None:
    async with opened(place) as backend, opened(place) as later:
        await backend.start(P1)
        await backend.start_serverapp(P1, waiting("r1"))
        with place.containers("serverapp") as (serverapp,):
            await asyncio.to_thread(serverapp.wait)
        assert await later.serverapp_exit(P1, "r1") == 1
        assert "does not know this run" in (later.run_folder(P1, "r1") / "serverapp.log").read_text()


async def test_a_serverapp_that_somebody_removed_is_lost(place: DockerPlace) -> None:
    async with opened(place) as backend:
        await backend.start(P1)
        await backend.start_serverapp(P1, waiting("r1"))
        with place.containers("serverapp") as (serverapp,):
            serverapp.remove(force=True)
        assert await exit_status(backend, "r1") == LOST


async def test_a_serverapp_that_was_never_started_is_lost(place: DockerPlace) -> None:
    """The service ended between making the container and starting it."""
    async with opened(place) as backend, opened(place) as later:
        await backend.start(P1)
        with closing(client_of(place.engine)) as client:
            await backend.start_serverapp(P1, waiting("r1"))
            with place.containers("serverapp") as (serverapp,):
                labels = serverapp.labels
                serverapp.remove(force=True)
            client.containers.create(IMAGE, labels=labels)
        assert await exit_status(later, "r1") == LOST


async def test_what_an_earlier_service_left_of_a_dead_superlink_is_removed(place: DockerPlace) -> None:
    async with opened(place) as backend, opened(place) as later:
        await backend.start(P1)
        await backend.start_serverapp(P1, waiting("r1"))
        await place.kill_superlink()
        assert await later.running() == []
        assert await later.serverapp_exit(P1, "r1") == LOST
        assert left_of(place) == []


async def test_nothing_is_left_and_strangers_are_left_alone(place: DockerPlace, tmp_path: Path, engine: str) -> None:
    """Another service on the same engine has a project and a run of the same names."""
    (tmp_path / "other").mkdir()
    other = DockerPlace(tmp_path / "other", engine)
    async with opened(place) as backend, opened(other) as stranger:
        await asyncio.gather(backend.start(P1), stranger.start(P1))
        await asyncio.gather(backend.start_serverapp(P1, waiting("r1")), stranger.start_serverapp(P1, waiting("r1")))
        assert len(left_of(place)) == 3  # two containers, one socket
        await backend.stop(P1)
        assert left_of(place) == []
        async with opened(place) as later:
            assert await later.running() == []
        assert list(await stranger.running()) == [P1]
        assert len(left_of(other)) == 3


def left_of(place: DockerPlace) -> list[str]:
    """Containers and sockets of this service; its containers have no volumes that could stay."""
    with place.containers() as containers:
        assert all(mount["Type"] == "bind" for container in containers for mount in container.attrs["Mounts"])
        names = [container.name for container in containers]
    return names + [str(path) for path in place.state_dir.glob("projects/*/superlink/*.sock")]


async def test_a_start_that_is_cancelled_leaves_nothing_after_the_stop(
    place: DockerPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, done = threading.Event(), threading.Event()

    def slow_launch(*arguments: Any) -> str:
        begun.set()
        time.sleep(0.3)
        container = launch(*arguments)
        done.set()
        return container

    launch = backend_module._launch
    monkeypatch.setattr(backend_module, "_launch", slow_launch)
    async with opened(place) as backend:
        starting = asyncio.create_task(backend.start(P1))
        await asyncio.to_thread(begun.wait)
        starting.cancel()
        await asyncio.wait({starting})
        await backend.stop(P1)
        await asyncio.to_thread(done.wait)
        assert left_of(place) == []


# --- what containers may do, as far as it cannot be tried from inside


async def test_both_containers_are_limited(place: DockerPlace) -> None:
    async with opened(place, limits=LIMITS) as backend:
        await backend.start(P1)
        await backend.start_serverapp(P1, waiting("r1"))
        with place.containers() as containers:
            assert {container.attrs["HostConfig"]["NetworkMode"].partition(":")[0] for container in containers} == {
                "none",
                "container",
            }
            for container in containers:
                assert_limited(container)
                interfaces = container.exec_run(["python", "-c", "import socket; print(socket.if_nameindex())"])
                assert interfaces.output.decode().strip() == "[(1, 'lo')]"


def assert_limited(container: Container) -> None:
    assert container.attrs["Config"]["User"] == "10001:10001"
    assert not [one for one in container.attrs["Config"]["Env"] if one.startswith(("JUPYTERHUB", "FEDERATION"))]
    host = container.attrs["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Memory"] == host["MemorySwap"] == LIMITS.memory_bytes
    assert host["CpuQuota"] / host["CpuPeriod"] == LIMITS.cpus
    assert host["PidsLimit"] == 512
    assert host["Init"]
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}}
    assert {limit["Name"]: limit["Hard"] for limit in host["Ulimits"]}["fsize"] == LIMITS.disk_bytes


@pytest.fixture
def as_nobody(tmp_path: Path, engine: str) -> Iterator[int]:
    """The service runs without root's rights; it may use the engine as a member of its socket's group."""
    uid = 10002
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    os.chown(tmp_path, uid, uid)
    groups = os.getgroups()
    os.setgroups([Path(engine.removeprefix("unix://")).stat().st_gid])
    os.setegid(uid)
    os.seteuid(uid)
    yield uid
    os.seteuid(0)
    os.setegid(0)
    os.setgroups(groups)


async def test_a_service_without_roots_rights_has_containers_without_them_too(
    place: DockerPlace, as_nobody: int
) -> None:
    async with opened(place) as backend:
        assert await SuperLink(await backend.start(P1)).register_node(new_key())
        with place.containers() as (superlink,):
            assert superlink.attrs["Config"]["User"] == f"{as_nobody}:{as_nobody}"
        assert (place.state_dir / "projects" / P1 / "superlink" / "node-ids.json").stat().st_uid == as_nobody
        flower_run_id = await SuperLink(await backend.start(P1)).start_run(averaging_app(), {})
        await backend.start_serverapp(P1, waiting("r1", flower_run_id))
        with place.containers("serverapp") as (serverapp,):
            written = serverapp.exec_run(["sh", "-c", "echo mine > serverapp.log"])
        assert (written.exit_code, b"Read-only" in written.output) == (2, True)


# --- what fails is named


async def test_a_missing_image_is_named(place: DockerPlace) -> None:
    async with opened(place, image="registry.example/aggregator:7") as backend:
        with pytest.raises(Unavailable, match="does not have their image") as caught:
            await backend.start(P1)
        assert "docker pull" in caught.value.next_step
        assert "registry.example/aggregator:7" in caught.value.next_step
        assert await backend.running() == []
        assert left_of(place) == []


async def test_an_image_that_is_another_programs_is_seen_by_its_log(place: DockerPlace) -> None:
    async with opened(place, superlink_command=("no-such-program",)) as backend:
        with pytest.raises(Unavailable, match="it ended at once") as caught:
            await backend.start(P1)
        assert "no-such-program" in caught.value.next_step
        assert left_of(place) == []


async def test_a_serverapp_without_its_superlink_does_not_start_and_leaves_nothing(place: DockerPlace) -> None:
    async with opened(place) as backend:
        await backend.start(P1)
        await place.kill_superlink()
        with pytest.raises(Unavailable, match="refused") as caught:
            await backend.start_serverapp(P1, waiting("r1"))
        assert "non running container" in caught.value.next_step
        with place.containers("serverapp") as serverapps:
            assert serverapps == []


async def test_a_superlink_that_ends_at_once_shows_the_end_of_its_log(place: DockerPlace) -> None:
    async with opened(place, superlink_command=("sh", "-c", "echo the database is broken; exit 3")) as backend:
        with pytest.raises(Unavailable, match="it ended at once") as caught:
            await backend.start(P1)
        assert "the database is broken" in caught.value.next_step
        assert backend.endpoint(P1) is None
        assert left_of(place) == []


async def test_a_superlink_that_never_answers_is_removed(place: DockerPlace) -> None:
    never_answers = ("sh", "-c", "trap '' TERM; echo thinking; sleep 600")
    async with opened(place, superlink_command=never_answers, start_timeout_s=1.0, stop_timeout_s=1) as backend:
        with pytest.raises(Unavailable, match="did not answer within 1 s") as caught:
            await backend.start(P1)
        assert "thinking" in caught.value.next_step
        assert left_of(place) == []


async def test_an_engine_that_is_not_there_is_named(place: DockerPlace, tmp_path: Path) -> None:
    backend = place.backend(engine=f"unix://{tmp_path / 'nobody.sock'}")
    with pytest.raises(Unavailable, match="does not answer") as caught:
        await backend.start(P1)
    assert str(tmp_path / "nobody.sock") in caught.value.next_step
    await backend.close()


async def test_certificates_that_are_not_there_are_named(place: DockerPlace, tmp_path: Path) -> None:
    backend = place.backend(tls_dir=tmp_path / "none", engine="tcp://127.0.0.1:9")
    with pytest.raises(Unavailable) as caught:
        await backend.running()
    assert "certificate" in caught.value.debug
    await backend.close()


async def test_an_engine_without_room_is_named(place: DockerPlace, tmp_path_factory: pytest.TempPathFactory) -> None:
    async with full_engine(tmp_path_factory.mktemp("full")) as address, opened(place, engine=address) as backend:
        with pytest.raises(Unavailable, match="no room left"):
            await backend.start(P1)


async def test_a_state_folder_that_cannot_be_written_is_named(place: DockerPlace) -> None:
    async with opened(place) as backend:
        (place.state_dir / "projects").write_text("no folder")
        with pytest.raises(Unavailable, match="cannot write to its disk"):
            await backend.start(P1)
        (place.state_dir / "projects").unlink()


async def test_a_log_that_cannot_be_written_keeps_no_container(place: DockerPlace) -> None:
    async with opened(place) as backend:
        await backend.start(P1)
        log = place.state_dir / "projects" / P1 / "superlink.log"
        log.unlink()
        log.symlink_to(place.state_dir / "elsewhere")
        await backend.stop(P1)
        assert left_of(place) == []
        assert not (place.state_dir / "elsewhere").exists()


# --- engines that come and go


async def test_an_engine_that_goes_away_ends_no_run_and_what_is_left_goes_when_it_is_back(
    place: DockerPlace, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "_RETRY_S", 0.1)
    monkeypatch.setattr(backend_module, "_LOOK_S", 0.0)
    async with (
        relay_to(place.engine, tmp_path_factory.mktemp("relay")) as relay,
        opened(place, engine=relay.address) as backend,
    ):
        superlink = SuperLink(await backend.start(P1))
        await backend.start_serverapp(P1, waiting("r1", await superlink.start_run(averaging_app(), {})))
        await backend.check()
        await relay.cut()
        assert await backend.serverapp_exit(P1, "r1") is None
        assert list(await backend.running()) == [P1]
        with pytest.raises(Unavailable):
            await backend.check()
        with pytest.raises(Unavailable):
            await backend.start(P1)
        await backend.stop(P1)
        await backend.stop(P1)
        assert backend.endpoint(P1) is None
        assert await backend.serverapp_exit(P1, "r1") == LOST
        await asyncio.sleep(0.2)  # it tries, and tries again
        assert place.alive() == 2
        await relay.open()
        async with asyncio.timeout(30):
            while left_of(place):  # noqa: ASYNC110 - nobody waits for it
                await asyncio.sleep(0.05)


async def test_a_start_takes_the_place_of_a_removal_that_is_still_to_be_done(
    place: DockerPlace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with (
        relay_to(place.engine, tmp_path_factory.mktemp("relay")) as relay,
        opened(place, engine=relay.address) as backend,
    ):
        before = await backend.start(P1)
        await relay.cut()
        await backend.stop(P1)
        await relay.open()
        assert await backend.start(P1) != before
        assert len(left_of(place)) == 2
        assert backend._later == {}


async def test_a_service_that_ends_leaves_a_removal_to_the_next(
    place: DockerPlace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with relay_to(place.engine, tmp_path_factory.mktemp("relay")) as relay:
        backend = place.backend(engine=relay.address)
        await backend.start(P1)
        await relay.cut()
        await backend.stop(P1)
        await backend.close()
    async with opened(place) as later:
        assert list(await later.running()) == [P1]


async def test_an_engine_that_hangs_holds_up_nobody_else(
    place: DockerPlace, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "_CALL_TIMEOUT_S", 1)
    async with relay_to(place.engine, tmp_path_factory.mktemp("relay")) as relay:
        await relay.fall_silent()
        backend = place.backend(engine=relay.address)
        starting = asyncio.create_task(backend.start(P1))
        turns = 0
        while not starting.done():
            before = time.monotonic()
            await asyncio.sleep(0.005)
            assert time.monotonic() - before < 0.5
            turns += 1
        with pytest.raises(Unavailable, match="does not answer"):
            await starting
        assert turns > 10
        await backend.close()


async def test_an_engine_is_spoken_to_by_tls(place: DockerPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an authority of its own, whatever the environment says. Its image is not needed for that."""
    with Engine(ROOT / "test-output" / "engines" / "aggregators") as engine:
        folder = engine.certificates.authority.parent
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(engine.certificates.certificate))
        async with opened(place, engine=engine.url, tls_dir=folder) as backend:
            assert await backend.running() == []
        async with opened(place, engine=engine.url.replace("tcp://", "http://")) as plain:
            with pytest.raises(Unavailable):
                await plain.running()


async def test_labels_begin_with_the_projects_name() -> None:
    assert {INSTANCE, PROJECT} == {"org.notebook-federator.instance", "org.notebook-federator.project"}
