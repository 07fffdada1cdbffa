"""Our node against a real SuperLink, through a real gateway: whole runs, and what one bad site does to the others."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from federator import allocator
from federator.contract import ClientState
from federator.fleet import FleetConnection, Received
from federator.framing import Data
from federator.node import Interrupted, _private_folder
from flwr.cli.install import install_from_fab
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from hub_service.domain.runs import EventKind, RunEvent
from hub_service.gateway.gateway import Refusal
from hub_service.gateway.handlers import FleetHandler
from hub_service.site_stages import Stage
from tests.fakes.fleet import PROJECT, Fleet, Member, fleet
from tests.fakes.flower_apps import (
    CLIENT,
    SERVER,
    app_with_bad_sites,
    averaging_app,
    fab,
)

TARGETS = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Four sites' nodes, connected before any aggregator runs."""
    async with fleet(tmp_path_factory.mktemp("fleet")) as it:
        for name, target in TARGETS.items():
            it.start_node(name, target, b"nothing approved yet")
        for member in it.members.values():
            assert await member.reaches(ClientState.READY) == "Waiting for a run."
        yield it


async def run(it: Fleet, app: bytes, run_id: str, *, approved_by: str = "abcd", rounds: int = 1) -> list[RunEvent]:
    members = list(it.members.values())
    for member in members:
        if member.name in approved_by:
            member.approve(app)
    await it.start_run(app, members, rounds=rounds, run_id=run_id)
    return await it.end_of_run(run_id)


def replies(events: list[RunEvent], member: Member, message_type: str = "train") -> list[RunEvent]:
    return [
        event
        for event in events
        if (event.kind, event.node_id, event.message_type) == (EventKind.REPLY, member.node_id, message_type)
    ]


async def test_all_sites_finish_a_run(running: Fleet) -> None:
    """Metrics and examples of each site and round are seen, and the app's own state lives from round to round."""
    events = await run(running, averaging_app(), "good", rounds=2)
    assert events[-1].kind is EventKind.FINISHED
    for member in running.members.values():
        train = replies(events, member)
        assert [event.round for event in train] == [1, 2]
        assert [event.metrics["trained"] for event in train] == [1, 2]
        assert all(event.examples == 10 and event.size > 0 and event.seconds > 0 and not event.text for event in train)
        assert [event.round for event in replies(events, member, "evaluate")] == [1, 2]
        assert ClientState.WORKING in {state for state, _ in member.states}
    assert {("a", True), ("a", False)} <= set(running.seen)
    assert running.gateway.traffic["a"].from_node > 0 < running.gateway.traffic["a"].to_node


async def test_bad_sites_are_left_out_and_the_rest_go_on(running: Fleet) -> None:
    events = await run(running, app_with_bad_sites(), "bad-sites")
    assert events[-1].kind is EventKind.FINISHED
    texts = {name: replies(events, member)[0].text for name, member in running.members.items()}
    assert texts["a"] == ""
    assert texts["b"].startswith("OSError: cannot read patients.csv (tinyapp/client_app.py:")
    assert texts["c"] == "site's answer left out: array 'weight' has NaN"
    assert texts["d"] == "site's answer left out: array 'weight' has shape [5], not [2, 3]"
    # Site a's answer alone, halfway between 0 and its target.
    (distance,) = [event.metrics["distance"] for event in replies(events, running.members["a"], "evaluate")]
    assert distance == pytest.approx(0.5)


async def test_an_app_that_raises_what_ends_a_thread_ends_no_client(running: Fleet) -> None:
    """The round goes on with the rest, and the next run has all of them."""
    app = averaging_app(
        "import asyncio\n"
        "class PanicException(BaseException):\n"
        "    pass\n"
        "if target > 1:\n"
        "    raise {2: asyncio.CancelledError, 3: KeyboardInterrupt, 4: PanicException}[int(target)]('stop')"
    )
    events = await run(running, app, "base-exceptions")
    assert events[-1].kind is EventKind.FINISHED
    texts = {name: replies(events, member)[0].text for name, member in running.members.items()}
    assert texts.pop("a") == ""
    assert [text.partition(" (")[0] for text in texts.values()] == [
        "CancelledError: stop",
        "KeyboardInterrupt: stop",
        "PanicException: stop",
    ]
    events = await run(running, averaging_app(), "after-base-exceptions")
    assert [replies(events, member)[0].text for member in running.members.values()] == [""] * 4


