"""What the operations need of `hub_service.apps`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from federator.contract import Cell, DeclaredOutput, SourceFile


class BuiltApp(Protocol):
    """What a build gives; `hub_service.apps.build` makes it."""

    @property
    def fab(self) -> bytes: ...
    @property
    def fab_hash(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def cells(self) -> tuple[Cell, ...]: ...
    @property
    def files(self) -> tuple[SourceFile, ...]: ...
    @property
    def imports(self) -> tuple[str, ...]: ...
    @property
    def config(self) -> Mapping[str, str | int | float | bool]: ...
    @property
    def dependencies(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[DeclaredOutput, ...]: ...
    @property
    def private_cells(self) -> tuple[int, ...]: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...


class AppBuilder(Protocol):
    def build(self, filename: str, content: bytes, at_sites: frozenset[str] = frozenset()) -> BuiltApp:
        """Build a notebook, or check an uploaded app. Raises Invalid or TooLarge with what is wrong and where.

        `at_sites` are modules that some site has reported.
        """
