"""The ServerApp's side of a run's mail: models go out as blobs, answers come in as parcels. See `mail.py`."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from uuid import uuid4

from federator.framing import Data, framed, split_view
from federator.parcel import Letter, content_of, halved, letter_of, may_halve
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.proto.recorddict_pb2 import Array as ArrayProto

from hub_service.aggregators.mail import MAIL_FOLDER
from hub_service.aggregators.mapped_array import MappedArray, data_of, halve_in_place, map_in_place, numpy_view
from hub_service.domain.runs import WIRE_PRECISION_KEY, WirePrecision


class BeyondHalf(ValueError):
    """A model has numbers that half precision has no room for. The text names the array and what to do."""


class Mailbox:
    """Writes and reads the files of one run's mail.

    Args:
        run_folder: its mail folder is made if need be.

    Attributes:
        half: whether models go out in half precision, and ask for answers in it; set before the first goes.
    """

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder / MAIL_FOLDER
        self._folder.mkdir(exist_ok=True)
        self._posted: dict[str, int] = {}  # blob -> how many arrays it has
        self.half = False

    def letter(self, content: RecordDict) -> Letter:
        """The letter of a message's content, whose array records are posted. Raises as `post`."""
        return letter_of(content, self.post, half=self.half)

    def post(self, record: ArrayRecord) -> str:
        """The name of the blob with this record's data, which is written unless the record came from one.

        From then on the record's arrays read their data from the file: a model that is on its way is not held twice.
        Those that went in half precision keep their own data: the aggregator goes on from these.

        Raises BeyondHalf, ValueError for data that are no array where they are to be halved, and OSError where the
        disk refuses.
        """
        if name := self._blob_of(record):
            return name
        name = uuid4().hex
        views = self._written(name, record)
        for index, (array, view) in enumerate(zip(record.values(), views, strict=True)):
            in_place = halve_in_place if self.half and may_halve(array) else map_in_place
            in_place(array, view, (name, index))
        self._posted[name] = len(views)
        return name

    def path_of(self, name: str) -> Path:
        """Where the blob stands, if it does. For `checkpoint.py`, which keeps it under a name of its own."""
        return self._folder / name

    def taken_back(self, name: str, kept: Path) -> Sequence[memoryview]:
        """The arrays of a blob that a lost ServerApp had posted, mapped. It is in the mail again: nodes may have it.

        Raises OSError, and BadFrame where the file is no blob.
        """
        with suppress(FileExistsError):
            os.link(kept, self._folder / name)
        with kept.open("rb", buffering=0) as file:
            views = split_view(_mapped(file))
        self._posted[name] = len(views)
        return views

    def empty(self) -> None:
        """Remove what a lost ServerApp had left."""
        for path in self._folder.iterdir():
            with suppress(OSError):  # the owner's code may have put a folder there
                path.unlink()

    def keep_only(self, names: Iterable[str]) -> None:
        """Remove all blobs but these: nobody asks for the others any more. What has mapped them reads on."""
        for name in self._posted.keys() - set(names):
            (self._folder / name).unlink(missing_ok=True)
            del self._posted[name]

    def fetch(self, name: str) -> RecordDict:
        """The content of a site's answer. Its arrays are read from the file, which is removed here.

        Raises BadFrame for what is no answer, FileNotFoundError.
        """
        path = self._folder / name
        with path.open("rb", buffering=0) as file:
            parts, spares = iter(split_view(_mapped_as_own(file))), iter(split_view(_mapped(file)))
        path.unlink()
        letter, _ = next(parts, memoryview(b"")), next(spares, None)

        def take(_: str, count: int) -> Sequence[memoryview]:
            return list(islice(parts, count))

        def make(described: ArrayProto, data: Data, halved: bool) -> Array:
            return MappedArray(described, data, halved, next(spares))

        return content_of(Letter.unpacked(bytes(letter)), take, make)

    def _blob_of(self, record: ArrayRecord) -> str:
        """The blob that has the data of exactly these arrays, in this order; "" if none has."""
        places = [array.place if isinstance(array, MappedArray) else None for array in record.values()]
        name, _ = next(iter(places), None) or ("", 0)
        whole = [(name, index) for index in range(self._posted.get(name, 0))]
        return name if places and places == whole else ""

    def _written(self, name: str, record: ArrayRecord) -> Sequence[memoryview]:
        """A new blob's arrays, mapped. Raises as `post`, and leaves nothing behind then."""
        path = self._folder / name
        try:
            with path.open("xb+", buffering=0) as file:
                for piece in framed(self._travelling(key, array) for key, array in record.items()):
                    _write(file, piece)
                return split_view(_mapped(file))
        except (OSError, ValueError):
            path.unlink(missing_ok=True)
            raise

    def _travelling(self, key: str, array: Array) -> Data:
        """The array's data as they go out. Raises BeyondHalf."""
        if not (self.half and may_halve(array)):
            return data_of(array)
        if isinstance(array, MappedArray) and array.halved:
            return array.view
        try:
            return halved(numpy_view(array), beyond="raise")
        except FloatingPointError as error:
            raise BeyondHalf(
                f"array '{key}' has values beyond half precision, which ends at 65504; "
                f"use {WIRE_PRECISION_KEY} = {WirePrecision.EXACT}"
            ) from error


def _mapped(file: io.RawIOBase, access: int = mmap.ACCESS_READ) -> memoryview:
    """The whole file. The map outlives the open file and its name."""
    size = file.seek(0, 2)
    return memoryview(mmap.mmap(file.fileno(), size, access=access)) if size else memoryview(b"")


def _mapped_as_own(file: io.RawIOBase) -> memoryview:
    """As `_mapped`; what is written to it is in this process's memory, and nowhere else.

    Read-only where the system, which counts all of it as memory that may be wanted, does not promise so much.
    """
    try:
        return _mapped(file, mmap.ACCESS_COPY)
    except OSError:
        return _mapped(file)


def _write(file: io.RawIOBase, piece: bytes | memoryview) -> None:
    """All of it: one call of the system writes 2 GiB at most."""
    rest = memoryview(piece)
    while rest:
        rest = rest[file.write(rest) :]
