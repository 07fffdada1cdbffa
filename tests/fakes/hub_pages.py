"""The fake Hub with what pages take from the real one: its style, its scripts, its logo and its home page."""

from __future__ import annotations

from pathlib import Path

from jupyterhub._data import DATA_FILES_PATH
from tornado.web import Application, RequestHandler, StaticFileHandler

from tests.fakes.hub import FakeHub

_STATIC = Path(DATA_FILES_PATH) / "static"


class _Home(RequestHandler):
    """The Hub's home page, as far as the federation panel sees it."""

    def get(self) -> None:
        self.finish(
            '<!DOCTYPE html><html lang="en"><head><title>Home</title><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<link rel="stylesheet" href="/hub/static/css/style.min.css"></head><body>'
            '<button id="dark-theme-toggle" hidden></button><script src="/hub/static/js/darkmode.js"></script>'
            '<main class="container"><h1>Home</h1><section id="federation-panel" data-src="/services/federation/panel">'
            '</section></main><script src="/services/federation/static/panel.js" defer></script></body></html>'
        )


class _Logo(RequestHandler):
    def get(self) -> None:
        self.set_header("Content-Type", "image/png")
        self.finish((_STATIC / "images" / "jupyterhub-80.png").read_bytes())


class FakeHubWithPages(FakeHub):
    def serve_in(self, application: Application) -> None:
        super().serve_in(application)
        application.add_handlers(
            ".*",
            [
                (r"/hub/static/(.*)", StaticFileHandler, {"path": _STATIC}),
                (r"/hub/logo", _Logo),
                (r"/hub/home", _Home),
            ],
        )
