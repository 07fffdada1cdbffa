"""`Run.watch()` against the service's real routes: what it shows, when it ends, and what it sits out."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import federator
import pytest
from federator import curve_svg, notebook, site_log, watching
from federator import service_client as api
from federator.contract import Metrics, Round, RunDetail, RunStatus, RunSummary, SiteActivity, SiteRound, SiteState

from hub_service.web import events
from hub_service.web.figures import run_figure
from tests.fakes.hub import FakeHub
from tests.fakes.web_world import World, served_world
from tests.singleuser.test_real_service import become, forget_who_asks


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    async with served_world(tmp_path, FakeHub()) as served:
        become(served, "ben", monkeypatch)
        yield served
    forget_who_asks()


class Recorder:
    """A screen that keeps what it was shown, and lets a test wait for it."""

    def __init__(self) -> None:
        self.shown: list[watching.Seen] = []
        self.has_stopped = False
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    def show(self, now: watching.Seen) -> None:
        self.shown.append(now)
        self._loop.call_soon_threadsafe(self._changed.set)

    def stopped(self) -> None:
        self.has_stopped = True

    async def until_points(self, count: int) -> watching.Seen:
        """Wait until the first site's curve has so many points."""
        async with asyncio.timeout(20):
            while not self.shown or _points(self.shown[-1]) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.shown[-1]


def _points(now: watching.Seen) -> int:
    return len(now.figure["data"][0]["x"]) if now.figure else 0


@pytest.fixture
async def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(watching, "screen", lambda *_: recorder)
    return recorder


async def test_it_shows_each_round_and_ends_with_the_run(world: World, recorder: Recorder, tmp_path: Path) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    run = notebook.Run(run_id)
    watched = asyncio.create_task(asyncio.to_thread(run.watch))
    for number in (1, 2):
        world.report_round(project_id, run_id, number)
        now = await recorder.until_points(number)  # before the next round is there
        assert now.run.summary.status is RunStatus.RUNNING
        assert [one.site for one in now.run.activity] == ["north", "south"]
    world.finish_run(project_id, run_id, b"weights", tmp_path)
    async with asyncio.timeout(20):
        assert await watched is run
    assert recorder.shown[-1].run.summary.status is RunStatus.FINISHED
    assert run.detail.summary.status is RunStatus.FINISHED
    page = await asyncio.to_thread(notebook._service().call, api.get_run_figures(run_id, ""))
    assert recorder.shown[-1].figure == page.figure


async def test_a_metric_can_be_chosen(world: World, recorder: Recorder, tmp_path: Path) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    watched = asyncio.create_task(asyncio.to_thread(notebook.Run(run_id).watch, "loss"))
    world.report_round(project_id, run_id, 1)
    figure = (await recorder.until_points(1)).figure
    assert figure is not None
    assert figure["layout"]["meta"]["metric"] == "evaluate/loss"
    world.finish_run(project_id, run_id, b"weights", tmp_path)
    await watched


