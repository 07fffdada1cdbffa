"""Where each site's present message is, as the gateway sees it pass.

In memory: after a restart of the service nothing is known until a node's next message.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from hub_service.domain.clock import Clock


class Stage(StrEnum):
    """A message's way, seen from its site."""

    RECEIVING = "receiving"  # it is being sent to the node
    COMPUTING = "computing"  # the node has it
    SENDING = "sending"  # its answer comes in
    ANSWERED = "answered"  # its answer is here


@dataclass(frozen=True, slots=True)
class StageSince:
    stage: Stage
    since: datetime


class SiteStages:
    """The last stage of each participation's node."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._stages: dict[str, StageSince] = {}

    def moved(self, participation_id: str, stage: Stage) -> bool:
        """Note a stage; whether it is another than before."""
        known = self._stages.get(participation_id)
        if known is not None and known.stage is stage:
            return False
        self._stages[participation_id] = StageSince(stage, self._clock())
        return True

    def of(self, participation_id: str) -> StageSince | None:
        return self._stages.get(participation_id)

    def forget(self, participation_id: str) -> None:
        """A new node, or none: nothing was handed to it."""
        self._stages.pop(participation_id, None)
