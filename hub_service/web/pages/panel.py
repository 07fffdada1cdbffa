"""The part of the Hub's home page that is ours: a fragment that `static/panel.js` fetches and puts there."""

from __future__ import annotations

from federator.contract import Problem

from hub_service.web.pages.base import PageHandler


class Panel(PageHandler):
    def get(self) -> None:
        self.render_page("panel.html", home=self.parts.coordinator.home(self.principal))

    def write_problem(self, status: int, problem: Problem) -> None:
        self.render_page("panel_error.html", problem=problem)


ROUTES = ((r"panel", Panel),)
