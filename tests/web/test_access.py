"""Every route for every role, as the table of `docs/access.md` has it; and the table for every route."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from federator.contract import SERVICE_PREFIX, Scope

from hub_service.app import Service
from hub_service.rate_limits import LIMITS
from hub_service.settings import Settings
from tests.fakes.hub import STEWARD, FakeHub, Person
from tests.fakes.web_world import World, notebook, public_key, served_world
from tests.web.access_table import DOCUMENT, Row, rows, served, unnamed

TABLE = rows("Pages and API")

# Who has which role in the world of these tests; a role without a person comes with no token, or with one that the Hub
# does not know, or knows no longer.
PEOPLE = {
    "nobody": None,
    "no scope": "visitor",
    "other tenant": "cleo",
    "invited": "iris",
    "member": "ben",
    "owner": "ada",
    "other steward": "stan",
    "steward": "sue",
    "server": "sue@server",
    "ended": "ended",
    "admin": "root",
}
ADMINISTRATOR = frozenset({Scope.ACCESS, Scope.USE, Scope.ADMINISTER})
DECISION = {"site": "south", "dataset": "slides", "state": "revoked", "reason": "Too early"}

PACKAGES = {"flwr": "1.41.0", "numpy": "2.3.5", "torch": "2.15.0"}

NEWER = notebook().replace(b"None", b"0")

# What a request carries, by method and route: JSON, query, content, or a form's fields and file. `{...}` are ids.
SENT: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "api/projects"): {"json": {"name": "Mine"}},
    ("PATCH", "api/projects/{}"): {"json": {"on_outage": "continue", "grace_s": 60}},
    ("POST", "api/projects/{}/apps"): {
        "params": {"filename": "new.ipynb"},
        "content": notebook().replace(b"None", b"0"),
    },
    ("POST", "api/build"): {"params": {"filename": "new.ipynb"}, "content": notebook()},
    ("PUT", "api/site/packages"): {"json": {"distributions": PACKAGES, "modules": list(PACKAGES)}},
    ("POST", "api/projects/{}/invitations"): {"json": {"user": "cleo"}},
    ("POST", "api/projects/{}/participation"): {"json": {"dataset": "scans"}},
    ("POST", "api/projects/{}/runs"): {"json": {"rounds": 2, "compare": False}},
    ("POST", "api/approvals"): {"json": {"project_id": "{project_id}", "fab_hash": "{fab_hash}", **DECISION}},
    ("PUT", "api/participations/{}/node"): {"json": {"public_key": public_key()}},
    ("PUT", "api/participations/{}/client"): {"json": {"state": "ready"}},
    ("POST", "projects/new"): {"data": {"name": "Mine"}, "files": {"app": ("new.ipynb", notebook())}},
    ("POST", "projects/{}/apps"): {"files": {"app": ("new.ipynb", NEWER)}},
    ("POST", "projects/{}/invitations"): {"data": {"user": "cleo"}},
    ("POST", "projects/{}/participation"): {"data": {"dataset": "scans"}},
    ("POST", "projects/{}/remove"): {"data": {"user": "ben"}},
    ("POST", "projects/{}/runs"): {"data": {"rounds": "2"}},
    ("POST", "projects/{}/stop"): {"data": {"run": "{run_id}"}},
    ("POST", "projects/{}/outage"): {"data": {"on_outage": "stop", "grace_s": "60"}},
    ("POST", "approvals/{}/{}/{}/{}"): {"data": {"state": "revoked"}},
    ("POST", "participations/{}/node"): {"data": {"public_key": public_key()}},
}


def add_roles(hub: FakeHub) -> None:
    hub.add("iris", "site-north")
    hub.add("root", scopes=ADMINISTRATOR)
    hub.people["sue@server"] = Person("sue", frozenset({"site-south", "steward-south"}), STEWARD - {Scope.APPROVE})


@dataclass(frozen=True)
class Tenant:
    """ada's project, which ben has joined and iris is invited to, with a finished run."""

    ids: dict[str, str]

    @classmethod
    async def of(cls, world: World, folder: Path) -> Tenant:
        project_id, fab_hash = await world.shared_project()
        await world.coordinator.invite(world.principal("ada"), project_id, "iris")
        run_id = world.start_run(project_id)
        world.report_round(project_id, run_id, 1)
        world.finish_run(project_id, run_id, b"weights", folder)
        return cls(
            {
                "project_id": project_id,
                "fab_hash": fab_hash,
                "run_id": run_id,
                "participation_id": world.participation(project_id, "ben"),
                "user": "ben",
                "site": "south",
                "dataset": "slides",
                "name": "tabular",
                "script": "page.js",
            }
        )