async def test_a_stream_that_ends_is_asked_for_anew(
    world: World, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LONGEST_STREAM_S", 0.05)
    monkeypatch.setattr(events.EventStream, "heartbeat_s", 0.01)
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    watched = asyncio.create_task(asyncio.to_thread(notebook.Run(run_id).watch))
    for number in (1, 2, 3):
        world.report_round(project_id, run_id, number)
        await recorder.until_points(number)
    world.finish_run(project_id, run_id, b"weights", tmp_path)
    await watched


async def test_a_restart_of_the_service_is_sat_out_and_no_more(
    world: World, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    service = notebook._service()
    asked = service.call
    answers = iter([asked, asked, None, None, asked, asked])

    def now_and_then(request: Any) -> Any:
        answer = next(answers, None)
        if answer is None:
            raise api.Unreachable("The federation service does not answer (test).")
        return answer(request)

    monkeypatch.setattr(service, "call", now_and_then)
    monkeypatch.setattr(service, "events", lambda _: iter(()))
    times = iter(range(0, 10_000, 40))
    monkeypatch.setattr(watching, "time", SimpleNamespace(sleep=lambda _: None, monotonic=lambda: float(next(times))))
    with pytest.raises(federator.ServiceError, match="does not answer"):
        await asyncio.to_thread(notebook.Run(run_id).watch)
    assert len(recorder.shown) == 2


async def test_an_interrupt_ends_the_watching_only(
    world: World, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)

    def interrupted(now: watching.Seen) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recorder, "show", interrupted)
    assert (await asyncio.to_thread(notebook.Run(run_id).watch)).id == run_id
    assert recorder.has_stopped
    run = world.store.run(run_id)
    assert run is not None
    assert run.status is RunStatus.RUNNING


async def test_who_is_removed_hears_why_nothing_more_comes(world: World, recorder: Recorder) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    watched = asyncio.create_task(asyncio.to_thread(notebook.Run(run_id).watch))
    world.report_round(project_id, run_id, 1)
    await recorder.until_points(1)
    world.coordinator.remove_member(world.principal("ada"), project_id, "ben")
    async with asyncio.timeout(20):
        with pytest.raises(federator.ServiceError):
            await watched


async def test_the_aggregators_log_is_read_on(world: World) -> None:
    project_id, _ = await world.shared_project()
    run_id = world.start_run(project_id)
    world.logs[run_id] = b"one\ntwo\n"
    log = watching.ServerLog(notebook._service(), run_id)
    assert await asyncio.to_thread(log.lines, 5) == ["one", "two"]
    world.logs[run_id] += b"three\n"
    assert await asyncio.to_thread(lambda: log.lines(5, fresh=False)) == ["one", "two"]
    assert await asyncio.to_thread(log.lines, 2) == ["two", "three"]
    world.logs[run_id] = b"cut\n"
    assert await asyncio.to_thread(log.lines, 5) == ["cut"]
    assert repr(await asyncio.to_thread(notebook.Run(run_id).log)) == "cut"
    world.coordinator.remove_member(world.principal("ada"), project_id, "ben")
    assert await asyncio.to_thread(log.lines, 5) == ["cut"]


async def test_ones_own_sites_log_is_this_servers(world: World) -> None:
    project_id, _ = await world.shared_project()
    run = notebook.Run(world.start_run(project_id))
    with pytest.raises(federator.ServiceError, match="no log of a Flower client"):
        await asyncio.to_thread(run.site_log)
    handler = site_log.open_log(project_id)
    handler.stream.write("a\nb\n")  # type: ignore[attr-defined]
    handler.close()
    assert await asyncio.to_thread(run.site_log, 1) == ["b"]


# --- what is shown


def detail(number: int = 2, status: RunStatus = RunStatus.RUNNING, *, activity: bool = True) -> RunDetail:
    def a_round(at: int) -> Round:
        metrics: Metrics = {"accuracy": 0.5 + 0.1 * at}
        sites = (SiteRound("north", evaluate=metrics), SiteRound("<south>", evaluate=metrics))
        return Round(at, sites, evaluate=metrics)

    return RunDetail(
        summary=RunSummary("r", 1, status, 5, number, f"round {number} of 5", "ada", "2026-11-23T12:00:00+00:00"),
        project_id="p",
        fab_hash="f",
        version=1,
        sites=("north", "<south>"),
        rounds=tuple(a_round(at) for at in range(1, number + 1)),
        scores=(),
        activity=(
            SiteActivity("north", SiteState.COMPUTING, task="train", bytes_in=2048),
            SiteActivity("<south>", SiteState.FAILED, detail="ValueError: <b> (train.py:1)"),
        )
        if activity
        else (),
        seconds_left=34.0 if activity else None,
        bytes_in=2048,
        bytes_out=3 << 20,
    )


def figure_of(run: RunDetail) -> dict[str, Any]:
    figure = run_figure(run, {"north": "North & Co", "<south>": "<South>"})
    assert figure is not None
    return figure


def test_the_state_says_who_does_what_and_how_long_it_takes() -> None:
    html = watching.run_html(detail())
    for words in ("computing train", "2.0 KB", "about 30 s left", "&lt;south&gt;", "ValueError: &lt;b&gt;", "40%"):
        assert words in html
    assert "<b> (" not in html
    ended = watching.run_html(detail(status=RunStatus.FINISHED, activity=False))
    assert "2.0 KB to the sites, 3.0 MB from them" in ended
    assert "progressbar" not in ended


def test_a_terminal_gets_some_lines_for_each_change() -> None:
    written: list[str] = []
    screen = watching.TextScreen(written.append)
    for number in (1, 1, 2):
        screen.show(watching.Seen(detail(number)))
    screen.stopped()
    assert len(written) == 3
    assert "round 1 of 5, about 30 s left\n  north: computing train\n  <south>: failed: ValueError" in written[0]
    assert written[-1] == "You no longer watch; the run goes on."


def test_outputs_are_replaced_only_where_they_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, dict[str, Any]]] = []

    class Handle:
        def update(self, bundle: dict[str, Any], raw: bool) -> None:
            shown.append(("update", bundle))

    def display(bundle: dict[str, Any], **_: Any) -> Handle:
        shown.append(("display", bundle))
        return Handle()

    class Log:
        def lines(self, count: int, *, fresh: bool) -> list[str]:
            return ["<b>server</b>"]

    monkeypatch.setattr(watching, "display", display)
    screen = watching.NotebookScreen(Log(), lambda _: ["<i>site</i>"])  # type: ignore[arg-type]
    first = watching.Seen(detail(1))
    screen.show(first)
    assert [how for how, _ in shown] == ["display"] * 3
    assert "&lt;b&gt;server" in shown[2][1]["text/html"]
    assert "&lt;i&gt;site" in shown[2][1]["text/html"]
    screen.show(first)
    assert len(shown) == 3
    screen.show(replace(first, figure=figure_of(first.run)))
    assert [how for how, _ in shown[3:]] == ["update"]
    assert list(shown[3][1]) == ["text/html", "text/plain"]
    ended = detail(2, RunStatus.FINISHED, activity=False)
    screen.show(watching.Seen(ended, figure_of(ended)))
    (curve,) = (bundle for _, bundle in shown[4:] if watching.PLOTLY in bundle)
    assert curve[watching.PLOTLY]["data"] == figure_of(ended)["data"]
    screen.stopped()
    assert shown[-1][0] == "display"


