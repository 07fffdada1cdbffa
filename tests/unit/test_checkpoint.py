"""What a lost ServerApp leaves behind is found again, whole, without a second copy of its model."""

from __future__ import annotations

import errno
import os
import pickle
import random
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAdam, FedAvg

from hub_service.aggregators.checkpoint import (
    Checkpoints,
    Place,
    generators,
    parted,
    put_generators,
    put_state,
    seed_generators,
    state_of,
)
from hub_service.aggregators.mail import MAIL_FOLDER
from hub_service.aggregators.mailbox import Mailbox
from hub_service.aggregators.mapped_array import MappedArray

FOLDER = "checkpoint"


def model(value: float = 1.0) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.full(100_000, value)), "b": Array(np.zeros(3, np.float32))})


def checkpoints(folder: Path) -> tuple[Checkpoints, Mailbox]:
    mailbox = Mailbox(folder)
    return Checkpoints(folder, mailbox), mailbox


def test_a_model_that_was_sent_is_kept_as_another_name_of_its_file(tmp_path: Path) -> None:
    written, mailbox = checkpoints(tmp_path)
    arrays = model()
    name = mailbox.post(arrays)
    written.write(Place(round=3), {"arrays": arrays, "again": arrays})
    assert (tmp_path / FOLDER / name).stat().st_ino == (tmp_path / MAIL_FOLDER / name).stat().st_ino
    assert (tmp_path / FOLDER / "state-1").stat().st_size < 10_000

    read, later = checkpoints(tmp_path)
    later.empty()
    found = read.read()
    assert found is not None
    assert found.place.round == 3
    calls = found.calls()
    assert calls["arrays"] is calls["again"]
    for key, array in arrays.items():
        assert type(calls["arrays"][key]) is MappedArray
        np.testing.assert_array_equal(calls["arrays"][key].numpy(), array.numpy())
    assert later.post(calls["arrays"]) == name, "nodes may have it: it is not sent again"
    assert (tmp_path / MAIL_FOLDER / name).exists()


def test_only_the_two_newest_states_and_their_blobs_stay(tmp_path: Path) -> None:
    written, mailbox = checkpoints(tmp_path)
    names = []
    for number in range(4):
        arrays = model(number)
        names.append(mailbox.post(arrays))
        written.write(Place(round=number), arrays)
    written.wait()
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"state-3", "state-4", *names[2:]}
    read, mailbox = checkpoints(tmp_path)
    read.write(Place(round=5), model())
    read.wait()
    assert {path.name for path in (tmp_path / FOLDER).glob("state-*")} == {"state-4", "state-5"}
    found = read.read()
    assert found is not None
    assert found.place.round == 5


@pytest.mark.parametrize("damage", [b"", b"\0" * 50])
def test_a_state_that_is_not_whole_is_passed_by(tmp_path: Path, damage: bytes) -> None:
    """As after a loss of power."""
    written, _ = checkpoints(tmp_path)
    written.write(Place(round=1), "one")
    written.write(Place(round=2), "two")
    path = tmp_path / FOLDER / "state-2"
    path.write_bytes(path.read_bytes()[:-50] + damage)
    found = checkpoints(tmp_path)[0].read()
    assert found is not None
    assert (found.place.round, found.calls()) == (1, "one")
    (tmp_path / FOLDER / "state-1").write_bytes(b"")
    assert checkpoints(tmp_path)[0].read() is None


@pytest.mark.parametrize(
    "damage",
    [lambda blob: blob[:-1], lambda blob: blob[:-1] + b"\1", lambda blob: b"", lambda blob: None],
    ids=["cut", "changed", "empty", "gone"],
)
def test_a_state_whose_blob_is_not_whole_is_passed_by(tmp_path: Path, damage: Callable[[bytes], bytes | None]) -> None:
    """As after a loss of power: the round before is whole."""
    written, mailbox = checkpoints(tmp_path)
    first, second = model(1), model(2)
    mailbox.post(first)
    written.write(Place(round=1), first)
    blob = tmp_path / FOLDER / mailbox.post(second)
    written.write(Place(round=2), second)
    damaged = damage(blob.read_bytes())
    blob.unlink()
    if damaged is not None:
        blob.write_bytes(damaged)
    found = checkpoints(tmp_path)[0].read()
    assert found is not None
    assert found.place.round == 1
    np.testing.assert_array_equal(found.calls()["w"].numpy(), np.full(100_000, 1.0))


