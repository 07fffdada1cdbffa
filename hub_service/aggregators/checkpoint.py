"""What a lost ServerApp leaves to the one that takes its place: where it had come to, written after each round.

    <run folder>/checkpoint/
        seed             of the run's random numbers, from its first beginning
        state-<number>   the two newest: where the run was, behind the checksum of what follows; at its end, sizes and
                         checksums of the blobs that it refers to
        <32 hex digits>  blobs of the mail (`mail.py`) that a state refers to, as further names of the same files

An older state goes only when the newest is on the disk with all its blobs: a machine that loses power has one of them.
That takes a disk as long as a round of a small model takes in all, so the next round goes on meanwhile.

A model that has been sent stands in a blob of the mail already: a state names it, so that a round costs no second copy
of its model. What else a strategy holds is written into the state.

Files are pickles: a ServerApp process writes them, and only a ServerApp process of the same run ever reads them, where
code of the project's owner runs anyway. The service must not open them.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import secrets
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, BinaryIO

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.proto.recorddict_pb2 import Array as ArrayProto
from flwr.serverapp.strategy import Strategy

from hub_service.aggregators.mailbox import Mailbox
from hub_service.aggregators.mapped_array import MappedArray, map_in_place
from hub_service.aggregators.observer import FEDERATED

_log = logging.getLogger(__name__)

CHECKPOINT_FOLDER = "checkpoint"
_SEED = "seed"
_SEED_FORM = struct.Struct("<4I")
_STATE = "state-"
_KEPT_STATES = 2  # a machine that loses power may have lost the newest
_CHECKSUM = struct.Struct("<I")
_BLOBS_END = struct.Struct("<I6s")  # behind the JSON of a state's blobs: its length and _BLOBS
_BLOBS = b"\nblobs"  # no pickle ends so: states of earlier versions say nothing of their blobs
_PIECE = 1024**2  # bytes
# The app makes these anew, as it made them the first time.
_AS_MADE = (FunctionType, BuiltinFunctionType, MethodType, partial, ModuleType, type)


@dataclass(slots=True)
class FinishedPhase:
    """What a phase that is over has come to."""

    phase: str
    node: int
    model: ArrayRecord | None


@dataclass(slots=True)
class Place:
    """Where a run was: what is needed before its app is loaded.

    Attributes:
        phase, node: that it was in.
        round: the last one that was finished in it; 0: none.
        finished: the phases before it.
        evaluate: content and type of the last evaluate message of the federated phase; None: there was none.
        rounds: as `ObservingGrid` counts.
    """

    phase: str = FEDERATED
    node: int = 0
    round: int = 0
    finished: list[FinishedPhase] = field(default_factory=list)
    evaluate: tuple[RecordDict, str] | None = None
    rounds: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state that was read. `calls` reads the rest of it, once the app's own modules are loaded."""

    place: Place
    calls: Callable[[], Any]


