"""What a Hub knows of a server that an earlier one started."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.fakes.in_process_hub import InProcessHub, start_hub, stop_hub
from tests.hub.actors import Browser

PERSON = "amara"


@pytest.fixture
async def token(configured: None, service_command: list[str]) -> AsyncIterator[str]:
    """Of a server that was started by a Hub which has ended, and runs on."""
    hub = await start_hub(service_command)
    browser = Browser(hub.bind_url.rstrip("/"))
    await browser.log_in(PERSON)
    await browser.start_server(PERSON)
    spawner = hub.users[PERSON].spawner
    assert spawner.ready
    await browser.http.aclose()
    await stop_hub(hub, servers=False)
    yield spawner.api_token
    await asyncio.to_thread(spawner.proc.wait, 30)  # this process is its parent, which the next Hub's would not be


@pytest.fixture
async def next_hub(token: str, service_command: list[str]) -> AsyncIterator[InProcessHub]:
    hub = await start_hub(service_command)
    yield hub
    await stop_hub(hub)


async def answer_to(hub: InProcessHub, token: str) -> int:
    async with httpx.AsyncClient(base_url=hub.bind_url.rstrip("/")) as api:
        return (await api.get("/hub/api/user", headers={"Authorization": f"token {token}"})).status_code


async def test_a_servers_token_ends_with_the_server(next_hub: InProcessHub, token: str) -> None:
    person = next_hub.users[PERSON]
    assert person.spawner.ready
    assert await answer_to(next_hub, token) == httpx.codes.OK
    own = person.new_api_token(note="mine", scopes=["inherit"])
    await person.stop()
    assert await answer_to(next_hub, token) == httpx.codes.FORBIDDEN
    assert await answer_to(next_hub, own) == httpx.codes.OK
