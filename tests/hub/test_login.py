"""Login through a real OIDC provider, and what it makes of a person in the Hub."""

from __future__ import annotations

import httpx
import pytest
from federator.contract import Scope
from jupyterhub import orm

from tests.fakes.in_process_hub import InProcessHub
from tests.hub.actors import HUB_SECRET, Browser, IdentityProvider


def account(hub: InProcessHub, name: str) -> orm.User | None:
    hub.db.expire_all()
    return orm.User.find(hub.db, name)


def groups(hub: InProcessHub, name: str) -> set[str]:
    user = account(hub, name)
    assert user is not None
    return {group.name for group in user.groups}


async def identity_at_the_service(browser: Browser) -> dict[str, list[str]]:
    """What the Hub tells the federation service of who comes with this browser."""
    answer = await browser.http.get("/services/federation/")
    assert answer.status_code == httpx.codes.OK, answer.text
    identity: dict[str, list[str]] = answer.json()
    return identity


async def test_the_login_uses_pkce(browser: Browser) -> None:
    page = await browser.http.get("/hub/oauth_login")
    assert page.url.path == "/oauth2/authorize"
    assert page.url.params["code_challenge_method"] == "S256"
    assert page.url.params["response_type"] == "code"


async def test_the_provider_lets_one_choose_a_person(browser: Browser) -> None:
    page = await browser.http.get("/hub/oauth_login")
    for text in ("St. Anna Hospital", "Amara Okafor", "data steward", "Lakeview University"):
        assert text in page.text
    assert "http" not in page.text  # nothing is fetched from elsewhere


@pytest.mark.parametrize(
    ("person", "expected"),
    [
        ("amara", {"site-st-anna"}),
        ("nuria", {"site-vall-verde", "steward-vall-verde"}),
        ("admin", {"federation-admins"}),
    ],
)
async def test_claims_become_groups(hub: InProcessHub, browser: Browser, person: str, expected: set[str]) -> None:
    page = await browser.log_in(person)
    assert page.status_code == httpx.codes.OK
    assert page.url.path == "/hub/home"
    assert groups(hub, person) == expected
    assert account(hub, person).admin is False  # JupyterHub's own administrators may open every server


@pytest.mark.parametrize(
    ("person", "has", "lacks"),
    [
        ("amara", {Scope.ACCESS, Scope.USE}, {Scope.APPROVE, Scope.ADMINISTER}),
        ("nuria", {Scope.ACCESS, Scope.USE, Scope.APPROVE}, {Scope.ADMINISTER}),
        ("admin", {Scope.ACCESS, Scope.USE, Scope.ADMINISTER}, {Scope.APPROVE}),
    ],
)
async def test_a_browser_login_carries_the_persons_scopes(
    browser: Browser, person: str, has: set[Scope], lacks: set[Scope]
) -> None:
    await browser.log_in(person)
    scopes = set((await identity_at_the_service(browser))["scopes"])
    assert has <= scopes
    assert not lacks & scopes


async def test_the_service_learns_name_and_groups(browser: Browser) -> None:
    await browser.log_in("grace")
    identity = await identity_at_the_service(browser)
    assert identity["name"] == "grace"
    assert set(identity["groups"]) == {"site-northside", "steward-northside"}


async def test_an_unknown_institution_gets_a_page_and_no_account(hub: InProcessHub, browser: Browser) -> None:
    page = await browser.log_in("stranger")
    assert page.status_code == httpx.codes.FORBIDDEN
    for text in ("schac_home_organization", "lakeview.example", "admin@federation.example", "No account was made"):
        assert text in page.text
    assert account(hub, "stranger") is None
    assert (await browser.http.get("/hub/home")).url.path != "/hub/home"


async def test_no_institution_gets_a_page_that_says_so(
    hub: InProcessHub, browser: Browser, provider: IdentityProvider
) -> None:
    provider.says("nobody", preferred_username="nobody")
    page = await browser.log_in("nobody")
    assert page.status_code == httpx.codes.FORBIDDEN
    assert "Your login does not name your institution." in page.text
    assert "not sent" in page.text
    assert account(hub, "nobody") is None


async def test_no_user_name_gets_a_page_that_says_so(browser: Browser, provider: IdentityProvider) -> None:
    provider.says("anonymous", schac_home_organization="st-anna.example")
    page = await browser.log_in("anonymous")
    assert page.status_code == httpx.codes.FORBIDDEN
    assert "Your login gives no user name." in page.text
    assert "preferred_username" in page.text


async def test_markup_in_a_claim_stays_text(browser: Browser, provider: IdentityProvider) -> None:
    provider.says("mallory", preferred_username="mallory", schac_home_organization="<script>alert(1)</script>")
    page = await browser.log_in("mallory")
    assert "<script>alert(1)" not in page.text
    assert "&lt;script&gt;alert(1)" in page.text


