"""Who asks, over real HTTP: tokens, cookies, XSRF, scopes, strangers; and that no right outlives the Hub's word."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from federator.contract import SERVICE_PREFIX, Scope
from jupyterhub.services.auth import HubOAuth
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from hub_service import identity
from hub_service.domain.errors import FederationError
from hub_service.identity import (
    HUB_ANSWER_AGE_S,
    ApiIdentity,
    OAuthCallback,
    PageIdentity,
    ServiceHubOAuth,
    close_hub_connections,
    hub_auth_from_environment,
    principal_of,
)
from hub_service.rate_limits import RateLimits
from tests.fakes.hub_api import SERVICE_TOKEN, AmnesicHubApi, FakeHubApi, HangingHubApi, SickHubApi

RESEARCHER = {
    "kind": "user",
    "name": "anna",
    "groups": ["site-a"],
    "scopes": [Scope.ACCESS, Scope.USE, "read:users:name!user=anna"],
}


class _TellsErrors(RequestHandler):
    """What `web.base` does for errors, in short."""

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        error = kwargs["exc_info"][1]
        if isinstance(error, FederationError):
            self.set_status(400)
            self.finish(f"{error.code}: {error.message}")
        else:
            super().send_error(status_code, **kwargs)


class Api(_TellsErrors, ApiIdentity):
    def get(self) -> None:
        groups = ",".join(sorted(self.principal.groups))
        self.write(f"{self.principal.name} of {groups}")

    def post(self) -> None:
        self.write(f"{self.principal.name} wrote")


class StewardsApi(Api):
    scope = Scope.APPROVE


class Page(_TellsErrors, PageIdentity):
    def get(self) -> None:
        self.write(f"{self.principal.name} xsrf={self.xsrf_token.decode()}")

    def post(self) -> None:
        self.write(f"{self.principal.name} wrote")


class Browser:
    """Keeps cookies and follows no redirect."""

    def __init__(self, base: str, auth: HubOAuth) -> None:
        self.base = base
        self._auth = auth
        self.cookies: dict[str, str] = {}

    def outlive_the_hubs_answers(self) -> None:
        """As if their age had passed since the last request."""
        self._auth.cache.clear()

    async def ask(
        self,
        path: str,
        method: str = "GET",
        *,
        token: str = "",
        headers: dict[str, str] | None = None,
        body: str | None = None,
    ) -> HTTPResponse:
        sent = HTTPHeaders(headers or {})
        if token:
            sent["Authorization"] = f"token {token}"
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if method == "POST" and body is None:
            body = ""
        url = path if path.startswith("http") else self.base + SERVICE_PREFIX + path
        response = await AsyncHTTPClient().fetch(
            url, method=method, headers=sent, body=body, raise_error=False, follow_redirects=False
        )
        for cookie in response.headers.get_list("Set-Cookie"):
            name, _, rest = cookie.partition("=")
            value = rest.partition(";")[0].strip('"')
            if value:
                self.cookies[name] = value
            else:
                self.cookies.pop(name, None)
        return response


@asynccontextmanager
async def serving(hub: FakeHubApi) -> AsyncIterator[Browser]:
    auth = ServiceHubOAuth(
        api_url=hub.url,
        api_token=SERVICE_TOKEN,
        oauth_client_id="service-federation",
        base_url=SERVICE_PREFIX,
        access_scopes={str(Scope.ACCESS)},
        cache_max_age=HUB_ANSWER_AGE_S,
    )
    application = Application(
        [
            (SERVICE_PREFIX + "api", Api),
            (SERVICE_PREFIX + "steward", StewardsApi),
            (SERVICE_PREFIX + "page", Page),
            (SERVICE_PREFIX + "oauth_callback", OAuthCallback),
        ],
        hub_auth=auth,
        rate_limits=RateLimits(),
        cookie_secret="a secret of this test",
        xsrf_cookies=True,
    )
    server = HTTPServer(application)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    try:
        yield Browser(f"http://127.0.0.1:{sockets[0].getsockname()[1]}", auth)
    finally:
        server.stop()
    await server.close_all_connections()
    await close_hub_connections()


@pytest.fixture
async def hub() -> AsyncIterator[FakeHubApi]:
    async with FakeHubApi() as hub:
        hub.tokens["anna-token"] = dict(RESEARCHER)
        yield hub


@pytest.fixture
async def browser(hub: FakeHubApi) -> AsyncIterator[Browser]:
    async with serving(hub) as browser:
        yield browser


async def log_in(hub: FakeHubApi, browser: Browser) -> str:
    """Go through OAuth as a browser does; the page's XSRF token."""
    sent_away = await browser.ask("page")
    assert sent_away.code == 302
    state = parse_qs(urlsplit(sent_away.headers["Location"]).query)["state"][0]
    hub.codes["code-1"] = "anna-token"
    back = await browser.ask(f"oauth_callback?code=code-1&state={state}")
    assert back.code == 302
    assert back.headers["Location"] == SERVICE_PREFIX + "page"
    page = await browser.ask("page")
    assert page.code == 200
    found = re.search(r"^anna xsrf=(\S+)$", page.body.decode())
    assert found
    return found.group(1)


