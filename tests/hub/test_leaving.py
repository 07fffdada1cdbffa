"""People who come back from another institution, or from none of this Hub's, while their server runs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import psutil
import pytest
from jupyterhub import orm
from jupyterhub.user import User

from tests.fakes.in_process_hub import InProcessHub
from tests.hub.actors import Browser, IdentityProvider

PERSON = "mover"


@pytest.fixture
async def person(hub: InProcessHub, browser: Browser, provider: IdentityProvider) -> User:
    """Of St. Anna Hospital, with a server there."""
    provider.says(PERSON, preferred_username=PERSON, schac_home_organization="st-anna.example")
    await browser.log_in(PERSON)
    await browser.start_server(PERSON)
    person = hub.users[PERSON]
    assert person.spawner.ready
    return person


@pytest.fixture
async def elsewhere(browser: Browser) -> AsyncIterator[Browser]:
    """The same person at another machine."""
    opened = Browser(str(browser.http.base_url))
    yield opened
    await opened.http.aclose()


async def test_a_server_does_not_outlast_a_move_to_another_site(
    person: User, elsewhere: Browser, provider: IdentityProvider
) -> None:
    pid = person.spawner.pid
    provider.says(PERSON, preferred_username=PERSON, schac_home_organization="vall-verde.example")
    page = await elsewhere.log_in(PERSON, to="/hub/token")  # the home page would look at servers itself
    assert page.url.path == "/hub/token"
    assert not person.active
    assert not psutil.pid_exists(pid)
    await elsewhere.start_server(PERSON)
    assert person.spawner.site_slug == "vall-verde"


async def test_a_login_at_the_same_site_leaves_the_server_alone(person: User, elsewhere: Browser) -> None:
    await elsewhere.log_in(PERSON)
    assert person.spawner.ready


async def test_a_server_of_a_site_that_its_person_has_left_is_found(hub: InProcessHub, person: User) -> None:
    orm.Group.find(hub.db, "site-st-anna").users.remove(person.orm_user)
    hub.db.commit()
    await person.spawner.poll_and_notify()  # as the Hub does in intervals
    assert not person.active


async def test_who_is_let_in_no_more_keeps_nothing(
    hub: InProcessHub, person: User, browser: Browser, elsewhere: Browser, provider: IdentityProvider
) -> None:
    pid = person.spawner.pid
    own = {"Authorization": f"token {person.new_api_token(note='mine', scopes=['inherit'])}"}
    person.admin = True
    hub.db.commit()
    assert (await elsewhere.http.get("/hub/api/user", headers=own)).status_code == httpx.codes.OK
    provider.says(PERSON, preferred_username=PERSON, schac_home_organization="lakeview.example")
    page = await elsewhere.log_in(PERSON)
    assert page.status_code == httpx.codes.FORBIDDEN
    assert "Your rights, tokens and server were taken back" in page.text
    assert "No account was made" not in page.text
    assert (person.groups, person.admin, person.active) == ([], False, False)
    assert not psutil.pid_exists(pid)
    assert (await elsewhere.http.get("/hub/api/user", headers=own)).status_code == httpx.codes.FORBIDDEN
    assert (await browser.http.get("/hub/home")).url.path != "/hub/home"
