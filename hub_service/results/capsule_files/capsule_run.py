"""Runs the approved ServerApp of this capsule, unchanged, on stock Flower, and saves the model that it ends with.

Sums of floating numbers depend on their order, and replies on stock Flower come in no order. So replies are put in the
order of the recorded run. A site is recognised by what it reports in the first round: examples, then metrics.

Environment: CAPSULE_RESULT, where to save the model; by default `capsule-result.npz` in the SuperLink's folder.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from capsule_recorded import FIRST_ROUND, SERVERAPP, SITES  # type: ignore[import-not-found] # made for each capsule
from flwr.app import ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

NODES_WITHIN_S = 600.0
_UNKNOWN = len(SITES)  # the place of a node that was not recognised: behind all others

Send = Callable[..., Iterable[Message]]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    wait_for_nodes(grid)
    seen = Seen()
    grid.send_and_receive = in_order(grid.send_and_receive, seen)  # type: ignore[method-assign]
    start = Strategy.start

    def telling_start(self: Strategy, *args: Any, **kwargs: Any) -> Any:
        result = start(self, *args, **kwargs)
        seen.arrays = result.arrays or seen.arrays
        return result

    Strategy.start = telling_start  # type: ignore[method-assign]
    try:
        approved_app()(grid=grid, context=context)
    finally:
        Strategy.start = start  # type: ignore[method-assign]
    save(seen.arrays)


def approved_app() -> ServerApp:
    module, _, names = SERVERAPP.partition(":")
    found: Any = import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    if not isinstance(found, ServerApp):
        raise TypeError(f"{SERVERAPP} is no ServerApp")
    return found


def wait_for_nodes(grid: Grid) -> None:
    """The recorded run began when all its sites were there."""
    deadline = time.monotonic() + NODES_WITHIN_S
    while (there := len(list(grid.get_node_ids()))) < len(SITES):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{there} of {len(SITES)} SuperNodes connected within {NODES_WITHIN_S:g} s")
        time.sleep(0.2)


class Seen:
    """The newest global model, and which node is which site."""

    def __init__(self) -> None:
        self.arrays: ArrayRecord | None = None
        self.places: dict[int, int] = {}  # node id -> place among the recorded sites


def in_order(send: Send, seen: Seen) -> Send:
    def send_and_receive(messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        messages = list(messages)
        for message in messages[:1]:
            records = message.content.array_records.values()
            if records and message.metadata.message_type.partition(".")[0] in ("train", "evaluate"):
                seen.arrays = max(records, key=lambda record: sum(len(array.data) for array in record.values()))
        replies = list(send(messages, timeout=timeout))
        if not seen.places:
            seen.places = recognised([reply for reply in replies if reply.has_content()])
        return sorted(replies, key=lambda reply: seen.places.get(reply.metadata.src_node_id, _UNKNOWN))

    return send_and_receive


def recognised(replies: list[Message]) -> dict[int, int]:
    """For each recorded site, in order, the node whose reply is nearest to what the site reported then."""
    places: dict[int, int] = {}
    for place, recorded in enumerate(FIRST_ROUND):
        left = [reply for reply in replies if reply.metadata.src_node_id not in places]
        if recorded is not None and left:
            nearest = min(left, key=lambda reply: distance(reply, *recorded))
            places[nearest.metadata.src_node_id] = place
    return places


def distance(reply: Message, examples: int, metrics: dict[str, float]) -> tuple[float, float]:
    found: dict[str, Any] = {}
    for record in reply.content.metric_records.values():
        found.update(record)
    off = sum(abs(found[name] - value) for name, value in metrics.items() if isinstance(found.get(name), int | float))
    return abs(found.get("num-examples", 0) - examples), off


def save(arrays: ArrayRecord | None) -> None:
    """All at once: whoever waits for the file finds it whole."""
    if not arrays:
        raise ValueError("the app ended without a model")
    path = Path(os.environ.get("CAPSULE_RESULT", "capsule-result.npz")).absolute()
    partial = path.with_name(f"{path.name}.partial.npz")
    np.savez(partial, *(array.numpy() for array in arrays.values()), names=np.array(list(arrays)))
    partial.replace(path)
    logging.getLogger("flwr").info("the model lies in %s", path)
