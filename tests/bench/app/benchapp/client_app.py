"""What runs at a site. The metrics say when it trained, and how long its own work took."""

from __future__ import annotations

import time
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from . import work

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    arrived = time.perf_counter()
    state, times = work.timed(work.train, context.run_config, _state(message, context.run_config))
    sent = next(iter(message.content.config_records.values()), {}).get("sent", arrived)
    metrics = MetricRecord({**_who(context), **times, "reaction": arrived - sent, "num-examples": 1})
    return Message(RecordDict({"arrays": arrays_of(state), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    loss, times = work.timed(work.evaluate, context.run_config, _state(message, context.run_config))
    metrics = MetricRecord({**_who(context), **times, "loss": loss, "num-examples": 1})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def arrays_of(state: work.State) -> ArrayRecord:
    """As Flower sends them."""
    if all(hasattr(value, "numpy") for value in state.values()):
        return ArrayRecord(state)
    return ArrayRecord({name: Array(value) for name, value in state.items()})


def _who(context: Context) -> dict[str, int]:
    """Tells the sites of a run from each other: Flower's ids do not fit a metric."""
    return {"node": context.node_id % 2**31}


def _state(message: Message, config: Any) -> work.State:
    record = next(iter(message.content.array_records.values()))
    if config["kind"] == "numpy":
        return {name: array.numpy() for name, array in record.items()}
    import torch  # noqa: F401 - Flower converts to tensors only where torch is imported already

    return record.to_torch_state_dict()
