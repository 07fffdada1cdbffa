"""Page for data stewards: the SuperNode of a site without notebook servers, and the forms for its key."""

from __future__ import annotations

from hub_service.domain.errors import FederationError, Forbidden, NotFound
from hub_service.web.pages.base import PageHandler, Refusal
from hub_service.web.schema import key_bytes


class NodeFrame(PageHandler):
    def show_node(self, participation_id: str, refusal: Refusal | None = None) -> None:
        node = self.parts.coordinator.site_node(self.principal, participation_id)
        self.render_page("node.html", node=node, refusal=refusal)

    def refuse_form(self, participation_id: str, error: FederationError) -> None:
        """Show the page again with the message. What was put in is not shown again: it may be a private key."""
        if isinstance(error, NotFound | Forbidden):
            raise error
        self.show_node(participation_id, self.refuse("node", error))


class NodePage(NodeFrame):
    def get(self, participation_id: str) -> None:
        self.show_node(participation_id)

    def post(self, participation_id: str) -> None:
        try:
            key = key_bytes(self.field("public_key"))
            self.parts.coordinator.register_node(self.principal, participation_id, key)
        except FederationError as error:
            self.refuse_form(participation_id, error)
            return
        self.go("participations", participation_id, "node", said="The key is registered. Now start the SuperNode.")


class RemovalForm(NodeFrame):
    def post(self, participation_id: str) -> None:
        try:
            self.parts.coordinator.remove_node(self.principal, participation_id)
        except FederationError as error:
            self.refuse_form(participation_id, error)
            return
        self.go("participations", participation_id, "node", said="The key is removed. Its SuperNode is refused now.")


_NODE = r"participations/(?P<participation_id>[^/]+)/node"

ROUTES = ((_NODE, NodePage), (f"{_NODE}/remove", RemovalForm))