def test_a_state_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Its pickles were all that stood in it."""
    content = pickle.dumps(Place(round=3)) + pickle.dumps("calls")
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "state-1").write_bytes(zlib.crc32(content).to_bytes(4, "little") + content)
    found = checkpoints(tmp_path)[0].read()
    assert found is not None
    assert (found.place.round, found.calls()) == (3, "calls")


def test_a_state_goes_only_when_the_newest_is_on_the_disk_with_its_blobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, mailbox = checkpoints(tmp_path)
    for number in range(2):
        written.write(Place(round=number), None)
    written.wait()
    synced: list[str] = []

    def note(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        assert (tmp_path / FOLDER / "state-1").exists()

    monkeypatch.setattr(os, "fsync", note)
    arrays = model(2)
    name = mailbox.post(arrays)
    written.write(Place(round=2), arrays)
    written.wait()
    assert synced == [name, "state-3", FOLDER]
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {name, "state-2", "state-3"}


def test_where_a_state_cannot_be_brought_to_the_disk_those_before_it_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    written, _ = checkpoints(tmp_path)
    for number in range(2):
        written.write(Place(round=number), None)
    written.wait()
    monkeypatch.setattr(os, "fsync", refuse)
    written.write(Place(round=2), None)
    with pytest.raises(OSError, match="Input/output"):
        written.write(Place(round=3), None)
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"state-1", "state-2", "state-3"}


def test_arrays_whose_blob_is_gone_are_written(tmp_path: Path) -> None:
    written, mailbox = checkpoints(tmp_path)
    arrays = model(5)
    mailbox.post(arrays)
    mailbox.keep_only([])
    written.write(Place(), arrays)
    found = checkpoints(tmp_path)[0].read()
    assert found is not None
    np.testing.assert_array_equal(found.calls()["w"].numpy(), np.full(100_000, 5.0))


def test_the_exact_model_of_a_run_in_half_precision_is_kept(tmp_path: Path) -> None:
    written, mailbox = checkpoints(tmp_path)
    mailbox.half = True
    arrays = model(1 / 3)
    mailbox.post(arrays)
    written.write(Place(), arrays)
    found = checkpoints(tmp_path)[0].read()
    assert found is not None
    np.testing.assert_array_equal(found.calls()["w"].numpy(), np.full(100_000, 1 / 3))


def test_a_write_that_fails_leaves_the_state_before(tmp_path: Path) -> None:
    written, _ = checkpoints(tmp_path)
    written.write(Place(round=1), "one")
    with pytest.raises(TypeError):
        written.write(Place(round=2), (one for one in "abc"))
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["state-1"]


def test_the_seed_is_the_runs_own_and_stays(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    seed = checkpoints(tmp_path / "one")[0].seed()
    assert checkpoints(tmp_path / "one")[0].seed() == seed != checkpoints(tmp_path / "two")[0].seed()


@pytest.mark.parametrize("damaged", [b"", b"\0" * 7])
def test_a_seed_that_is_not_whole_counts_as_absent(tmp_path: Path, damaged: bytes) -> None:
    written, _ = checkpoints(tmp_path)
    (tmp_path / FOLDER / "seed").write_bytes(damaged)
    seed = written.seed()
    assert len(seed) == 4
    assert checkpoints(tmp_path)[0].seed() == seed


def test_generators_go_on_as_they_would_have() -> None:
    before = generators()
    try:
        seed_generators([1, 2])
        states = generators()
        drawn = random.random(), np.random.random()  # noqa: S311 - no secret
        put_generators(states)
        assert drawn == (random.random(), np.random.random())  # noqa: S311
        seed_generators([1, 2])
        assert drawn == (random.random(), np.random.random())  # noqa: S311
    finally:
        put_generators(before)


def test_a_strategys_state_and_that_of_the_one_within() -> None:
    inner = FedAdam(train_metrics_aggr_fn=lambda *_: None)
    inner.m_t = {"w": np.ones(2)}
    outer = DifferentialPrivacyServerSideFixedClipping(inner, 0.1, 1.0, 2)
    state, lost = parted(state_of(outer))
    assert lost == []
    fresh_inner = FedAdam(train_metrics_aggr_fn=(given := lambda *_: None))
    fresh = DifferentialPrivacyServerSideFixedClipping(fresh_inner, 0.1, 1.0, 2)
    put_state(fresh, state)
    assert fresh.strategy is fresh_inner
    assert fresh_inner.m_t is inner.m_t
    assert fresh_inner.train_metrics_aggr_fn is given


def test_what_of_a_state_cannot_be_kept_is_named() -> None:
    class Local:
        """No pickle finds its class again."""

    strategy: Any = FedAvg()
    strategy.good, strategy.bad, strategy.made = [1], Local(), partial(print)
    strategy.inner = FedAvg()
    strategy.inner.worse = (one for one in "abc")
    state, lost = parted(state_of(strategy))
    assert sorted(lost) == ["bad", "inner.worse"]
    assert state["good"] == [1]
    assert "made" not in state
