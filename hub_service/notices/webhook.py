"""Notices as JSON to one address of the deployment, such as a chat's or a ticket system's."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus

import httpx

from hub_service.domain.clock import Clock, utc_text
from hub_service.domain.notices import Notice
from hub_service.notices.outbox import Delivery, NotSent

SIGNATURE_HEADER = "X-Federation-Signature"
_TIMEOUT_S = 10.0
_MAY_WORK_LATER = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})


@dataclass(frozen=True, slots=True)
class Receiver:
    """Who takes the notices. The address may hold a secret, so neither it nor the key is in a `repr`.

    Attributes:
        key: signs each body, as `sha256=` and the HMAC in hex; "" for no signature.
    """

    url: str = field(repr=False)
    key: str = field(default="", repr=False)


class Webhook:
    """A `Channel`. Close it when nothing is sent any more."""

    name = "webhook"

    def __init__(self, receiver: Receiver, clock: Clock) -> None:
        self._receiver = receiver
        self._clock = clock
        self._http = httpx.AsyncClient(timeout=_TIMEOUT_S, follow_redirects=False, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    def deliveries(self, notice: Notice, link: str) -> Sequence[Delivery]:
        content = {
            "kind": notice.kind,
            "project_id": notice.project_id,
            "project": notice.project_name,
            "site": notice.site,
            "users": notice.users,
            "subject": notice.subject,
            "text": notice.text,
            "link": link,
            "at": utc_text(self._clock()),
        }
        return [partial(self._deliver, json.dumps(content, ensure_ascii=False).encode())]

    async def _deliver(self, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        if self._receiver.key:
            signature = hmac.new(self._receiver.key.encode(), body, hashlib.sha256).hexdigest()
            headers[SIGNATURE_HEADER] = f"sha256={signature}"
        try:
            answer = await self._http.post(self._receiver.url, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise NotSent(f"the receiver does not answer ({type(error).__name__})", again=True) from None
        except httpx.InvalidURL:
            raise NotSent("the receiver's address cannot be read", again=False) from None
        if not answer.is_success:
            again = answer.is_server_error or answer.status_code in _MAY_WORK_LATER
            raise NotSent(f"the receiver refuses (status {answer.status_code})", again=again)
