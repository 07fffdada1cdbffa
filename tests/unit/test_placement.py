"""Which site a person's server runs at, and where their home folder is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from spawner.placement import Placement, PlacementRefused, place
from spawner.site_spawner import home_folder
from spawner.sites import EmbeddedSite

SITE = EmbeddedSite(kind="embedded", title="A", contact="Ada", work_dir=Path("/work"))
SITES = {"a": SITE, "b": SITE}


def test_the_site_group_decides() -> None:
    assert place(["site-a", "steward-b", "federation-admins"], SITES, "Robin") == Placement("a", SITE)


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ([], "no site"),
        (["steward-a", "federation-admins"], "no site"),
        (["site-b", "site-a"], r"more than one site \(a, b\)"),
        (["site-gone"], "gone, is not part of this Hub any more"),
    ],
)
def test_others_are_told_why_and_whom_to_ask(groups: list[str], reason: str) -> None:
    with pytest.raises(PlacementRefused, match=reason + r".*ask Robin\."):
        place(groups, SITES, "Robin")


@pytest.mark.parametrize("username", ["..", ".", "../../etc", "/etc", "a/b", "amara", "Å@x.example", "x" * 300])
def test_a_home_folder_lies_in_the_sites_folder(username: str) -> None:
    folder = home_folder(Path("/work"), username)
    assert folder.parent == Path("/work")
    assert ".." not in folder.parts
    assert len(folder.name) < 64


def test_no_two_names_share_a_home_folder() -> None:
    names = ["a.b", "a-b", "a_b", "a@b", "a b", "ab"]
    assert len({home_folder(Path("/work"), name) for name in names}) == len(names)
