"""Notebooks to begin with, fetched from the service: `federator.starters()` and `federator.starter("survival")`."""

from __future__ import annotations

from pathlib import Path

from federator import display as render
from federator import service_client as api
from federator.contract import Starter
from federator.notebook import _service

_HEAD = ("starter", "title", "what it does")


class StarterList(list[Starter]):
    """A list that shows itself as a table."""

    def __repr__(self) -> str:
        return render.text_table(_HEAD, self._rows())

    def _repr_html_(self) -> str:
        return render.html_table(_HEAD, self._rows())

    def _rows(self) -> list[tuple[str, ...]]:
        return [(one.name, one.title, one.description) for one in self]


def starters() -> StarterList:
    """The notebooks that there are."""
    there_are: tuple[Starter, ...] = _service().call(api.get_starters())
    return StarterList(there_are)


def starter(name: str, folder: str | Path = ".") -> Path:
    """Write a starter notebook into the current folder, to be opened, run, changed and published. Returns its path.

    Args:
        name: as `starters()` lists it.

    Raises:
        NotFound: there is none of that name.
        Refused: a file of its name is there already, or the folder takes no files.
    """
    content = _service().call(api.get_starter(name))
    path = Path(folder) / f"{name}.ipynb"
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError as error:
        raise api.Refused(
            f"{path} is there already, and is left as it is.", "Rename or delete it, or name another folder."
        ) from error
    except OSError as error:
        raise api.Refused(
            f"{path} cannot be written: {error.strerror}.", "Name a folder of yours: starter(name, folder=...)."
        ) from error
    return path
