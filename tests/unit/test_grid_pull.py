"""How the SuperLink answers the ServerApp's looks for replies: together where they come together, and once more where
they were lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI
from flwr.proto.runtime_pb2 import PullAppMessagesRequest

from hub_service.aggregators import superlink_process
from hub_service.aggregators.superlink_process import BulkPaths


class ScriptedReplies:
    """A SuperLink's path for the ServerApp, with what a test says in the place of Flower's state.

    Attributes:
        there: the answers of the next looks for replies.
        replied: how many of the two messages that each pull asks for are answered.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there: list[bytes] = []
        self.replied = 0
        self.counted = asyncio.Event()
        self.paths = BulkPaths(FastAPI())
        monkeypatch.setattr(self.paths, "_task", lambda _: None)
        monkeypatch.setattr(self.paths, "_replies", lambda *_: self.there.pop(0) if self.there else None)
        monkeypatch.setattr(self.paths, "_state", lambda: SimpleNamespace(replied=self._count))

    def _count(self, _: Collection[str]) -> int:
        self.counted.set()
        return self.replied

    async def pulled(self, key: str = "", wait_s: float = 0.0) -> bytes:
        headers = {"prefer": f"wait={wait_s:g}"} | ({"idempotency-key": key} if key else {})
        body = PullAppMessagesRequest(message_ids=["1", "2"]).SerializeToString()
        transport = httpx.ASGITransport(self.paths)
        async with httpx.AsyncClient(transport=transport, base_url="http://superlink/v1/bulk") as client:
            return (await client.post("/grid-pull", headers=headers, content=body)).content


async def test_replies_that_were_lost_on_their_way_to_the_serverapp_are_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flower's state lets go of them at once, and its client asks again where the connection breaks."""
    superlink = ScriptedReplies(monkeypatch)
    superlink.there = [b"first", b"second"]
    asked = [await superlink.pulled(key) for key in ("a", "a", "b", "a", "", "")]
    assert asked == [b"first", b"first", b"second", b"", b"", b""]


@pytest.fixture
def two_asked(monkeypatch: pytest.MonkeyPatch) -> ScriptedReplies:
    """One of two messages is answered."""
    superlink = ScriptedReplies(monkeypatch)
    superlink.there, superlink.replied = [b"what there is"], 1
    return superlink


async def test_a_reply_waits_for_one_that_comes_at_once(
    two_asked: ScriptedReplies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superlink_process, "_TOGETHER_S", 60.0)
    pull = asyncio.create_task(two_asked.pulled(wait_s=30.0))
    await two_asked.counted.wait()
    assert two_asked.there == [b"what there is"]
    two_asked.replied = 2
    two_asked.paths._for_serverapp.ring()
    async with asyncio.timeout(10.0):
        assert await pull == b"what there is"


async def test_a_reply_waits_no_longer_for_another_than_a_moment(two_asked: ScriptedReplies) -> None:
    async with asyncio.timeout(10.0):
        assert await two_asked.pulled(wait_s=30.0) == b"what there is"


@pytest.mark.parametrize("wait_s", [0.0, 0.1])
async def test_a_reply_is_there_when_the_pull_ends(
    two_asked: ScriptedReplies, monkeypatch: pytest.MonkeyPatch, wait_s: float
) -> None:
    monkeypatch.setattr(superlink_process, "_TOGETHER_S", 60.0)
    assert await two_asked.pulled(wait_s=wait_s) == b"what there is"