async def test_an_error_that_cannot_be_written_ends_no_client(running: Fleet) -> None:
    """Bytes that are no text, as in a file's name, and an exception whose own words fail."""
    app = averaging_app(
        "class Wordless(Exception):\n"
        "    def __str__(self):\n"
        "        raise KeyboardInterrupt\n"
        "if target == 2:\n"
        "    raise OSError(b'caf\\xe9.csv'.decode(errors='surrogateescape'))\n"
        "if target == 3:\n"
        "    raise Wordless"
    )
    events = await run(running, app, "wordless")
    assert events[-1].kind is EventKind.FINISHED
    texts = {name: replies(events, member)[0].text for name, member in running.members.items()}
    assert texts["b"].startswith("OSError: caf\\udce9.csv (tinyapp/client_app.py:")
    assert texts["c"].startswith("Wordless (tinyapp/client_app.py:")
    events = await run(running, averaging_app(), "after-wordless")
    assert [replies(events, member)[0].text for member in running.members.values()] == [""] * 4


async def test_an_error_with_a_long_text_is_sent_once_and_cut(running: Fleet) -> None:
    """The gateway takes no message without arrays that is as long as this one's text."""
    trained = running.folder / "long-error"
    app = averaging_app(
        "if target == 2:\n"
        f"    with open({str(trained)!r}, 'a') as file:\n"
        "        file.write('trained\\n')\n"
        "    raise RuntimeError('é' * 3_000_000)"
    )
    events = await run(running, app, "long-error")
    assert events[-1].kind is EventKind.FINISHED
    (reply,) = replies(events, running.members["b"])
    assert reply.text.startswith("RuntimeError: ééé")
    assert "é (tinyapp/client_app.py:" in reply.text
    assert len(reply.text) <= 2000
    assert trained.read_text().splitlines() == ["trained"]


