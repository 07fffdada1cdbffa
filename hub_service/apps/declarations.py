"""What an app declares besides its code: the packages it needs, and what may leave a site.

Both stand in the app's pyproject.toml, so they are part of what is approved. `hub_service.apps.cells` and `build` check
them here; `hub_service.views` and the operations read them back from a version's files.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from functools import lru_cache

from federator.contract import DeclaredOutput, SourceFile, read_outputs
from packaging.requirements import InvalidRequirement, Requirement

from hub_service.domain.errors import Invalid

PYPROJECT = "pyproject.toml"
HOW_TO_DECLARE = (
    'Write it as DEPENDENCIES = ["lifelines>=0.27", ...]: names of packages, with versions where they matter.'
)
_MOST_DEPENDENCIES = 100


def checked_requirements(found: Sequence[object], where: str) -> tuple[str, ...]:
    """The requirements in one spelling, sorted, each once.

    Raises:
        Invalid: one of them is no requirement (PEP 508), or names a place to install from.
    """
    if len(found) > _MOST_DEPENDENCIES:
        raise Invalid(f"{where} has {len(found)} entries; at most {_MOST_DEPENDENCIES} are taken.", HOW_TO_DECLARE)
    return tuple(sorted({_requirement(one, where) for one in found}))


def _requirement(text: object, where: str) -> str:
    try:
        requirement = Requirement(text) if isinstance(text, str) else None
    except InvalidRequirement as error:
        raise Invalid(f"{where} has the entry “{text}”, which names no package.", HOW_TO_DECLARE) from error
    if requirement is None:
        raise Invalid(f"{where} has an entry that is no text: {text!r}.", HOW_TO_DECLARE)
    if requirement.url is not None:
        raise Invalid(
            f"{where} has the entry “{text}”, which names a place to install from. Nothing is installed at a site: its "
            "image has a package, or it has not.",
            HOW_TO_DECLARE,
        )
    return str(requirement)


def checked_outputs(table: object, where: str) -> tuple[DeclaredOutput, ...]:
    """Raises Invalid for what is no declaration of outputs."""
    try:
        return read_outputs(table)
    except ValueError as error:
        raise Invalid(
            f"{where} has declared outputs that cannot be read: {error}.",
            "Run federator.try_here() again and publish, or remove the declaration.",
        ) from error


def dependencies_of(files: Iterable[SourceFile]) -> tuple[str, ...]:
    """The requirements of an app version that was built here."""
    return _declared(_pyproject(files))[0]


def outputs_of(files: Iterable[SourceFile]) -> tuple[DeclaredOutput, ...]:
    """The declared outputs of an app version that was built here; none where it declares nothing."""
    return _declared(_pyproject(files))[1]


def _pyproject(files: Iterable[SourceFile]) -> str:
    return next((file.text for file in files if file.path == PYPROJECT), "")


@lru_cache(maxsize=256)
def _declared(text: str) -> tuple[tuple[str, ...], tuple[DeclaredOutput, ...]]:
    """Kept: a page asks again and again, and a version's text never changes."""
    pyproject = tomllib.loads(text)
    dependencies = pyproject.get("project", {}).get("dependencies", [])
    return tuple(dependencies), read_outputs(pyproject.get("tool", {}).get("federator", {}).get("outputs", {}))
