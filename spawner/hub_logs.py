"""How the Hub writes its log, for `jupyterhub_config.py`."""

from __future__ import annotations

import logging
from typing import Any

from federator import logs
from federator.logs import LogFormat
from jupyterhub import log as hub_log
from tornado.web import RequestHandler


class WithoutSessions(logging.Filter):
    """JupyterHub tells of each XSRF cookie that it sets, and with it the id of the person's session."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Setting new xsrf cookie")


def configuration(wanted: str) -> dict[str, Any]:
    """For `c.JupyterHub.logging_config`, which changes what the Hub does by itself."""
    told: dict[str, Any] = {
        "filters": {"sessions": {"()": WithoutSessions}},
        "handlers": {"console": {"filters": ["sessions"]}},
    }
    if wanted == LogFormat.JSON:
        told["formatters"] = {"console": {"class": f"{logs.JsonLines.__module__}.{logs.JsonLines.__name__}"}}
    return told


def log_request(handler: RequestHandler) -> None:
    """For `log_function` in `c.JupyterHub.tornado_settings`: the Hub's own line, about the request that led here.

    The service asks the Hub with the id of the request that it answers.
    """
    sent = handler.request.headers.get(logs.REQUEST_ID_HEADER, "")
    with logs.about(request_id=logs.checked_request_id(sent)):
        hub_log.log_request(handler)
