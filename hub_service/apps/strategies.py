"""Is the strategy that a notebook's CONFIG names one of Flower's, with parameters that it takes?

`hub_service.apps.build` asks before it builds. The strategy is made once here, by the code that makes it in the
aggregator: what Flower would refuse in the middle of a run is refused with the cell and the line.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from types import NoneType
from typing import Any, get_args

from hub_service.apps.cells import CONFIG_NAME, ConfigValue, NotebookApp, compile_source
from hub_service.apps.templates import strategies
from hub_service.domain.errors import Invalid

OWN_FUNCTION = "strategy"
_WRITE_YOUR_OWN = "For anything else, define strategy(config) in a tagged cell and return what you need."
_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}


def check_strategy(app: NotebookApp) -> None:
    """Check the keys `strategy` and `strategy-...` of the configuration.

    A notebook that defines strategy(config) may use those keys as it likes: nothing is checked then.

    Raises:
        Invalid: no such strategy or parameter, a value of another kind, or one that the strategy refuses. The text
            names the cell and the line, what there is, and the fix.
    """
    if _defines(app, OWN_FUNCTION):
        return
    config = app.config
    _check_name(app, strategies.NAME)
    if str(config.get(strategies.NAME, strategies.DEFAULT)).startswith(strategies.WRAPPERS):
        _check_name(app, strategies.PREFIX + strategies.NAME)
    name, inner, around, options = strategies.split(config)
    taken = dict.fromkeys(plain_parameters(name), name)
    if inner:
        taken = dict.fromkeys(plain_parameters(inner), inner) | taken
    for key in config:
        if key.startswith(strategies.PREFIX) and key != strategies.PREFIX + strategies.NAME:
            _check_parameter(app, key, taken)
    _check_required(app, name, {*around, *options})
    if inner:
        _check_required(app, inner, set(options))
    _check_made(app, name)


def plain_parameters(name: str) -> dict[str, inspect.Parameter]:
    """The strategy's parameters that a configuration can hold: texts, numbers, True and False."""
    return {key: parameter for key, parameter in strategies.parameters(name).items() if _kinds(parameter)}


def key_of(parameter: str) -> str:
    """The key of CONFIG for a parameter of Flower's."""
    return strategies.PREFIX + parameter.replace("_", "-")


def _check_name(app: NotebookApp, key: str) -> None:
    name = app.config.get(key, strategies.DEFAULT)
    is_inside = key != strategies.NAME
    possible = [one for one in strategies.names() if not (is_inside and one.startswith(strategies.WRAPPERS))]
    if name not in possible:
        wrong = "which cannot go inside another" if is_inside else "which Flower does not have"
        raise Invalid(
            f"{_where(app, key)} names the strategy “{name}”, {wrong}.",
            f"{_meant(str(name), possible)}There are {', '.join(possible)}. {_WRITE_YOUR_OWN}",
        )


def _check_parameter(app: NotebookApp, key: str, taken: dict[str, str]) -> None:
    parameter = strategies.parameter_of(key)
    names = list(dict.fromkeys(reversed(taken.values())))
    if parameter not in taken:
        keys = [key_of(one) for one in taken]
        raise Invalid(
            f"{_where(app, key)} sets “{key}”, which {' and '.join(names)} cannot be given by {CONFIG_NAME}.",
            f"{_meant(key, keys)}There are {', '.join(keys)}. {_WRITE_YOUR_OWN}",
        )
    kinds = _kinds(strategies.parameters(taken[parameter])[parameter])
    if not _fits(app.config[key], kinds):
        raise Invalid(
            f"{_where(app, key)} gives “{key}” {app.config[key]!r}; {taken[parameter]} takes {_KINDS[kinds[0]]}.",
            f"Write {_KINDS[kinds[0]]} there.",
        )


def _check_required(app: NotebookApp, name: str, given: set[str]) -> None:
    for parameter, described in plain_parameters(name).items():
        if described.default is inspect.Parameter.empty and parameter not in given:
            raise Invalid(
                f"{_where(app, strategies.NAME)} chooses {name}, which cannot do without “{key_of(parameter)}”.",
                f'Add "{key_of(parameter)}": ... to {CONFIG_NAME}. docs/strategies.md says what it means.',
            )


def _check_made(app: NotebookApp, name: str) -> None:
    try:
        strategies.chosen(app.config)
    except ValueError as error:
        raise Invalid(
            f"{_where(app, strategies.NAME)}: {name} refuses these parameters: {error}", f"Correct {CONFIG_NAME}."
        ) from error


def _kinds(parameter: inspect.Parameter) -> tuple[type, ...]:
    """Which of the plain types the parameter takes; empty for functions and objects."""
    annotation: Any = parameter.annotation
    every = tuple(kind for kind in get_args(annotation) if kind is not NoneType) or (annotation,)
    return every if all(kind in _KINDS for kind in every) else ()


def _fits(value: ConfigValue, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)


def _meant(word: str, possible: list[str]) -> str:
    close = difflib.get_close_matches(word, possible, n=1)
    return f"Did you mean {close[0]}? " if close else ""


# --- where in the notebook


def _defines(app: NotebookApp, function: str) -> bool:
    return any(
        isinstance(statement, ast.FunctionDef) and statement.name == function
        for cell in app.cells
        for statement in compile_source(cell.source).body
    )


def _where(app: NotebookApp, key: str) -> str:
    """The last place in the tagged cells where a dictionary has the key; CONFIG itself where none has."""
    places = [
        f"Cell {cell.number}, line {one.lineno}: {CONFIG_NAME}"
        for cell in app.cells
        for node in ast.walk(compile_source(cell.source))
        if isinstance(node, ast.Dict)
        for one in node.keys
        if isinstance(one, ast.Constant) and one.value == key
    ]
    return places[-1] if places else CONFIG_NAME
