"""The only caller of the Hub's REST API."""

from __future__ import annotations

import json
from http import HTTPStatus
from urllib.parse import quote

from federator import logs
from federator.contract import SITE_GROUP_PREFIX
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPResponse

from hub_service.domain.directory import HubUser
from hub_service.domain.errors import Unavailable

_TIMEOUT_S = 10.0


class HubClient:
    """Implements `HubDirectory`.

    Args:
        api_url: the Hub's API, JUPYTERHUB_API_URL.
        api_token: the service's token, JUPYTERHUB_API_TOKEN; its role needs read:users:name, read:users:groups
            and read:groups.
    """

    def __init__(self, api_url: str, api_token: str) -> None:
        self._api_url = api_url.rstrip("/")
        self._headers = {"Authorization": f"token {api_token}", "Accept": "application/json"}

    async def user(self, name: str) -> HubUser | None:
        response = await self._get(f"/users/{quote(name, safe='')}")
        if response.code == HTTPStatus.NOT_FOUND:
            return None
        if response.code != HTTPStatus.OK:
            raise _no_answer(f"HTTP {response.code} for a user")
        try:
            model = json.loads(response.body)
            # A token that may not see the groups gets an answer without them: that is our misconfiguration.
            return HubUser(model["name"], frozenset(model["groups"]))
        except (ValueError, KeyError, TypeError) as error:
            raise _no_answer(f"not a user's description: {error!r}") from error

    async def people_of(self, site: str) -> frozenset[str]:
        response = await self._get(f"/groups/{quote(SITE_GROUP_PREFIX + site, safe='')}")
        if response.code == HTTPStatus.NOT_FOUND:
            return frozenset()
        if response.code != HTTPStatus.OK:
            raise _no_answer(f"HTTP {response.code} for a site's group")
        try:
            return frozenset(json.loads(response.body)["users"])
        except (ValueError, KeyError, TypeError) as error:
            raise _no_answer(f"not a group's description: {error!r}") from error

    async def _get(self, path: str) -> HTTPResponse:
        headers = self._headers | logs.request_headers()
        try:
            return await AsyncHTTPClient().fetch(
                self._api_url + path,
                headers=headers,
                raise_error=False,
                follow_redirects=False,  # the Hub's is the only address that is asked
                request_timeout=_TIMEOUT_S,
            )
        except (OSError, HTTPClientError) as error:
            raise _no_answer(repr(error)) from error


def _no_answer(debug: str) -> Unavailable:
    return Unavailable("The Hub does not answer.", "Try again in a minute.", debug=debug)
