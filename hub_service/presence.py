"""Which clients are connected: heard of through the gateway or their server a short while ago. In memory.

After a restart of the service everybody counts as offline until their node's next poll.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from federator.contract import ClientState

from hub_service.domain.clock import Clock
from hub_service.domain.projects import Participation

CONNECTED_STATES = frozenset({ClientState.READY, ClientState.WORKING})

# A waiting node polls every 50 s, a stock one every 20 s; a working one sends a heartbeat every 20 or 30 s.
LOST_AFTER = timedelta(seconds=75)
# A node whose poll was cut off asks again at once, unless it has ended or the Hub's proxy is away.
BACK_WITHIN = timedelta(seconds=15)


class Presence:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_seen: dict[str, datetime] = {}
        self._working: set[str] = set()
        self._cut_off: set[str] = set()

    def seen(self, participation_id: str) -> None:
        self._last_seen[participation_id] = self._clock()
        self._cut_off.discard(participation_id)

    def works(self, participation_id: str, working: bool) -> None:
        """Note whether the client works on a message: this changes with each one, so the store does not hold it."""
        if working:
            self._working.add(participation_id)
        else:
            self._working.discard(participation_id)

    def cut_off(self, participation_id: str) -> None:
        """Count the client as lost unless it is seen again soon."""
        if participation_id in self._last_seen:
            self._last_seen[participation_id] = self._clock() - LOST_AFTER + BACK_WITHIN
            self._cut_off.add(participation_id)

    def forget(self, participation_id: str) -> None:
        self._last_seen.pop(participation_id, None)
        self._working.discard(participation_id)
        self._cut_off.discard(participation_id)

    def is_connected(self, participation_id: str) -> bool:
        """Whether it was heard of since its node's key was registered, and its connection was not lost since."""
        return self._is_here(participation_id) and participation_id not in self._cut_off

    def state(self, participation: Participation) -> ClientState:
        """The client's state, which is OFFLINE where it was last known to be connected and has fallen silent."""
        if participation.client not in CONNECTED_STATES:
            return participation.client
        if not self._is_here(participation.id):
            return ClientState.OFFLINE
        return ClientState.WORKING if participation.id in self._working else ClientState.READY

    def take_lost(self) -> Sequence[str]:
        """Ids of the participations that fell silent since the last call."""
        lost = [participation_id for participation_id in self._last_seen if not self._is_here(participation_id)]
        for participation_id in lost:
            self.forget(participation_id)
        return lost

    def _is_here(self, participation_id: str) -> bool:
        last_seen = self._last_seen.get(participation_id)
        return last_seen is not None and self._clock() - last_seen < LOST_AFTER
