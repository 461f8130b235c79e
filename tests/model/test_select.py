"""Which runs selectors and filters choose."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guildsync.errors import NotFound, Usage
from guildsync.model.run import COMPLETED, ERROR, RUNNING, Metadata, Record, RunId, Summary
from guildsync.model.select import Filters, newest_first, select


def run(head: str, started: int | None = 0, status: str = COMPLETED) -> Record:
    return Record(RunId(head.ljust(32, "0")), Summary(started=started, status=status), Metadata())


# newest first: f, e, d, c, b, a
RUNS = [run(letter * 6, index, RUNNING if letter in "be" else COMPLETED) for index, letter in enumerate("abcdef")]


def heads(selectors: list[str], records: list[Record] = RUNS) -> str:
    return "".join(record.run[0] for record in select(records, selectors))


@pytest.mark.parametrize(
    ("selectors", "chosen"),
    [
        (["1"], "f"),
        (["6"], "a"),
        (["2:5"], "edcb"),
        (["2:2"], "e"),
        ([":3"], "fed"),
        (["4:"], "cba"),
        (["5:99"], "ba"),
        (["@latest"], "f"),
        (["@latest:3"], "fed"),
        (["@latest:99"], "fedcba"),
        (["@running"], "eb"),
        (["aaaa"], "a"),
        (["AAaa"], "a"),
        (["a" * 6 + "0" * 26], "a"),
        (["3", "1", "2:4"], "dfec"),
        ([], ""),
    ],
)
def test_forms(selectors: list[str], chosen: str) -> None:
    assert heads(selectors) == chosen


@pytest.mark.parametrize(
    "selector",
    ["", "0", "00", "0:2", ":", "5:2", "2:1", "abc", "best", "-", "@latest:0", "@oldest", "1:2:3", "a" * 33, "٣"],
)
def test_what_is_no_selector_is_a_usage_error(selector: str) -> None:
    with pytest.raises(Usage) as caught:
        select(RUNS, [selector])
    assert caught.value.hint


@pytest.mark.parametrize("selector", ["7", "999", "7:9", "9:", "abab", "b" * 32, "12345", "9" * 32])
def test_what_matches_nothing_is_not_found(selector: str) -> None:
    with pytest.raises(NotFound, match="no run matches") as caught:
        select(RUNS, ["1", selector])
    assert "there are 6 runs" in str(caught.value.hint)


@pytest.mark.parametrize("selector", ["1", ":3", "4:", "@latest", "@latest:3", "@running"])
def test_among_no_runs_nothing_is_found(selector: str) -> None:
    with pytest.raises(NotFound):
        select([], [selector])


def test_an_ambiguous_prefix_lists_its_matches() -> None:
    records = [run("abcd1"), run("abcd2"), run("abce")]
    with pytest.raises(Usage) as caught:
        select(records, ["abcd"])
    assert records[0].run in str(caught.value)
    assert records[1].run in str(caught.value)
    assert records[2].run not in str(caught.value)
    assert [record.run[:5] for record in select(records, ["abcd2"])] == ["abcd2"]


def test_digits_are_an_index_where_one_fits_and_else_a_prefix() -> None:
    records = [run(f"{number:04x}f", number) for number in range(1200)]
    by_prefix = run("1201f", 1)
    newest = newest_first([*records, by_prefix])
    assert select(newest, ["1201"]) == [newest[1200]]
    assert select([by_prefix], ["1201"]) == [by_prefix]
    with pytest.raises(NotFound):
        select([run("120")], ["120"])


@given(st.lists(st.tuples(st.integers(0, 99), st.none() | st.integers(0, 9)), unique_by=lambda pair: pair[0]))
def test_newest_first(pairs: list[tuple[int, int | None]]) -> None:
    listed = newest_first(run(f"{number:04}", started) for number, started in pairs)
    assert len(listed) == len(pairs)
    for one, other in pairwise(listed):
        a, b = one.summary.started, other.summary.started
        assert (a is not None and (b is None or a > b)) or (a == b and one.run < other.run)


@given(st.integers(1, 12), st.integers(1, 12))
def test_a_range_is_its_indexes(first: int, last: int) -> None:
    records = [run(f"{number:04x}", number) for number in range(12)]
    if first <= last:
        indexes = [str(index) for index in range(first, last + 1)]
        assert select(records, [f"{first}:{last}"]) == select(records, indexes)


LABELLED = Record(
    RunId("a" * 32),
    Summary(operation="model:Train", status=ERROR),
    Metadata("lr=0.1 Best", frozenset({"paper", "old"}), (), True),
)
BARE = Record(RunId("b" * 32), Summary(operation="prepare.py", status=COMPLETED), Metadata())


@pytest.mark.parametrize(
    ("filters", "labelled", "bare"),
    [
        (Filters(), True, True),
        (Filters(operations=("train",)), True, False),
        (Filters(operations=("TRAIN", "prepare")), True, True),
        (Filters(labels=("best",)), True, False),
        (Filters(labels=("-",)), False, True),
        (Filters(labels=("-", "best")), True, True),
        (Filters(unlabeled=True), False, True),
        (Filters(tags=("paper",)), True, False),
        (Filters(tags=("pap",)), False, False),
        (Filters(tags=("new", "old")), True, False),
        (Filters(marked=True), True, False),
        (Filters(statuses=(ERROR,)), True, False),
        (Filters(statuses=(ERROR, COMPLETED)), True, True),
        (Filters(statuses=(ERROR,), operations=("prepare",)), False, False),
    ],
)
def test_filters(filters: Filters, labelled: bool, bare: bool) -> None:
    assert (filters.matches(LABELLED), filters.matches(BARE)) == (labelled, bare)