async def test_a_message_that_cannot_be_worked_on_is_answered_with_an_error(
    running: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason; the next one is worked on."""

    def fails(proto: object) -> None:
        raise ValueError("such a run was not foreseen")

    with monkeypatch.context() as broken:
        broken.setattr("federator.node.run_from_proto", fails)
        events = await run(running, averaging_app(), "unforeseen")
    assert events[-1].text.startswith("no site could train: ValueError: such a run was not foreseen")
    assert (await run(running, averaging_app(), "foreseen"))[-1].kind is EventKind.FINISHED


async def test_an_app_that_is_not_approved_is_refused_unseen(running: Fleet) -> None:
    """The site's answer says so; nothing was imported or unpacked there."""
    marker = running.folder / "ran-at-c"
    app = averaging_app(f"if target == 3.0:\n    open({str(marker)!r}, 'w').close()")
    events = await run(running, app, "unapproved", approved_by="abd")
    assert events[-1].kind is EventKind.FINISHED
    (refused,) = replies(events, running.members["c"])
    assert refused.text == "This site's data steward has not approved this app version for its dataset."
    assert not marker.exists()


async def test_a_run_that_no_site_can_train_fails_and_says_why(running: Fleet) -> None:
    app = averaging_app("raise OSError('cannot read patients.csv')")
    events = await run(running, app, "all-fail")
    assert events[-1].kind is EventKind.FAILED
    assert events[-1].text.startswith("no site could train: OSError: cannot read patients.csv (tinyapp/client_app.py:")


async def test_a_new_version_of_an_app_is_really_loaded(running: Fleet) -> None:
    """Same package and module names, other code."""
    events = await run(running, averaging_app("weight = weight * 0 + 7"), "new-version")
    (distance,) = [event.metrics["distance"] for event in replies(events, running.members["a"], "evaluate")]
    assert distance == pytest.approx(6.0)


async def test_an_app_that_cannot_be_imported_is_told(running: Fleet) -> None:
    files = {"server_app.py": SERVER, "client_app.py": "import no_such_module_anywhere"}
    events = await run(running, fab(files), "import")
    assert events[-1].text.startswith(
        "no site could train: ModuleNotFoundError: No module named 'no_such_module_anywhere' (tinyapp/client_app.py:1)"
    )


async def test_an_interrupted_message_is_answered_with_an_error(running: Fleet) -> None:
    marker = running.folder / "busy-at-a"
    busy = (
        "import time\n"
        "if target == 1.0:\n"
        f"    open({str(marker)!r}, 'w').close()\n"
        "    while True:\n"
        "        time.sleep(0.01)"
    )
    members = list(running.members.values())
    app = averaging_app(busy)
    for member in members:
        member.approve(app)
    await running.start_run(app, members, rounds=1, run_id="interrupted")
    await running.events(lambda event: event.kind is EventKind.SENT, "interrupted")
    async with asyncio.timeout(30):
        while not marker.exists():  # noqa: ASYNC110 - written by the app
            await asyncio.sleep(0.02)
    node = running.members["a"].node
    assert node is not None
    node.interrupt()
    events = await running.end_of_run("interrupted")
    assert replies(events, running.members["a"])[0].text == "The researcher interrupted it."
    assert events[-1].kind is EventKind.FINISHED


async def test_an_aggregator_restart_keeps_nodes_and_their_ids(running: Fleet) -> None:
    before = {member.name: member.node_id for member in running.members.values()}
    await running.backend.stop(PROJECT)
    events = await run(running, averaging_app(), "restarted")
    assert events[-1].kind is EventKind.FINISHED
    assert {member.name: member.node_id for member in running.members.values()} == before


async def test_a_site_that_is_revoked_in_the_middle_ends_alone(tmp_path: Path) -> None:
    """Its node stops within a second or so, with a reason; the others finish."""
    async with fleet(tmp_path) as it:
        app = averaging_app()
        members = [it.start_node(name, target, app) for name, target in TARGETS.items()]
        await it.start_run(app, members, rounds=4)
        await it.events(lambda event: event.kind is EventKind.MODEL and event.round == 1)
        revoked = members[2]
        del it.grants[revoked.public_key]
        assert "ended" in await revoked.reaches(ClientState.FAILED, within=5.0)
        await it.backend.stop(PROJECT)


async def test_what_a_run_has_freed_is_given_back_once_nothing_comes_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = threading.Event()
    monkeypatch.setattr("federator.node.POLL_S", 0.5)
    monkeypatch.setattr(allocator, "give_back", given_back.set)
    async with fleet(tmp_path) as it:
        app = averaging_app()
        members = [it.start_node("a", TARGETS["a"], app)]
        await members[0].reaches(ClientState.READY)
        assert not given_back.is_set()
        await it.start_run(app, members, rounds=1)
        assert await asyncio.to_thread(given_back.wait, 60)


async def test_a_stop_during_a_long_poll_takes_less_than_a_second(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it:
        member = it.start_node("a", 1.0, b"")
        await member.reaches(ClientState.READY)
        started = time.monotonic()
        await member.stop()
        assert time.monotonic() - started < 1.0
        assert await member.reaches(ClientState.OFFLINE, within=1.0) == "Stopped."
        assert list(tmp_path.glob("flower-app-*")) == []


async def test_what_a_killed_kernel_left_is_removed_by_the_next_node(tmp_path: Path) -> None:
    """What lies there is a project's code. The folder of a node that lives stays, and so does what is no node's."""
    async with fleet(tmp_path) as it:
        alive = it.admit("alive", 1.0)
        alive.prepare(alive.approve(averaging_app()))
        alive.start(it.address, tmp_path)
        await alive.reaches(ClientState.READY)
        (its_folder,) = tmp_path.glob("flower-app-*")
        killed = tmp_path / "flower-app-killed"
        for folder in (killed, tmp_path / "elsewhere"):
            folder.mkdir()
            (folder / "client_app.py").touch()
        (tmp_path / "flower-app-link").symlink_to(tmp_path / "elsewhere")
        newer = it.start_node("newer", 2.0, b"")
        await newer.reaches(ClientState.READY)
        assert not killed.exists()
        assert list(its_folder.rglob("client_app.py"))
        assert list((tmp_path / "elsewhere").iterdir())


async def test_a_hub_that_goes_away_is_waited_for(tmp_path: Path) -> None:
    """The node says so, and takes part again when the Hub is back."""
    async with fleet(tmp_path) as it:
        app = averaging_app()
        member = it.start_node("a", 1.0, app)
        await member.reaches(ClientState.READY)
        await it.go_away()
        await member.says("The Hub does not answer; trying again.")
        it.come_back()
        await it.start_run(app, [member], rounds=1)
        assert (await it.end_of_run())[-1].kind is EventKind.FINISHED


class HubForAll(RequestHandler):
    """What has no route of its own in the proxy comes to the Hub."""

    def post(self, _: str) -> None:
        self.send_error(403)


async def test_a_hub_that_answers_in_the_gateways_place_is_waited_out(tmp_path: Path) -> None:
    """A proxy that was started anew knows the Hub's route before ours."""
    async with fleet(tmp_path) as it:
        app = averaging_app()
        member = it.start_node("a", 1.0, app)
        await member.reaches(ClientState.READY)
        await it.go_away()
        hub = HTTPServer(Application([("(.*)", HubForAll)], log_function=lambda _: None))
        hub.add_sockets(bind_sockets(it.port, "127.0.0.1"))
        await member.says("The Hub does not answer; trying again.")
        hub.stop()
        await hub.close_all_connections()
        it.come_back()
        await it.start_run(app, [member], rounds=1)
        assert (await it.end_of_run())[-1].kind is EventKind.FINISHED
        assert ClientState.FAILED not in {state for state, _ in member.states}


async def test_what_is_refused_once_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The site joins, is sent its message, and its answer arrives: it trained once."""
    refusals = {"activate-node": [400, 403], "bulk-pull": [400, 403], "bulk-push": [408]}
    begin = FleetHandler._begin

    def refuse_first(handler: FleetHandler) -> None:
        waiting = refusals.get(handler.path_args[0])
        if waiting:
            raise Refusal(waiting.pop(), "Not this time.")
        begin(handler)

    monkeypatch.setattr(FleetHandler, "_begin", refuse_first)
    async with fleet(tmp_path) as it:
        app = noting_app(
            tmp_path, "app", f"with open({str(tmp_path / 'app')!r}, 'a') as file:\n    file.write('trained\\n')"
        )
        member = it.start_node("a", 1.0, app)
        await it.start_run(app, [member], rounds=1)
        events = await it.end_of_run()
        assert [reply.text for reply in replies(events, member)] == [""]
        assert noted(tmp_path).count("trained") == 1
        assert not any(refusals.values())


async def test_a_message_waits_for_a_service_that_does_not_say_what_is_approved(tmp_path: Path) -> None:
    """It may be restarting. An error answer of every site would end the run."""
    async with fleet(tmp_path) as it:
        app = averaging_app()
        member = it.start_node("a", 1.0, app)
        await member.reaches(ClientState.READY)
        member.service_away = True
        await it.start_run(app, [member], rounds=1)
        await member.says("The Hub does not answer; trying again.")
        member.service_away = False
        events = await it.end_of_run()
        assert events[-1].kind is EventKind.FINISHED, events[-1].text
        assert [reply.text for reply in replies(events, member)] == [""]
        assert [state for state, _ in member.states[-2:]].count(ClientState.STARTING) == 0


def noting_app(folder: Path, name: str, train: str = "") -> bytes:
    """An app that writes a line into the file "app" when it is imported."""
    client = CLIENT.format(train="\n".join(f"    {line}" for line in train.splitlines()))
    note = f"with open({str(folder / 'app')!r}, 'a') as file:\n    file.write('{name} imported\\n')\n"
    return fab({"server_app.py": SERVER, "client_app.py": client + note})


def noted(folder: Path) -> list[str]:
    return (folder / "app").read_text().splitlines() if (folder / "app").exists() else []


async def test_the_approved_app_is_loaded_before_the_node_says_that_it_waits(tmp_path: Path) -> None:
    """The run's messages find it there, and nobody fetches it again."""
    async with fleet(tmp_path) as it:
        app = noting_app(tmp_path, "first")
        member = it.admit("a", 1.0)
        member.prepare(member.approve(app))
        member.start(it.address, tmp_path)
        assert await member.reaches(ClientState.READY) == "Waiting for a run."
        assert noted(tmp_path) == ["first imported"]
        assert [detail for _, detail in member.states][1:3] == ["Loading the approved app.", "Waiting for a run."]
        await it.start_run(app, [member], rounds=1)
        assert (await it.end_of_run())[-1].kind is EventKind.FINISHED
        assert noted(tmp_path) == ["first imported"]
        assert "get-fab" not in {operation for operation, _ in it.requests}


async def test_an_app_that_cannot_be_loaded_ends_no_client(tmp_path: Path) -> None:
    """Its person reads why, and a run gets that as its answer."""
    async with fleet(tmp_path) as it:
        app = fab({"server_app.py": SERVER, "client_app.py": "import no_such_module_anywhere"})
        member = it.admit("a", 1.0)
        member.prepare(member.approve(app))
        member.start(it.address, tmp_path)
        reason = "No module named 'no_such_module_anywhere' (tinyapp/client_app.py:1)"
        text = f"Waiting for a run. The approved app could not be loaded: ModuleNotFoundError: {reason}"
        assert await member.reaches(ClientState.READY) == text
        await it.start_run(app, [member], rounds=1)
        assert (await it.end_of_run())[-1].text.startswith(f"no site could train: ModuleNotFoundError: {reason}")
        assert (await it.end_of_run())[-1].kind is EventKind.FAILED


async def test_why_an_app_cannot_be_loaded_can_be_reported(tmp_path: Path) -> None:
    """The service takes UTF-8; names of files may be any bytes, those of the app's own code too."""
    client = "exec(compile('raise OSError(\"caf\\\\udce9.csv\")', __file__ + '/\\udce9', 'exec'))"
    async with fleet(tmp_path) as it:
        app = fab({"server_app.py": SERVER, "client_app.py": client})
        member = it.admit("a", 1.0)
        member.prepare(member.approve(app))
        member.start(it.address, tmp_path)
        text = await member.reaches(ClientState.READY)
        assert text.endswith("OSError: caf\\udce9.csv (tinyapp/client_app.py/\\udce9:1)")


@pytest.mark.parametrize("ended_by", [Interrupted, KeyboardInterrupt])
async def test_an_app_that_was_unpacked_half_is_unpacked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended_by: type[BaseException]
) -> None:
    """Flower would take the folder that is there for the whole app."""
    tries = []

    def breaks_off_once(content: bytes, install_dir: Path, skip_prompt: bool) -> Path:
        folder = install_from_fab(content, install_dir=install_dir, skip_prompt=skip_prompt)
        tries.append(folder)
        if len(tries) == 1:
            next(folder.rglob("client_app.py")).unlink()
            raise ended_by
        return folder

    monkeypatch.setattr("federator.node.install_from_fab", breaks_off_once)
    async with fleet(tmp_path) as it:
        app = averaging_app()
        member = it.admit("a", 1.0)
        member.prepare(member.approve(app))
        member.start(it.address, tmp_path)
        assert "could not be loaded" in await member.reaches(ClientState.READY)
        await it.start_run(app, [member], rounds=1)
        assert [reply.text for reply in replies(await it.end_of_run(), member)] == [""]


async def test_nodes_that_begin_at_once_leave_each_others_folders_alone(tmp_path: Path) -> None:
    """Each looks at the others' new folders, which nobody has locked yet."""

    def begin_and_end() -> None:
        for _ in range(50):
            with _private_folder(tmp_path) as folder:
                (folder / "app").touch()
                assert (folder / "app").exists()

    await asyncio.gather(*(asyncio.to_thread(begin_and_end) for _ in range(8)))
    assert list(tmp_path.iterdir()) == []


async def test_what_is_not_the_approved_app_is_not_loaded(tmp_path: Path) -> None:
    """Nothing of it is imported: not approved, other bytes, or not there."""
    async with fleet(tmp_path) as it:
        app = noting_app(tmp_path, "bad")
        unapproved, forged, missing = it.admit("unapproved"), it.admit("forged"), it.admit("missing")
        fab_hash = unapproved.approve(app)
        unapproved.approved.clear()
        forged.approved.add("ab" * 32)
        forged.apps["ab" * 32] = app
        missing.approved.add("cd" * 32)
        for member, wanted in ((unapproved, fab_hash), (forged, "ab" * 32), (missing, "cd" * 32)):
            member.prepare(wanted)
            member.start(it.address, tmp_path)
        texts = [await member.reaches(ClientState.READY) for member in (unapproved, forged, missing)]
        assert [text.removeprefix("Waiting for a run. The approved app could not be loaded: ") for text in texts] == [
            "This site's data steward has not approved this app version for its dataset.",
            "The service sent another app than the approved one.",
            "There is no such app.",
        ]
        assert noted(tmp_path) == []
        assert unapproved.fetched == []


async def test_a_newer_version_is_loaded_while_the_node_waits(tmp_path: Path) -> None:
    async with fleet(tmp_path) as it:
        member = it.admit("a", 1.0)
        member.prepare(member.approve(noting_app(tmp_path, "first")))
        member.start(it.address, tmp_path)
        await member.reaches(ClientState.READY)
        member.states.clear()
        member.prepare(member.approve(noting_app(tmp_path, "second")))
        assert await member.says("Loading the approved app.") is ClientState.READY
        await member.says("Waiting for a run.")
        assert noted(tmp_path) == ["first imported", "second imported"]


async def test_a_newer_version_waits_for_the_end_of_a_run(tmp_path: Path) -> None:
    """What the app has in memory is there until its run's last message."""
    async with fleet(tmp_path, longest_poll_s=5.0) as it:
        train = f"with open({str(tmp_path / 'app')!r}, 'a') as file:\n    file.write('trained\\n')"
        app = noting_app(tmp_path, "first", train)
        member = it.start_node("a", 1.0, app)
        await it.start_run(app, [member], rounds=3)
        await it.events(lambda event: event.kind is EventKind.MODEL)
        member.prepare(member.approve(noting_app(tmp_path, "second")))
        assert (await it.end_of_run())[-1].kind is EventKind.FINISHED
        await it.backend.stop(PROJECT)
        await member.says("Loading the approved app.")
        await member.says("Waiting for a run.")
        async with asyncio.timeout(30):
            while noted(tmp_path)[-1] != "second imported":  # noqa: ASYNC110 - written by the app
                await asyncio.sleep(0.02)
        assert noted(tmp_path) == ["first imported", *["trained"] * 3, "second imported"]


@pytest.mark.parametrize("aggregator", [False, True], ids=["no aggregator", "an aggregator"])
async def test_an_idle_node_sends_one_poll_after_the_other_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aggregator: bool
) -> None:
    """Each is held to its end."""
    poll_s = 0.4
    monkeypatch.setattr("federator.node._HEARTBEAT_S", poll_s / 4)
    async with fleet(tmp_path, longest_poll_s=poll_s) as it:
        member = it.admit("a", 1.0)
        if aggregator:
            await it.register(member)
        member.start(it.address, tmp_path)
        await member.reaches(ClientState.READY)
        if aggregator:
            await it.answers(1)  # it has joined
        for operation, seconds in await it.answers(4):
            assert operation == ("bulk-pull" if aggregator else "activate-node")
            assert seconds >= poll_s