class Checkpoints:
    """Those of one run.

    Args:
        run_folder: as of the mailbox.
        mailbox: where blobs are.
    """

    def __init__(self, run_folder: Path, mailbox: Mailbox) -> None:
        self._folder = run_folder / CHECKPOINT_FOLDER
        self._folder.mkdir(exist_ok=True)
        self._mailbox = mailbox
        self._number = max(self._numbers(), default=0)
        self._blobs: dict[int, set[str]] = {}  # by state
        self._sums: dict[str, _Sum] = {}  # of blobs here
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._settling: Future[None] | None = None
        self._taken: dict[str, Sequence[memoryview]] = {}  # blobs of the ServerApp before this one

    def seed(self) -> list[int]:
        """The run's own, the same after each loss."""
        path = self._folder / _SEED
        try:
            return list(_SEED_FORM.unpack(path.read_bytes()))
        except (FileNotFoundError, struct.error):  # a machine that loses power may leave an empty one
            seed = secrets.token_bytes(_SEED_FORM.size)
        partial_path = path.with_suffix(".partial")
        partial_path.write_bytes(seed)
        _sync([partial_path])
        partial_path.replace(path)
        _sync([self._folder])
        return list(_SEED_FORM.unpack(seed))

    def write(self, place: Place, calls: object) -> None:
        """Put a state beside the one before. Raises OSError, and whatever the pickling of `calls` raises.

        Args:
            calls: what `Checkpoint.calls` returns.
        """
        self.wait()
        number = self._number + 1
        path = self._folder / f"{_STATE}{number}"
        partial_path = path.with_suffix(".partial")
        try:
            with partial_path.open("wb") as file:
                file.write(_CHECKSUM.pack(0))
                checked = _Checked(file)
                blobs: set[str] = set()
                for part in (place, calls):
                    _Pickler(checked, self._keep_blob, blobs).dump(part)
                sums = json.dumps({name: self._sums[name] for name in blobs}).encode()
                checked.write(sums)
                checked.write(_BLOBS_END.pack(len(sums), _BLOBS))
                file.seek(0)
                file.write(_CHECKSUM.pack(checked.checksum))
            partial_path.replace(path)
        except BaseException:
            partial_path.unlink(missing_ok=True)
            raise
        self._number, self._blobs[number] = number, blobs
        self._settling = self._thread.submit(self._settle, [*(self._folder / name for name in blobs), path])

    def wait(self) -> None:
        """Return when the state that was written is on the disk. Raises OSError where the disk refuses."""
        settling, self._settling = self._settling, None
        if settling is not None:
            settling.result()

    def read(self) -> Checkpoint | None:
        """The newest state that is whole, with all its blobs; None where there is none. They are back in the mail."""
        for number in sorted(self._numbers(), reverse=True):
            path = self._folder / f"{_STATE}{number}"
            if not self._is_whole(path):
                _log.warning("%s is not whole: passed by", path.name)
                path.unlink()
                continue
            with path.open("rb") as file:
                file.seek(_CHECKSUM.size)
                reader = _Unpickler(file, self._blob)
                place: Place = reader.load()
                begin = file.tell()

            def calls(path: Path = path, begin: int = begin) -> Any:
                with path.open("rb") as file:
                    file.seek(begin)
                    return _Unpickler(file, self._blob).load()

            return Checkpoint(place, calls)
        return None

    def _numbers(self) -> list[int]:
        found = (path.name.removeprefix(_STATE) for path in self._folder.glob(f"{_STATE}*"))
        return [int(number) for number in found if number.isdecimal()]

    def _is_whole(self, path: Path) -> bool:
        """Whether the state, and each blob that it refers to, is as it was written."""
        try:
            with path.open("rb") as file:
                said = file.read(_CHECKSUM.size)
            _, checksum = _sum_of(path, _CHECKSUM.size)
            if said != _CHECKSUM.pack(checksum):
                return False
            return all(_sum_of(self._folder / name) == tuple(one) for name, one in _blobs_of(path).items())
        except OSError:
            return False

    def _keep_blob(self, name: str) -> bool:
        """Whether the blob is kept: it may have been removed from the mail, while its array is still used."""
        if name not in self._sums:
            kept = self._folder / name
            try:
                if not kept.exists():
                    os.link(self._mailbox.path_of(name), kept)
                self._sums[name] = _sum_of(kept)
            except OSError:  # it is gone, or this file system knows no links
                return False
        return True

    def _blob(self, name: str, index: int) -> memoryview:
        if name not in self._taken:
            self._taken[name] = self._mailbox.taken_back(name, self._folder / name)
        return self._taken[name][index]

    def _settle(self, newest: Sequence[Path]) -> None:
        _sync([*newest, self._folder])
        self._forget_old()

    def _forget_old(self) -> None:
        """Remove all states but the newest, and the blobs that none of these has."""
        known = sorted(self._numbers(), reverse=True)
        for number in known[_KEPT_STATES:]:
            (self._folder / f"{_STATE}{number}").unlink(missing_ok=True)
            self._blobs.pop(number, None)
        if not self._blobs.keys() >= set(known[:_KEPT_STATES]):
            return  # one of them is of the ServerApp before this one: what it refers to is not known
        needed = set().union(*self._blobs.values())
        for path in self._folder.iterdir():
            if not path.name.startswith(_STATE) and path.name not in needed | {_SEED}:
                path.unlink()
                self._sums.pop(path.name, None)


