"""The server extension, kernel manager and provisioner in a real notebook server, against a service over real HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from federator import provisioner
from federator.contract import Assignment, ClientState
from federator.extension import FederatorExtension
from federator.ports import free_port
from federator.provisioner import offered_datasets
from federator.service_client import Access, AsyncServiceClient
from jupyter_client.connect import port_names

from tests.fakes.flower_apps import averaging_app
from tests.fakes.notebook_server import NotebookServer, notebook_server, use_home
from tests.fakes.service import DownService, FakeService, LockedService, NewerService

KERNEL = "0f0c4a52-6b5d-4c55-9f43-111111111111"
ASSIGNMENT = Assignment("part1", "proj1", "Histo <pathology>", "north", "slides", KERNEL, "ab" * 32)
SPEC = "flower-client-proj1"
OTHER = Assignment("part2", "proj2", "Lungs", "north", "slides", KERNEL.replace("1", "2"), "ab" * 32)
WAITING = ("part1", ClientState.READY, "Waiting for a run.")


@pytest.fixture
def service() -> Iterator[FakeService]:
    with FakeService().running() as fake:
        yield fake


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_home(monkeypatch, tmp_path)
    return tmp_path


def enter(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in service.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def server(service: FakeService, home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NotebookServer]:
    enter(service, monkeypatch)
    async with notebook_server(home) as running:
        yield running


async def reported(service: FakeService, state: ClientState, after: int = 0) -> int:
    return await asyncio.to_thread(service.wait_for_report, "part1", state, after)


async def test_an_assignment_becomes_a_tile_and_a_kernel_with_its_id(
    service: FakeService, server: NotebookServer
) -> None:
    service.assign(ASSIGNMENT)
    await reported(service, ClientState.STARTING)
    assert await server.kernels() == {KERNEL: SPEC}
    spec = (await server.kernelspecs())[SPEC]
    assert spec["spec"]["display_name"] == "Flower client: Histo <pathology>"
    assert spec["spec"]["language"] == "python"
    assert spec["spec"]["metadata"]["federator"]["participation_id"] == "part1"
    for logo in spec["resources"].values():
        assert (await server.http.get(logo)).status_code == 200
    assert set(spec["resources"]) >= {"logo-32x32", "logo-64x64", "logo-svg"}


async def test_the_tile_attaches_to_the_running_client(service: FakeService, server: NotebookServer) -> None:
    service.assign(ASSIGNMENT)
    await reported(service, ClientState.STARTING)
    by_kernel = await server.http.post("api/kernels", json={"name": SPEC})
    by_other_id = await server.http.post("api/kernels", json={"name": SPEC, "kernel_id": KERNEL.replace("1", "2")})
    session = {"name": "", "path": "Untitled.ipynb", "type": "notebook", "kernel": {"name": SPEC}}
    by_session = await server.http.post("api/sessions", json=session)
    assert by_kernel.json()["id"] == KERNEL
    assert by_other_id.json()["id"] == KERNEL
    assert by_session.json()["kernel"]["id"] == KERNEL
    assert await server.kernels() == {KERNEL: SPEC}


async def test_tile_and_extension_at_once_make_one_kernel(service: FakeService, server: NotebookServer) -> None:
    service.assign(ASSIGNMENT)
    await asyncio.to_thread(service.wait_for, lambda s: s.assignments)
    await server.until(lambda: has_tile(server))
    answers = await asyncio.gather(*(server.http.post("api/kernels", json={"name": SPEC}) for _ in range(4)))
    assert {answer.json()["id"] for answer in answers} == {KERNEL}
    await reported(service, ClientState.STARTING)
    assert len(service.details("part1", ClientState.STARTING)) == 1


async def test_another_kernelspec_under_the_assignments_id_is_still_the_client(
    service: FakeService, server: NotebookServer
) -> None:
    service.assign(ASSIGNMENT)
    await server.until(lambda: has_tile(server))
    answer = await server.http.post("api/kernels", json={"name": "python3", "kernel_id": KERNEL})
    assert (answer.json()["id"], answer.json()["name"]) == (KERNEL, SPEC)


async def test_a_withdrawn_assignment_ends_the_kernel_and_takes_the_tile_away(
    service: FakeService, server: NotebookServer
) -> None:
    service.assign(ASSIGNMENT)
    await reported(service, ClientState.STARTING)
    own = server.home / "jupyter_data_dir" / "kernels" / "flower-client-of-my-own"
    own.mkdir()
    (own / "kernel.json").write_text('{"argv": ["true"], "display_name": "mine", "language": "python"}')
    service.withdraw("part1")
    await server.until(lambda: no_kernels(server), timeout=5)
    assert SPEC not in await server.kernelspecs()
    assert own.is_dir()


async def test_a_client_has_its_app_loaded_before_it_is_ready_and_a_newer_one_while_it_waits(
    service: FakeService, server: NotebookServer
) -> None:
    first, second = (averaging_app(text) for text in ("", "weight = weight * 2"))
    service.apps = {hashlib.sha256(app).hexdigest(): app for app in (first, second)}
    old, new = service.apps
    service.assign(replace(ASSIGNMENT, fab_hash=old))
    await reported(service, ClientState.READY)
    assert service.reports[-1] == WAITING
    assert [path for path in service.asked if path.endswith(old)] == [f"api/participations/part1/apps/{old}"]
    service.assign(replace(ASSIGNMENT, fab_hash=new))
    await asyncio.to_thread(service.wait_for, lambda s: any(path.endswith(new) for path in s.asked))


async def test_a_waiting_client_asks_two_questions_that_are_held_and_nothing_else(
    service: FakeService, server: NotebookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's for assignments, and the node's for a message."""
    hold = service.wait_for_news
    monkeypatch.setattr(service, "wait_for_news", lambda version, seconds: hold(version, min(seconds, 1.0)))
    app = averaging_app()
    fab_hash = hashlib.sha256(app).hexdigest()
    service.apps = {fab_hash: app}
    service.assign(replace(ASSIGNMENT, fab_hash=fab_hash))
    await reported(service, ClientState.READY)
    await asyncio.to_thread(service.wait_for, lambda s: "api/site/packages" in s.asked)  # told once, in its own time
    before = len(service.asked)
    await asyncio.to_thread(service.wait_for, lambda s: s.asked[before:].count("api/assignments") == 4)
    assert set(service.asked[before:]) - {"activate-node"} == {"api/assignments"}
    assert service.asked[before:].count("activate-node") <= 1


