"""Foreign text is harmless; sizes and times are in words."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guildsync.cli import words
from guildsync.cli.rows import table
from guildsync.errors import CONFLICT, DAMAGED, NOT_KEPT, Problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("a\u202eb\u2066c\u200e", r"a\u202eb\u2066c\u200e"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("\udcff", r"\udcff"),
        ("\u2028\U000e0041", r"\u2028\U000e0041"),
        ("Grüße 漢字 👩‍💻", "Grüße 漢字 👩‍💻"),
        ("ftp://me:secret@host/x", "ftp://***@host/x"),
    ],
)
def test_foreign_text_is_shown_visibly(text: str, expected: str) -> None:
    assert words.shown(text) == expected


@given(st.text())
def test_nothing_shown_moves_a_cursor(text: str) -> None:
    for char in words.shown(text):
        assert unicodedata.category(char) not in {"Cc", "Cs", "Zl", "Zp"}
        assert unicodedata.bidirectional(char) not in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    words.shown(text).encode()


def test_a_path_that_is_not_utf8_is_shown() -> None:
    assert words.path_shown(b"caf\xc3\xa9/\xff\x1b") == r"café/\xff\x1b"


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9949, "9.9 kB"),
        (9950, "10 kB"),
        (1_234_567, "1.2 MB"),
        (999_499, "999 kB"),
        (999_999, "1.0 MB"),
        (10**21, "1000 EB"),
    ],
)
def test_sizes(count: int, expected: str) -> None:
    assert words.size(count) == expected


def test_times_are_local_and_iso_with_offset() -> None:
    assert words.iso_time(1_700_000_000_000_005) is not None
    assert words.iso_time(0) is not None
    assert str(words.iso_time(1_700_000_000_000_005))[-6] in "+-"
    for strange in (None, 10**30, -(10**30)):
        assert words.iso_time(strange) is None
        assert words.local_time(strange) == ""


def test_spans() -> None:
    assert [words.seconds(s) for s in (0.44, 59.9, 61, 3700)] == ["0.4 s", "59.9 s", "1 min 1 s", "1 h 1 min"]


@given(st.text(), st.integers(1, 30))
def test_clipped_text_fits(text: str, columns: int) -> None:
    shown = words.shown(text)
    clipped = words.clipped(shown, columns)
    assert words.width(clipped) <= columns
    assert clipped == shown or clipped.endswith("…")


def test_a_table_is_aligned_by_columns_and_cut_to_the_terminal() -> None:
    rows = [["1", "漢字", "x"], ["10", "a", "y" * 50]]
    assert table(rows, None).splitlines() == ["1   漢字  x", "10  a     " + "y" * 50]
    assert table(rows, 20).splitlines() == ["1   漢字  x", "10  a     " + "y" * 9 + "…"]
    assert table([], 20) == ""


def test_failures_count_runs_once() -> None:
    problems = [
        Problem("a" * 32, b"x", CONFLICT, ""),
        Problem("a" * 32, b"y", CONFLICT, ""),
        Problem("b" * 32, b"x", DAMAGED, ""),
        Problem("c" * 32, b"x", NOT_KEPT, ""),
    ]
    assert words.failures(problems) == "1 run failed, 1 run is in conflict"
    assert words.failures(problems[3:]) == ""
    assert words.problem_line(problems[2]) == "damaged: run bbbbbbbb: x: "