class _Checked:
    """Writes on, and sums up what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.checksum = 0

    def write(self, data: Any) -> int:
        self.checksum = zlib.crc32(data, self.checksum)
        return self._file.write(data)


_Sum = tuple[int, int]
"""Size and checksum of a file."""


def _sum_of(path: Path, begin: int = 0) -> _Sum:
    """From `begin` on. Raises OSError."""
    size = checksum = 0
    with path.open("rb") as file:
        file.seek(begin)
        while piece := file.read(_PIECE):
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
    return size, checksum


def _blobs_of(state: Path) -> Mapping[str, Sequence[int]]:
    """Size and checksum of each blob that a whole state refers to; none for a state of an earlier version."""
    with state.open("rb") as file:
        end = file.seek(-_BLOBS_END.size, os.SEEK_END)
        length, mark = _BLOBS_END.unpack(file.read())
        if mark != _BLOBS:
            return {}
        file.seek(end - length)
        blobs: Mapping[str, Sequence[int]] = json.loads(file.read(length))
        return blobs


def _sync(paths: Iterable[Path]) -> None:
    """Return once these files, and the names in these folders, are on the disk. Raises OSError where it refuses."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _Pickler(pickle.Pickler):
    """Writes arrays that stand in a blob as the place where they stand."""

    def __init__(self, file: Any, keep: Callable[[str], bool], blobs: set[str]) -> None:
        super().__init__(file, protocol=5)
        self._keep = keep
        self._blobs = blobs

    def persistent_id(self, value: Any) -> tuple[str, int, bytes] | None:
        if type(value) is not MappedArray or value.place is None or value.halved:
            return None
        name, index = value.place
        if name not in self._blobs:
            if not self._keep(name):
                return None
            self._blobs.add(name)
        described = ArrayProto(dtype=value.dtype, shape=value.shape, stype=value.stype)
        return name, index, bytes(described.SerializeToString())

    def reducer_override(self, value: Any) -> Any:
        """Flower keeps an array in pieces beside its data once it was sent to a stock node."""
        if type(value) is Array:
            return Array, (value.dtype, value.shape, value.stype, value.data)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, blob: Callable[[str, int], memoryview]) -> None:
        super().__init__(file)
        self._blob = blob
        self._arrays: dict[tuple[str, int], MappedArray] = {}

    def persistent_load(self, pid: tuple[str, int, bytes]) -> MappedArray:
        name, index, described = pid
        if (name, index) not in self._arrays:
            view = self._blob(name, index)
            array = MappedArray(ArrayProto.FromString(described), view)
            map_in_place(array, view, (name, index))
            self._arrays[name, index] = array
        return self._arrays[name, index]


# --- a strategy's own state


def state_of(strategy: Strategy, but: frozenset[str] = frozenset()) -> dict[str, Any]:
    """What the strategy knows by now. One around another has that one's state in its own.

    Functions and classes are not among it: the app gives the strategy the same again.

    Args:
        but: attributes that are not the strategy's own.
    """
    return {
        name: _Inner(state_of(value)) if isinstance(value, Strategy) else value
        for name, value in vars(strategy).items()
        if name not in but and not isinstance(value, _AS_MADE)
    }


@dataclass(frozen=True, slots=True)
class _Inner:
    """The state of a strategy within another."""

    state: dict[str, Any]


def put_state(strategy: Strategy, state: Mapping[str, Any]) -> None:
    """Let the strategy know what `state_of` has told."""
    for name, value in state.items():
        if isinstance(value, _Inner):
            put_state(getattr(strategy, name), value.state)
        else:
            setattr(strategy, name, value)


def parted(state: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Of a state, what can be kept, and the names of what cannot."""
    kept: dict[str, Any] = {}
    lost: list[str] = []
    for name, value in state.items():
        if isinstance(value, _Inner):
            inner, inner_lost = parted(value.state)
            kept[name] = _Inner(inner)
            lost += [f"{name}.{one}" for one in inner_lost]
        elif _can_be_kept(value):
            kept[name] = value
        else:
            lost.append(name)
    return kept, lost


class _Nowhere:
    def write(self, data: Any) -> int:
        return len(memoryview(data))


def _can_be_kept(value: object) -> bool:
    try:
        _Pickler(_Nowhere(), lambda _: True, set()).dump(value)
    except Exception:  # noqa: BLE001 - the owner's classes: what they raise when they are pickled may be anything
        return False
    return True


# --- random numbers


def generators() -> dict[str, Any]:
    """The states of the generators that apps draw from by default."""
    states: dict[str, Any] = {"random": random.getstate(), "numpy": np.random.get_state()}
    if torch := sys.modules.get("torch"):
        states["torch"] = torch.get_rng_state()
    return states


def put_generators(states: Mapping[str, Any]) -> None:
    random.setstate(states["random"])
    np.random.set_state(states["numpy"])
    if "torch" in states and (torch := sys.modules.get("torch")):
        torch.set_rng_state(states["torch"])


def seed_generators(words: list[int]) -> None:
    """Begin with the same numbers each time: an app that is begun anew does what it has done."""
    number = int.from_bytes(struct.pack(f"<{len(words)}I", *words), "little")
    random.seed(number)
    np.random.seed(words)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(number % 2**63)