async def ask(
    client: httpx.AsyncClient, world: World, role: str, row: Row, ids: dict[str, str]
) -> tuple[int, dict[str, str], str]:
    """Status, headers and text. An event stream is left after its status."""
    client.cookies.clear()
    sent = _filled(SENT.get((row.method, unnamed(row.route)), {}), ids)
    async with client.stream(
        row.method, world.url + row.route.format(**ids), headers=_headers(world, role), **sent
    ) as it:
        stream = it.headers.get("content-type", "").startswith("text/event-stream")
        text = "" if stream else (await it.aread()).decode("utf-8", "replace")
        return it.status_code, dict(it.headers), text


def _headers(world: World, role: str) -> dict[str, str]:
    person = PEOPLE[role]
    if person == "ended":
        return {"Authorization": "token a-token-that-the-hub-took-back"}  # an expired and a revoked one alike
    return world.person(person).headers if person else {}


def _filled(sent: Any, ids: dict[str, str]) -> Any:
    if isinstance(sent, dict):
        return {key: _filled(value, ids) for key, value in sent.items()}
    return sent.format(**ids) if isinstance(sent, str) and sent.startswith("{") else sent


@asynccontextmanager
async def new_world(folder: Path) -> AsyncIterator[World]:
    hub = FakeHub()
    add_roles(hub)
    async with served_world(folder, hub) as world:
        yield world


@pytest.fixture(scope="module")
async def kept(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[World, Tenant]]:
    """For what changes nothing."""
    folder = tmp_path_factory.mktemp("access")
    async with new_world(folder) as world:
        yield world, await Tenant.of(world, folder)


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=20) as client:
        yield client


# What the tables below "Everybody" and "Fleet traffic" have.
OTHERS = {("GET", "/health"), ("GET", "health"), ("GET", "oauth_callback"), ("POST", "/v1/fleet/{}")}


async def test_the_table_has_every_route_that_the_service_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:0",
        "JUPYTERHUB_SERVICE_PREFIX": SERVICE_PREFIX,
        "JUPYTERHUB_SERVICE_NAME": "federation",
        "JUPYTERHUB_CLIENT_ID": "service-federation",
        "JUPYTERHUB_API_URL": "http://127.0.0.1:1/hub/api",
        "JUPYTERHUB_API_TOKEN": "token",
        "FEDERATION_STATE_DIR": str(tmp_path / "state"),
        "FEDERATION_SITES": "[]",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "state").mkdir()
    service = Service(Settings.from_environment(environment))
    application = await service._listen()
    await service._open(application)
    answered = set(served(application, SERVICE_PREFIX))
    await service.close()
    told = {(row.method, unnamed(row.route)) for row in TABLE} | OTHERS
    missing, gone = sorted(answered - told), sorted(told - answered)
    assert not missing, f"add rows to the table in docs/access.md, with each role's status, for {missing}"
    assert not gone, f"the table in docs/access.md has rows for what the service does not answer: {gone}"


def test_the_document_tells_the_limits_that_count() -> None:
    text = DOCUMENT.read_text("utf-8")
    for limit in LIMITS.values():
        assert f"| {limit} |" in text


CHANGES = [row for row in TABLE if row.method not in ("GET", "HEAD", "OPTIONS")]  # the table has every route, as above


async def test_a_cookie_changes_nothing_without_the_pages_token(tmp_path: Path) -> None:
    """Every route that changes something, as another site's page would have a browser ask it."""
    async with new_world(tmp_path) as world:
        ids = (await Tenant.of(world, tmp_path)).ids
        before = [(one.sequence, one.hash) for one in world.store.audit_lines_of(ids["project_id"])]
        async with world.browser("ada") as browser:
            await browser.get("")
            for row in CHANGES:
                sent = _filled(SENT.get((row.method, unnamed(row.route)), {}), ids)
                for wrong in ({}, {"X-XSRFToken": "x"}):
                    answer = await browser.request(row.method, row.route.format(**ids), headers=wrong, **sent)
                    assert answer.status_code == 403, row
                    assert "was not sent from a page that you opened" in answer.text, row
        assert [(one.sequence, one.hash) for one in world.store.audit_lines_of(ids["project_id"])] == before


PAGES = [row for row in TABLE if row.method == "GET" and not row.route.startswith(("api/", "static/"))]


