"""The service's metrics, for a Prometheus that comes with a token of the Hub's."""

from __future__ import annotations

from hub_service.identity import MonitorIdentity
from hub_service.web.base import Answering

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"


class MetricsHandler(Answering, MonitorIdentity):
    async def get(self) -> None:
        content = await self.parts.scrape()
        self.set_header("Content-Type", CONTENT_TYPE)
        self.finish(content)


ROUTES = ((r"metrics", MetricsHandler),)
