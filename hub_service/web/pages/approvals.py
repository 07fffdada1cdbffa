"""Pages for data stewards: what was asked of their sites, and one request with everything to read before deciding."""

from __future__ import annotations

import asyncio
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from federator.contract import (
    ANY_LENGTH,
    AppReview,
    ApprovalRequest,
    ApprovalState,
    Conditions,
    DeclaredOutput,
    output_type,
)

from hub_service.apps.comparing import Change, compare
from hub_service.apps.findings import find
from hub_service.domain import policy
from hub_service.domain.errors import FederationError, Invalid, NotFound
from hub_service.views import SiteNode
from hub_service.web.highlight import MOST_COLOURED
from hub_service.web.pages.base import PageHandler, Refusal
from hub_service.web.schema import parse_time


class ApprovalsPage(PageHandler):
    def get(self) -> None:
        requests = self.parts.coordinator.approvals(self.principal)
        mine = self.my_site()
        self.render_page(
            "approvals.html",
            waiting=[one for one in requests if one.state.asks],
            decided=[one for one in requests if not one.state.asks],
            sites=sorted(policy.sites_decided_by(self.principal)),
            titles={} if mine is None else {mine.slug: mine.title},
            nodes=self.parts.coordinator.site_nodes(self.principal),
        )


class ReviewPage(PageHandler):
    async def get(self, *asked: str) -> None:
        await self._show(self._find(asked), None)

    def _find(self, asked: tuple[str, ...]) -> ApprovalRequest:
        for one in self.parts.coordinator.approvals(self.principal):
            if (one.project_id, one.fab_hash, one.site, one.dataset) == asked:
                return one
        raise policy.no_such_request()

    def _node(self, request: ApprovalRequest) -> SiteNode | None:
        """The SuperNode that would run what is asked; None at a site with notebook servers."""
        nodes = self.parts.coordinator.site_nodes(self.principal)
        asked = (request.project_id, request.site, request.dataset)
        return next((one for one in nodes if (one.project_id, one.site, one.dataset) == asked), None)

    async def _show(self, request: ApprovalRequest, refusal: Refusal | None) -> None:
        site = self.my_site()
        coordinator = self.parts.coordinator
        review = coordinator.app_review(self.principal, request.project_id, request.fab_hash)
        installed = coordinator.site_modules(self.principal, request.site)
        earlier, before = coordinator.last_approved(self.principal, request) or (None, None)
        outputs = tuple(Output.of(one) for one in review.outputs)
        await self.render_code(
            "review.html",
            review.files,
            request=request,
            review=review,
            **await asyncio.to_thread(_read, review, before, installed),
            earlier=earlier,
            unknown_origin=installed is None,
            outputs=outputs,
            declared_bytes=_most_bytes(outputs),
            decisions=coordinator.decisions(self.principal, request.project_id, request.site),
            full=self.get_query_argument("show", "") == "all",
            refusal=refusal,
            kept=refusal.kept if refusal else {},
            site_title=site.title if site is not None and site.slug == request.site else request.site,
            isolates=site is None or site.isolates,
            node=self._node(request),
        )

    async def post(self, *path: str) -> None:
        asked = self._find(path)
        kept = {name: self.field(name) for name in ("reason", "expires", "rounds", "largest", "only_members")}
        try:
            decided = self.parts.coordinator.decide(
                self.principal,
                asked.project_id,
                asked.fab_hash,
                asked.dataset,
                asked.site,
                _decision(self.field("state")),
                kept["reason"],
                _end_of_day(kept["expires"]) or _exact_time(self.field("expires_at")),
                self._conditions(kept),
            )
        except NotFound:
            raise
        except FederationError as error:
            await self._show(asked, self.refuse("decision", error, **kept))
            return
        words = {
            ApprovalState.APPROVED_ONCE: "waits for a second data steward",
            ApprovalState.APPROVED: "is approved",
            ApprovalState.REJECTED: "is rejected",
            ApprovalState.REVOKED: "is no longer approved",
        }
        node = self._node(asked)
        lacks_key = node is not None and not node.fingerprint and decided.state is ApprovalState.APPROVED
        self.go(
            "approvals",
            said=f"Version {asked.version} of {asked.project_name} {words[decided.state]}.",
            next_step="Now register the key of your site's SuperNode." if lacks_key else "",
        )

    def _conditions(self, kept: Mapping[str, str]) -> Conditions:
        """The form's conditions. Raises Invalid."""
        return Conditions(
            most_rounds=self.whole_number("rounds") if kept["rounds"].strip() else None,
            largest_message=_bytes(kept["largest"]) if kept["largest"].strip() else None,
            members=tuple(self.get_body_arguments("member", strip=False)) if kept["only_members"] else None,
        )


