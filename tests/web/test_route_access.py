"""Every route for everybody: nobody, other tenants, members, the owner, a steward of a site that was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from federator.contract import API_VERSION, Route, Scope

from hub_service.web.schema import OPERATIONS
from tests.fakes.web_world import World, notebook, path, plain, public_key

# method, route, body, and the status for: nobody, another tenant, a member, the owner, the member's site's steward
ACCESS: list[tuple[str, Route, dict[str, Any], tuple[int, int, int, int, int]]] = [
    ("GET", Route.OPENAPI, {}, (401, 200, 200, 200, 200)),
    ("GET", Route.HOME, {}, (401, 200, 200, 200, 200)),
    ("GET", Route.MY_SITE, {}, (401, 200, 200, 200, 200)),
    ("GET", Route.STARTERS, {}, (401, 200, 200, 200, 200)),
    ("GET", Route.STARTER, {}, (401, 200, 200, 200, 200)),
    ("GET", Route.PROJECTS, {}, (401, 200, 200, 200, 200)),
    ("POST", Route.PROJECTS, {"json": {"name": "Mine"}}, (401, 201, 201, 201, 201)),
    ("GET", Route.PROJECT, {}, (401, 404, 200, 200, 404)),
    (
        "POST",
        Route.APPS,
        {"params": {"filename": "new.ipynb"}, "content": notebook().replace(b"None", b"0")},
        (401, 404, 403, 201, 404),
    ),
    ("GET", Route.APP, {}, (401, 404, 200, 200, 200)),
    (
        "POST",
        Route.BUILD,
        {"params": {"filename": "new.ipynb"}, "content": notebook()},
        (401, 200, 200, 200, 200),
    ),
    (
        "PUT",
        Route.SITE_PACKAGES,
        {"json": {"distributions": {"numpy": "2.0"}, "modules": ["numpy"]}},
        (401, 204, 204, 204, 204),
    ),
    ("POST", Route.INVITATIONS, {"json": {"user": "cleo"}}, (401, 404, 403, 201, 404)),
    ("POST", Route.DECLINE, {}, (401, 404, 403, 403, 404)),
    ("POST", Route.PARTICIPATION, {"json": {"dataset": "scans"}}, (401, 404, 409, 409, 404)),
    ("DELETE", Route.PARTICIPATION, {}, (401, 404, 204, 204, 404)),
    ("DELETE", Route.MEMBER, {}, (401, 404, 403, 204, 404)),
    ("GET", Route.EVENTS, {}, (401, 404, 200, 200, 404)),
    ("POST", Route.RUNS, {"json": {"rounds": 2, "compare": False}}, (401, 404, 403, 201, 404)),
    ("GET", Route.RUN, {}, (401, 404, 200, 200, 404)),
    ("GET", Route.RUN_FIGURES, {}, (401, 404, 200, 200, 404)),
    ("GET", Route.RUN_LOG, {}, (401, 404, 200, 200, 404)),
    ("POST", Route.RUN_STOP, {}, (401, 404, 403, 409, 404)),
    ("GET", Route.RUN_RESULT, {}, (401, 404, 200, 200, 404)),
    ("GET", Route.RUN_MODELS, {}, (401, 404, 200, 200, 404)),
    ("GET", Route.RUN_MODEL, {}, (401, 404, 200, 200, 404)),
    ("GET", Route.RUN_RECORD, {}, (401, 404, 200, 200, 404)),
    ("GET", Route.RUN_CARD, {}, (401, 404, 200, 200, 404)),
    ("GET", Route.RUN_SIGNED, {}, (401, 404, 200, 200, 404)),
    ("GET", Route.RUN_CAPSULE, {}, (401, 404, 200, 200, 404)),
    ("GET", Route.SIGNING_KEY, {}, (401, 200, 200, 200, 200)),
    ("GET", Route.APPROVALS, {}, (401, 200, 200, 200, 200)),
    ("POST", Route.APPROVALS, {"json": "decision"}, (401, 404, 404, 404, 200)),
    ("GET", Route.DECISIONS, {}, (401, 404, 404, 404, 200)),
    ("GET", Route.ASSIGNMENTS, {}, (401, 200, 200, 200, 200)),
    ("PUT", Route.NODE, {"json": {"public_key": public_key()}}, (401, 404, 200, 404, 403)),
    ("DELETE", Route.NODE, {}, (401, 404, 403, 404, 403)),
    ("PUT", Route.CLIENT, {"json": {"state": "ready"}}, (401, 404, 204, 404, 404)),
    ("GET", Route.SITE_APPROVALS, {}, (401, 404, 200, 404, 404)),
    ("GET", Route.APPROVED_APP, {}, (401, 404, 200, 404, 404)),
]
PEOPLE = (None, "cleo", "ben", "ada", "sue")


async def tenant(world: World, folder: Path) -> dict[str, str]:
    """ada's project, which ben has joined, with a finished run; the ids of all that is in it."""
    project_id, fab_hash = await world.shared_project()
    run_id = world.start_run(project_id)
    world.report_round(project_id, run_id, 1)
    world.finish_run(project_id, run_id, b"weights", folder)
    return {
        "project_id": project_id,
        "fab_hash": fab_hash,
        "run_id": run_id,
        "participation_id": world.participation(project_id, "ben"),
        "user": "ben",
        "site": "south",
        "name": "tabular",
    }


