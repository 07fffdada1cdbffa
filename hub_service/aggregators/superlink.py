"""Flower's Control API, as far as we use it, and a path of ours. The API has no authentication: no tenant may reach it.

Called by `hub_service.reconciler` (runs and nodes) and by `hub_service.gateway` (node ids).
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import TypeVar

import httpx
from federator import logs
from federator.framing import pack
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListNodesResponse,
    RegisterNodeRequest,
    RegisterNodeResponse,
    StartRunRequest,
    StartRunResponse,
    StopRunRequest,
    StopRunResponse,
    UnregisterNodeRequest,
    UnregisterNodeResponse,
)
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.error import ApiErrorCode, FlowerError
from google.protobuf.message import Message

from hub_service.aggregators.base import Endpoint
from hub_service.domain.errors import Conflict, Invalid, Unavailable
from hub_service.node_keys import flower_form

_CALL_TIMEOUT = httpx.Timeout(30.0)
_MEDIA_TYPE = "application/protobuf"
_UNREGISTERED = "unregistered"

_Answer = TypeVar("_Answer", bound=Message)


class SuperLink:
    """One project's SuperLink. Every method raises Unavailable where it does not answer."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def register_node(self, public_key: bytes) -> int:
        """Let the node with this key take part; return the SuperLink's id of it. A known key returns its node id.

        Raises:
            Invalid: not a public key on a NIST elliptic curve.
            Conflict: the key was unregistered here before. Flower never takes such a key back.
        """
        key = flower_form(public_key)
        try:
            answer = await self._call("register-node", RegisterNodeRequest(public_key=key), RegisterNodeResponse)
        except FlowerError as error:
            if error.code != ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
                raise _refused(error) from error
            node_id = await self.node_id(key)
            if node_id is None:
                raise Conflict(
                    "This node's key was removed from the project before.",
                    "Register a new key; a Flower client kernel makes one when it restarts.",
                ) from error
            return node_id
        return answer.node_id

    async def give_key(self, node_id: int, public_key: bytes) -> None:
        """Let the node with this id have this key: a client that comes back with a new one is the same node.

        The node is registered where it is not known, or was taken out.

        Raises:
            Invalid: not a public key on a NIST elliptic curve.
            Conflict: the key is another node's.
        """
        content = pack([str(node_id).encode(), flower_form(public_key)], {})
        response = await self._post("/v1/bulk/give-key", content)
        if response.status_code == HTTPStatus.BAD_REQUEST:
            raise Conflict("Another node of the project has this key.", "Make a new key pair for each participation.")
        if response.is_error:
            raise _not_done("give-key", response)

    async def node_id(self, public_key: bytes) -> int | None:
        """The id of the node registered with this key, or None."""
        key = flower_form(public_key)
        try:
            answer = await self._call("list-nodes", ListNodesRequest(), ListNodesResponse)
        except FlowerError as error:
            raise _refused(error) from error
        for node in answer.nodes_info:
            if node.public_key == key and node.status != _UNREGISTERED:
                return int(node.node_id)
        return None

    async def unregister_node(self, node_id: int) -> None:
        """Take the node out. An unknown node is no error."""
        try:
            await self._call("unregister-node", UnregisterNodeRequest(node_id=node_id), UnregisterNodeResponse)
        except FlowerError as error:
            if error.code != ApiErrorCode.NODE_NOT_FOUND:
                raise _refused(error) from error

    async def start_run(self, fab: bytes, config: Mapping[str, str | int | float | bool]) -> int:
        """Make a run of the FAB, pending until a ServerApp process takes it; return Flower's run id.

        Raises:
            Invalid: the FAB is none, or `config` has a key that the FAB's run config lacks.
        """
        request = StartRunRequest(fab=Fab(content=fab), override_config=user_config_to_proto(dict(config)))
        try:
            answer = await self._call("start-run", request, StartRunResponse)
        except FlowerError as error:
            raise _refused(error) from error
        if not answer.HasField("run_id"):
            raise Invalid("Flower did not take the app: it is too large.", "Leave out data files and try again.")
        return answer.run_id

    async def stop_run(self, flower_run_id: int) -> None:
        """Stop the run. A finished or unknown run is no error."""
        try:
            await self._call("stop-run", StopRunRequest(run_id=flower_run_id), StopRunResponse)
        except FlowerError as error:
            if error.code not in (ApiErrorCode.RUN_ALREADY_FINISHED, ApiErrorCode.RUN_ID_NOT_FOUND):
                raise _refused(error) from error

    async def _call(self, operation: str, request: Message, answer_type: type[_Answer]) -> _Answer:
        response = await self._post(f"/v1/control/{operation}", request.SerializeToString())
        if response.is_error:
            raise FlowerError.from_json(response.text) or _not_done(operation, response)
        answer: _Answer = answer_type()
        answer.ParseFromString(response.content)
        return answer

    async def _post(self, path: str, content: bytes) -> httpx.Response:
        headers = {"content-type": _MEDIA_TYPE, "accept": _MEDIA_TYPE, **logs.request_headers()}
        try:
            async with self._endpoint.client(timeout=_CALL_TIMEOUT) as client:
                return await client.post(path, content=content, headers=headers)
        except httpx.TransportError as error:
            raise Unavailable(
                "The project's aggregator does not answer.",
                "Try again; if it stays so, ask the Hub's administrators.",
                debug=f"{path}: {error!r}",
            ) from error


def _not_done(operation: str, response: httpx.Response) -> Unavailable:
    return Unavailable(
        "The project's aggregator could not do what it was asked.",
        "Try again; if it stays so, ask the Hub's administrators.",
        debug=f"{operation}: HTTP {response.status_code}",
    )


def _refused(error: FlowerError) -> Invalid:
    return Invalid(f"Flower refused: {error.message}", "Check the app and its run config.", debug=f"code {error.code}")
