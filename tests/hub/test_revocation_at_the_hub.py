"""What the real Hub takes back, the real service refuses within two seconds; and how long its tokens live.

What was measured is told by `python -m tests.reliability`.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from federator.contract import SERVICE_PREFIX, Route, Scope
from jupyterhub import orm

from hub_service.hub_client import HubClient
from tests.fakes.in_process_hub import InProcessHub
from tests.hub.actors import Browser
from tests.reliability import REVOKED, measuring
from tests.web.access_table import rows

SERVICE_COMMAND = [sys.executable, "-m", "hub_service"]
WITHIN_S = 5.0  # two seconds, on a machine that does nothing else
HOME = SERVICE_PREFIX + Route.HOME


@pytest.fixture
async def mateu(hub: InProcessHub, browser: Browser) -> AsyncIterator[Browser]:
    await browser.log_in("mateu")
    await browser.http.get(SERVICE_PREFIX)  # logs in to the service; its API does not redirect
    assert (await browser.http.get(HOME)).status_code == httpx.codes.OK
    return browser


async def new_token(hub: InProcessHub, user: str, **wanted: int) -> dict[str, str]:
    person = hub.users[user]
    token = person.new_api_token(scopes=[str(Scope.ACCESS), str(Scope.USE)], **wanted)
    return {"Authorization": f"token {token}"}


async def refused_after_s(
    browser: Browser, taken: str, headers: dict[str, str] | None = None, at: float | None = None
) -> float:
    """Seconds until the API answers no more, to somebody who goes on asking.

    Args:
        at: when it ended, if not now.
    """
    begun = time.monotonic() if at is None else at
    with measuring(f"{REVOKED}{taken}, at the real Hub") as measured:
        async with asyncio.timeout(30):
            while (await browser.http.get(HOME, headers=headers)).status_code == httpx.codes.OK:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        told_s: float = time.monotonic() - begun
        measured["told_s"] = told_s
    return told_s


async def test_a_token_that_is_revoked(hub: InProcessHub, mateu: Browser) -> None:
    headers = await new_token(hub, "mateu")
    mateu.http.cookies.clear()
    assert (await mateu.http.get(HOME, headers=headers)).status_code == httpx.codes.OK
    token = orm.APIToken.find(hub.db, headers["Authorization"].removeprefix("token "))
    hub.db.delete(token)
    hub.db.commit()
    assert await refused_after_s(mateu, "token", headers) < WITHIN_S
    assert (await mateu.http.get(HOME, headers=headers)).status_code == httpx.codes.UNAUTHORIZED


async def test_a_token_that_expires(hub: InProcessHub, mateu: Browser) -> None:
    headers = await new_token(hub, "mateu", expires_in=2)
    ends = time.monotonic() + 2
    mateu.http.cookies.clear()
    assert (await mateu.http.get(HOME, headers=headers)).status_code == httpx.codes.OK
    assert await refused_after_s(mateu, "token that expires", headers, at=ends) < WITHIN_S


TABLE = rows("Pages and API")


async def test_no_route_knows_a_token_that_has_ended(hub: InProcessHub, mateu: Browser) -> None:
    """Each row of the table in docs/access.md, with tokens that the real Hub gave and that the service has known."""
    expired, revoked = await new_token(hub, "mateu", expires_in=2), await new_token(hub, "mateu")
    mateu.http.cookies.clear()
    for headers in (expired, revoked):
        assert (await mateu.http.get(HOME, headers=headers)).status_code == httpx.codes.OK
    hub.db.delete(orm.APIToken.find(hub.db, revoked["Authorization"].removeprefix("token ")))
    hub.db.commit()
    await refused_after_s(mateu, "token", revoked)
    await refused_after_s(mateu, "token that expires", expired)
    for row in TABLE:
        address = SERVICE_PREFIX + re.sub(r"{[^}]*}", "none", row.route.replace("{script}", "page.js"))
        for headers in (expired, revoked):
            mateu.http.cookies.clear()
            answer = await mateu.http.request(row.method, address, headers=headers, follow_redirects=False)
            assert answer.status_code == row.statuses["ended"], row


async def test_a_group_that_is_left_and_joined_again(hub: InProcessHub, mateu: Browser) -> None:
    group = orm.Group.find(hub.db, "site-vall-verde")
    user = orm.User.find(hub.db, "mateu")
    group.users.remove(user)
    hub.db.commit()
    assert await refused_after_s(mateu, "group") < WITHIN_S
    group.users.append(user)
    hub.db.commit()


async def test_a_logout(mateu: Browser) -> None:
    await mateu.http.get("/hub/logout")
    assert await refused_after_s(mateu, "logout") < WITHIN_S


async def test_the_service_may_ask_who_belongs_to_a_site(hub: InProcessHub, mateu: Browser) -> None:
    client = HubClient(hub.bind_url.rstrip("/") + "/hub/api", hub._service_map["federation"].api_token)
    assert "mateu" in await client.people_of("vall-verde")
    assert "mateu" not in await client.people_of("st-anna")


async def test_an_account_that_is_deleted(hub: InProcessHub, mateu: Browser) -> None:
    hub.users.delete("mateu")
    assert await refused_after_s(mateu, "account") < WITHIN_S


async def test_how_long_tokens_live(hub: InProcessHub, browser: Browser) -> None:
    await browser.log_in("mateu")
    await browser.http.get(SERVICE_PREFIX)
    day = 86400
    (oauth,) = [
        one for one in hub.db.query(orm.APIToken).filter_by(client_id="service-federation") if one.user.name == "mateu"
    ]
    assert oauth.expires_in <= day
    xsrf = {"X-XSRFToken": browser.http.cookies.get("_xsrf", path="/hub/") or ""}
    made = await browser.http.post("/hub/api/users/mateu/tokens", json={"note": "mine"}, headers=xsrf)
    assert made.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.CREATED), made.text
    limited = await browser.http.post("/hub/api/users/mateu/tokens", json={"expires_in": 31 * day}, headers=xsrf)
    assert limited.status_code == httpx.codes.BAD_REQUEST
    taken = await browser.http.post("/hub/api/users/mateu/tokens", json={"expires_in": 30 * day}, headers=xsrf)
    assert taken.status_code == httpx.codes.CREATED


async def test_what_the_hubs_pages_tell_the_browser(browser: Browser) -> None:
    page = await browser.http.get("/hub/login")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "same-origin"
    assert "frame-ancestors" in page.headers["content-security-policy"]
