"""What goes around the ClientApp's functions."""

import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable


def seconds_mod(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Add how long the function took to the metrics that it answers with."""
    begun = time.perf_counter()
    reply = call_next(msg, context)
    if reply.has_content() and "metrics" in reply.content:
        reply.content["metrics"]["seconds"] = time.perf_counter() - begun
    return reply


def bounded_mod(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Shorten a change of the weights that is longer than `largest-change`."""
    reply = call_next(msg, context)
    before = msg.content["arrays"]["weights"].numpy()
    change = reply.content["arrays"]["weights"].numpy() - before
    length = float(np.linalg.norm(change))
    share = np.float32(min(1.0, context.run_config["largest-change"] / max(length, 1e-12)))
    reply.content["arrays"] = ArrayRecord({"weights": Array(before + share * change)})
    reply.content["metrics"]["change"] = float(share) * length
    return reply