async def test_a_node_at_work_sends_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_HEARTBEAT_S", "_WATCH_AFTER_S"):
        monkeypatch.setattr(f"federator.node.{name}", 0.05)
    async with fleet(tmp_path) as it:
        app = averaging_app("import time\ntime.sleep(0.5)")
        member = it.start_node("a", 1.0, app)
        await it.start_run(app, [member], rounds=1)
        assert (await it.end_of_run())[-1].kind is EventKind.FINISHED
        assert [operation for operation, _ in it.requests].count("send-node-heartbeat") >= 2


async def test_a_node_whose_right_has_ended_stops_computing(tmp_path: Path) -> None:
    """Within two seconds of the gateway's word, which it holds a poll for; the bound is for a busy machine."""
    async with fleet(tmp_path) as it:
        app = averaging_app("import time\nfor _ in range(6000):\n    time.sleep(0.01)")
        member = it.start_node("a", 1.0, app)
        await it.start_run(app, [member], rounds=1)
        async with asyncio.timeout(30):
            while ("a", Stage.COMPUTING) not in it.moved:  # noqa: ASYNC110 - the message is there
                await asyncio.sleep(0.01)
        begun = time.monotonic()
        del it.grants[member.public_key]
        text = await member.reaches(ClientState.FAILED, within=10)
        assert "the participation or the approval has ended" in text
        assert member.node is not None
        assert member.node.refused
        async with asyncio.timeout(10):
            while any(thread.name == "federator-work" for thread in threading.enumerate()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert time.monotonic() - begun < 5


# What the answers of `averaging_app` hold.
DECLARED = (
    '[tool.federator.outputs.train.arrays.arrays]\nweight = "float32[2,3]"\n'
    '[tool.federator.outputs.train.metrics.metrics]\nloss = "number"\ntrained = "number"\nnum-examples = "number"\n'
    '[tool.federator.outputs.evaluate.metrics.metrics]\ndistance = "number"\nnum-examples = "number"\n'
)


async def test_an_answer_that_was_not_declared_stays_at_the_site(tmp_path: Path) -> None:
    """The declaration is in the approved app; b's answer holds a key that no trial has seen."""
    client = CLIENT.format(train="").replace(
        'ArrayRecord({"weight": Array(weight)})',
        'ArrayRecord({"weight": Array(weight), **({"patients": Array(weight)} if target == 2 else {})})',
    )
    app = fab({"server_app.py": SERVER, "client_app.py": client}, config=DECLARED)
    async with fleet(tmp_path) as it:
        for name, target in (("a", 1.0), ("b", 2.0)):
            member = it.start_node(name, target, app)
            await member.reaches(ClientState.READY)
        events = await run(it, app, "declared", approved_by="ab")
        assert events[-1].kind is EventKind.FINISHED
        assert replies(events, it.members["a"])[0].text == ""
        text = replies(events, it.members["b"])[0].text
        assert text.startswith("The site kept back its answer to “train”: it holds arrays/patients (float32[2,3])")
        assert "federator.try_here() again" in text
        assert replies(events, it.members["b"], "evaluate")[0].text == "", "what is declared goes on"


@pytest.mark.parametrize(("off_s", "way"), [(600, "ahead of"), (-600, "behind"), (7, "ahead of")])
async def test_a_site_whose_clock_is_wrong_takes_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off_s: int, way: str
) -> None:
    """It goes by the Hub's time, and says so. Its answers carry its own, by which Flower counts how long they live."""

    def wrong() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=off_s)

    monkeypatch.setattr("federator.fleet.now", wrong)
    monkeypatch.setattr("flwr.app.message.message.now", wrong)
    async with fleet(tmp_path) as it:
        app = averaging_app()
        member = it.start_node("a", 1.0, app)
        text = await member.reaches(ClientState.READY)
        told = re.search(rf"The clock of this site is (\d+) s {way} the Hub's", text)
        assert told is not None
        assert int(told[1]) == pytest.approx(abs(off_s), abs=3)  # an HTTP Date has whole seconds
        await it.start_run(app, [member], rounds=2)
        events = await it.end_of_run()
        assert events[-1].kind is EventKind.FINISHED
        assert [event.text for event in replies(events, member)] == ["", ""]


