"""Every request has an id, which stands in each log line about it and in its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from federator import logs
from tornado.httputil import HTTPServerRequest
from tornado.web import Application, RequestHandler, _HandlerDelegate


class TracedApplication(Application):
    """Keeps a request's `X-Request-ID` where it is short and harmless, and makes one otherwise.

    Args:
        new_id: makes ids.
    """

    def __init__(self, *arguments: Any, new_id: Callable[[], str], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._new_id = new_id

    def get_handler_delegate(
        self,
        request: HTTPServerRequest,
        target_class: type[RequestHandler],
        target_kwargs: dict[str, Any] | None = None,
        path_args: list[bytes] | None = None,
        path_kwargs: dict[str, bytes] | None = None,
    ) -> _HandlerDelegate:
        """Called by tornado for each request, in whose context its handler then runs."""
        sent = request.headers.get(logs.REQUEST_ID_HEADER, "")
        logs.note(request_id=logs.checked_request_id(sent) or self._new_id())
        return super().get_handler_delegate(request, target_class, target_kwargs, path_args, path_kwargs)
