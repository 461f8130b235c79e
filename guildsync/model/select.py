"""Which runs: index, range, id prefix, filters, and all of these together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guildsync.errors import NotFound, Usage
from guildsync.model.run import RUNNING, Record, RunId

if TYPE_CHECKING:  # every command loads this module, and few of them an expression
    from guildsync.model.expression import Expression
    from guildsync.model.timerange import Range

MIN_PREFIX = 4
"""Fewer hex digits of an id are refused: they name too many runs."""
NO_LABEL = "-"

_INDEX = re.compile(r"[0-9]{1,32}")
_RANGE = re.compile(r"([0-9]{0,9}):([0-9]{0,9})")
_LATEST = re.compile(r"@latest(?::([0-9]{1,9}))?")
_PREFIX = re.compile(rf"[0-9a-fA-F]{{{MIN_PREFIX},32}}")
_FORMS = "say an index (1), a range (2:5, :3, 4:), an id or at least 4 digits of one, @latest, @latest:3 or @running"


@dataclass(frozen=True)
class Filters:
    """Which runs count at all. Of several values of one kind any is enough, but every expression and every range of
    time must hold; and every kind that is given.

    Operations and labels match as substrings, whatever their case; the label `-` matches runs without one. A run that
    never started is in no range. Where sizes or scalars are asked for, no run counts that was listed without them:
    what is not known is not undefined.
    """

    operations: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    unlabeled: bool = False
    tags: tuple[str, ...] = ()
    marked: bool = False
    statuses: tuple[str, ...] = ()
    expressions: tuple[Expression, ...] = ()
    started: tuple[Range, ...] = ()

    @property
    def needs_scalars(self) -> bool:
        """May an expression look at scalars?"""
        return any(expression.needs_scalars for expression in self.expressions)

    @property
    def needs_sizes(self) -> bool:
        """Must runs be listed with sizes, files and scalars?"""
        return self.needs_scalars or any(expression.needs_sizes for expression in self.expressions)

    def matches(self, record: Record) -> bool:
        summary, metadata = record.summary, record.metadata
        return (
            _any(self.operations, lambda wanted: _within(wanted, summary.operation))
            and _any(self.labels, lambda wanted: _has_label(wanted, metadata.label))
            and not (self.unlabeled and metadata.label)
            and _any(self.tags, lambda wanted: wanted in metadata.tags)
            and not (self.marked and not metadata.marked)
            and _any(self.statuses, lambda wanted: wanted == summary.status)
            and all(summary.started is not None and span.holds(summary.started) for span in self.started)
            and not (summary.size is None and self.needs_sizes)
            and all(expression.holds(record) for expression in self.expressions)
        )


def newness(record: Record) -> tuple[bool, int, str]:
    """What records sort by: their start, the latest first and those that never started last; then their ids."""
    started = record.summary.started
    return started is None, -(started or 0), record.run


def newest_first(records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=newness)


def select(records: Sequence[Record], selectors: Sequence[str], done: Sequence[Record] = ()) -> list[Record]:
    """The runs that `selectors` name among `records`, in the order they are named, each once. An id of one of `done`
    chooses nothing: what is to be done to it was done before.

    Indexes count from 1 in the newest-first list, and ranges hold both their ends. All digits is an index where
    one fits, else, from four digits on, the beginning of an id. No selector chooses nothing. Raises Usage for what
    is no selector or names several runs by one prefix, NotFound for one that names none.
    """
    listed = newest_first(records)
    chosen: dict[str, Record] = {}
    for selector in selectors:
        for record in _chosen(listed, selector, done):
            chosen.setdefault(record.run, record)
    return list(chosen.values())


def names_by_id(selectors: Sequence[str], run: str) -> bool:
    """Does one of `selectors` give this id, or the beginning of it?"""
    return any(_PREFIX.fullmatch(selector) and run.startswith(selector.lower()) for selector in selectors)


def _chosen(listed: Sequence[Record], selector: str, done: Sequence[Record]) -> Sequence[Record]:
    if _INDEX.fullmatch(selector) and (len(selector) < MIN_PREFIX or 1 <= int(selector) <= len(listed)):
        first = _position(selector, selector)
        return _found(listed[first - 1 : first], listed, selector)
    if match := _RANGE.fullmatch(selector):
        return _found(_range(listed, selector, match[1], match[2]), listed, selector)
    if match := _LATEST.fullmatch(selector):
        return _found(listed[: _position(match[1] or "1", selector)], listed, selector)
    if selector == "@running":
        return _found([record for record in listed if record.summary.status == RUNNING], listed, selector)
    if _PREFIX.fullmatch(selector):
        return _with_prefix(listed, selector, done)
    raise Usage(f"{selector!r} does not say which run", _FORMS)


def _range(listed: Sequence[Record], selector: str, first: str, last: str) -> Sequence[Record]:
    if not first and not last:
        raise Usage(f"the range {selector!r} has no end", _FORMS)
    start = _position(first or "1", selector)
    end = _position(last, selector) if last else max(start, len(listed))
    if end < start:
        raise Usage(f"the range {selector!r} runs backwards", f"say {end}:{start}")
    return listed[start - 1 : end]


def _with_prefix(listed: Sequence[Record], selector: str, done: Sequence[Record]) -> Sequence[Record]:
    matches = [record for record in listed if record.run.startswith(selector.lower())]
    if len(matches) > 1:
        ids = ", ".join(record.run for record in matches)
        raise Usage(f"{selector!r} is the beginning of {len(matches)} ids: {ids}", "give more digits of the id")
    if not matches and any(record.run.startswith(selector.lower()) for record in done):
        return ()
    return _found(matches, listed, selector)


def _position(digits: str, selector: str) -> int:
    position = int(digits)
    if position < 1:
        raise Usage(f"{selector!r} does not say which run", "indexes count from 1, the newest run")
    return position


def _found(matches: Sequence[Record], listed: Sequence[Record], selector: str) -> Sequence[Record]:
    if not matches:
        count = {0: "there are no runs", 1: "there is 1 run"}.get(len(listed), f"there are {len(listed)} runs")
        raise NotFound(f"no run matches {selector!r}", f"{count} to choose from; `guildsync runs` lists them")
    return matches


def _any(wanted: Sequence[str], holds: Callable[[str], bool]) -> bool:
    return not wanted or any(holds(value) for value in wanted)


def _has_label(wanted: str, label: str | None) -> bool:
    return not label if wanted == NO_LABEL else _within(wanted, label or "")


def _within(wanted: str, value: str) -> bool:
    return wanted.casefold() in value.casefold()


@dataclass(frozen=True)
class Choice:
    """Which runs: selectors as on the command line, and filters. Nothing named means all."""

    selectors: Sequence[str] = ()
    filters: Filters = field(default_factory=Filters)

    def __call__(self, records: Sequence[Record], done: Sequence[Record] = ()) -> list[Record]:
        """The chosen ones, newest first; raises NotFound where something that was named matches nothing, but for ids of
        `done`, to which there is nothing left to do."""
        listed = [record for record in newest_first(records) if self.filters.matches(record)]
        return select(listed, self.selectors, done) if self.selectors else listed

    @property
    def needs_details(self) -> bool:
        """Do the filters ask for what a plain listing of directories does not say?"""
        return self.filters.needs_sizes

    def names(self, run: RunId) -> bool:
        """Is this run named by its id, or the beginning of it?"""
        return names_by_id(self.selectors, run)
