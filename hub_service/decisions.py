"""A steward's decision as the audit log keeps it: written when it is taken, read by whoever looks at earlier ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from federator.contract import ApprovalState, Conditions, PastDecision

from hub_service.audit import Decision
from hub_service.domain.approvals import Approval
from hub_service.domain.clock import utc_text
from hub_service.store.base import AuditLine

_DECISIONS = frozenset({Decision.APPROVED, Decision.APPROVED_ONCE, Decision.REJECTED, Decision.REVOKED})


def noted(approval: Approval) -> dict[str, str]:
    """The details of a decision's line; a condition that there is not is left out."""
    conditions = approval.conditions
    named = None if conditions.members is None else json.dumps(conditions.members, ensure_ascii=False)
    detail: Mapping[str, object] = {
        "fab": approval.fab_hash,
        "site": approval.site,
        "dataset": approval.dataset,
        "reason": approval.reason,
        "expires_at": utc_text(approval.expires_at) or None,
        "most_rounds": conditions.most_rounds,
        "largest_message": conditions.largest_message,
        "members": named,
        "first_steward": approval.first_steward or None,
    }
    return {name: str(value) for name, value in detail.items() if value is not None}


def past_decisions(lines: Sequence[AuditLine], site: str, versions: Mapping[str, int]) -> tuple[PastDecision, ...]:
    """The site's decisions among a project's lines, newest first.

    Args:
        versions: the number of each app version, by its hash.
    """
    return tuple(
        _past_decision(line, versions[line.detail["fab"]])
        for line in reversed(lines)
        if line.action in _DECISIONS and line.detail["site"] == site and line.detail["fab"] in versions
    )


def _past_decision(line: AuditLine, version: int) -> PastDecision:
    detail = line.detail
    return PastDecision(
        dataset=detail["dataset"],
        fab_hash=detail["fab"],
        version=version,
        state=ApprovalState(line.action),
        decided_by=line.actor,
        decided_at=utc_text(line.at),
        reason=detail.get("reason", ""),
        expires_at=detail.get("expires_at", ""),
        conditions=Conditions(
            most_rounds=_number(detail.get("most_rounds")),
            largest_message=_number(detail.get("largest_message")),
            members=tuple(json.loads(detail["members"])) if "members" in detail else None,
        ),
    )


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)
