"""Rows that a store keeps in memory: which are forgotten when, and how many are kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from hub_service.store.kept import KeptRows, Wanted


@dataclass(frozen=True)
class Row:
    id: str
    site: str


ANNA, BERT = Row("t1", "a"), Row("t2", "b")


def wanted(**values: str) -> Wanted:
    return frozenset(values.items())


def rows(*, lookups: int = 10, most: int = 10) -> KeptRows:
    return KeptRows(["id"], lookups=lookups, rows=most)


def test_an_answer_is_forgotten_once_its_row_changes_or_leaves_it() -> None:
    kept = rows()
    kept.keep(wanted(site="a"), [ANNA])
    kept.keep(wanted(site="b"), [BERT])
    kept.keep(wanted(site="c"), [])
    kept.put(asdict(replace(ANNA, site="c")))
    assert kept.get(wanted(site="a")) is None
    assert kept.get(wanted(site="b")) == [BERT]
    assert kept.get(wanted(site="c")) is None


def test_the_list_is_the_readers_own() -> None:
    kept = rows()
    kept.keep(wanted(site="a"), [ANNA])
    for _ in range(2):
        found = kept.get(wanted(site="a"))
        assert found == [ANNA]
        found.clear()


def test_what_was_asked_longest_ago_goes_first() -> None:
    kept = rows(lookups=2)
    kept.keep(wanted(site="a"), [ANNA])
    kept.keep(wanted(site="b"), [BERT])
    kept.get(wanted(site="a"))
    kept.keep(wanted(site="c"), [])
    assert kept.get(wanted(site="a")) == [ANNA]
    assert kept.get(wanted(site="b")) is None


def test_a_long_answer_is_not_kept() -> None:
    kept = rows(most=1)
    kept.keep(wanted(site="a"), [ANNA, BERT])
    assert kept.get(wanted(site="a")) is None
    kept.keep(wanted(site="a"), [ANNA])
    kept.extend(wanted(site="a"), [BERT])
    assert kept.get(wanted(site="a")) is None


def test_an_answer_grows_only_where_it_was_asked_for() -> None:
    kept = rows()
    kept.extend(wanted(site="a"), [ANNA])
    assert kept.get(wanted(site="a")) is None
    kept.keep(wanted(site="a"), [ANNA])
    kept.extend(wanted(site="a"), [BERT])
    assert kept.get(wanted(site="a")) == [ANNA, BERT]