def _read(review: AppReview, before: AppReview | None, installed: frozenset[str] | None) -> dict[str, Any]:
    """What takes long for a large app: to look through it, and what differs from the version approved last, if any."""
    comparison = None if before is None else compare(before, review)
    changed_cells = [one for one in comparison.cells if one.change is not Change.SAME] if comparison else []
    changed_files = [one for one in comparison.files if one.change is not Change.SAME] if comparison else []
    texts = [cell.source for cell in review.cells] + [file.text for file in review.files]
    texts += [part.before for part in changed_cells + changed_files]
    return {
        "findings": find(review, installed),
        "comparison": comparison,
        "changed_cells": changed_cells,
        "changed_files": changed_files,
        "coloured": sum(map(len, texts)) <= MOST_COLOURED,
    }


@dataclass(frozen=True, slots=True)
class Output:
    """One declared output, for the table. `bytes` is 0 where the declaration leaves the size open."""

    message: str
    key: str
    type: str
    bytes: int

    @classmethod
    def of(cls, declared: DeclaredOutput) -> Output:
        open_ended = ANY_LENGTH in declared.shape or declared.dtype in _OPEN_TYPES
        size = 0 if open_ended else math.prod(declared.shape) * _item_size(declared.dtype)
        return cls(declared.message, f"{declared.record}/{declared.key}", output_type(declared), size)


_OPEN_TYPES = ("text", "bytes")
_BITS = re.compile(r"\d+$")


def _item_size(dtype: str) -> int:
    """Bytes of one number, by the bits that its type's name ends with."""
    bits = _BITS.search(dtype)
    if bits is not None:
        return max(1, int(bits[0]) // 8)
    return 1 if dtype == "bool" else 8


def _most_bytes(outputs: Sequence[Output]) -> int:
    """Bytes of the largest answer that is declared; 0 where one has no fixed size, and where nothing is declared."""
    if not all(one.bytes for one in outputs):
        return 0
    sizes: dict[str, int] = defaultdict(int)
    for one in outputs:
        sizes[one.message] += one.bytes
    return max(sizes.values(), default=0)


def _bytes(megabytes: str) -> int:
    """Bytes from a number of MB as the form sends it. Raises Invalid."""
    try:
        size = float(megabytes) * (1 << 20)
        if not math.isfinite(size):
            raise ValueError
    except ValueError:
        raise Invalid(
            f"“{megabytes[:20]}” is not a size.", "Put in a number of MB such as 25, or leave it empty."
        ) from None
    return round(size)


def _exact_time(text: str) -> datetime | None:
    """A time that an earlier page was given; None for none. Raises Invalid."""
    return parse_time(text) if text else None


def _decision(text: str) -> ApprovalState:
    try:
        return ApprovalState(text)
    except ValueError:
        raise Invalid("No decision was sent.", "Press one of the buttons.") from None


def _end_of_day(day: str) -> datetime | None:
    """The end of a day in UTC, as the form's date field sends the day; None for no day. Raises Invalid."""
    return parse_time(f"{day}T23:59:59Z") if day else None


ROUTES = ((r"approvals", ApprovalsPage), (r"approvals/([^/]+)/([^/]+)/([^/]+)/([^/]+)", ReviewPage))
