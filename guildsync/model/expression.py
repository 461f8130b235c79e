"""Which runs: expressions over attributes, flags and scalars, as Guild AI writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, NoReturn

from guildsync.errors import Usage
from guildsync.model.run import Record
from guildsync.model.timerange import parse as parse_range
from guildsync.model.values import (
    AGGREGATES,
    ATTRIBUTE,
    CONSTANTS,
    KEYWORDS,
    NUMBER,
    PREFIX,
    SCALAR,
    STEP,
    WITHOUT_STEP,
    WORD,
    Literal,
    Name,
    contains,
    equal,
    number,
    order,
)

MAX_LENGTH = 10_000
MAX_DEPTH = 100

EQUAL, CONTAINS, IN = "=", "contains", "in"
_ORDERS: Mapping[str, Callable[[int], bool]] = {
    "<": lambda order: order < 0,
    "<=": lambda order: order <= 0,
    ">": lambda order: order > 0,
    ">=": lambda order: order >= 0,
}
_TOKEN = re.compile(
    r"""(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |(?P<name>(?:(?:attr|flag|scalar):|\.)?`(?:[^`]|``)+`(?!`))
    |(?P<mark>==|!=|<>|<=|>=|[=<>(),\[\]])"""
    rf"|(?P<word>{WORD})",
    re.X | re.S,
)
_ESCAPE = re.compile(r"\\(['\"\\])")
_SPACE = re.compile(r"\s*")
_MARKS: Mapping[str, tuple[str, bool]] = {
    **{mark: (mark, False) for mark in (EQUAL, *_ORDERS)},
    "==": (EQUAL, False),
    "!=": (EQUAL, True),
    "<>": (EQUAL, True),
}
_LISTS = {"(": ")", "[": "]"}

_SHOWN = 20
_VALUES = "a value: a number, a word, 'a text', true, false or undefined"
_HINT = (
    "filters are such as `loss < 0.2 and lr = 0.1`: NAME = VALUE (also != < <= > >=), NAME contains VALUE, "
    "NAME in [A, B], NAME is undefined, joined by and, or, not and ( )"
)


@dataclass(frozen=True)
class Comparison:
    """`operator` is =, <, <=, >, >=, contains or in; only these last two may have several literals."""

    name: Name
    operator: str
    literals: tuple[Literal, ...]
    negated: bool = False

    def holds(self, record: Record) -> bool:
        return self._holds(self.name.of(record)) is not self.negated

    def names(self) -> Iterator[Name]:
        yield self.name

    def __str__(self) -> str:
        values = [str(literal) for literal in self.literals]
        if self.operator == EQUAL:
            return f"{self.name} {'!=' if self.negated else '='} {values[0]}"
        said = values[0] if self.operator in _ORDERS else f"[{', '.join(values)}]"
        return f"{self.name} {'not ' if self.negated else ''}{self.operator} {said}"

    def _holds(self, value: Any) -> bool:
        if self.operator == CONTAINS:
            return all(contains(value, literal) for literal in self.literals)
        if self.operator in _ORDERS:
            place = order(value, self.literals[0])
            return place is not None and _ORDERS[self.operator](place)
        return any(equal(value, literal) for literal in self.literals)


@dataclass(frozen=True)
class Constant:
    value: bool

    def holds(self, _: Record) -> bool:
        return self.value

    def names(self) -> Iterator[Name]:
        return iter(())

    def __str__(self) -> str:
        return "true" if self.value else "false"


@dataclass(frozen=True)
class Not:
    operand: Node

    def holds(self, record: Record) -> bool:
        return not self.operand.holds(record)

    def names(self) -> Iterator[Name]:
        return self.operand.names()

    def __str__(self) -> str:
        return f"not {_within(self.operand, And | Or)}"


@dataclass(frozen=True)
class And:
    operands: tuple[Node, ...]

    def holds(self, record: Record) -> bool:
        return all(operand.holds(record) for operand in self.operands)

    def names(self) -> Iterator[Name]:
        return (name for operand in self.operands for name in operand.names())

    def __str__(self) -> str:
        return " and ".join(_within(operand, And | Or) for operand in self.operands)


@dataclass(frozen=True)
class Or:
    operands: tuple[Node, ...]

    def holds(self, record: Record) -> bool:
        return any(operand.holds(record) for operand in self.operands)

    def names(self) -> Iterator[Name]:
        return (name for operand in self.operands for name in operand.names())

    def __str__(self) -> str:
        return " or ".join(_within(operand, Or) for operand in self.operands)


Node = Comparison | Constant | Not | And | Or


@dataclass(frozen=True)
class Expression:
    """A filter. Its text parses to the same expression again."""

    root: Node

    def holds(self, record: Record) -> bool:
        return self.root.holds(record)

    @property
    def needs_scalars(self) -> bool:
        """Can its value depend on scalars? Any name that is no attribute and has no prefix may be one."""
        return any(name.needs_scalars for name in self.root.names())

    @property
    def needs_sizes(self) -> bool:
        """Does it look at the size of runs or at how many files they have?"""
        return any(name.needs_sizes for name in self.root.names())

    def __str__(self) -> str:
        return str(self.root)


def parse(text: str, now: datetime) -> Expression:
    """The expression that `text` writes; times in it are read as `timerange.parse` reads them at the moment `now`.

    `not` binds closer than `and`, and `and` closer than `or`. Names are words, `in backticks`, or either behind
    `attr:`, `flag:` or `scalar:`; `min loss`, `loss step` and `max loss step` are of scalars. Raises Usage.
    """
    if len(text) > MAX_LENGTH:
        raise Usage(f"the filter is {len(text)} characters long", f"{MAX_LENGTH} are the most that is read")
    return Expression(_Parser(text, now).whole())


class _Token(NamedTuple):
    """`kind` is text, name, mark, word or end."""

    kind: str
    text: str
    start: int

    @property
    def keyword(self) -> str:
        word = self.text.lower() if self.kind == "word" else ""
        return word if word in KEYWORDS else ""


def _tokens(text: str) -> Iterator[_Token]:
    position = _spaces(text, 0)
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            what = "a quote that does not end" if text[position] in "'\"`" else "a character that means nothing there"
            raise _unreadable(text, position, what)
        yield _Token(str(found.lastgroup), found[0], position)
        position = _spaces(text, found.end())
    yield _Token("end", "", len(text))


def _spaces(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _unreadable(text: str, position: int, what: str, hint: str = _HINT) -> Usage:
    rest = text[position : position + _SHOWN]
    where = f"character {position + 1}, before {rest!r}" if rest else "its end"
    return Usage(f"the filter cannot be read at {where}: {what}", hint)


class _Parser:
    """Recursive descent, one token ahead."""

    def __init__(self, text: str, now: datetime) -> None:
        self._text = text
        self._now = now
        self._rest = _tokens(text)
        self._token = next(self._rest)
        self._depth = 0

    def whole(self) -> Node:
        node = self._or()
        if self._token.kind != "end":
            self._fail("`and`, `or` or the end; a value of several words stands in quotes")
        return node

    def _or(self) -> Node:
        operands = [self._and()]
        while self._takes("or"):
            operands.append(self._and())
        return Or(tuple(operands)) if len(operands) > 1 else operands[0]

    def _and(self) -> Node:
        operands = [self._not()]
        while self._takes("and"):
            operands.append(self._not())
        return And(tuple(operands)) if len(operands) > 1 else operands[0]

    def _not(self) -> Node:
        if self._depth > MAX_DEPTH:
            raise _unreadable(self._text, self._token.start, f"it is nested more than {MAX_DEPTH} deep")
        self._depth += 1
        try:
            if self._takes("not"):
                return Not(self._not())
            if self._takes("("):
                node = self._or()
                self._expect(")")
                return node
            if self._token.keyword in ("true", "false"):
                return Constant(self._next().keyword == "true")
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Node:
        name = self._name()
        if self._takes("is"):
            negated = self._takes("not")
            return Comparison(name, EQUAL, (self._literal(name),), negated)
        negated, operator = self._takes("not"), self._token
        if self._takes(IN):
            return Comparison(name, IN, self._list(name), negated)
        if self._takes(CONTAINS):
            if name.is_time:
                raise _unreadable(self._text, operator.start, f"{name.name} is a time, which contains nothing")
            several = self._token.kind == "mark" and self._token.text in _LISTS
            return Comparison(name, CONTAINS, self._list(name) if several else (self._literal(name),), negated)
        if negated:
            self._fail("`in` or `contains`")
        if operator.kind != "mark" or operator.text not in _MARKS:
            self._fail("an operator: = != < <= > >= contains in is")
        self._next()
        mark, negated = _MARKS[operator.text]
        return Comparison(name, mark, (self._literal(name),), negated)

    def _name(self) -> Name:
        """With what may stand around it: `min loss step`."""
        start, aggregate = self._token.start, None
        if self._token.kind == "word" and self._token.text in AGGREGATES:
            word = self._next().text
            aggregate = word if self._is_name else None
            name, kind = self._reference() if aggregate else (word, None)
        else:
            name, kind = self._reference()
        step = self._token.kind == "word" and self._token.text == STEP
        if step:
            self._next()
        if (aggregate or step) and kind not in (None, SCALAR):
            raise _unreadable(self._text, start, f"{aggregate or STEP} is of scalars only")
        if step and aggregate in WITHOUT_STEP:
            raise _unreadable(self._text, start, f"{aggregate} has no step")
        return Name(name, kind, aggregate, step)

    @property
    def _is_name(self) -> bool:
        return self._token.kind == "name" or (self._token.kind == "word" and not self._token.keyword)

    def _reference(self) -> tuple[str, str | None]:
        """A name and its kind."""
        token = self._token
        if not self._is_name or NUMBER.fullmatch(token.text):
            self._fail("a name, such as loss, flag:lr or `in backticks`")
        self._next()
        prefix = PREFIX.match(token.text)
        kind = (prefix[1] or ATTRIBUTE) if prefix else None
        name = token.text[prefix.end() :] if prefix else token.text
        if not name:
            raise _unreadable(self._text, token.start, "a name must stand behind the prefix")
        return name[1:-1].replace("``", "`") if token.kind == "name" else name, kind

    def _list(self, name: Name) -> tuple[Literal, ...]:
        opened = self._token.text
        if self._token.kind != "mark" or opened not in _LISTS:
            self._fail("a list such as [A, B]")
        self._next()
        literals = [self._literal(name)]
        while self._takes(","):
            literals.append(self._literal(name))
        self._expect(_LISTS[opened])
        return tuple(literals)

    def _literal(self, name: Name) -> Literal:
        token, keyword = self._token, self._token.keyword
        if token.kind not in ("text", "word") or (keyword and keyword not in CONSTANTS):
            self._fail(_VALUES)
        self._next()
        if keyword and not (name.is_time and keyword != "undefined"):
            return Literal(keyword, CONSTANTS[keyword])
        text = token.text if token.kind == "word" else _ESCAPE.sub(r"\1", token.text[1:-1])
        if name.is_time:
            try:
                return Literal(text, parse_range(text, self._now))
            except Usage as exc:
                raise _unreadable(self._text, token.start, exc.message, exc.hint or _HINT) from exc
        found = number(text) if token.kind == "word" else None
        return Literal(text, found if found is not None and math.isfinite(found) else text)

    def _takes(self, word: str) -> bool:
        """Is the next token this keyword or mark? Then it is passed over."""
        token = self._token
        if word != (token.text if token.kind == "mark" else token.keyword):
            return False
        self._next()
        return True

    def _expect(self, mark: str) -> None:
        if not self._takes(mark):
            self._fail(f"`{mark}`")

    def _next(self) -> _Token:
        token = self._token
        self._token = next(self._rest, token)
        return token

    def _fail(self, expected: str) -> NoReturn:
        raise _unreadable(self._text, self._token.start, f"there must stand {expected}")


def _within(node: Node, parted: Any) -> str:
    return f"({node})" if isinstance(node, parted) else str(node)