def request_of(body: dict[str, Any], ids: dict[str, str]) -> dict[str, Any]:
    if body.get("json") != "decision":
        return body
    decision = {"site": "south", "dataset": "slides", "state": "revoked", "reason": "Too early"}
    return {"json": {"project_id": ids["project_id"], "fab_hash": ids["fab_hash"], **decision}}


async def ask(
    world: World, name: str | None, method: str, address: str, request: dict[str, Any]
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and, for refusals, the problem. An event stream is left after its status."""
    async with world.api(name) as api, api.stream(method, address, **request) as response:
        refused = response.status_code >= 400
        body = plain(response) if refused and await response.aread() else None
        return response.status_code, dict(response.headers), body


def test_the_table_has_every_operation() -> None:
    assert [(method, route) for method, route, _, _ in ACCESS] == [(one.method, one.route) for one in OPERATIONS]


@pytest.mark.parametrize(
    ("method", "route", "body", "statuses"), ACCESS, ids=[f"{m} {r.name}" for m, r, _, _ in ACCESS]
)
async def test_who_gets_what(
    world: World, tmp_path: Path, method: str, route: Route, body: dict[str, Any], statuses: tuple[int, ...]
) -> None:
    ids = await tenant(world, tmp_path)
    for name, expected in zip(PEOPLE, statuses, strict=True):
        status, headers, problem = await ask(world, name, method, path(route, **ids), request_of(body, ids))
        assert status == expected, (name, problem)
        assert headers["x-federation-api"] == str(API_VERSION)
        assert headers["x-content-type-options"] == "nosniff"
        if status >= 400:
            assert set(problem) == {"code", "message", "next_step"}


@pytest.mark.parametrize(
    ("method", "route", "body"),
    [(m, r, b) for m, r, b, statuses in ACCESS if statuses[1] == 404],
    ids=[f"{m} {r.name}" for m, r, _, statuses in ACCESS if statuses[1] == 404],
)
async def test_what_is_anothers_looks_as_if_it_were_not_there(
    world: World, tmp_path: Path, method: str, route: Route, body: dict[str, Any]
) -> None:
    ids = await tenant(world, tmp_path)
    nothing = dict.fromkeys(ids, "none") | {"user": "ben"}
    request, unknown_request = request_of(body, ids), request_of(body, nothing)
    theirs = await ask(world, "cleo", method, path(route, **ids), request)
    unknown = await ask(world, "cleo", method, path(route, **nothing), unknown_request)
    assert (theirs[0], theirs[2]) == (unknown[0], unknown[2])


SUPERNODE_ACCESS = {None: (401, 401), "cleo": (404, 404), "ada": (404, 404), "sue": (404, 404), "hana": (403, 403)}


@pytest.mark.parametrize("name", [*SUPERNODE_ACCESS, "stan"])
async def test_the_key_of_a_supernode_is_its_stewards(world: World, name: str | None) -> None:
    """Nobody, another tenant, the project's owner, another site's steward, the participant; and the site's steward."""
    _, participation_id = await world.supernode_project()
    address, body = path(Route.NODE, participation_id=participation_id), {"json": {"public_key": public_key()}}
    registered, _, problem = await ask(world, name, "PUT", address, body)
    removed, _, _ = await ask(world, name, "DELETE", address, {})
    assert (registered, removed) == SUPERNODE_ACCESS.get(name, (200, 204)), problem
    if registered == 404:
        unknown = await ask(world, name, "PUT", path(Route.NODE, participation_id="none"), body)
        assert (unknown[0], unknown[2]) == (registered, problem)


async def test_a_token_without_the_stewards_scope_registers_no_key(world: World) -> None:
    """Such as that of a notebook server."""
    _, participation_id = await world.supernode_project()
    world.person("stan").scopes = frozenset({Scope.ACCESS, Scope.USE})
    address = path(Route.NODE, participation_id=participation_id)
    status, _, problem = await ask(world, "stan", "PUT", address, {"json": {"public_key": public_key()}})
    assert (status, problem["code"]) == (403, "forbidden")
    assert "data steward" in problem["next_step"]


@pytest.mark.parametrize("form", ["node", "node/remove"])
async def test_a_stranger_learns_nothing_from_a_supernodes_form(world: World, form: str) -> None:
    _, participation_id = await world.supernode_project()
    for name in ("cleo", "sue"):
        async with world.browser(name) as browser:
            await browser.get("")
            fields = {"public_key": public_key(), "_xsrf": browser.cookies["_xsrf"]}
            answer = await browser.post(f"participations/{participation_id}/{form}", data=fields)
            unknown = await browser.post(f"participations/none/{form}", data=fields)
        assert answer.status_code == unknown.status_code == 404
        assert "Lungs" not in answer.text


@pytest.mark.parametrize("name", ["outsider", "visitor", "robot"])
async def test_a_login_without_the_scope_gets_nothing(world: World, name: str) -> None:
    ids = dict.fromkeys(("project_id", "fab_hash", "run_id", "participation_id", "user", "name", "site"), "x")
    async with world.api(name) as api:
        for one in OPERATIONS:
            answer = await api.request(one.method, path(one.route, **ids), content=b"{}")
            assert (answer.status_code, plain(answer)["code"]) == (403, "forbidden"), one


PAGES = {
    "": (200, 200, 200, 200),
    "projects/new": (200, 200, 200, 200),
    "approvals": (200, 200, 200, 200),
    "panel": (200, 200, 200, 200),
    "projects/{project_id}": (404, 200, 200, 404),
    "projects/{project_id}?run={run_id}": (404, 200, 200, 404),
    "projects/{project_id}/events": (404, 200, 200, 404),
    "projects/{project_id}/apps/{fab_hash}": (404, 200, 200, 200),
    "approvals/{project_id}/{fab_hash}/south/slides": (404, 404, 404, 200),
    "approvals/{project_id}/{fab_hash}/north/slides": (404, 404, 404, 404),
    "participations/{participation_id}/node": (404, 403, 404, 403),
}


@pytest.mark.parametrize("page", PAGES)
async def test_who_sees_which_page(world: World, tmp_path: Path, page: str) -> None:
    ids = await tenant(world, tmp_path)
    for name, status in zip(PEOPLE[1:], PAGES[page], strict=True):
        async with world.browser(name) as browser:
            await browser.get("")  # logs in
            async with browser.stream("GET", page.format(**ids)) as response:
                assert response.status_code == status, name
                assert "script-src 'self'" in response.headers["content-security-policy"]
                assert "frame-ancestors 'self'" in response.headers["content-security-policy"]
                assert response.headers["referrer-policy"] == "same-origin"


FORMS = ["apps", "invitations", "participation", "decline", "leave", "remove", "runs", "stop"]


@pytest.mark.parametrize("form", FORMS)
async def test_a_stranger_learns_nothing_from_a_form(world: World, tmp_path: Path, form: str) -> None:
    ids = await tenant(world, tmp_path)
    fields = {"user": "cleo", "dataset": "slides", "rounds": "1", "run": ids["run_id"]}
    upload = {"files": {"app": ("a.ipynb", notebook())}} if form == "apps" else {}
    async with world.browser("cleo") as browser:
        await browser.get("")
        token = {"_xsrf": browser.cookies["_xsrf"]}
        answer = await browser.post(f"projects/{ids['project_id']}/{form}", data=fields | token, **upload)
        unknown = await browser.post(f"projects/none/{form}", data=fields | token, **upload)
    assert answer.status_code == unknown.status_code == 404
    assert "Lungs" not in answer.text


async def test_a_stranger_is_sent_to_the_hubs_login_and_back(world: World) -> None:
    async with world.browser("ada") as browser:
        page = await browser.get("projects/new")
    assert page.status_code == 200
    assert [answer.status_code for answer in page.history] == [302, 302, 302]
    assert page.url.path.endswith("/projects/new")


async def test_a_strangers_form_is_refused(world: World) -> None:
    async with world.browser(None) as browser:
        answer = await browser.post("projects/none/invitations", data={"user": "ben"})
    assert answer.status_code == 401


@pytest.mark.parametrize("address", ["api", "api/", "api/nothing", "api/projects/p/nothing"])
async def test_an_unknown_address_of_the_api_is_a_problem(world: World, address: str) -> None:
    async with world.api("ada") as api:
        answer = await api.get(address)
    assert answer.status_code == 404
    assert plain(answer)["code"] == "not-found"


async def test_an_unknown_page_is_a_page(world: World) -> None:
    async with world.browser("ada") as browser:
        answer = await browser.get("nothing/here")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert "There is nothing at this address" in answer.text