async def test_a_crash_is_reported_with_its_reason_and_the_kernel_comes_back(
    service: FakeService, server: NotebookServer
) -> None:
    service.assign(ASSIGNMENT)
    seen = await reported(service, ClientState.STARTING)
    os.kill(pid_of(server), signal.SIGKILL)
    seen = await reported(service, ClientState.FAILED, after=seen)
    assert "memory" in service.details("part1", ClientState.FAILED)[0]
    await reported(service, ClientState.STARTING, after=seen)
    assert await server.kernels() == {KERNEL: SPEC}


@pytest.mark.parametrize("taken", ["shell", "iopub", "stdin", "control"])
async def test_a_kernel_whose_port_another_program_has_comes_up_on_another(
    service: FakeService, server: NotebookServer, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    """Two servers of one machine that start kernels at once may choose the same free port. Nobody listens to the
    heartbeat's."""
    app = averaging_app()
    fab_hash = hashlib.sha256(app).hexdigest()
    service.apps = {fab_hash: app}
    with socket.create_server(("127.0.0.1", 0)) as other_program:
        order = iter(port_names)

        def chosen() -> int:
            return int(other_program.getsockname()[1]) if next(order, None) == f"{taken}_port" else free_port()

        monkeypatch.setattr(provisioner, "free_port", chosen)
        service.assign(replace(ASSIGNMENT, fab_hash=fab_hash))
        seen = await reported(service, ClientState.FAILED)
        assert "Address already in use" in service.details("part1", ClientState.FAILED)[0]
        await reported(service, ClientState.READY, after=seen)


async def test_a_crashed_kernel_that_is_withdrawn_stays_away(service: FakeService, server: NotebookServer) -> None:
    """By the time that one which crashes later is back, it would be, too."""
    service.assign(ASSIGNMENT)
    service.assign(OTHER)
    await reported(service, ClientState.STARTING)
    seen = await asyncio.to_thread(service.wait_for_report, "part2", ClientState.STARTING)
    os.kill(pid_of(server), signal.SIGTERM)
    await reported(service, ClientState.FAILED)
    assert "signal 15" in service.details("part1", ClientState.FAILED)[0]
    service.withdraw("part1")
    os.kill(pid_of(server, OTHER.kernel_id), signal.SIGTERM)
    ended = await asyncio.to_thread(service.wait_for_report, "part2", ClientState.FAILED, seen)
    await asyncio.to_thread(service.wait_for_report, "part2", ClientState.STARTING, ended)
    assert await server.kernels() == {OTHER.kernel_id: "flower-client-proj2"}


async def test_a_tile_that_cannot_be_written_is_told(
    service: FakeService, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "jupyter_data_dir" / "kernels").write_text("a file where the folder should be")
    enter(service, monkeypatch)
    async with notebook_server(home):
        service.assign(ASSIGNMENT)
        await reported(service, ClientState.FAILED)
    assert "free some space" in service.details("part1", ClientState.FAILED)[0]


async def test_no_answer_about_approvals_is_no_approval(
    service: FakeService, server: NotebookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "site_approvals", lambda _: service.refuse(503, "The database is away."))
    service.assign(ASSIGNMENT)
    await reported(service, ClientState.FAILED)
    answer = await server.http.post("api/kernels", json={"name": SPEC})
    assert (answer.status_code, answer.json()["message"]) == (503, "The database is away.")
    monkeypatch.setattr(service, "site_approvals", lambda _: service.refuse(404, "There is no such participation."))
    answer = await server.http.post("api/kernels", json={"name": SPEC})
    assert (answer.status_code, answer.json()["message"]) == (403, "There is no such participation.")


def test_datasets_that_cannot_be_read_are_none() -> None:
    assert offered_datasets({"FEDERATOR_DATASETS": "not JSON"}) == {}
    assert offered_datasets({"FEDERATOR_DATASETS": "[]"}) == {}


async def test_the_last_line_of_a_crashed_kernel_is_the_reason(
    service: FakeService, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(service, monkeypatch)
    broken = home / "broken" / "ipykernel.py"
    broken.parent.mkdir()
    broken.write_text("raise ImportError('this image lacks a library')")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    async with notebook_server(home):
        service.assign(ASSIGNMENT)
        await reported(service, ClientState.FAILED)
    reason = service.details("part1", ClientState.FAILED)[0]
    assert "status 1" in reason
    assert "this image lacks a library" in reason


async def test_a_shutdown_by_the_person_is_a_pause_until_the_tile_is_clicked(
    service: FakeService, server: NotebookServer
) -> None:
    service.assign(ASSIGNMENT)
    await reported(service, ClientState.STARTING)
    assert (await server.http.delete(f"api/kernels/{KERNEL}")).status_code == 204
    seen = await reported(service, ClientState.PAUSED)
    service.assign(
        replace(ASSIGNMENT, participation_id="part2", project_id="proj2", kernel_id=KERNEL.replace("1", "2"))
    )
    await asyncio.to_thread(service.wait_for_report, "part2", ClientState.STARTING)
    assert KERNEL not in await server.kernels()
    assert (await server.http.post("api/kernels", json={"name": SPEC})).json()["id"] == KERNEL
    await reported(service, ClientState.STARTING, after=seen)


async def test_a_restart_by_the_person_is_no_pause(service: FakeService, server: NotebookServer) -> None:
    service.assign(ASSIGNMENT)
    seen = await reported(service, ClientState.STARTING)
    before = pid_of(server)
    assert (await server.http.post(f"api/kernels/{KERNEL}/restart")).status_code == 200
    assert pid_of(server) != before
    await reported(service, ClientState.STARTING, after=seen)
    assert service.details("part1", ClientState.PAUSED) == []


async def test_without_an_approval_nothing_starts_and_the_reason_is_told(
    service: FakeService, server: NotebookServer
) -> None:
    service.assign(ASSIGNMENT, approved=False)
    seen = await reported(service, ClientState.FAILED)
    assert "not approved" in service.details("part1", ClientState.FAILED)[0]
    answer = await server.http.post("api/kernels", json={"name": SPEC})
    assert answer.status_code == 403
    assert "steward" in answer.json()["message"]
    session = {"name": "", "path": "Untitled.ipynb", "type": "notebook", "kernel": {"name": SPEC}}
    by_session = await server.http.post("api/sessions", json=session)
    assert by_session.json()["message"] == answer.json()["message"]
    assert await server.kernels() == {}
    service.approve("part1")
    await reported(service, ClientState.STARTING, after=seen)


async def test_a_crashed_kernel_whose_approval_is_gone_stays_away_until_it_is_back(
    service: FakeService, server: NotebookServer
) -> None:
    service.assign(ASSIGNMENT)
    seen = await reported(service, ClientState.STARTING)
    service.revoke("part1")
    os.kill(pid_of(server), signal.SIGKILL)
    await asyncio.to_thread(service.wait_for, lambda s: any("not approved" in text for _, _, text in s.reports))
    await server.until(lambda: no_kernels(server))
    service.approve("part1")
    await reported(service, ClientState.STARTING, after=seen)
    assert await server.kernels() == {KERNEL: SPEC}


@pytest.mark.parametrize(
    ("change", "status", "word"), [({"dataset": "scans"}, 409, "scans"), ({"site": "south"}, 403, "south")]
)
async def test_an_assignment_that_does_not_fit_the_site_is_refused(
    service: FakeService, server: NotebookServer, change: dict[str, str], status: int, word: str
) -> None:
    service.assign(replace(ASSIGNMENT, **change))  # type: ignore[arg-type]
    await reported(service, ClientState.FAILED)
    answer = await server.http.post("api/kernels", json={"name": SPEC})
    assert answer.status_code == status
    assert word in answer.json()["message"]
    assert word in answer.json()["reason"]


async def test_a_tile_left_over_from_another_project_is_refused(service: FakeService, server: NotebookServer) -> None:
    service.assign(ASSIGNMENT)
    await reported(service, ClientState.STARTING)
    left_over(server.home, SPEC, "flower-client-gone")
    answer = await server.http.post("api/kernels", json={"name": "flower-client-gone"})
    assert answer.status_code == 403
    assert "Join the project" in answer.json()["message"]


async def test_unknown_provisioner_settings_are_refused(service: FakeService, server: NotebookServer) -> None:
    service.assign(ASSIGNMENT, approved=False)
    await reported(service, ClientState.FAILED)
    spec = server.home / "jupyter_data_dir" / "kernels" / SPEC / "kernel.json"
    spec.write_text(spec.read_text().replace('"config": {}', '"config": {"image": "mine"}'))
    answer = await server.http.post("api/kernels", json={"name": SPEC})
    assert answer.status_code == 409
    assert "image" in answer.json()["message"]


async def test_ordinary_kernels_are_left_to_jupyter(service: FakeService, server: NotebookServer) -> None:
    kernel_id = (await server.http.post("api/kernels", json={"name": "python3"})).json()["id"]
    assert (await server.http.post(f"api/kernels/{kernel_id}/restart")).status_code == 200
    assert (await server.http.delete(f"api/kernels/{kernel_id}")).status_code == 204
    assert await server.kernels() == {}
    service.assign(ASSIGNMENT)
    assert await reported(service, ClientState.STARTING) == 1, "something was reported before"


async def test_a_waiting_client_keeps_the_server_active_and_is_not_culled(
    service: FakeService, server: NotebookServer
) -> None:
    service.assign(ASSIGNMENT)
    await reported(service, ClientState.STARTING)
    assert server.app.web_app.last_activity() >= server.app.web_app.settings["federator_last_activity"]
    kernels = server.app.kernel_manager
    ordinary = (await server.http.post("api/kernels", json={"name": "python3"})).json()["id"]
    kernels.cull_idle_timeout = -1
    for kernel_id in (KERNEL, ordinary):
        kernels.get_kernel(kernel_id).execution_state = "idle"
    await kernels.cull_kernels()
    assert await server.kernels() == {KERNEL: SPEC}


async def test_stopping_the_server_tells_the_service(
    service: FakeService, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(service, monkeypatch)
    async with notebook_server(home):
        service.assign(ASSIGNMENT)
        seen = await reported(service, ClientState.STARTING)
    assert await reported(service, ClientState.OFFLINE, after=seen)


async def test_a_service_that_comes_back_is_taken_up_again(
    service: FakeService, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    enter(service, monkeypatch)
    async with notebook_server(home) as server:
        service.assign(ASSIGNMENT)
        await reported(service, ClientState.STARTING)
        service.answer_all_with(503)
        await server.until(lambda: logged(capfd, "does not answer"))
        service.answer_all_with(None)
        await server.until(lambda: logged(capfd, "answers again"))
        service.withdraw("part1")
        await server.until(lambda: no_kernels(server))


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (DownService, "does not answer (status 503)"),
        (LockedService, "Stop and start your server"),
        (NewerService, "speaks version 2 of its API, this server version 1"),
    ],
)
async def test_trouble_with_the_service_is_one_line_in_the_log(
    bad: type[FakeService], line: str, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with bad().running() as service:
        enter(service, monkeypatch)
        async with notebook_server(home) as server:
            await asyncio.to_thread(service.wait_for, lambda s: s.requests >= 2)
            assert capfd.readouterr().err.count(line) == 1
            left_over(home, "", SPEC)
            answer = await server.http.post("api/kernels", json={"name": SPEC})
            assert answer.status_code == 503
            assert "has not answered" in answer.json()["message"]


async def test_a_server_that_no_hub_started_is_an_ordinary_one(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in FakeService().environment():
        monkeypatch.delenv(name, raising=False)
    async with notebook_server(home) as server:
        assert type(server.app.kernel_manager).__name__ == "AsyncMappingKernelManager"
    lines = [line for line in capfd.readouterr().err.splitlines() if "federation" in line]
    assert len(lines) == 1
    assert lines[0].startswith("[I")


async def test_a_kernel_manager_of_the_sites_own_is_named(
    service: FakeService, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    enter(service, monkeypatch)
    own = "jupyter_server.services.kernels.kernelmanager.AsyncMappingKernelManager"
    async with notebook_server(home, f"--ServerApp.kernel_manager_class={own}"):
        assert "federator.kernels.FederatorKernelManager" in capfd.readouterr().err


def pid_of(server: NotebookServer, kernel_id: str = KERNEL) -> int:
    return int(server.app.kernel_manager.get_kernel(kernel_id).provisioner.pid)


async def no_kernels(server: NotebookServer) -> bool:
    return not await server.kernels()


async def has_tile(server: NotebookServer) -> bool:
    return SPEC in await server.kernelspecs()


async def logged(capfd: pytest.CaptureFixture[str], words: str) -> bool:
    return words in capfd.readouterr().err


def left_over(home: Path, original: str, name: str) -> None:
    """A client kernelspec that stays in a home when its project is gone."""
    folder = home / "jupyter_data_dir" / "kernels"
    text: str = '{"argv": ["true"], "display_name": "old", "language": "python", "metadata": {"federator": {}}}'
    if original:
        text = (folder / original / "kernel.json").read_text()
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "kernel.json").write_text(text)


async def test_a_server_tells_once_what_its_image_has(service: FakeService, server: NotebookServer) -> None:
    await asyncio.to_thread(service.wait_for, lambda s: s.packages)
    assert service.packages["flwr"] == metadata.version("flwr")
    assert {"numpy", "flwr"} <= set(service.modules)


async def test_a_task_that_has_failed_keeps_nothing_from_ending() -> None:
    extension = FederatorExtension()
    extension._service = AsyncServiceClient(Access("http://nobody.example/", "token"))

    async def fails() -> None:
        raise UnicodeDecodeError("utf-8", b"\xfc", 0, 1, "invalid start byte")

    extension._reporting = asyncio.create_task(fails())
    await asyncio.wait([extension._reporting])
    await extension.stop_extension()
    assert extension._service._http.is_closed