async def test_no_error_carries_out_what_was_not_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in an exception's words, an error answer of the app's own, an answer's metadata, or a key's name."""
    sent: list[bytes] = []
    push = FleetConnection.push

    async def push_and_note(connection: FleetConnection, parts: list[Data], *rest: Any) -> Received:
        sent.extend(bytes(part) for part in parts)
        return await push(connection, parts, *rest)

    monkeypatch.setattr(FleetConnection, "push", push_and_note)
    app = averaging_app(
        "from flwr.app import Error\n"
        "row = 'patient 17, ' * 20\n"
        "if target == 1:\n"
        "    raise RuntimeError(row)\n"
        "if target == 2:\n"
        "    return Message(Error(0, row), reply_to=message)\n"
        "if target == 3:\n"
        "    message.metadata.group_id = row\n"
        "if target == 4:\n"
        "    return Message(RecordDict({'m': MetricRecord({' ' * 100 + row: 1})}), reply_to=message)",
        config=DECLARED,
    )
    async with fleet(tmp_path) as it:
        members = {name: it.start_node(name, target, app) for name, target in TARGETS.items()}
        await it.start_run(app, list(members.values()), rounds=1)
        events = await it.end_of_run()
        texts = {name: replies(events, member)[0].text for name, member in members.items()}
        assert texts["a"].startswith("RuntimeError (tinyapp/client_app.py:")
        assert texts["b"] == "AnsweredWithError: the site's own log has the rest"
        assert texts["c"] == ""
        assert "it is not declared" in texts["d"]
        assert b"patient 17" not in b"".join(sent)
        assert "patient 17" not in str([member.states for member in members.values()])
    assert "RuntimeError: patient 17" in caplog.text