class TestToken:
    async def test_a_token_is_its_owner_with_groups(self, browser: Browser) -> None:
        answer = await browser.ask("api", token="anna-token")
        assert answer.body == b"anna of site-a"

    async def test_a_token_posts_without_xsrf(self, browser: Browser) -> None:
        answer = await browser.ask("api", "POST", token="anna-token")
        assert answer.body == b"anna wrote"

    @pytest.mark.parametrize("method", ["GET", "POST"])
    @pytest.mark.parametrize("token", ["", "unknown"])
    async def test_a_stranger_gets_an_error_from_the_api(self, browser: Browser, method: str, token: str) -> None:
        answer = await browser.ask("api", method, token=token)
        assert answer.body.startswith(b"unauthenticated")

    async def test_a_token_in_the_address_is_no_login(self, browser: Browser) -> None:
        answer = await browser.ask("api?token=anna-token")
        assert answer.body.startswith(b"unauthenticated")

    @pytest.mark.parametrize("method", ["GET", "POST"])
    async def test_each_method_needs_the_routes_scope(self, hub: FakeHubApi, browser: Browser, method: str) -> None:
        assert (await browser.ask("steward", method, token="anna-token")).body.startswith(b"forbidden")
        hub.tokens["anna-token"]["scopes"] = [Scope.ACCESS, Scope.APPROVE]
        browser.outlive_the_hubs_answers()
        assert (await browser.ask("steward", method, token="anna-token")).code == 200

    async def test_a_token_without_access_to_the_service_is_refused(self, hub: FakeHubApi, browser: Browser) -> None:
        hub.tokens["anna-token"]["scopes"] = [Scope.USE]
        answer = await browser.ask("api", token="anna-token")
        assert answer.body == b"forbidden: You have no access to the federation service."

    async def test_another_services_token_is_nobody(self, hub: FakeHubApi, browser: Browser) -> None:
        hub.tokens["anna-token"]["kind"] = "service"
        assert (await browser.ask("api", token="anna-token")).body == b"forbidden: Only people can use this service."

    async def test_a_token_that_was_taken_back_opens_nothing_more(self, hub: FakeHubApi, browser: Browser) -> None:
        assert (await browser.ask("api", token="anna-token")).code == 200
        del hub.tokens["anna-token"]
        browser.outlive_the_hubs_answers()
        assert (await browser.ask("api", token="anna-token")).body.startswith(b"unauthenticated")

    async def test_a_sick_hub_is_told_as_such(self) -> None:
        async with SickHubApi() as hub, serving(hub) as browser:
            answer = await browser.ask("api", token="anna-token")
            assert answer.body.startswith(b"unavailable: The Hub does not say who you are.")


