"""What the Hub's administrators may do to other people's accounts and servers, and that no way leads into a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from jupyterhub import orm

from tests.fakes.in_process_hub import InProcessHub
from tests.hub.actors import Browser

ADMIN = "admin"
STEWARD = "ingrid"
REFUSED = (httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND)


@pytest.fixture(scope="module")
async def steward(hub: InProcessHub) -> AsyncIterator[Browser]:
    """A data steward with a server that runs."""
    opened = Browser(hub.bind_url.rstrip("/"))
    await opened.log_in(STEWARD)
    await opened.start_server(STEWARD)
    assert hub.users[STEWARD].spawner.ready
    yield opened
    await opened.http.aclose()


@pytest.fixture
async def administrator(browser: Browser) -> Browser:
    await browser.log_in(ADMIN)
    return browser


@pytest.fixture
def all_rights(hub: InProcessHub, administrator: Browser) -> dict[str, str]:
    """A header with a token that has all that the administrator may do."""
    return {"Authorization": f"token {hub.users[ADMIN].new_api_token(note='all', scopes=['inherit'])}"}


@pytest.mark.parametrize("page", ["lab", "api/contents", "api/kernels", "federator/status"])
async def test_an_administrator_opens_nobodys_server(
    steward: Browser, administrator: Browser, all_rights: dict[str, str], page: str
) -> None:
    await steward.http.get(f"/user/{STEWARD}/lab")  # logs in to the server; its API does not redirect
    address = f"/user/{STEWARD}/{page}"
    assert (await steward.http.get(address)).status_code == httpx.codes.OK
    assert (await administrator.http.get(address)).status_code in REFUSED
    assert (await administrator.http.get(address, headers=all_rights)).status_code in REFUSED


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", f"users/{STEWARD}/tokens", {"scopes": ["access:servers"]}),
        ("GET", f"users/{STEWARD}/tokens", None),
        ("POST", f"shares/{STEWARD}/", {"user": ADMIN}),
        ("POST", f"share-codes/{STEWARD}/", {}),
        ("PATCH", f"users/{STEWARD}", {"name": "somebody"}),
        ("PATCH", f"users/{ADMIN}", {"admin": True}),
        ("PATCH", f"users/{ADMIN}", {"name": "ingrid2"}),
        ("POST", "users", {"usernames": ["root"], "admin": True}),
        ("POST", "groups/steward-st-anna/users", {"users": [ADMIN]}),
        ("POST", "groups/site-st-anna/users", {"users": [ADMIN]}),
        ("PATCH", "proxy", {"api_url": "http://192.0.2.1:8001", "auth_token": "theirs"}),
        ("POST", "services/another", {"url": "http://192.0.2.1"}),
    ],
)
async def test_no_detour_leads_there(
    hub: InProcessHub,
    steward: Browser,
    administrator: Browser,
    all_rights: dict[str, str],
    method: str,
    path: str,
    body: Any,
) -> None:
    answer = await administrator.http.request(method, f"/hub/api/{path}", json=body, headers=all_rights)
    assert answer.status_code in REFUSED, answer.text
    account = orm.User.find(hub.db, ADMIN)
    assert ([group.name for group in account.groups], account.admin) == (["federation-admins"], False)


async def test_they_look_after_accounts_and_servers(
    hub: InProcessHub, steward: Browser, administrator: Browser, all_rights: dict[str, str]
) -> None:
    page = await administrator.http.get("/hub/admin")
    assert page.status_code == httpx.codes.OK
    assert "A server is opened by nobody but its person" in page.text
    seen = (await administrator.http.get(f"/hub/api/users/{STEWARD}", headers=all_rights)).json()
    assert (seen["name"], seen["groups"]) == (STEWARD, ["site-st-anna", "steward-st-anna"])
    assert "" in seen["servers"]
    assert "auth_state" not in seen
    stopped = await administrator.http.delete(f"/hub/api/users/{STEWARD}/server", headers=all_rights)
    assert stopped.status_code == httpx.codes.NO_CONTENT
    assert not hub.users[STEWARD].active
    await steward.start_server(STEWARD)
    assert hub.users[STEWARD].spawner.ready
