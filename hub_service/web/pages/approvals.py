"""Pages for data stewards: what was asked of their sites, and one request with everything to read before deciding."""

from __future__ import annotations

from datetime import datetime

from federator.contract import ApprovalRequest, ApprovalState

from hub_service.domain import policy
from hub_service.domain.errors import FederationError, Invalid, NotFound
from hub_service.views import SiteNode
from hub_service.web.pages.base import PageHandler, Refusal
from hub_service.web.schema import parse_time


class ApprovalsPage(PageHandler):
    def get(self) -> None:
        requests = self.parts.coordinator.approvals(self.principal)
        self.render_page(
            "approvals.html",
            waiting=[one for one in requests if one.state is ApprovalState.WAITING],
            decided=[one for one in requests if one.state is not ApprovalState.WAITING],
            sites=sorted(policy.sites_decided_by(self.principal)),
            nodes=self.parts.coordinator.site_nodes(self.principal),
        )


class ReviewPage(PageHandler):
    def get(self, *asked: str) -> None:
        self._show(self._find(asked), None)

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

    def _show(self, request: ApprovalRequest, refusal: Refusal | None) -> None:
        site = self.my_site()
        self.render_page(
            "review.html",
            request=request,
            review=self.parts.coordinator.app_review(self.principal, request.project_id, request.fab_hash),
            refusal=refusal,
            kept=refusal.kept if refusal else {},
            site_title=site.title if site is not None and site.slug == request.site else request.site,
            isolates=site is None or site.isolates,
            node=self._node(request),
        )

    def post(self, *path: str) -> None:
        asked = self._find(path)
        reason, expires = self.field("reason"), self.field("expires")
        try:
            decided = self.parts.coordinator.decide(
                self.principal,
                asked.project_id,
                asked.fab_hash,
                asked.dataset,
                asked.site,
                _decision(self.field("state")),
                reason,
                _end_of_day(expires),
            )
        except NotFound:
            raise
        except FederationError as error:
            self._show(asked, self.refuse("decision", error, reason=reason, expires=expires))
            return
        words = {
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


def _decision(text: str) -> ApprovalState:
    try:
        return ApprovalState(text)
    except ValueError:
        raise Invalid("No decision was sent.", "Press one of the buttons.") from None


def _end_of_day(day: str) -> datetime | None:
    """The end of a day in UTC, as the form's date field sends the day; None for no day. Raises Invalid."""
    return parse_time(f"{day}T23:59:59Z") if day else None


ROUTES = ((r"approvals", ApprovalsPage), (r"approvals/([^/]+)/([^/]+)/([^/]+)/([^/]+)", ReviewPage))
