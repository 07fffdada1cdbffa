"""A stock SuperNode fetches no app but those that its site's data steward has approved."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.supercore.primitives.asymmetric import sign_message

from tests.fakes.fleet import Fleet, fleet

APPROVED, OTHER = "a" * 64, "b" * 64


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Fleet]:
    """No aggregator runs: what is let through is told that no run runs."""
    async with fleet(tmp_path) as it:
        it.admit("site")
        yield it


async def fetch(it: Fleet, body: bytes) -> tuple[int, str]:
    member, timestamp = it.members["site"], datetime.now(UTC).isoformat()
    headers = {
        "flwr-public-key": b64encode(member.public_key).decode("ascii"),
        "flwr-timestamp": timestamp,
        "flwr-signature": b64encode(sign_message(member.private_key, timestamp.encode("ascii"))).decode("ascii"),
    }
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(f"http://{it.address}/v1/fleet/get-fab", content=body, headers=headers)
    return answer.status_code, answer.json()["detail"]


def restrict(it: Fleet, fab_hashes: frozenset[str] | None) -> None:
    key = it.members["site"].public_key
    it.grants[key] = replace(it.grants[key], fab_hashes=fab_hashes)


@pytest.mark.parametrize(
    ("allowed", "asked", "let_through"),
    [
        (frozenset({APPROVED}), APPROVED, True),
        (frozenset({APPROVED}), OTHER, False),
        (frozenset({APPROVED}), "", False),
        (frozenset(), APPROVED, False),
        (None, OTHER, True),  # a client kernel checks for itself
    ],
)
async def test_which_apps_are_let_through(
    site: Fleet, allowed: frozenset[str] | None, asked: str, let_through: bool
) -> None:
    restrict(site, allowed)
    status, text = await fetch(site, GetFabRequest(hash_str=asked).SerializeToString())
    assert status == 403  # which a SuperNode takes for a message to be passed over
    assert ("not approved" in text) is not let_through
    assert ("does not run" in text) is let_through


async def test_what_is_no_such_request_is_refused(site: Fleet) -> None:
    assert (await fetch(site, b"\xff\xff"))[0] == 400
    assert (await fetch(site, b"x" * (2 << 20)))[0] == 413