class TestBrowser:
    @pytest.mark.parametrize("answers", [1, 2, 3])
    async def test_a_hub_that_knows_nobody_for_a_moment_ends_no_login(self, answers: int) -> None:
        async with AmnesicHubApi() as hub, serving(hub) as browser:
            hub.tokens["anna-token"] = dict(RESEARCHER)
            await log_in(hub, browser)
            browser.outlive_the_hubs_answers()
            hub.for_so_many = answers
            seen = await browser.ask("page")
            if answers == 1:  # asked again, it knows her
                assert seen.body.startswith(b"anna")
            else:
                assert seen.body.startswith(b"unavailable: The Hub does not say who you are.")
            hub.for_so_many = 0
            assert (await browser.ask("page")).body.startswith(b"anna")

    async def test_a_login_goes_to_the_hub_and_comes_back_to_the_page(self, hub: FakeHubApi, browser: Browser) -> None:
        await log_in(hub, browser)
        assert (await browser.ask("api")).body == b"anna of site-a"

    async def test_a_form_needs_the_pages_token(self, hub: FakeHubApi, browser: Browser) -> None:
        xsrf = await log_in(hub, browser)
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert (await browser.ask("page", "POST", body=f"_xsrf={xsrf}", headers=form)).body == b"anna wrote"
        assert (await browser.ask("api", "POST", headers={"X-XSRFToken": xsrf})).body == b"anna wrote"
        for wrong in ("", "_xsrf=x"):
            answer = await browser.ask("page", "POST", body=wrong, headers=form)
            assert answer.body.startswith(b"forbidden: This was not sent")

    async def test_a_script_on_another_page_reads_nothing(self, hub: FakeHubApi, browser: Browser) -> None:
        xsrf = await log_in(hub, browser)
        fetched = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
        assert (await browser.ask("api", headers=fetched)).body.startswith(b"forbidden")
        assert (await browser.ask(f"api?_xsrf={xsrf}", headers=fetched)).code == 200

    async def test_a_strangers_form_is_refused_without_a_redirect(self, browser: Browser) -> None:
        answer = await browser.ask("page", "POST")
        assert answer.body == b"unauthenticated: Your login has ended."

    async def test_a_wrong_token_beside_a_cookie_does_not_pass_for_a_token(
        self, hub: FakeHubApi, browser: Browser
    ) -> None:
        await log_in(hub, browser)
        assert (await browser.ask("api", "POST", token="unknown")).body.startswith(b"forbidden: This was not sent")

    async def test_a_callback_that_nobody_asked_for_logs_nobody_in(self, hub: FakeHubApi, browser: Browser) -> None:
        hub.codes["code-1"] = "anna-token"
        answer = await browser.ask("oauth_callback?code=code-1&state=made-up")
        assert answer.code == 403
        assert (await browser.ask("page")).code == 302

    async def test_an_old_callback_sends_somebody_logged_in_on(self, hub: FakeHubApi, browser: Browser) -> None:
        await log_in(hub, browser)
        answer = await browser.ask("oauth_callback?code=code-1&state=old")
        assert (answer.code, answer.headers["Location"]) == (302, SERVICE_PREFIX)


def test_a_principal_has_exactly_what_the_hub_says() -> None:
    principal = principal_of(dict(RESEARCHER))
    assert (principal.name, principal.groups, principal.sites) == ("anna", {"site-a"}, {"a"})
    assert Scope.USE in principal.scopes
    assert Scope.APPROVE not in principal.scopes


def test_where_a_stranger_comes_back_to_is_kept_only_where_it_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    auth = service_auth(monkeypatch)
    short, long = (auth.generate_state(f"/services/federation/{'x' * count}") for count in (100, 10_000))
    assert auth.get_next_url(short).endswith("x" * 100)
    assert auth.get_next_url(long) == auth.base_url
    assert auth.get_next_url(auth.generate_state(code_verifier="v")) == auth.base_url


async def test_a_hub_that_hangs_is_one_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "HUB_ANSWERS_WITHIN_S", 0.2)
    auth = service_auth(monkeypatch)
    async with HangingHubApi() as hub:
        auth.api_url = hub.url
        async with asyncio.timeout(5):
            with pytest.raises(HTTPError, match="Failed to connect to Hub"):
                await auth.user_for_token("anna-token", sync=False)
    await close_hub_connections()


def service_auth(monkeypatch: pytest.MonkeyPatch) -> HubOAuth:
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "token")
    monkeypatch.setenv("JUPYTERHUB_CLIENT_ID", "service-federation")
    return hub_auth_from_environment()


def test_the_hubs_answers_are_kept_for_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    auth = service_auth(monkeypatch)
    assert auth.cache_max_age == HUB_ANSWER_AGE_S <= 2
    assert auth.cache.max_age == HUB_ANSWER_AGE_S
