"""The audit log: every decision a line, each line's hash over the line before. Append-only.

A changed, missing or reordered line is found by `fault`; lines exported as JSON can be checked anywhere. What stands in
a line is names, ids, hashes of code and fingerprints of keys; never a project's name, a key, a token or data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum

from hub_service.domain.clock import Clock
from hub_service.domain.errors import Invalid
from hub_service.store.base import AuditLine, Store

GENESIS = "0" * 64  # the `previous` of the first line


class Decision(StrEnum):
    """What is worth a line."""

    PROJECT_CREATED = "project-created"
    PROJECT_CHANGED = "project-changed"
    APP_ADDED = "app-added"
    INVITED = "invited"
    DECLINED = "declined"
    JOINED = "joined"
    LEFT = "left"
    REMOVED = "removed"
    LEFT_SITE = "left-site"
    APPROVED_ONCE = "approved-once"
    APPROVED = "approved"
    REJECTED = "rejected"
    REVOKED = "revoked"
    NODE_REGISTERED = "node-registered"
    NODE_REMOVED = "node-removed"
    RUN_STARTED = "run-started"
    RUN_STOP_ASKED = "run-stop-asked"
    RUN_RESUMED = "run-resumed"
    ROUND_FINISHED = "round-finished"
    RUN_ENDED = "run-ended"
    MODEL_DOWNLOADED = "model-downloaded"
    RECORD_DOWNLOADED = "record-downloaded"
    CARD_DOWNLOADED = "card-downloaded"
    CAPSULE_DOWNLOADED = "capsule-downloaded"
    REPAIRED = "repaired"  # by an administrator of the Hub
    MODELS_KEPT = "models-kept"  # after the run's end, when there was room for them
    MODELS_REMOVED = "models-removed"
    PROJECT_DELETED = "project-deleted"
    RESTORED = "restored"


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


@dataclass(frozen=True, slots=True)
class Fault:
    """Where a chain is not what it was.

    Attributes:
        sequence: of the line that should be there, which is also its place in a whole export.
        reason: for a person, without a full stop.
    """

    sequence: int
    reason: str


def fault(lines: Iterable[AuditLine]) -> Fault | None:
    """The first place at which the chain breaks, or None if it is whole.

    Lines missing at the end leave no trace in the chain itself: compare the last hash with one noted elsewhere.
    """
    expected, previous = 1, GENESIS
    for line in lines:
        if line.sequence != expected:
            return Fault(expected, f"line {line.sequence} stands in its place")
        if line.hash != _hash_of(line):
            return Fault(expected, "its hash is not that of its content")
        if line.previous != previous:
            return Fault(expected, "it does not follow the line before it")
        expected, previous = expected + 1, line.hash
    return None


def fault_in_part(lines: Iterable[AuditLine]) -> Fault | None:
    """As `fault`, for the lines of one project: each must be what it was, and they must be in order."""
    last = 0
    for line in lines:
        if line.hash != _hash_of(line):
            return Fault(line.sequence, "its hash is not that of its content")
        if line.sequence <= last:
            return Fault(line.sequence, f"it stands behind line {last}")
        last = line.sequence
    return None


def exported(line: AuditLine) -> str:
    """One line of JSON, without its end. There is one such text for a line, so a changed byte is a changed line."""
    return _json({**asdict(line), "at": line.at.astimezone(UTC).isoformat()})


def imported(texts: Iterable[str]) -> Iterator[AuditLine]:
    """The lines of an export, each with its end. Raises Invalid, naming the line, at one that was not exported so."""
    for number, text in enumerate(texts, 1):
        try:
            content = json.loads(text)
            line = AuditLine(**{**content, "at": datetime.fromisoformat(content["at"])})
            whole = exported(line) + "\n" == text
        except (ValueError, TypeError, KeyError, AttributeError):
            whole = False
        if not whole:
            raise Invalid(f"Line {number} of the file is not as it was exported.", "Export the audit log again.")
        yield line


def _hash_of(line: AuditLine) -> str:
    return _hash(line.sequence, line.at, line.actor, line.action, line.project_id, line.detail, line.previous)


def _hash(
    sequence: int, at: datetime, actor: str, action: str, project_id: str, detail: dict[str, str], previous: str
) -> str:
    content = [sequence, at.isoformat(), actor, str(action), project_id, detail, previous]
    return hashlib.sha256(_json(content).encode()).hexdigest()


def _json(content: object) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