def test_the_curves_are_drawn_from_the_pages_figure() -> None:
    run = detail(3)
    drawing = ElementTree.fromstring(curve_svg.svg(figure_of(run)))  # noqa: S314 - our own
    texts = [element.text for element in drawing.iter("text")]
    assert {"North & Co", "<South>", "All sites", "Round", "Accuracy", "1", "5"} <= set(texts)
    lines = [
        element for element in drawing.iter("path") if element.get("fill") == "none" and "L" in element.get("d", "")
    ]
    assert [element.get("d", "").count("L") for element in lines] == [2, 2, 2]
    inside = [float(number) for line in lines for number in line.get("d", "M")[1:].replace("L", " ").split()]
    assert min(inside) > 0
    assert max(inside[0::2]) <= curve_svg.WIDTH
    assert max(inside[1::2]) <= curve_svg.HEIGHT


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [-3e-9, 5e-9], [1e9, 2e12], [0.1 * n for n in range(30)]])
def test_any_values_can_be_drawn(values: list[float]) -> None:
    run = detail(1)
    figure = figure_of(run)
    for place, trace in enumerate(figure["data"]):
        trace["name"] = "A site with a rather long name " * (place + 1)
        trace["x"], trace["y"] = list(range(1, len(values) + 1)), values
    for symbol in ("circle", "square", "diamond", "triangle-up", "x", "cross"):
        figure["data"][0]["marker"]["symbol"] = symbol
        ElementTree.fromstring(curve_svg.svg(figure))  # noqa: S314 - our own
    json.dumps(figure)


# --- the site's log


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    return tmp_path


def test_the_sites_log_is_its_persons_only_and_bounded(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_log, "LOG_LIMIT", 2000)
    handler = site_log.open_log("../p")
    logger = logging.Logger("test")
    logger.addHandler(handler)
    for number in range(300):
        logger.info("line %d", number)
    handler.close()
    files = sorted((data_dir / "federator").iterdir())
    assert [one.name for one in files] == ["..%2Fp.log", "..%2Fp.log.1"]
    assert all(stat.S_IMODE(os.stat(one).st_mode) == 0o600 for one in files)
    assert sum(one.stat().st_size for one in files) <= 4000
    found = site_log.tail("../p", 2)
    assert found is not None
    assert [line.partition("line ")[2] for line in found] == ["298", "299"]
    assert site_log.tail("../p", 0) == []
    assert site_log.tail("other", 5) is None


class Nowhere:
    """A stream that forgets."""

    def write(self, text: str) -> int:
        return len(text)


def printed_by_a_thread(*texts: str) -> list[str]:
    """What the log gets of it."""
    logged: list[str] = []
    stream = site_log.AlsoLogged(Nowhere(), logged.append)  # type: ignore[arg-type]
    worker = threading.Thread(target=lambda: [stream.write(text) for text in texts])
    worker.start()
    worker.join()
    return logged


def test_of_a_line_that_is_written_over_the_log_has_the_last_state() -> None:
    assert printed_by_a_thread(*(f"\r{percent} %" for percent in range(101)), "\n") == ["100 %"]
    assert printed_by_a_thread(*(f"{percent} %\r" for percent in range(101)), "\n") == ["100 %"]
    assert printed_by_a_thread("one\r\ntwo\r", "\n") == ["one", "two"]


@pytest.mark.parametrize("piece", ["x" * 1000, "\r" * 1000])
def test_a_line_that_does_not_end_is_kept_in_part(piece: str) -> None:
    (line,) = printed_by_a_thread(*[piece] * 100, "end\n")
    assert line.endswith("end")
    assert len(line) < 5000


def test_lines_of_threads_are_not_mixed() -> None:
    logged: list[str] = []
    stream = site_log.AlsoLogged(Nowhere(), logged.append)  # type: ignore[arg-type]
    both = threading.Barrier(2)

    def print_line(name: str) -> None:
        stream.write(name)
        both.wait()
        stream.write(f"{name}\n")

    workers = [threading.Thread(target=print_line, args=(name,)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(logged) == ["aa", "bb"]


def test_what_other_threads_print_is_logged_and_cells_are_not() -> None:
    printed, logged = [], []

    class Stream:
        encoding = "utf-8"

        def write(self, text: str) -> int:
            printed.append(text)
            return len(text)

    stream = site_log.AlsoLogged(Stream(), logged.append)  # type: ignore[arg-type]
    stream.write("a cell's\n")
    worker = threading.Thread(target=lambda: [stream.write(text) for text in ("epoch ", "1\nepoch 2\n", "…")])
    worker.start()
    worker.join()
    assert logged == ["epoch 1", "epoch 2"]
    assert "".join(printed) == "a cell's\nepoch 1\nepoch 2\n…"
    assert stream.encoding == "utf-8"
