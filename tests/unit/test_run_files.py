"""The files of a run: events as lines, and the model."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from hub_service.aggregators import events as events_module
from hub_service.aggregators.events import EVENTS_FILE, EventFile, open_run_file, read_events
from hub_service.aggregators.mail import create_mail, open_mail, remove_mail
from hub_service.aggregators.model_file import write_model
from hub_service.aggregators.serverapp_log import read_log
from hub_service.artifacts import Artifacts
from hub_service.domain.errors import Invalid, Unavailable
from hub_service.domain.runs import EventKind, RunEvent


def test_events_are_read_from_where_the_reader_left_off(tmp_path: Path) -> None:
    assert read_events(tmp_path) == ([], 0)
    file = EventFile(tmp_path)
    first = RunEvent(EventKind.REPLY, at=1.5, node_id=2**63 + 1, metrics={"loss": 0.5}, text="site's answer – ok")
    file.write(first)
    events, offset = read_events(tmp_path)
    assert events == [first]
    second = RunEvent(EventKind.FINISHED, at=2.0)
    file.write(second)
    assert read_events(tmp_path, offset)[0] == [second]


def test_a_line_that_is_not_finished_is_left_for_later(tmp_path: Path) -> None:
    EventFile(tmp_path).write(RunEvent(EventKind.FINISHED, at=2.0))
    path = tmp_path / EVENTS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert read_events(tmp_path) == ([], 0)
    path.write_bytes(whole)
    assert len(read_events(tmp_path)[0]) == 1


def test_metrics_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    EventFile(tmp_path).write(RunEvent(EventKind.REPLY, at=0.0, metrics={"loss": math.nan, "auc": 0.7}))
    assert read_events(tmp_path)[0][0].metrics == {"auc": 0.7}


def test_a_model_keeps_names_shapes_and_dtypes(tmp_path: Path) -> None:
    arrays = {
        "conv.weight": np.arange(6, dtype=np.float16).reshape(2, 3).T,  # not contiguous
        "bn.num_batches_tracked": np.array(4, dtype=np.int64),
    }
    path = tmp_path / "model.safetensors"
    assert write_model(path, arrays, {"round": "3"}) == path.stat().st_size
    with safe_open(path, "np") as model:
        assert model.metadata() == {"round": "3"}
        for name, array in arrays.items():
            assert model.get_tensor(name).dtype == array.dtype
            np.testing.assert_array_equal(model.get_tensor(name), array)


def test_a_dtype_without_a_word_for_it_is_named_and_the_old_model_stays(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, {"a": np.zeros(1)}, {})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="array 'phase' is of dtype complex128"):
        write_model(path, {"phase": np.zeros(1, np.complex128)}, {})
    assert path.read_bytes() == before


def test_nothing_but_a_plain_file_is_opened(tmp_path: Path) -> None:
    """A ServerApp's folder has what its owner's code put there."""
    (tmp_path / "secret").write_text("the service's own")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    for name in ("link", "pipe", "folder", "nothing"):
        with pytest.raises(FileNotFoundError):
            open_run_file(folder, name)
    (folder / EVENTS_FILE).symlink_to(tmp_path / "secret")
    assert read_events(folder) == ([], 0)


def test_what_cannot_be_opened_now_is_not_taken_for_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose model was not found would end without one."""
    (tmp_path / "artifacts").mkdir()
    artifacts = Artifacts(tmp_path / "artifacts")
    (tmp_path / EVENTS_FILE).write_bytes(b"")

    def too_many(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", too_many)
    with pytest.raises(OSError, match="Too many open files") as caught:
        open_run_file(tmp_path, EVENTS_FILE)
    assert not isinstance(caught.value, FileNotFoundError)
    with pytest.raises(OSError, match="Too many open files"):
        read_events(tmp_path)
    with pytest.raises(Unavailable):
        artifacts.put_model(tmp_path / EVENTS_FILE)
    with pytest.raises(Unavailable):
        read_log(tmp_path, 0)
    for work in (open_mail, create_mail, remove_mail):
        with pytest.raises(OSError, match="Too many open files"):
            work(tmp_path, "0" * 32)


@pytest.mark.parametrize("line", [b"{}", b"[]", b"no JSON", b'{"kind": "finished", "at": 1, "odd": 2}', b"\xff"])
def test_what_is_no_event_is_refused(tmp_path: Path, line: bytes) -> None:
    (tmp_path / EVENTS_FILE).write_bytes(line + b"\n")
    with pytest.raises(Invalid, match="no event"):
        read_events(tmp_path)


def test_events_are_read_in_bounded_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = EventFile(tmp_path)
    for number in range(10):
        file.write(RunEvent(EventKind.SENT, at=float(number)))
    size = (tmp_path / EVENTS_FILE).stat().st_size
    monkeypatch.setattr(events_module, "_AT_ONCE", size // 4)
    offset, seen = 0, []
    while offset < size:
        fresh, offset = read_events(tmp_path, offset)
        assert 0 < len(fresh) < 5
        seen += fresh
    assert [event.at for event in seen] == [float(number) for number in range(10)]
    monkeypatch.setattr(events_module, "_LARGEST", size - 1)
    with pytest.raises(Invalid, match="more events"):
        read_events(tmp_path, offset - size // 10)
    monkeypatch.setattr(events_module, "_AT_ONCE", 10)
    with pytest.raises(Invalid, match="more events"):
        read_events(tmp_path)


def event_line(**changes: object) -> str:
    return json.dumps({**dataclasses.asdict(RunEvent(EventKind.REPLY, 1.0, text="fine")), **changes}) + "\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"round": "1"},
        {"round": 1.5},
        {"round": True},
        {"round": None},
        {"size": 2**63},
        {"node_id": -1},
        {"node_id": 2**64},
        {"at": "noon"},
        {"at": 1e300},
        {"at": -1.0},
        {"at": math.inf},
        {"at": math.nan},
        {"seconds": None},
        {"seconds": math.nan},
        {"seconds": -1e300},
        {"metrics": {"loss": "low"}},
        {"metrics": {"loss": 10**400}},
        {"metrics": []},
        {"counts": []},
        {"text": 7},
        {"model": 7},
        {"model": "theirs"},
        {"model": "-1"},
        {"model": "1" * 21},
        {"kind": "score", "model": ""},
        {"kind": "unheard-of"},
        {"unknown": 1},
    ],
    ids=str,
)
def test_what_no_database_keeps_is_no_event(tmp_path: Path, changes: dict[str, object]) -> None:
    (tmp_path / EVENTS_FILE).write_text(event_line(**changes))
    with pytest.raises(Invalid, match="no event"):
        read_events(tmp_path)


def test_the_earliest_and_the_latest_time_can_be_told(tmp_path: Path) -> None:
    (tmp_path / EVENTS_FILE).write_text(event_line(at=0, seconds=2**35) + event_line(at=2**35, seconds=-(2**35)))
    began = [datetime.fromtimestamp(one.at - one.seconds, UTC).year for one in read_events(tmp_path)[0]]
    assert began == [881, 4147]


def test_texts_of_an_apps_own_are_read_as_they_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / EVENTS_FILE).write_text(event_line(text="a\x00b", message_type="train.\ud800x", node_id=2**64 - 1))
    [event], _ = read_events(tmp_path)
    assert (event.text, event.message_type, event.node_id) == ("a\ufffdb", "train.?x", 2**64 - 1)


def test_names_of_an_apps_own_are_read_as_they_can_be_kept(tmp_path: Path) -> None:
    line = event_line(metrics={"auc\ud800": 0.5, "a\x00b": 1}, counts={"confusion\udfff": [1, 2, 3, 4]})
    (tmp_path / EVENTS_FILE).write_text(line)
    [event], _ = read_events(tmp_path)
    assert event.metrics == {"auc?": 0.5, "a\ufffdb": 1}
    assert event.counts == {"confusion?": [1, 2, 3, 4]}
