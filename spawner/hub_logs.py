"""How the Hub writes its log, for `jupyterhub_config.py`."""

from __future__ import annotations

from typing import Any

from federator import logs
from federator.logs import LogFormat
from jupyterhub import log as hub_log
from tornado.web import RequestHandler


def configuration(wanted: str) -> dict[str, Any]:
    """For `c.JupyterHub.logging_config`: nothing for the Hub's own form of lines."""
    if wanted != LogFormat.JSON:
        return {}
    lines = f"{logs.JsonLines.__module__}.{logs.JsonLines.__name__}"
    return {"formatters": {"console": {"class": lines}}}


def log_request(handler: RequestHandler) -> None:
    """For `log_function` in `c.JupyterHub.tornado_settings`: the Hub's own line, about the request that led here.

    The service asks the Hub with the id of the request that it answers.
    """
    sent = handler.request.headers.get(logs.REQUEST_ID_HEADER, "")
    with logs.about(request_id=logs.checked_request_id(sent)):
        hub_log.log_request(handler)
