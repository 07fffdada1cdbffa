"""Arrays whose data lie in a file. They count as page cache, not as the process's memory: a round holds few models."""

from __future__ import annotations

from typing import Any

from federator.framing import Data
from federator.parcel import npy_view, widened
from flwr.app import Array
from flwr.common.constant import SType
from flwr.proto.recorddict_pb2 import Array as ArrayProto
from numpy.typing import NDArray

Place = tuple[str, int]
"""The name of a blob, and which of its arrays."""


class MappedArray(Array):
    """A Flower Array that reads its data from a mapped file each time it is asked for them.

    To an app it is an Array: `data` are bytes, `numpy()` is an array of the app's own, and setting `data` makes it an
    ordinary one again. That holds for one whose file has its numbers in half precision too: where they are known
    exactly, these are kept in memory.
    """

    def __init__(
        self, described: ArrayProto, data: Data, halved: bool = False, spare: memoryview | None = None
    ) -> None:
        """
        Args:
            described: dtype, shape and stype.
            data: the serialized data, within a mapped file.
            halved: whether these are in half precision.
            spare: the same data in another mapping. Where it is given, and `data` are in one that may be written to and
                keeps that to itself, the first who asks for `numpy()` gets them without a copy.
        """
        self.dtype = described.dtype
        self.shape = tuple(described.shape)
        self.stype = described.stype
        self.__dict__.update(_view=memoryview(data), _place=None, _halved=halved, _exact=None, _spare=spare)

    @property
    def view(self) -> memoryview:
        """The data as they travel, not copied."""
        view: memoryview = self.__dict__["_view"]
        return view

    @property
    def halved(self) -> bool:
        """Whether `view` has the numbers in half precision."""
        halved: bool = self.__dict__["_halved"]
        return halved

    @property
    def exact(self) -> Data | None:
        """The data themselves, not copied; None where there is no more of them than half precision."""
        exact: Data | None = self.__dict__["_exact"] if self.halved else self.view
        return exact

    @property
    def place(self) -> Place | None:
        """Which of a blob's arrays has these data; None where no blob has."""
        place: Place | None = self.__dict__["_place"]
        return place

    @property
    def data(self) -> bytes:
        return Array(numpy_view(self)).data if self.exact is None else bytes(self.exact)

    @data.setter
    def data(self, data: bytes) -> None:
        self.__class__ = Array  # type: ignore[assignment]
        for name in ("_view", "_place", "_halved", "_exact", "_spare"):
            del self.__dict__[name]
        self.data = data

    def numpy(self) -> NDArray[Any]:
        """A writable array that nobody else has, as Flower's own."""
        view, spare = numpy_view(self), self.__dict__["_spare"]
        if view.flags.owndata:
            return view
        if spare is None or self.view.readonly:
            return view.copy()
        self.__dict__.update(_view=spare, _spare=None)
        view.flags.writeable = True
        return view

    def __deepcopy__(self, _: object) -> Array:
        return Array(self.dtype, self.shape, self.stype, self.data)

    def __reduce__(self) -> tuple[type[Array], tuple[str, tuple[int, ...], str, bytes]]:
        return Array, (self.dtype, self.shape, self.stype, self.data)


# Flower writes the class's name into what it sends, and knows its own classes only.
MappedArray.__qualname__ = Array.__qualname__


def map_in_place(array: Array, view: memoryview, place: Place) -> None:
    """Let the array read the same data from `view` from now on, and let go of its own."""
    _map(array, view, place, halved=False, exact=None)


def halve_in_place(array: Array, view: memoryview, place: Place) -> None:
    """Let the array know its data in half precision at `view`, and keep those that it has."""
    exact = array.exact if isinstance(array, MappedArray) else array.data
    _map(array, view, place, halved=True, exact=exact)


def _map(array: Array, view: memoryview, place: Place, *, halved: bool, exact: Data | None) -> None:
    array.__dict__.pop("data", None)
    array.__dict__.pop("_chunks", None)  # Flower's cache, which holds the data too
    array.__dict__.update(_view=view, _place=place, _halved=halved, _exact=exact, _spare=None)
    array.__class__ = MappedArray


def is_halved(array: Array) -> bool:
    """Whether the array's data travel in half precision."""
    return isinstance(array, MappedArray) and array.halved


def size_of(array: Array) -> int:
    """Bytes of the array's data as they travel, without copying them."""
    return len(array.view if isinstance(array, MappedArray) else array.data)


def data_of(array: Array) -> Data:
    """The array's data, not copied unless they came in half precision."""
    exact = array.exact if isinstance(array, MappedArray) else None
    return array.data if exact is None else exact


def numpy_view(array: Array) -> NDArray[Any]:
    """The array as NumPy sees it, read-only and without a copy where its header permits.

    One that came in half precision is a copy with the dtype that it is described with.

    Raises ValueError for data that are no array, TypeError for data of another kind.
    """
    if array.stype != SType.NUMPY:
        raise TypeError(f"arrays of the kind '{array.stype}' are not NumPy's")
    if isinstance(array, MappedArray) and array.exact is None:
        return widened(npy_view(array.view), array.dtype)
    return npy_view(data_of(array))
