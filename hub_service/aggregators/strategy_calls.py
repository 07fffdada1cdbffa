"""Follows an app's calls of `Strategy.start`, so that they can be gone on with in another process.

`Strategy.start` stays Flower's own, or the app's. What it asks the strategy for the rounds that are done already
(configure_train, aggregate_train, configure_evaluate, aggregate_evaluate, evaluate_fn) is answered as it was answered
then, and nothing is sent; behind the last of them the strategy, its configurations and the random numbers are put as
they were. A call that had returned returns the same again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from hub_service.aggregators.checkpoint import generators, parted, put_generators, put_state, state_of

_FOLLOWED = frozenset({"configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate"})
_START, _EVALUATE_FN = "start", "evaluate_fn"

EvaluateFn = Callable[[int, ArrayRecord], "MetricRecord | None"]


@dataclass(slots=True)
class Ended:
    """A call that has returned: what, and what was left behind."""

    result: Any
    strategy: dict[str, Any]
    generators: dict[str, Any]


@dataclass(slots=True)
class Rounds:
    """A call that goes on.

    Attributes:
        last: the last round that is done; 0: none.
        arrays: what the strategy aggregated last; None: nothing yet.
        aggregated: rounds in which it did.
        train, evaluate, central: its metrics by round: of training, of evaluation, and of the app's evaluate_fn.
        train_config, evaluate_config: as they were sent last; a strategy may change them from round to round.
    """

    last: int = 0
    arrays: ArrayRecord | None = None
    aggregated: set[int] = field(default_factory=set)
    train: dict[int, MetricRecord | None] = field(default_factory=dict)
    evaluate: dict[int, MetricRecord | None] = field(default_factory=dict)
    central: dict[int, MetricRecord | None] = field(default_factory=dict)
    train_config: dict[str, Any] = field(default_factory=dict)
    evaluate_config: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    generators: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Calls:
    """Those of one phase, in order."""

    ended: list[Ended] = field(default_factory=list)
    open: Rounds | None = None

    def leave_out_what_cannot_be_kept(self) -> list[str]:
        """The names of the strategies' attributes that were left out."""
        lost: list[str] = []
        every: list[Ended | Rounds] = [*self.ended]
        if self.open is not None:
            every.append(self.open)
        for one in every:
            one.strategy, names = parted(one.strategy)
            lost += names
        return list(dict.fromkeys(lost))


