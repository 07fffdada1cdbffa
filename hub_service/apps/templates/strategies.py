"""Flower's strategies, chosen by the run's configuration.

`strategy` names one of `flwr.serverapp.strategy`; `strategy-<parameter>` sets a parameter of it, with “-” for “_”:

    CONFIG = {"strategy": "FedAdam", "strategy-eta": 0.01}

A wrapper for differential privacy goes around the strategy that `strategy-strategy` names, FedAvg without it. The
parameters that are not the wrapper's own are that strategy's.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import strategy

NAME = "strategy"
PREFIX = "strategy-"
DEFAULT = "FedAvg"
MINIMA = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
WRAPPERS = "DifferentialPrivacy"

_CLIPPING = {
    "DifferentialPrivacyClientSideAdaptiveClipping": adaptiveclipping_mod,
    "DifferentialPrivacyClientSideFixedClipping": fixedclipping_mod,
}


def names() -> tuple[str, ...]:
    """All that Flower has."""
    return tuple(sorted(set(strategy.__all__) - {"Result", "Strategy"}))


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """What the strategy takes, by Flower's own names."""
    every = dict(inspect.signature(getattr(strategy, name).__init__).parameters)
    del every["self"]
    return every


def chosen(config: Mapping[str, Any]) -> Any:
    """The strategy that the configuration names, with the parameters it gives."""
    name, inner, around, options = split(config)
    if inner:
        return getattr(strategy, name)(strategy=_made(inner, options), **around)
    return _made(name, options)


def split(config: Mapping[str, Any]) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """The strategy's name; for a wrapper, what it goes around and the wrapper's parameters; the other parameters."""
    given = {parameter_of(key): value for key, value in config.items() if key.startswith(PREFIX)}
    name = str(config.get(NAME, DEFAULT))
    if not name.startswith(WRAPPERS):
        return name, "", {}, given
    inner = str(given.pop(NAME, DEFAULT))
    own = parameters(name)
    around = {parameter: value for parameter, value in given.items() if parameter in own}
    return name, inner, around, {key: value for key, value in given.items() if key not in own}


def parameter_of(key: str) -> str:
    """The parameter's name in Flower for a key of the configuration."""
    return key.removeprefix(PREFIX).replace("-", "_")


def _made(name: str, options: Mapping[str, Any]) -> Any:
    """One site is enough unless the configuration asks for more: a run goes on while a site is away."""
    minima = dict.fromkeys((minimum for minimum in MINIMA if minimum in parameters(name)), 1)
    return getattr(strategy, name)(**(minima | dict(options)))


def clip_where_asked(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """At a site: bound what one round changes, where the run's differential privacy leaves that to the sites."""
    clipping = _CLIPPING.get(str(context.run_config.get(NAME, "")))
    return call_next(message, context) if clipping is None else clipping(message, context, call_next)
