"""Clients for many small requests to a SuperLink, as the gateway makes them.

Apart from `base`, which the aggregator's image imports: aiohttp is in the service's alone.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable
from pathlib import Path

import aiohttp

from hub_service.aggregators.base import Endpoint, open_folder, short_name

_KEPT_OPEN_S = 3.0  # the SuperLink closes a connection that was idle for 5 s


def open_session(endpoint: Endpoint, *, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    """A session whose paths are the SuperLink's. A request costs a tenth of what it costs with `Endpoint.client`.

    Called in a running event loop; close it.

    Raises aiohttp.ClientConnectionError where the socket's folder is gone.
    """
    connector: aiohttp.BaseConnector
    if endpoint.socket is None:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_OPEN_S)
    else:
        connector = _SocketConnector(endpoint.socket)
    return aiohttp.ClientSession(
        base_url=f"http://{endpoint.address}",
        connector=connector,
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
    )


class _SocketConnector(aiohttp.UnixConnector):
    """Connects to a Unix socket wherever it lies: `short_name` says how."""

    def __init__(self, path: Path) -> None:
        try:
            self._folder = open_folder(path)
        except OSError as error:
            raise aiohttp.ClientConnectionError(f"{path.parent}: {error.strerror}") from error
        super().__init__(short_name(self._folder, path), limit=0, keepalive_timeout=_KEPT_OPEN_S)

    def close(self, *, abort_ssl: bool = False) -> Awaitable[None]:
        was_open = not self.closed
        closing = super().close(abort_ssl=abort_ssl)
        if was_open:
            os.close(self._folder)
        return closing
