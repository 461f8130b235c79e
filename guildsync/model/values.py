"""What of a run can be asked for by name, and how it compares with a value that somebody wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from guildsync.model.run import Record, Scalars, find_scalar
from guildsync.model.timerange import Range

ATTRIBUTE, FLAG, SCALAR = "attr", "flag", "scalar"
ATTRIBUTES: Mapping[str, Callable[[Record], Any]] = {
    "id": lambda record: record.run,
    "run": lambda record: record.run[:8],
    "short_id": lambda record: record.run[:8],
    "operation": lambda record: record.summary.operation or None,
    "op": lambda record: record.summary.operation.rpartition(":")[2] or None,
    "model": lambda record: record.summary.operation.rpartition(":")[0].rpartition("/")[2] or None,
    "status": lambda record: record.summary.status,
    "exit_status": lambda record: record.summary.exit_status,
    "started": lambda record: record.summary.started,
    "stopped": lambda record: record.summary.stopped,
    "label": lambda record: record.metadata.label or None,
    "tags": lambda record: sorted(record.metadata.tags) or None,
    "marked": lambda record: record.metadata.marked,
    "comments": lambda record: "\n".join(comment.body for comment in record.metadata.comments) or None,
    "size": lambda record: record.summary.size,
    "files": lambda record: record.summary.files,
}
"""What every run has under these names, or None: the same for a run wherever it lies."""

AGGREGATES = frozenset({"min", "max", "first", "last", "avg", "count"})
WITHOUT_STEP = frozenset({"avg", "count"})
STEP = "step"
CONSTANTS: Mapping[str, bool | None] = {"true": True, "false": False, "undefined": None}
KEYWORDS = frozenset({"and", "or", "not", "is", "in", "contains", *CONSTANTS})
WORD = r"""[^\s,<>!=()\[\]'"`]+"""
"""What is read as one word without quotes."""
NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
PREFIX = re.compile(rf"({ATTRIBUTE}|{FLAG}|{SCALAR}):|\.")
"""What may stand before a name: a dot is short for `attr:`."""

_TIMES = frozenset({"started", "stopped"})
_MEASURED = frozenset({"size", "files"})
_INTEGER = re.compile(r"[-+]?[0-9]{1,300}")
_NOT_FINITE = frozenset({"nan", "inf", "-inf"})


@dataclass(frozen=True)
class Name:
    """What of a run is looked at. `kind` None: its attribute of that name, else its flag, else its scalar.

    `aggregate` and `step` are of scalars: which of all values that were logged, the last where it is None, and the
    step of that value. The name of an attribute is looked for among the scalars only behind `scalar:`, and that of a
    time among the flags only behind `flag:`.
    """

    name: str
    kind: str | None = None
    aggregate: str | None = None
    step: bool = False

    @property
    def needs_scalars(self) -> bool:
        """May it be a scalar?"""
        return self._is_scalar or (self.kind is None and self.name not in ATTRIBUTES)

    @property
    def needs_sizes(self) -> bool:
        return self._may_be(ATTRIBUTE) and self.name in _MEASURED

    @property
    def is_time(self) -> bool:
        return self._may_be(ATTRIBUTE) and self.name in _TIMES

    def of(self, record: Record) -> Any:
        """The value that a run has, as JSON says it; None where it has none."""
        value = None
        if self._may_be(ATTRIBUTE) and self.name in ATTRIBUTES:
            value = ATTRIBUTES[self.name](record)
        if value is None and self._may_be(FLAG) and not self.is_time:
            value = record.summary.flags.get(self.name)
        if value is None and self.needs_scalars:
            value = self._scalar(record.summary.scalars)
        return value

    def __str__(self) -> str:
        quoted = self.name if self._is_plain else "`" + self.name.replace("`", "``") + "`"
        words = (self.aggregate, (f"{self.kind}:" if self.kind else "") + quoted, STEP if self.step else None)
        return " ".join(word for word in words if word)

    @property
    def _is_scalar(self) -> bool:
        return self.kind == SCALAR or self.aggregate is not None or self.step

    def _may_be(self, kind: str) -> bool:
        return not self._is_scalar and self.kind in (None, kind)

    @property
    def _is_plain(self) -> bool:
        """Can it stand without quotes?"""
        name = self.name
        if not re.fullmatch(WORD, name):
            return False
        is_word_of_ours = name in AGGREGATES or name == STEP or name.lower() in KEYWORDS
        return self.kind is not None or not (is_word_of_ours or NUMBER.fullmatch(name) or PREFIX.match(name))

    def _scalar(self, scalars: Scalars) -> Any:
        tag = find_scalar(scalars, self.name)
        found = scalars[tag] if tag is not None else None
        if not isinstance(found, Mapping):
            return None
        return found.get((self.aggregate or "last") + (f"_{STEP}" if self.step else ""))


@dataclass(frozen=True)
class Literal:
    """A value as it was written, and what it means; None: undefined."""

    text: str
    value: str | int | float | bool | Range | None

    def __str__(self) -> str:
        if isinstance(self.value, str | Range):
            return "'" + self.text.replace("\\", "\\\\").replace("'", "\\'") + "'"
        return self.text


def equal(value: Any, literal: Literal) -> bool:
    """Texts character by character; else as numbers where both are, a text that is a number too; else by what they
    look like. A list equals what one of its items equals, a moment the range it is in, None what is undefined."""
    wanted = literal.value
    if value is None or wanted is None:
        return value is wanted
    if isinstance(value, list):
        return any(equal(item, literal) for item in value)
    if isinstance(wanted, Range):
        return type(value) is int and wanted.holds(value)
    if isinstance(value, str) and isinstance(wanted, str):
        return value == wanted
    one, other = number(value), number(wanted)
    if one is not None and other is not None:
        return one == other
    return _looks(value).lower() == literal.text.lower()


def order(value: Any, literal: Literal) -> int | None:
    """Below zero where the value comes first, zero where neither does; None where they have no order."""
    wanted = literal.value
    if isinstance(wanted, Range):
        return wanted.compare(value) if type(value) is int else None
    if isinstance(value, str) and isinstance(wanted, str):
        return (value > wanted) - (value < wanted)
    one, other = number(value), number(wanted)
    if one is None or other is None or not (one < other or one >= other):
        return None
    return (one > other) - (one < other)


def contains(value: Any, literal: Literal) -> bool:
    """A list: what one of its items equals. Else what its text holds, whatever the case."""
    if value is None or literal.value is None:
        return False
    if isinstance(value, list):
        return equal(value, literal)
    return literal.text.casefold() in _looks(value).casefold()


def number(value: Any) -> int | float | None:
    """Of a number, or of a text that is one; None of anything else."""
    if isinstance(value, int | float):
        return value
    if not isinstance(value, str):
        return None
    if _INTEGER.fullmatch(value):
        return int(value)
    return float(value) if NUMBER.fullmatch(value) or value in _NOT_FINITE else None


def _looks(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
