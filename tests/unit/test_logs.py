"""Log lines: what they say, and that nobody can forge one."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from federator import logs, site_log
from federator.logs import LogFormat
from jupyterhub import log as hub_log
from jupyterhub.app import JupyterHub
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application

from hub_service.aggregators.processes import environment
from hub_service.domain.errors import Invalid
from hub_service.last_errors import MOST, LastErrors
from hub_service.settings import log_format
from spawner import hub_logs

EVIL = "ada\n2026-11-28 12:00:00,000 INFO hub_service: forged\r\x1b[2J\u2028\u202e\x85"


@pytest.fixture(params=list(LogFormat))
def logged(request: pytest.FixtureRequest) -> Iterator[tuple[LogFormat, logging.Logger, io.StringIO]]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.formatter(request.param))
    log = logging.getLogger(f"test.{request.param}")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    yield request.param, log, stream
    log.removeHandler(handler)


Logged = tuple[LogFormat, logging.Logger, io.StringIO]


def test_a_line_says_what_it_is_about(logged: Logged) -> None:
    wanted, log, stream = logged
    with logs.about(run="r1", site="north"), logs.about(request_id="abc"):
        log.info("round %d", 3)
    log.info("after")
    first, second = stream.getvalue().splitlines()
    if wanted is LogFormat.JSON:
        line = json.loads(first)
        assert list(line) == ["time", "level", "logger", "message", "request_id", "run", "site"]
        assert (line["level"], line["logger"], line["message"], line["run"]) == ("INFO", "test.json", "round 3", "r1")
        assert line["time"].endswith("+00:00")
        assert "run" not in json.loads(second)
    else:
        assert first.endswith("INFO test.text: round 3 [request_id=abc run=r1 site=north]")
        assert second.endswith("INFO test.text: after")


def test_nobody_forges_a_line(logged: Logged) -> None:
    _, log, stream = logged
    with logs.about(site=EVIL):
        log.info("user %s", EVIL)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert not set("\r\x1b\u2028\u202e\x85") & set(text)
    assert "\\n2026-11-28" in text or "\\\\n2026-11-28" in text


def test_a_stack_is_there_and_begins_no_line(logged: Logged) -> None:
    wanted, log, stream = logged
    try:
        raise ValueError(EVIL)
    except ValueError:
        log.exception("broke")
    lines = stream.getvalue().splitlines()
    if wanted is LogFormat.JSON:
        (line,) = lines
        assert "ValueError: ada" in json.loads(line)["exception"]
    else:
        assert len(lines) > 3
        assert all(line.startswith("    ") for line in lines[1:])


async def test_tasks_do_not_mix() -> None:
    async def one(name: str) -> str:
        logs.note(run=name)
        await asyncio.sleep(0)
        return logs.noted("run")

    assert await asyncio.gather(one("a"), one("b")) == ["a", "b"]
    assert logs.noted("run") == ""


@pytest.mark.parametrize("text", ["abc", "A1._-z", "0" * 64])
def test_a_harmless_request_id_is_kept(text: str) -> None:
    assert logs.checked_request_id(text) == text


@pytest.mark.parametrize("text", ["", "0" * 65, "a b", "a\nb", "-a", "<b>", "ä", "a" * 10 + "\n"])
def test_any_other_request_id_is_not(text: str) -> None:
    assert logs.checked_request_id(text) == ""


def test_what_is_asked_for_a_request_has_its_id() -> None:
    assert logs.request_headers() == {}
    with logs.about(request_id="abc"):
        assert logs.request_headers() == {"X-Request-ID": "abc"}


def test_it_is_set_up_once_for_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.RootLogger(logging.WARNING)
    monkeypatch.setattr(logging, "root", root)
    stream = io.StringIO()
    logs.set_up(LogFormat.JSON, stream)
    root.info("here")
    assert json.loads(stream.getvalue())["message"] == "here"
    other = logging.RootLogger(logging.WARNING)
    monkeypatch.setattr(logging, "root", other)
    logs.set_up(LogFormat.TEXT)
    (handler,) = other.handlers
    assert isinstance(handler, logging.StreamHandler)
    assert handler.stream is sys.stderr


def test_the_setting_is_checked() -> None:
    assert log_format({}) is LogFormat.TEXT
    assert log_format({"FEDERATOR_LOG_FORMAT": "json"}) is LogFormat.JSON
    with pytest.raises(Invalid, match="FEDERATOR_LOG_FORMAT"):
        log_format({"FEDERATOR_LOG_FORMAT": "xml"})


def test_the_last_errors_are_kept_without_their_stack() -> None:
    kept = LastErrors()
    log = logging.getLogger("test.errors")
    log.propagate = False
    log.addHandler(kept)
    log.warning("not this")
    for number in range(MOST + 1):
        log.error("number %d", number)
    try:
        raise ValueError("secret")
    except ValueError:
        log.exception("broke\n")
    log.removeHandler(kept)
    texts = [text for _, text in kept.lines]
    assert len(texts) == MOST
    assert texts[-2:] == [f"number {MOST}", "broke\\n (ValueError)"]


@pytest.fixture
def process() -> Iterator[None]:
    """What was said of this process is forgotten again."""
    yield
    logs.begin_process({})


@pytest.mark.usefixtures("process")
def test_every_line_of_an_aggregator_says_its_run_whichever_thread_writes_it() -> None:
    told = environment("/home", "p1", "r1")
    library, stream = logging.getLogger("test.library"), io.StringIO()
    library.propagate = False
    library.addHandler(logging.StreamHandler(stream))
    wanted = logs.begin_process({**told, "FEDERATOR_LOG_FORMAT": "json"})
    logs.take_over(library, wanted)
    (handler,) = library.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    thread = threading.Thread(target=library.warning, args=("from a thread",))
    thread.start()
    thread.join()
    line = json.loads(stream.getvalue())
    assert (line["message"], line["run"], line["project"]) == ("from a thread", "r1", "p1")


@pytest.mark.usefixtures("process")
def test_a_process_without_a_run_says_none() -> None:
    assert logs.begin_process(environment("/home")) is LogFormat.TEXT
    with pytest.raises(ValueError, match="xml"):
        logs.begin_process({"FEDERATOR_LOG_FORMAT": "xml"})


def test_a_client_kernels_log_says_which_message_a_line_is_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    handler = site_log.open_log("p1")
    node, printed = logging.Logger("federator.node"), logging.Logger(site_log.PRINTED)
    for log in (node, printed):
        log.addHandler(handler)
    with logs.about(run="7", message_id="m1"):
        node.info("training")
        printed.info("epoch 1\r\x1b[2J")
    handler.close()
    first, second = site_log.log_path("p1").read_text().splitlines()
    assert first.endswith("INFO federator.node: training [run=7 message_id=m1]")
    assert second.endswith(" epoch 1\\r\\u001b[2J")


class TestHub:
    def test_json_takes_the_place_of_the_hubs_lines(self) -> None:
        assert "formatters" not in hub_logs.configuration("text")
        assert hub_logs.configuration("json")["formatters"] == {"console": {"class": "federator.logs.JsonLines"}}

    def test_no_line_has_a_sessions_id(self, capsys: pytest.CaptureFixture[str]) -> None:
        hub = JupyterHub(logging_config=hub_logs.configuration("text"), log_level=logging.INFO)
        hub.log.info("Setting new xsrf cookie for %r", "the id")
        hub.log.info("another line")
        for handler in list(hub.log.handlers):
            hub.log.removeHandler(handler)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("another line")

    def test_the_hub_takes_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        hub = JupyterHub(logging_config=hub_logs.configuration("json"), log_level=logging.INFO)
        hub.log.warning("a %s", "line\n")
        for handler in list(hub.log.handlers):
            hub.log.removeHandler(handler)
        line = json.loads(capsys.readouterr().err)
        assert (line["logger"], line["level"], line["message"]) == ("JupyterHub", "WARNING", "a line\\n")

    async def test_its_line_has_the_id_of_the_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[str] = []
        monkeypatch.setattr(hub_log, "log_request", lambda handler: told.append(logs.noted("request_id")))
        server = HTTPServer(Application(log_function=hub_logs.log_request))
        sock, port = bind_unused_port()
        server.add_sockets([sock])
        for sent in ("abc", "a b"):
            url = f"http://127.0.0.1:{port}/"
            await AsyncHTTPClient().fetch(url, headers={"X-Request-ID": sent}, raise_error=False)
        server.stop()
        assert told == ["abc", ""]
