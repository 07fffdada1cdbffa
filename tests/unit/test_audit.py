"""A line that was changed, removed or moved is found."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from hub_service.audit import AuditLog, Decision, fault
from hub_service.store.base import AuditLine, Store
from hub_service.store.memory import MemoryStore
from hub_service.store.sql import SqlStore
from tests.fakes.clock import SetClock


def filled(store: Store) -> list[AuditLine]:
    clock = SetClock()
    audit = AuditLog(store, clock)
    for number in range(4):
        audit.note("anna", Decision.INVITED, "p1", user=f"bert {number}", place="Umeå")
        clock.advance(seconds=1)
    return list(store.audit_lines())


def broken_at(lines: list[AuditLine]) -> int | None:
    found = fault(lines)
    return None if found is None else found.sequence


def test_a_whole_log_has_no_fault() -> None:
    lines = filled(MemoryStore())
    assert [line.sequence for line in lines] == [1, 2, 3, 4]
    assert fault(lines) is None
    assert fault([]) is None


def test_the_chain_holds_after_a_database_kept_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'audit.db'}"
    store = SqlStore(url)
    filled(store)
    store.close()
    again = SqlStore(url)
    AuditLog(again, lambda: datetime(2026, 3, 1, 9, 30, 0, 5, tzinfo=timezone(timedelta(hours=9)))).note(
        "bert", Decision.JOINED, "p1", site="b"
    )
    assert fault(again.audit_lines()) is None
    assert len(again.audit_lines()) == 5
    again.close()


@pytest.mark.parametrize(
    "change",
    [
        {"actor": "carl"},
        {"action": "removed"},
        {"project_id": "p2"},
        {"detail": {"user": "carl"}},
        {"at": datetime(2020, 1, 1, tzinfo=UTC)},
        {"hash": "f" * 64},
        {"previous": "f" * 64},
    ],
)
def test_a_changed_line_is_found(change: dict[str, object]) -> None:
    lines = filled(MemoryStore())
    lines[2] = replace(lines[2], **change)  # type: ignore[arg-type]
    assert broken_at(lines) == 3


def test_a_missing_or_moved_line_is_found() -> None:
    lines = filled(MemoryStore())
    assert broken_at([lines[0], *lines[2:]]) == 2
    assert broken_at([lines[1], lines[0], *lines[2:]]) == 1
    assert broken_at(lines[1:]) == 1


def test_a_decision_that_fails_leaves_no_line() -> None:
    store = MemoryStore()
    audit = AuditLog(store, SetClock())

    def fail_after_noting() -> None:
        with store.transaction():
            audit.note("anna", Decision.INVITED, "p1", user="bert")
            raise KeyError

    with pytest.raises(KeyError):
        fail_after_noting()
    assert list(store.audit_lines()) == []
