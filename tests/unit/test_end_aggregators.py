"""`python -m hub_service end-aggregators`: what a stopped service has left running is ended, and counted."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from hub_service import commands
from hub_service.aggregators.local import LocalAggregators

# Answers everything at its port with 200, as a SuperLink answers for its health.
SUPERLINK = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy).serve_forever()
"""


async def test_all_are_ended_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = LocalAggregators(
        tmp_path, template_command=None, superlink_command=(sys.executable, "-c", SUPERLINK), serverapp_command=()
    )
    for project in ("one", "two"):
        await backend.start(project)
    assert await asyncio.to_thread(commands.run, ["end-aggregators", "--state-dir", str(tmp_path)], {}) == 0
    assert capsys.readouterr().out == "2 aggregators ended.\n"
    assert await backend.running() == []
    assert await asyncio.to_thread(commands.run, ["end-aggregators", "--state-dir", str(tmp_path)], {}) == 0
    assert capsys.readouterr().out == "0 aggregators ended.\n"
    for project in ("one", "two"):
        await backend.stop(project)  # reads the exit of its own children
