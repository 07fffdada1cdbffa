"""Ports that nobody else is given between their choice and their use."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from federator import ports

GIVEN = "32768\t60999\n"


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the system says it gives to whoever asks for any port."""
    file = tmp_path / "ip_local_port_range"
    file.write_text(GIVEN)
    monkeypatch.setattr(ports, "_GIVEN_BY_THE_SYSTEM", file)
    return file


def test_it_is_none_that_the_system_gives(given: Path) -> None:
    assert all(10_000 <= ports.free_port() < 32_768 for _ in range(50))


def test_it_is_one_that_nobody_has(given: Path) -> None:
    """One port of two is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        given.write_text(f"{port + 1}\t60999\n")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ports, "_LOWEST", port - 1)
            assert {ports.free_port() for _ in range(20)} == {port - 1}


def test_where_all_are_given_it_is_one_of_them(given: Path) -> None:
    given.write_text("1024\t65535\n")
    assert ports.free_port() >= 1024


def test_another_system_gives_the_usual_ones(given: Path) -> None:
    given.unlink()
    assert ports.free_port() < 32_768
