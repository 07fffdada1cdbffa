"""Which apps a node may fetch. A stock SuperNode runs whatever it is sent: its site's approvals are checked here.

A client kernel has no such limit: it compares the app's own bytes with what its steward approved, and says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from flwr.proto.fab_pb2 import GetFabRequest
from google.protobuf.message import DecodeError

from hub_service.gateway.gateway import Caller, Refusal


class NotApproved(Refusal):
    def __init__(self) -> None:
        super().__init__(403, "This site's data steward has not approved this app, or no longer.")


async def approved_request(caller: Caller, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The body of a get-fab request, which is read whole. Raises NotApproved, or Refusal where it is none."""
    request = GetFabRequest()
    content = b"".join([chunk async for chunk in body])
    try:
        request.ParseFromString(content)
    except DecodeError as error:
        raise Refusal(400, "The body is not the message that this path takes.") from error
    allowed = caller.grant.fab_hashes
    if allowed is not None and request.hash_str not in allowed:
        raise NotApproved
    return _whole(content)


async def _whole(content: bytes) -> AsyncIterator[bytes]:
    yield content
