"""When runs started: the time ranges that Guild AI understands, read against a clock."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

from guildsync.errors import Usage

MAX_LENGTH = 200
FORMS = (
    "say `after` or `before` DATETIME, `between` DATETIME `and` DATETIME, `last N minutes` (hours, days, weeks, "
    "months, years), `today`, `yesterday`, `this week`, `last week` (month, year), `N days ago`, or a DATETIME: "
    "2026-11-25, 11-25, 11:30, 11-25 11:30"
)

_SECOND = 1_000_000
_UNITS = {
    **dict.fromkeys(("minute", "minutes", "min", "mins"), "minute"),
    **dict.fromkeys(("hour", "hours", "hr", "hrs"), "hour"),
    **dict.fromkeys(("day", "days"), "day"),
    **dict.fromkeys(("week", "weeks"), "week"),
    **dict.fromkeys(("month", "months"), "month"),
    **dict.fromkeys(("year", "years"), "year"),
}
_SECONDS = {"minute": 60, "hour": 3600}
_DAYS = {"day": 1, "week": 7}
_MONTHS = {"month": 1, "year": 12}
_WORD = re.compile(r"[0-9]+(?=[a-z])|\S+")
_COUNT = re.compile(r"[0-9]{1,7}")
_DATE = re.compile(r"(?:([0-9]{4}|[0-9]{2})-)?([0-9]{1,2})-([0-9]{1,2})")
_TIME = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?")
_ISO = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}t[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.(?:[0-9]{3}){1,2})?)?)(z|[-+][0-9]{2}:[0-9]{2})?"
)


@dataclass(frozen=True)
class Range:
    """Moments in microseconds since the epoch from `start` on and before `end`; None: no bound on that side."""

    start: int | None
    end: int | None

    def compare(self, moment: int) -> int:
        """-1 before the range, 0 in it, 1 after it."""
        if self.start is not None and moment < self.start:
            return -1
        return 1 if self.end is not None and moment >= self.end else 0

    def holds(self, moment: int) -> bool:
        return self.compare(moment) == 0


def parse(text: str, now: datetime) -> Range:
    """The range that `text` means at the moment `now`, on its clock: this machine's where it has no time zone.

    A DATETIME is a moment, and for a date alone midnight, behind `after`, `before`, `between` and `and`; by itself it
    is its day, minute or second. There, `today`, `this week`, `last month` and `N days ago` are whole calendar units:
    `after` one begins where it ends, and `between` two holds both. `last N` units end now. Raises Usage.
    """
    words = _WORD.findall(text.casefold()) if len(text) <= MAX_LENGTH else []
    try:
        found = _read(words, now)
    except (ValueError, OverflowError, OSError) as exc:
        raise Usage(f"the time range {text[:MAX_LENGTH]!r} is in no calendar: {exc}", FORMS) from exc
    if found is None:
        raise Usage(f"the time range {text[:MAX_LENGTH]!r} is not understood", FORMS)
    return found


_Span = tuple[int, int]


def _read(words: Sequence[str], now: datetime) -> Range | None:
    match words:
        case ["before", *rest]:
            one = _operand(rest, now)
            return Range(None, one[0]) if one else None
        case ["after", *rest]:
            one = _operand(rest, now)
            return Range(one[1], None) if one else None
        case ["between", *rest] if "and" in rest:
            middle = rest.index("and")
            one, other = _operand(rest[:middle], now), _operand(rest[middle + 1 :], now)
            if one is None or other is None:
                return None
            first, last = sorted((one, other))
            return Range(first[0], last[1])
        case ["last", ("minute" | "min" | "hour" | "hr" | "day") as unit]:
            return Range(_back(1, _UNITS[unit], now), None)
        case ["last", count, unit] if _COUNT.fullmatch(count) and unit in _UNITS:
            return Range(_back(int(count), _UNITS[unit], now), None)
    span = _unit(words, now)
    if span is None and (found := _datetime(words, now)) is not None:
        moment, length = found
        span = _micros(moment), _micros(moment + length)
    return Range(*span) if span else None


def _operand(words: Sequence[str], now: datetime) -> _Span | None:
    """A whole calendar unit, or a moment, which begins and ends at once."""
    if span := _unit(words, now):
        return span
    found = _datetime(words, now)
    return (_micros(found[0]),) * 2 if found else None


def _unit(words: Sequence[str], now: datetime) -> _Span | None:
    """Of the calendar: the one that `now` is in, or so many before it."""
    match words:
        case ["today"]:
            return _calendar(0, "day", now)
        case ["yesterday"]:
            return _calendar(1, "day", now)
        case ["this", unit] if unit in _UNITS:
            return _calendar(0, _UNITS[unit], now)
        case ["last", ("week" | "month" | "year") as unit]:
            return _calendar(1, unit, now)
        case [count, unit, "ago"] if _COUNT.fullmatch(count) and unit in _UNITS:
            return _calendar(int(count), _UNITS[unit], now)
    return None


def _calendar(count: int, unit: str, now: datetime) -> _Span:
    if unit in _SECONDS:
        length = _SECONDS[unit] * _SECOND
        start = _micros(now.replace(minute=now.minute if unit == "minute" else 0, second=0, microsecond=0))
        return start - count * length, start - count * length + length
    today = now.date()
    if unit in _DAYS:
        first = today - timedelta(days=today.weekday() if unit == "week" else 0) - timedelta(_DAYS[unit] * count)
        return _midnight(first, now), _midnight(first + timedelta(_DAYS[unit]), now)
    first = today.replace(month=today.month if unit == "month" else 1, day=1)
    first = _months_later(first, -_MONTHS[unit] * count)
    return _midnight(first, now), _midnight(_months_later(first, _MONTHS[unit]), now)


def _back(count: int, unit: str, now: datetime) -> int:
    """The moment so many units before `now`: the same time on an earlier day, or on the last day of a shorter month."""
    if unit in _SECONDS:
        return _micros(now) - count * _SECONDS[unit] * _SECOND
    if unit in _DAYS:
        return _micros(now - timedelta(_DAYS[unit] * count))
    first = _months_later(now.date().replace(day=1), -_MONTHS[unit] * count)
    days = (_months_later(first, 1) - first).days
    return _micros(now.replace(first.year, first.month, min(now.day, days)))


def _months_later(first: date, months: int) -> date:
    year, month = divmod(first.year * 12 + first.month - 1 + months, 12)
    return date(year, month + 1, 1)


def _datetime(words: Sequence[str], now: datetime) -> tuple[datetime, timedelta] | None:
    """The moment that a date, a time or both name, and how long it takes by itself."""
    match words:
        case [word] if found := _ISO.fullmatch(word):
            precise = timedelta(microseconds=1) if "." in word else timedelta(seconds=1)
            length = precise if found[1].count(":") == 2 else timedelta(minutes=1)
            offset = (found[2] or "").replace("z", "+00:00")
            moment = datetime.fromisoformat(found[1].upper() + offset)
            return moment if offset else moment.replace(tzinfo=now.tzinfo), length
        case [word] if found := _DATE.fullmatch(word):
            return datetime.combine(_date(found, now), time(), now.tzinfo), timedelta(1)
        case [word] if found := _TIME.fullmatch(word):
            return _at(now.date(), found, now)
        case [word, other] if (found := _DATE.fullmatch(word)) and (clock := _TIME.fullmatch(other)):
            return _at(_date(found, now), clock, now)
    return None


def _date(found: re.Match[str], now: datetime) -> date:
    """Without a year it is in this one, with two digits of it in this century."""
    digits, month, day = found.groups()
    year = now.year if digits is None else int(digits)
    return date(year + (now.year // 100 * 100 if digits and len(digits) == 2 else 0), int(month), int(day))


def _at(day: date, found: re.Match[str], now: datetime) -> tuple[datetime, timedelta]:
    hour, minute, second = found.groups()
    moment = datetime.combine(day, time(int(hour), int(minute), int(second or 0)), now.tzinfo)
    return moment, timedelta(seconds=1) if second else timedelta(minutes=1)


def _midnight(day: date, now: datetime) -> int:
    return _micros(datetime.combine(day, time(), now.tzinfo))


def _micros(moment: datetime) -> int:
    return int(moment.replace(microsecond=0).timestamp()) * _SECOND + moment.microsecond
