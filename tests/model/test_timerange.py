"""Time ranges: what each form means, on whose clock, and that nothing but Usage comes of all others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guildsync.errors import Usage
from guildsync.model.timerange import MAX_LENGTH, Range, parse

UTC = timezone.utc
NOW = datetime(2019, 5, 1, 14, 35, 23, tzinfo=UTC)
"""A Wednesday."""


def micros(moment: str | None) -> int | None:
    if moment is None:
        return None
    return round(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        # of the calendar
        ("this minute", "2019-05-01 14:35:00", "2019-05-01 14:36:00"),
        ("1 minute ago", "2019-05-01 14:34:00", "2019-05-01 14:35:00"),
        ("5 min ago", "2019-05-01 14:30:00", "2019-05-01 14:31:00"),
        ("this hour", "2019-05-01 14:00:00", "2019-05-01 15:00:00"),
        ("24 hours ago", "2019-04-30 14:00:00", "2019-04-30 15:00:00"),
        ("today", "2019-05-01", "2019-05-02"),
        ("this day", "2019-05-01", "2019-05-02"),
        ("yesterday", "2019-04-30", "2019-05-01"),
        ("0 days ago", "2019-05-01", "2019-05-02"),
        ("10 days ago", "2019-04-21", "2019-04-22"),
        ("this week", "2019-04-29", "2019-05-06"),
        ("last week", "2019-04-22", "2019-04-29"),
        ("10 weeks ago", "2019-02-18", "2019-02-25"),
        ("this month", "2019-05-01", "2019-06-01"),
        ("last month", "2019-04-01", "2019-05-01"),
        ("15 months ago", "2018-02-01", "2018-03-01"),
        ("this year", "2019-01-01", "2020-01-01"),
        ("last year", "2018-01-01", "2019-01-01"),
        ("5 years ago", "2014-01-01", "2015-01-01"),
        # until now
        ("last minute", "2019-05-01 14:34:23", None),
        ("last 30 min", "2019-05-01 14:05:23", None),
        ("last 30min", "2019-05-01 14:05:23", None),
        ("last hour", "2019-05-01 13:35:23", None),
        ("last 6 hrs", "2019-05-01 08:35:23", None),
        ("last day", "2019-04-30 14:35:23", None),
        ("last 10 days", "2019-04-21 14:35:23", None),
        ("last 2 weeks", "2019-04-17 14:35:23", None),
        ("last 3 months", "2019-02-01 14:35:23", None),
        ("last 1 year", "2018-05-01 14:35:23", None),
        # before and after
        ("before 2018-4-29", None, "2018-04-29"),
        ("before 19-4-29 9:35:05", None, "2019-04-29 09:35:05"),
        ("before 4-29", None, "2019-04-29"),
        ("before 23:30", None, "2019-05-01 23:30"),
        ("before today", None, "2019-05-01"),
        ("before 2 days ago", None, "2019-04-29"),
        ("after 2018-4-29", "2018-04-29", None),
        ("after 4-28 15:45", "2019-04-28 15:45", None),
        ("after yesterday", "2019-05-01", None),
        ("after 5 minutes ago", "2019-05-01 14:31:00", None),
        ("after last month", "2019-05-01", None),
        # between
        ("between yesterday and today", "2019-04-30", "2019-05-02"),
        ("between today and yesterday", "2019-04-30", "2019-05-02"),
        ("between 10 minutes ago and 5 minutes ago", "2019-05-01 14:25", "2019-05-01 14:31"),
        ("between 1-1 and 1-31", "2019-01-01", "2019-01-31"),
        ("between 1-31 and 1-1", "2019-01-01", "2019-01-31"),
        ("between 0:00:05 and 12:00:45", "2019-05-01 00:00:05", "2019-05-01 12:00:45"),
        ("between 2018-1-1 and 10 days ago", "2018-01-01", "2019-04-22"),
        # moments by themselves
        ("10:00", "2019-05-01 10:00", "2019-05-01 10:01"),
        ("2018-10-31", "2018-10-31", "2018-11-01"),
        ("2018-10-31 14:30", "2018-10-31 14:30", "2018-10-31 14:31"),
        ("2018-10-31 14:30:05", "2018-10-31 14:30:05", "2018-10-31 14:30:06"),
        ("2018-10-31T14:30", "2018-10-31 14:30", "2018-10-31 14:31"),
        ("2018-10-31T14:30:05+02:00", "2018-10-31 12:30:05", "2018-10-31 12:30:06"),
        ("after 2018-10-31T14:30:05Z", "2018-10-31 14:30:05", None),
        # as people type
        ("  ToDay ", "2019-05-01", "2019-05-02"),
        ("LAST  6 Hours", "2019-05-01 08:35:23", None),
    ],
)
def test_forms(text: str, start: str | None, end: str | None) -> None:
    assert parse(text, NOW) == Range(micros(start), micros(end))


NO_RANGES = """
, now and then, last, last week ago, 3 days, ago, days ago, this, this 2 weeks, tomorrow, next week, 1700000000
before, after, between, between 1-1, between 1-1 and, between and 1-1, between before 1-1 and 2-1, before last 3 days
after after 1-1, 1-1 1-1, 9:00 1-1, 1:2, 25-11-2026, 2026-11, -3 days ago, 2018-4-31, 2018-13-1, 24:00, 11:60, 0-0
between 11:00 and 24:00, 99999 years ago, 9999999 weeks ago, 99999999999999999999 days ago, 9999-12-31, 0000-1-1
2018-10-31T14:30:05+99:00, 2018-10-31T25:00, ٣ days ago
"""


@pytest.mark.parametrize("text", [*NO_RANGES.replace("\n", ", ").split(", "), "today" + " " * MAX_LENGTH])
def test_what_is_no_range_is_a_usage_error_that_lists_the_forms(text: str) -> None:
    with pytest.raises(Usage, match="time range") as caught:
        parse(text, NOW)
    assert "`last N minutes`" in str(caught.value.hint)


def test_the_last_day_of_a_shorter_month() -> None:
    now = datetime(2020, 3, 31, 12, tzinfo=UTC)
    assert parse("last 1 month", now).start == micros("2020-02-29 12:00")
    assert parse("last 13 months", now).start == micros("2019-02-28 12:00")
    assert parse("1 month ago", now) == Range(micros("2020-02-01"), micros("2020-03-01"))


def test_two_digits_of_a_year_are_of_this_century() -> None:
    assert parse("before 89-4-1", datetime(1900, 1, 1, tzinfo=UTC)).end == micros("1989-04-01")


def test_a_range_holds_its_start_and_not_its_end() -> None:
    span = Range(10, 20)
    assert [span.compare(moment) for moment in (9, 10, 19, 20)] == [-1, 0, 0, 1]
    assert [span.holds(moment) for moment in (9, 10, 19, 20)] == [False, True, True, False]
    assert Range(None, 0).holds(-1)
    assert not Range(None, 0).holds(0)
    assert Range(0, None).holds(1 << 62)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The clock of this machine, where on 2024-03-31 a day has 23 hours and on 2024-10-27 25."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(("month", "day", "hours"), [(3, 31, 23), (10, 27, 25), (7, 1, 24)])
def test_days_are_those_of_this_machine(berlin: None, month: int, day: int, hours: int) -> None:
    now = datetime(2024, month, day, 12)
    today, yesterday = parse("today", now), parse("yesterday", now)
    assert today.start is not None
    assert today.end is not None
    assert today.end - today.start == hours * 3_600_000_000
    assert yesterday.end == today.start
    assert today.start == round(datetime(2024, month, day).timestamp() * 1e6)
    assert parse("last 24 hours", now).start == round(now.timestamp() * 1e6) - 24 * 3_600_000_000
    assert parse("last day", now).start == round((now - timedelta(1)).timestamp() * 1e6)


NUMBERS = st.integers(0, 10_000_000).map(str)
WORDS = st.sampled_from(
    [
        *(
            "before",
            "after",
            "between",
            "and",
            "last",
            "this",
            "ago",
            "today",
            "yesterday",
            "1-1",
            "2026-11-25",
            "11:30",
        ),
        *("minute", "hours", "days", "weeks", "months", "years", "0-0", "99:99", "2024-02-30", "1", "9999-12-31"),
    ]
)
CLOCKS = st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.none() | st.just(UTC))


@given(st.lists(WORDS | NUMBERS, max_size=6).map(" ".join) | st.text(), CLOCKS)
def test_nothing_but_usage_comes_of_any_text(text: str, now: datetime) -> None:
    try:
        found = parse(text, now)
    except Usage:
        return
    if found.start is not None and found.end is not None:
        assert found.start <= found.end


@given(st.integers(0, 500), st.sampled_from(["minute", "hour", "day", "week", "month", "year"]), CLOCKS)
def test_calendar_units_follow_each_other(count: int, unit: str, now: datetime) -> None:
    try:
        older, newer = parse(f"{count + 1} {unit} ago", now), parse(f"{count} {unit} ago", now)
    except Usage:
        return  # before all calendars
    assert older.end == newer.start
    assert parse(f"after {count} {unit}s ago", now) == Range(newer.end, None)
    assert parse(f"before {count} {unit}s ago", now) == Range(None, newer.start)
    if count == 0:
        assert newer.holds(round(now.timestamp()) * 1_000_000 - 1_000_000) or newer.holds(int(now.timestamp() * 1e6))
