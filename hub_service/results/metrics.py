"""Metrics by their names: which one people look at first, and whether more of it is better."""

from __future__ import annotations

from collections.abc import Iterable

from federator.contract import Metrics

EXAMPLES = "num-examples"

# What people want to see first, where an app reports several metrics.
_PREFERRED = ("accuracy", "balanced-accuracy", "balanced_accuracy", "auc", "f1", "dice", "concordance")
# Metrics that are a share of the examples, so that the number of examples says how sure they are.
_SHARES = frozenset({"accuracy", "acc", "eval-accuracy", "test-accuracy", "val-accuracy", "hit-rate", "error-rate"})


def is_loss(metric: str) -> bool:
    """Whether less is better."""
    return any(part in metric.lower() for part in ("loss", "error", "mse", "mae"))


def is_share(metric: str) -> bool:
    """Whether the metric is known to be a share of the examples."""
    return metric.lower().replace("_", "-") in _SHARES


def main_metric(measured: Iterable[Metrics]) -> str | None:
    """The one metric to show, of all that an app reported."""
    names = dict.fromkeys(name for metrics in measured for name in metrics if name != EXAMPLES)
    for name in _PREFERRED:
        if name in names:
            return name
    return min(names, key=is_loss, default=None)
