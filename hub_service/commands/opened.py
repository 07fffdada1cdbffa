"""The parts of the service that commands work on, opened as the service opens them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hub_service.settings import StateSettings
from hub_service.store.base import Store
from hub_service.store.sql import SqlStore


@contextmanager
def opened_store(settings: StateSettings, *, reads_only: bool) -> Iterator[Store]:
    """The service's database.

    Args:
        reads_only: the service may have it meanwhile.

    Raises Unavailable where it cannot be opened, DatabaseInUse where the service has it.
    """
    store = SqlStore(settings.database_url, reads_only=reads_only)
    try:
        yield store
    finally:
        store.close()
