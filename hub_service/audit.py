"""The audit log: every decision a line, each line's hash over the line before. Append-only.

A changed, missing or reordered line is found by `verify`. What stands in a line is names, ids, hashes of code and
fingerprints of keys; never a key, a token or data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum

from hub_service.domain.clock import Clock
from hub_service.store.base import AuditLine, Store

GENESIS = "0" * 64  # the `previous` of the first line


class Decision(StrEnum):
    """What is worth a line."""

    PROJECT_CREATED = "project-created"
    APP_ADDED = "app-added"
    INVITED = "invited"
    DECLINED = "declined"
    JOINED = "joined"
    LEFT = "left"
    REMOVED = "removed"
    APPROVED_ONCE = "approved-once"
    APPROVED = "approved"
    REJECTED = "rejected"
    REVOKED = "revoked"
    NODE_REGISTERED = "node-registered"
    NODE_REMOVED = "node-removed"
    RUN_STARTED = "run-started"
    RUN_STOP_ASKED = "run-stop-asked"
    RUN_ENDED = "run-ended"
    MODEL_DOWNLOADED = "model-downloaded"
    RECORD_DOWNLOADED = "record-downloaded"
    CAPSULE_DOWNLOADED = "capsule-downloaded"


class AuditLog:
    """Appends lines to a store. Call `note` in the same transaction as what it tells of: both happen or neither."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def note(self, actor: str, decision: Decision, project_id: str, **detail: str) -> None:
        """Append one line. `actor` is a Hub user's name, or "service" for what nobody asked for."""
        with self._store.transaction():
            last = self._store.last_audit_line()
            sequence = 1 if last is None else last.sequence + 1
            previous = GENESIS if last is None else last.hash
            at = self._clock().astimezone(UTC)  # the same text, hence hash, whatever the store keeps
            self._store.add_audit_line(
                AuditLine(
                    sequence=sequence,
                    at=at,
                    actor=actor,
                    action=decision,
                    project_id=project_id,
                    detail=detail,
                    previous=previous,
                    hash=_hash(sequence, at, actor, decision, project_id, detail, previous),
                )
            )


def verify(lines: Iterable[AuditLine]) -> int | None:
    """Return the sequence number at which the chain first breaks, or None if it is whole.

    Lines missing at the end leave no trace in the chain itself: compare the last hash with one noted elsewhere.
    """
    expected, previous = 1, GENESIS
    for line in lines:
        whole = line.sequence == expected and line.previous == previous and line.hash == _hash_of(line)
        if not whole:
            return expected
        expected, previous = expected + 1, line.hash
    return None


def _hash_of(line: AuditLine) -> str:
    return _hash(line.sequence, line.at, line.actor, line.action, line.project_id, line.detail, line.previous)


def _hash(
    sequence: int, at: datetime, actor: str, action: str, project_id: str, detail: dict[str, str], previous: str
) -> str:
    content = [sequence, at.isoformat(), actor, str(action), project_id, detail, previous]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
