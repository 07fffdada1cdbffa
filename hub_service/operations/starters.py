"""The notebooks that a project can begin with."""

from __future__ import annotations

from federator.contract import Starter

from hub_service import starters
from hub_service.domain import policy
from hub_service.domain.errors import NotFound
from hub_service.domain.projects import Principal
from hub_service.operations.base import Operations


class StarterOperations(Operations):
    """List them, and hand one out."""

    def starters(self, principal: Principal) -> tuple[Starter, ...]:
        """In the order in which they are offered. Raises Forbidden for who may not use the service."""
        policy.require_scope(principal, policy.PROJECT_SCOPE)
        return starters.STARTERS

    def starter(self, principal: Principal, name: str) -> tuple[str, bytes]:
        """File name and content of one, as `add_app` takes them and as a person saves them.

        Raises:
            NotFound: there is none of that name.
        """
        if name not in {one.name for one in self.starters(principal)}:
            raise NotFound(
                f"There is no starter “{name}”.", f"There are {', '.join(one.name for one in starters.STARTERS)}."
            )
        return f"{name}.ipynb", starters.read(name)
