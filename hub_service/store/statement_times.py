"""How long the database takes for each statement, for the service's metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, event

_BEGUN = "federation_begun"


def listen(engine: Engine, took: Callable[[float], None]) -> None:
    """Tell of each statement of the engine, once it was carried out, how many seconds that took.

    See SQLAlchemy's "Core Events". A statement that fails is not told of.
    """

    def begin(connection: Connection, *_: Any) -> None:
        connection.info[_BEGUN] = time.perf_counter()

    def end(connection: Connection, *_: Any) -> None:
        took(time.perf_counter() - connection.info[_BEGUN])

    event.listen(engine, "before_cursor_execute", begin)
    event.listen(engine, "after_cursor_execute", end)
