"""Nodes for a client kernel where no Fleet traffic is wanted."""

from __future__ import annotations

import threading
from typing import Any

from federator.client import OnState
from federator.contract import ClientState


class StandInNode:
    """Starts at once, reports OFFLINE when stopped, as the real one does. `made` is its factory."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.refused = False
        self.interrupts = 0
        self.prepared: list[str] = []  # hashes of apps
        self.told: list[float] = []
        self.on_state: OnState | None = None

    def made(self, private_key: Any, on_state: OnState) -> StandInNode:
        self.on_state = on_state
        return self

    def prepare(self, fab_hash: str) -> None:
        self.prepared.append(fab_hash)

    def start(self) -> None:
        self.started.set()

    def end_refused(self) -> None:
        """As where the gateway answers 401."""
        self.refused = True
        assert self.on_state is not None
        self.on_state(ClientState.FAILED, "The service does not accept this client any more.")

    def interrupt(self) -> None:
        self.interrupts += 1

    def stop(self, timeout: float) -> None:
        self.told.append(timeout)
        assert self.on_state is not None
        self.on_state(ClientState.OFFLINE, "Stopped.")


class HangingNode(StandInNode):
    """Does not end when told to: returns at the timeout."""

    def stop(self, timeout: float) -> None:
        self.told.append(timeout)
        threading.Event().wait(timeout)


def node_without_flower(private_key: Any, on_state: OnState) -> StandInNode:
    """What making a node does where Flower is not installed."""
    raise ImportError("No module named 'flwr'", name="flwr")
