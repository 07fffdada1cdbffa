"""Page for the Hub's administrators: the state of everything, and the repairs."""

from __future__ import annotations

from federator.contract import Scope

from hub_service.domain.errors import FederationError, Forbidden
from hub_service.operations.administration import repair_of
from hub_service.web.pages.base import PageHandler, Refusal


class AdministrationFrame(PageHandler):
    scope = Scope.ADMINISTER

    async def show(self, refusal: Refusal | None = None) -> None:
        state = await self.parts.coordinator.federation_state(self.principal)
        self.render_page("administration.html", state=state, refusal=refusal)


class AdministrationPage(AdministrationFrame):
    async def get(self) -> None:
        await self.show()


class RepairForm(AdministrationFrame):
    async def post(self) -> None:
        try:
            repair = repair_of(self.field("repair"))
            said = await self.parts.coordinator.repair(self.principal, repair, self.field("target"))
        except Forbidden:
            raise
        except FederationError as error:
            await self.show(self.refuse("repair", error))
            return
        self.go("administration", said=said)


ROUTES = ((r"administration", AdministrationPage), (r"administration/repairs", RepairForm))
