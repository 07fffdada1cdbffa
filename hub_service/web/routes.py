"""All of the service's HTTP routes for people and scripts. Called by `hub_service.app`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from federator.contract import SERVICE_PREFIX
from tornado.routing import URLSpec
from tornado.web import RequestHandler

from hub_service.changes import Changes
from hub_service.coordinator import Coordinator
from hub_service.turns import Turns
from hub_service.web import (
    approvals,
    apps,
    assets,
    events,
    members,
    metrics,
    participations,
    previews,
    projects,
    results,
    runs,
    starters,
)
from hub_service.web.base import NoSuchApi, Parts, Scrape, no_metrics
from hub_service.web.pages import administration, nodes, panel
from hub_service.web.pages import approvals as approval_pages
from hub_service.web.pages import project as project_pages
from hub_service.web.pages import projects as projects_pages
from hub_service.web.pages.base import NoSuchPage
from hub_service.web.templating import Templates

API_ROUTES = (
    *projects.ROUTES,
    *starters.ROUTES,
    *apps.ROUTES,
    *previews.ROUTES,
    *members.ROUTES,
    *participations.ROUTES,
    *events.API_ROUTES,
    *runs.ROUTES,
    *results.ROUTES,
    *approvals.ROUTES,
)
PAGE_ROUTES: tuple[tuple[str, type[RequestHandler]], ...] = (
    *projects_pages.ROUTES,
    *events.PAGE_ROUTES,
    *project_pages.ROUTES,
    *approval_pages.ROUTES,
    *nodes.ROUTES,
    *panel.ROUTES,
    *administration.ROUTES,
    *metrics.ROUTES,
    *assets.ROUTES,
)


def make_routes(
    *,
    coordinator: Coordinator,
    changes: Changes,
    prefix: str = SERVICE_PREFIX,
    scrape: Scrape = no_metrics,
    turns: Turns | None = None,
) -> list[URLSpec]:
    """Routes for a tornado application whose settings hold `hub_auth` and `cookie_secret`, with `xsrf_cookies` on.

    They cover every path below the prefix: routes of others below it, such as the OAuth callback, go first.
    """
    parts = {"parts": Parts(coordinator, changes, Templates(prefix), prefix, scrape, turns or Turns())}
    return [
        *_specs(prefix, ((_pattern(route), handler) for route, handler in API_ROUTES), parts),
        *_specs(prefix, PAGE_ROUTES, parts),
        *_specs(prefix, ((r"api(/.*)?", NoSuchApi), (r".*", NoSuchPage)), parts),
    ]


def route_names() -> dict[type[RequestHandler], str]:
    """The pattern of each handler's route below the prefix, for metrics: one name, whatever stands in an address."""
    return {
        **{handler: re.sub(r"\((?:\?P<(\w+)>)?.*?\)", r"{\1}", pattern) for pattern, handler in PAGE_ROUTES},
        **{handler: str(route) for route, handler in API_ROUTES},
    }


def _specs(prefix: str, routes: Iterable[tuple[str, type[RequestHandler]]], parts: dict[str, Any]) -> Iterable[URLSpec]:
    return (URLSpec(re.escape(prefix) + pattern, handler, parts) for pattern, handler in routes)


def _pattern(route: str) -> str:
    """A route of the contract as a regular expression: `{name}` is one segment."""
    return re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", re.escape(route).replace(r"\{", "{").replace(r"\}", "}"))