class StrategyCalls:
    """Follows the calls of one phase while `followed` is open.

    Args:
        found: reads what an earlier process had seen of them, which is empty where there was none. Asked at the first
            call: what it returns may be of the app's own classes, and by then the app's modules are loaded.
        keep: takes each new state, with the round that is done.
        tell_strategy: told whose call begins.
        tell_result: told what arrays each call ends with: without an evaluate message after the last round nothing else
            shows them.
    """

    def __init__(
        self,
        found: Callable[[], Calls],
        keep: Callable[[Calls, int], None],
        tell_strategy: Callable[[Strategy], None],
        tell_result: Callable[[ArrayRecord], None],
    ) -> None:
        self._found = found
        self._calls = Calls()
        self._before = 0  # calls that an earlier process had seen return
        self._keep = keep
        self._tell_strategy = tell_strategy
        self._tell_result = tell_result
        self._number = 0
        self._round: _Follower | None = None

    @contextmanager
    def followed(self) -> Iterator[None]:
        """While this is open, every strategy's `start` is followed, the app's own overrides included."""
        start, follow = Strategy.start, self._following

        def follow_override(cls: type[Strategy], /, **named: Any) -> None:
            super(Strategy, cls).__init_subclass__(**named)
            if _START in vars(cls):
                cls.start = follow(cls.start)  # type: ignore[method-assign]

        Strategy.start = follow(start)  # type: ignore[method-assign]
        Strategy.__init_subclass__ = classmethod(follow_override)  # type: ignore[assignment]
        try:
            yield
        finally:
            Strategy.start = start  # type: ignore[method-assign]
            del Strategy.__init_subclass__

    def _following(self, start: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(start)

        @functools.wraps(start)
        def following_start(*args: Any, **named: Any) -> Any:
            bound = signature.bind(*args, **named)
            strategy: Strategy = bound.args[0]
            if self._round is not None:  # an override calls the one that it overrides
                return self._called(start, bound, self._round)
            if self._number == 0:
                self._calls = self._found()
                self._before = len(self._calls.ended)
            self._number += 1
            if self._number <= self._before:
                return self._returned(strategy, self._calls.ended[self._number - 1])
            return self._gone_through(start, bound, strategy)

        return following_start

    def _called(self, start: Callable[..., Any], bound: inspect.BoundArguments, follower: _Follower) -> Any:
        if evaluate_fn := bound.arguments.get(_EVALUATE_FN):
            bound.arguments[_EVALUATE_FN] = follower.evaluating(evaluate_fn)
        return start(*bound.args, **bound.kwargs)

    def _returned(self, strategy: Strategy, ended: Ended) -> Any:
        put_state(strategy, ended.strategy)
        put_generators(ended.generators)
        self._tell(ended.result)
        return ended.result

    def _gone_through(self, start: Callable[..., Any], bound: inspect.BoundArguments, strategy: Strategy) -> Any:
        self._tell_strategy(strategy)
        rounds = self._calls.open or Rounds()
        self._calls.open = rounds
        self._round = _Follower(strategy, rounds, lambda: self._keep(self._calls, rounds.last))
        try:
            with self._round.asked():
                result = self._called(start, bound, self._round)
        finally:
            self._round = None
        self._tell(result)
        self._calls.ended.append(Ended(result, state_of(strategy), generators()))
        self._calls.open = None
        self._keep(self._calls, max(rounds.train, default=0))
        return result

    def _tell(self, result: Any) -> None:
        arrays = getattr(result, "arrays", None)  # an override may return something else
        if isinstance(arrays, ArrayRecord):
            self._tell_result(arrays)


class _Follower:
    """Stands between one call of `start` and its strategy.

    Args:
        rounds: what is known of it; kept up to date.
        keep: called when another round is done.
    """

    def __init__(self, strategy: Strategy, rounds: Rounds, keep: Callable[[], None]) -> None:
        self._strategy = strategy
        self._rounds = rounds
        self._keep = keep
        self._done = rounds.last  # rounds that are answered from what is known
        self._configs: dict[str, ConfigRecord] = {}
        # The strategy's own, which are the app's where it overrides them.
        self._train, self._take = strategy.configure_train, strategy.aggregate_train
        self._test, self._judge = strategy.configure_evaluate, strategy.aggregate_evaluate

    @contextmanager
    def asked(self) -> Iterator[None]:
        """While this is open, the strategy is asked here first."""
        for name in _FOLLOWED:
            setattr(self._strategy, name, getattr(self, name))
        try:
            yield
        finally:
            for name in _FOLLOWED:
                vars(self._strategy).pop(name, None)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if server_round <= self._done:
            return []
        if self._done and server_round == self._done + 1:
            _put_config(config, self._rounds.train_config)
            put_state(self._strategy, self._rounds.strategy)
            put_generators(self._rounds.generators)
        elif server_round > 1:
            self._note_done(server_round - 1)
        self._configs["train"] = config
        return self._train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        rounds = self._rounds
        if server_round <= self._done:
            # The last ones stand for those of all rounds: these were all that the next round began with.
            return rounds.arrays if server_round in rounds.aggregated else None, rounds.train.get(server_round)
        arrays, metrics = self._take(server_round, replies)
        if arrays is not None:
            rounds.arrays = arrays
            rounds.aggregated.add(server_round)
        rounds.train[server_round] = metrics
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if server_round <= self._done:
            return []
        if self._done and server_round == self._done + 1:
            _put_config(config, self._rounds.evaluate_config)
        self._configs["evaluate"] = config
        return self._test(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        if server_round <= self._done:
            return self._rounds.evaluate.get(server_round)
        metrics = self._judge(server_round, replies)
        self._rounds.evaluate[server_round] = metrics
        return metrics

    def evaluating(self, evaluate_fn: EvaluateFn) -> EvaluateFn:
        """The app's own evaluation in the aggregator."""

        @functools.wraps(evaluate_fn)
        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            central = self._rounds.central
            if server_round > self._done or server_round not in central:
                central[server_round] = evaluate_fn(server_round, arrays)
            return central[server_round]

        return evaluate

    def _note_done(self, number: int) -> None:
        rounds = self._rounds
        rounds.last = number
        rounds.train_config = dict(self._configs.get("train", {}))
        rounds.evaluate_config = dict(self._configs.get("evaluate", {}))
        rounds.strategy = state_of(self._strategy, _FOLLOWED)
        rounds.generators = generators()
        self._keep()


def _put_config(config: ConfigRecord, wanted: dict[str, Any]) -> None:
    for name in list(config):
        del config[name]
    config.update(wanted)
