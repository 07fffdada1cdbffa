"""What the table of `tests/web/test_access.py` does not say: SuperNodes' keys, logins, addresses that nobody knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from federator.contract import Route, Scope

from hub_service.web.schema import OPERATIONS
from tests.fakes.web_world import World, notebook, path, plain, public_key


async def ask(
    world: World, name: str | None, method: str, address: str, request: dict[str, Any]
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and, for refusals, the problem. An event stream is left after its status."""
    async with world.api(name) as api, api.stream(method, address, **request) as response:
        refused = response.status_code >= 400
        body = plain(response) if refused and await response.aread() else None
        return response.status_code, dict(response.headers), body


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


FORMS = ["apps", "invitations", "participation", "decline", "leave", "remove", "runs", "stop"]


@pytest.mark.parametrize("form", FORMS)
async def test_a_stranger_learns_nothing_from_a_form(world: World, tmp_path: Path, form: str) -> None:
    ids = await world.tenant(tmp_path)
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
