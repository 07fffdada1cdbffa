"""API: the starter notebooks."""

from __future__ import annotations

from federator.contract import Route, Starter

from hub_service.web.base import ApiHandler


class StartersHandler(ApiHandler):
    def get(self) -> None:
        self.answer(tuple[Starter, ...], self.parts.coordinator.starters(self.principal))


class StarterHandler(ApiHandler):
    def get(self, name: str) -> None:
        filename, content = self.parts.coordinator.starter(self.principal, name)
        self.set_header("Content-Type", "application/x-ipynb+json")
        self.set_header("Content-Disposition", f'attachment; filename="{filename}"')
        self.finish(content)


ROUTES = ((Route.STARTERS, StartersHandler), (Route.STARTER, StarterHandler))