async def test_two_sites_are_refused(hub: InProcessHub, browser: Browser, provider: IdentityProvider) -> None:
    both = ["st-anna.example", "northside.example"]
    provider.says("both", preferred_username="both", schac_home_organization=both)
    page = await browser.log_in("both")
    assert page.status_code == httpx.codes.FORBIDDEN
    assert "more than one institution of this Hub: northside, st-anna" in page.text
    assert account(hub, "both") is None


async def test_each_login_replaces_all_groups_and_rights(
    hub: InProcessHub, browser: Browser, provider: IdentityProvider
) -> None:
    provider.says("mover", preferred_username="mover", schac_home_organization="st-anna.example")
    await browser.log_in("mover")
    mover = account(hub, "mover")
    mover.admin = True
    mover.groups.append(orm.Group.find(hub.db, "steward-st-anna"))
    hub.db.commit()
    provider.says("mover", preferred_username="mover", schac_home_organization="vall-verde.example")
    await browser.log_in("mover")
    assert groups(hub, "mover") == {"site-vall-verde"}
    assert account(hub, "mover").admin is False


async def test_who_left_the_institution_comes_in_no_more(
    hub: InProcessHub, browser: Browser, provider: IdentityProvider
) -> None:
    provider.says("leaver", preferred_username="leaver", schac_home_organization="st-anna.example")
    assert (await browser.log_in("leaver")).status_code == httpx.codes.OK
    provider.says("leaver", preferred_username="leaver", schac_home_organization="lakeview.example")
    again = Browser(str(browser.http.base_url))
    assert (await again.log_in("leaver")).status_code == httpx.codes.FORBIDDEN
    assert (await again.http.get("/hub/home")).url.path != "/hub/home"
    await again.http.aclose()


async def test_the_service_asks_the_hub_for_names_and_groups_only(hub: InProcessHub, browser: Browser) -> None:
    await browser.log_in("amara")
    token = {"Authorization": f"token {hub._service_map['federation'].api_token}"}
    api = httpx.AsyncClient(base_url=hub.bind_url.rstrip("/"), headers=token)
    user = (await api.get("/hub/api/users/amara")).json()
    assert (user["name"], user["groups"]) == ("amara", ["site-st-anna"])
    assert not {"auth_state", "servers", "last_activity"} & set(user)
    assert (await api.get("/hub/api/users/nobody-at-all")).status_code == httpx.codes.NOT_FOUND
    assert (await api.post("/hub/api/users/amara/server")).status_code == httpx.codes.FORBIDDEN
    assert (await api.get("/hub/api/services")).status_code == httpx.codes.FORBIDDEN
    await api.aclose()


async def test_the_service_gets_what_it_needs_and_no_secret_of_the_hub(hub: InProcessHub, browser: Browser) -> None:
    given = (await browser.http.get("/services/federation/environment")).json()
    assert {"FEDERATION_STATE_DIR", "FEDERATION_SITES", "FEDERATION_ADMIN_CONTACT"} <= set(given)
    assert HUB_SECRET not in given.values()
    assert str(hub.authenticator.sso.institutions) not in given.values()


async def test_fleet_traffic_goes_to_the_service(browser: Browser) -> None:
    answer = await browser.http.post("/v1/fleet/pull-messages", content=b"\x00protobuf")
    assert answer.content == b"\x00protobuf"


async def test_the_home_page_has_the_panel_and_says_that_the_site_isolates_nothing(browser: Browser) -> None:
    page = await browser.log_in("amara")
    assert 'id="federation-panel"' in page.text
    assert 'data-src="/services/federation/panel"' in page.text
    assert 'href="/services/federation/"' in page.text
    assert 'src="/services/federation/static/panel.js"' in page.text
    assert "St. Anna Hospital is an embedded site: it isolates nothing." in page.text


async def test_who_has_no_site_is_told_so_when_they_start_a_server(browser: Browser) -> None:
    await browser.log_in("admin")
    page = await browser.http.get("/hub/spawn")
    assert page.status_code == httpx.codes.FORBIDDEN
    assert "You belong to no site of this Hub" in page.text
    assert "admin@federation.example" in page.text


async def test_other_refusals_keep_the_hubs_own_page(browser: Browser) -> None:
    await browser.log_in("amara")
    page = await browser.http.get("/services/federation/oauth_callback")  # the service's page, not the Hub's
    assert "No account was made" not in page.text
    page = await browser.http.get("/hub/admin")
    assert page.status_code == httpx.codes.FORBIDDEN
    assert "No account was made" not in page.text
