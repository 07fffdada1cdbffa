"""What the Hub says of a person, and what is told when it does not."""

from __future__ import annotations

import pytest

from hub_service.domain.directory import HubUser
from hub_service.domain.errors import Unavailable
from hub_service.hub_client import HubClient
from tests.fakes.hub_api import SERVICE_TOKEN, FakeHubApi, MovedHubApi, RamblingHubApi, SickHubApi


@pytest.mark.parametrize("name", ["bert", "bert@hospital.example", "a b/c?d", "../service", "@evil.example", "Åsa"])
async def test_a_user_comes_with_name_and_groups(name: str) -> None:
    async with FakeHubApi() as hub:
        hub.people[name] = {"name": name, "groups": ["site-b", "steward-b"], "admin": False}
        client = HubClient(hub.url + "/", SERVICE_TOKEN)
        user = await client.user(name)
        assert user == HubUser(name, frozenset({"site-b", "steward-b"}))
        assert user.sites == {"b"}


async def test_an_unknown_user_is_none() -> None:
    async with FakeHubApi() as hub:
        assert await HubClient(hub.url, SERVICE_TOKEN).user("nobody") is None


async def test_a_token_without_the_right_is_told_to_the_log_alone() -> None:
    async with FakeHubApi() as hub:
        with pytest.raises(Unavailable) as refused:
            await HubClient(hub.url, "wrong-token").user("bert")
        assert "403" in refused.value.debug
        told = refused.value.message + refused.value.next_step + refused.value.debug
        assert "wrong-token" not in told


async def test_a_sick_hub_is_unavailable() -> None:
    async with SickHubApi() as hub:
        with pytest.raises(Unavailable, match="does not answer"):
            await HubClient(hub.url, SERVICE_TOKEN).user("bert")


async def test_a_hub_that_leads_elsewhere_is_not_followed() -> None:
    """Whoever answers in the Hub's place could have the service ask anything in its network."""
    async with FakeHubApi() as elsewhere:
        elsewhere.people["bert"] = {"name": "bert", "groups": ["site-b"]}
        async with MovedHubApi(f"{elsewhere.url}/users/bert") as hub:
            with pytest.raises(Unavailable) as refused:
                await HubClient(hub.url, SERVICE_TOKEN).user("bert")
    assert "302" in refused.value.debug


@pytest.mark.parametrize("body", ["<html>", "{}", '{"name": "bert"}', "[]", '{"name": "bert", "groups": null}'])
async def test_an_answer_that_describes_no_user_is_unavailable(body: str) -> None:
    async with RamblingHubApi(body) as hub:
        with pytest.raises(Unavailable):
            await HubClient(hub.url, SERVICE_TOKEN).user("bert")


async def test_a_hub_that_is_gone_is_unavailable() -> None:
    async with FakeHubApi() as hub:
        url = hub.url
    with pytest.raises(Unavailable, match="does not answer"):
        await HubClient(url, SERVICE_TOKEN).user("bert")


async def test_the_people_of_a_site_are_those_of_its_group() -> None:
    async with FakeHubApi() as hub:
        hub.people = {name: {"name": name, "groups": [f"site-{site}"]} for name, site in (("anna", "a"), ("bert", "b"))}
        client = HubClient(hub.url, SERVICE_TOKEN)
        assert await client.people_of("b") == {"bert"}
        assert await client.people_of("c") == frozenset()  # nobody is left, or the group is gone
        with pytest.raises(Unavailable, match="does not answer"):
            await HubClient(hub.url, "wrong-token").people_of("b")


@pytest.mark.parametrize("body", ["<html>", "{}", "[]", '{"users": null}'])
async def test_an_answer_that_describes_no_group_is_unavailable(body: str) -> None:
    async with RamblingHubApi(body) as hub:
        with pytest.raises(Unavailable):
            await HubClient(hub.url, SERVICE_TOKEN).people_of("b")