@pytest.mark.parametrize("proto", ["http", "https"])
async def test_what_each_page_tells_the_browser(kept: tuple[World, Tenant], proto: str) -> None:
    world, tenant = kept
    async with world.browser("ada") as browser:
        await browser.get("")
        browser.headers["X-Forwarded-Proto"] = proto
        for row in PAGES:
            async with browser.stream("GET", row.route.format(**tenant.ids)) as answer:
                headers = answer.headers
            policy = headers["content-security-policy"]
            assert "unsafe" not in policy, row
            for part in ("default-src 'self'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'self'"):
                assert part in policy, row
            assert headers["referrer-policy"] == "same-origin"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            assert ("strict-transport-security" in headers) == (proto == "https")
            assert "server" not in headers


@pytest.mark.parametrize("proto", ["http", "https"])
async def test_scripts_read_no_cookie_of_a_login_and_tls_keeps_them_to_itself(
    client: httpx.AsyncClient, kept: tuple[World, Tenant], proto: str
) -> None:
    """The login's state, the XSRF token, and a message to the next page; the login itself is JupyterHub's to set."""
    world, tenant = kept
    client.cookies.clear()
    sent = {"X-Forwarded-Proto": proto}
    away = await client.get(world.url, headers=sent)
    form = {"data": {"dataset": "slides"}, "headers": {**world.person("ada").headers, **sent}}
    said = await client.post(f"{world.url}projects/{tenant.ids['project_id']}/leave", **form)
    joined = await client.post(f"{world.url}projects/{tenant.ids['project_id']}/participation", **form)
    page = await client.get(world.url, headers=form["headers"])
    assert (away.status_code, said.status_code, joined.status_code) == (302, 303, 303)
    cookies = [one for it in (away, said, page) for one in it.headers.get_list("set-cookie") if '=""' not in one]
    assert {one.partition("=")[0] for one in cookies} >= {"service-federation-oauth-state", "federation-flash"}
    for cookie in cookies:
        name, flags = cookie.partition("=")[0], cookie.lower()
        assert ("secure" in flags) == (proto == "https"), cookie
        assert ("httponly" in flags) or name == "_xsrf", cookie


@pytest.mark.parametrize(
    "address", ["//evil.example/", "..//evil.example", "/\\evil.example", "projects/new?next=https://evil.example/"]
)
async def test_a_login_leads_to_no_other_origin(kept: tuple[World, Tenant], address: str) -> None:
    """Nor does any redirect on the way to it or from it."""
    world, _ = kept
    origin = httpx.URL(world.url)
    async with httpx.AsyncClient(cookies={"fake-hub-login": "ada"}, follow_redirects=True) as browser:
        page = await browser.get(world.url + address)
    for answer in [*page.history, page]:
        assert (answer.url.host, answer.url.port) == (origin.host, origin.port)


async def answers(client: httpx.AsyncClient, world: World, tenant: Tenant, row: Row, folder: Path) -> dict[str, int]:
    """The status for each role. What a role has changed no later one meets: that one gets a project anew."""
    answered = {}
    for role in PEOPLE:
        status, headers, text = await ask(client, world, role, row, tenant.ids)
        answered[role] = status
        assert headers["x-content-type-options"] == "nosniff"
        if status == 404 and "{name}" not in row.route:
            nothing = dict.fromkeys(tenant.ids, "none") | {"user": "ben"}
            unknown = await ask(client, world, role, row, nothing)
            assert (status, _said(text)) == (unknown[0], _said(unknown[2])), role
            assert "Lungs" not in text
        if row.method != "GET" and status < 400:
            tenant = await Tenant.of(world, folder)
    return answered


@pytest.mark.parametrize("row", TABLE, ids=[f"{row.method} {row.route or '/'}" for row in TABLE])
async def test_who_is_answered_what(
    client: httpx.AsyncClient, kept: tuple[World, Tenant], tmp_path: Path, row: Row
) -> None:
    if row.method == "GET":
        answered = await answers(client, *kept, row, tmp_path)
    else:
        async with new_world(tmp_path) as world:
            answered = await answers(client, world, await Tenant.of(world, tmp_path), row, tmp_path)
    assert answered == row.statuses


def _said(text: str) -> str:
    """What a refusal says, without the id of the request: the problem of an API, the text of a page."""
    main = text.partition("<main")[2].partition("</main>")[0] or text
    return re.sub(r"<code>[^<]*</code>|<[^>]*>", "", main)
