"""The ServerApp's log: read in pieces, kept within bounds, and shown without what is the machine's."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hub_service.aggregators.events import SERVERAPP_LOG
from hub_service.aggregators.serverapp_log import LOG_LIMIT, PIECE, LogPiece, piece_of_bytes, read_log, trim_log
from hub_service.log_text import cleaned


def test_a_log_is_read_on_from_where_it_was(tmp_path: Path) -> None:
    log = tmp_path / SERVERAPP_LOG
    assert read_log(tmp_path, 0) == LogPiece()
    log.write_bytes(b"one\ntwo\nthr")
    first = read_log(tmp_path, 0)
    assert first == LogPiece(b"one\ntwo\n", 0, 8)
    log.write_bytes(b"one\ntwo\nthree\n")
    assert read_log(tmp_path, first.end) == LogPiece(b"three\n", 8, 14)
    assert read_log(tmp_path, 14) == LogPiece(b"", 14, 14)


def test_of_a_long_log_the_last_whole_lines_are_read() -> None:
    lines = b"".join(b"line %06d\n" % number for number in range(20_000))
    piece = piece_of_bytes(lines, 0)
    assert len(piece.data) <= PIECE
    assert piece.data.startswith(b"line ")
    assert piece.data.endswith(b"line 019999\n")
    assert lines[piece.start : piece.end] == piece.data


def test_a_line_without_end_does_not_keep_the_reader_waiting() -> None:
    endless = b"x" * (3 * PIECE)
    piece = piece_of_bytes(endless, 0)
    assert piece.end == len(endless)
    assert set(piece.data) == {ord("x")}


def test_a_place_beyond_the_end_means_that_the_log_was_cut() -> None:
    assert piece_of_bytes(b"new\n", 900) == LogPiece(b"new\n", 0, 4)


def test_no_link_is_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret\n" * LOG_LIMIT)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / SERVERAPP_LOG).symlink_to(secret)
    assert read_log(folder, 0) == LogPiece()
    trim_log(folder)
    assert secret.stat().st_size > LOG_LIMIT


def test_a_log_over_its_limit_is_cut_and_its_writer_goes_on(tmp_path: Path) -> None:
    trim_log(tmp_path)
    path = tmp_path / SERVERAPP_LOG
    with path.open("ab", buffering=0) as writer:
        writer.write(b"a line\n" * (LOG_LIMIT // 7))
        trim_log(tmp_path)
        assert path.stat().st_size > LOG_LIMIT - 7
        writer.write(b"a line\n" * 2)
        trim_log(tmp_path)
        size = path.stat().st_size
        assert size < LOG_LIMIT / 4
        writer.write(b"the newest\n")
    text = path.read_bytes()
    assert len(text) == size + 11
    assert text.startswith(b"a line\n")
    assert text.endswith(b"a line\nthe newest\n")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("round 3: accuracy 0.8123, 12/15 sites, 3.5 s", "round 3: accuracy 0.8123, 12/15 sites, 3.5 s"),
        ('File "/srv/state/projects/p/apps/x.1/server_app.py", line 3', 'File "…/server_app.py", line 3'),
        ("saved to /var/lib/federation/model.npz", "saved to …/model.npz"),
        ("ratio a/b and and/or stay", "ratio a/b and and/or stay"),
        ("connected to 127.0.0.1:9092", "connected to [address]"),
        ("connected to localhost:9092", "connected to [address]"),
        ("connected to [::1]:9092", "connected to [address]"),
        ("GET https://hub.example/services/x?token=abc failed", "GET [address] failed"),
        ("http+unix:///run/x.sock", "[address]"),
        ("-http://a.b _http://a.b 1http://a.b", "-[address] _[address] 1[address]"),
        ("sha256 " + "ab12" * 16, "sha256 [hidden]"),
        ("token=s3cr3t, then", "token=[hidden], then"),
        ("Authorization: Bearer abcdefgh", "Authorization: Bearer [hidden]"),
        ("eyJhbGciOi.eyJzdWIiOi.sig", "[hidden]"),
        ("run 3f0c4a52-6b5d-4c55-9f43-111111111111", "run 3f0c4a52-6b5d-4c55-9f43-111111111111"),
        ("\x1b[92mINFO\x1b[0m :  starting\x07", "INFO :  starting"),
        ("turned \u202earound", "turned around"),
        ("Ergebnis: Größe 3 µm ✓", "Ergebnis: Größe 3 µm ✓"),
    ],
)
def test_what_is_the_machines_is_taken_out(line: str, shown: str) -> None:
    assert cleaned(line) == shown


@pytest.mark.parametrize("repeated", ["a.", "eyJ-", "eyJ.", "a+b:", "token= ", "/-", "1.1.1.", "ab:", "a_1-"])
def test_what_looks_like_the_beginning_of_something_takes_no_longer(repeated: str) -> None:
    """The owner's code prints what it likes; 64 KB of "a." took ten seconds of the whole service."""
    begun = time.process_time()
    cleaned(repeated * (PIECE // len(repeated)))
    assert time.process_time() - begun < 1


def test_lines_stay_lines_and_sites_have_their_names() -> None:
    assert cleaned("one\ntwo of 42\n", lambda text: text.replace("42", "north")) == "one\ntwo of north\n"
