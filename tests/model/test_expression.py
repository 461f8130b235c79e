"""Filter expressions: what they mean of a run, how they are written, and what comes of those that cannot be read."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guildsync.errors import Usage
from guildsync.model.expression import (
    MAX_DEPTH,
    MAX_LENGTH,
    And,
    Comparison,
    Constant,
    Expression,
    Node,
    Not,
    Or,
    parse,
)
from guildsync.model.run import RUNNING, Comment, Metadata, Record, RunId, Summary, plain
from guildsync.model.select import Filters
from guildsync.model.timerange import Range
from guildsync.model.values import AGGREGATES, ATTRIBUTES, NUMBER, WITHOUT_STEP, Literal, Name, number
from tests.kit import strategies as some

NOW = datetime(2026, 11, 25, 12, tzinfo=timezone.utc)
DAY = 86_400_000_000
HOUR = DAY // 24
TODAY = 20_782 * DAY
"""Midnight of NOW's day."""


def scalar(last: Any, low: Any = 0.0, high: Any = 9.0) -> dict[str, Any]:
    ends = {"first": high, "first_step": 1, "last": last, "last_step": 300}
    bounds = {"min": low, "min_step": 250, "max": high, "max_step": 2}
    return ends | bounds | {"avg": 1.5, "count": 300}


OF_FLAG = "of the flag"
FLAGS: dict[str, Any] = {
    "lr": 0.1,
    "batch-size": 100,
    "big": 10**40,
    "text": "10",
    "limit": "inf",
    "opt": "adam",
    "amp": True,
}
FLAGS |= {"layers": [1, "two", 3.0], "nested": {"a": 1}, "nothing": None, "train/x.y": 5, "my flag": "a`b", "and": 7}
FLAGS |= {"id": OF_FLAG, "label": OF_FLAG, "started": "a flag", "size": 8}
SCALARS: dict[str, Any] = {"loss": scalar(0.15, 0.125), "acc": scalar("nan"), "grad": scalar("inf", "-inf")}
SCALARS |= {".guild#gpu": scalar(80), "b#val/loss": scalar(0.3), "a#val/loss": scalar(0.2)}
SCALARS |= {"lr": scalar(99), "size": scalar(4), "odd": "not a scalar"}
RUN = Record(
    RunId("4321dcba" + "0" * 24),
    Summary("vision/resnet:train", RUNNING, TODAY + HOUR, flags=FLAGS, scalars=SCALARS, size=1000, files=7),
    Metadata(None, frozenset({"best", "paper"}), (Comment("It Diverged", 1), Comment("again", 2)), True),
)


def holds(text: str, record: Record = RUN) -> bool:
    return parse(text, NOW).holds(record)


def several(text: str) -> list[str]:
    """Expressions, some on a line."""
    return [one for line in text.strip().splitlines() for one in line.strip().split(" ; ")]


NUMBERS = several("""
    lr = 0.1 ; lr == 1e-1 ; lr = '0.1' ; lr != 0.2 ; lr <> 0.2 ; lr < 0.11 ; lr <= .1 ; lr > -3 ; lr >= +0.1 ; lr<1
    text = 10 ; text > 9 ; text = '10' ; text < '9' ; batch-size = 100.0 ; batch-size=100 ; big > 1e39 ; big > 1
    limit > 1e300 ; limit = inf ; limit = 'inf' ; grad = inf ; min grad < -1e300 ; min grad = -inf ; acc = nan
    acc != 1
""")
TEXTS = several(r"""
    opt = adam ; opt = 'adam' ; opt = "adam" ; opt != Adam ; opt != dam ; opt < b ; opt < 'b' ; opt >= adam
    opt <= adam
    amp = true ; amp = TRUE ; amp != false ; amp = 'true' ; amp = 1 ; marked = true ; opt != true ; lr != true
    opt contains DA ; opt not contains sgd ; lr contains '.1' ; lr contains 0.1 ; amp contains ru ; text contains 1
    comments contains 'it div' ; operation contains [resnet, train] ; `my flag` = 'a`b' ; opt = 'ad\'am' or opt = "adam"
    opt != 'a\\b\c' ; layers contains two ; layers contains [1, 3.0] ; layers = two ; layers = 3 ; layers != TWO
    opt in [sgd, adam] ; opt in (sgd, 'adam') ; lr not in [1, 2] ; lr in [0.1] ; layers in [9, two] ; tags = best
    tags contains paper ; tags in [x, best] ; not tags contains [best, x] ; tags not contains pap ; opt is adam
""")
UNDEFINED = several("""
    none is undefined ; not none is not undefined ; none != 1 ; none not in [1] ; none not contains x
    lr is not undefined
    nothing is undefined ; nothing = undefined ; none in [1, undefined] ; odd is undefined ; exit_status is undefined
    attr:label is undefined ; stopped is undefined ; attr:nothing is undefined ; scalar:opt is undefined
    step is undefined
""")
LOOKED_UP = several("""
    id = 4321dcba000000000000000000000000 ; run = 4321dcba ; short_id = '4321dcba' ; flag:id = 'of the flag'
    op = train ; model = resnet ; operation = vision/resnet:train ; .op = train ; attr:op = train ; status = running
    status in [running, error] ; size = 1000 ; files < 8 ; flag:size = 8 ; scalar:size = 4 ; label = 'of the flag'
    scalar:lr = 99 ; flag:lr = 0.1 ; attr:lr is undefined ; flag:and = 7 ; `and` = 7 ; train/x.y = 5 ; `opt` = adam
    flag:`my flag` contains '`' ; `none ``at`` all` is undefined ; flag:`train/x.y` = 5 ; .`op` = train
    flag:opt = adam
    loss < 0.2 ; last loss = 0.15 ; min loss = 0.125 ; max loss = 9 ; first loss = 9 ; avg loss = 1.5 ; count loss = 300
    loss step = 300 ; min loss step = 250 ; min scalar:loss step < 251 ; first lr = 9 ; min opt is undefined
    gpu = 80 ; .guild#gpu is undefined ; scalar:.guild#gpu = 80 ; `.guild#gpu` = 80 ; val/loss = 0.2 ; b#val/loss = 0.3
    min val/loss = 0 ; scalar:`b#val/loss` = 0.3 ; min is undefined ; `min` step is undefined ; min step is undefined
""")
TIMES = several("""
    started = today ; started = 2026-11-25 ; started >= 2026-11-25 ; started <= 2026-11-25 ; started > yesterday
    started < '2026-11-25 1:01' ; started in [yesterday, today] ; started not in [yesterday] ; started != yesterday
    started > 'last week' ; started < '12:00' ; started = 2026-11-25T01:00:00+00:00 ; started is not undefined
    started = 'last 3 days' ; stopped != today ; stopped is undefined ; flag:started = 'a flag' ; attr:started = today
""")
TOGETHER = several("""
    lr = 0.1 and opt = adam ; lr = 1 or opt = adam ; true ; not false ; true or true and false
    (true or true) and not false ; false and false or true ; not lr = 1 and true ; not (lr = 0.1 and opt = sgd)
    NOT false AND true Or false ; not not true ; ((lr = 0.1)) ; not false or true and false
""")
FALSE = several("""
    lr = 0.2 ; lr != 0.1 ; lr < 0.1 ; lr > 0.1 ; text = '10.0' ; text > '9' ; opt = Adam ; opt = dam ; opt < 5 ; opt > 5
    none = 1 ; none < 1 ; none > 1 ; none in [1, 2] ; none contains x ; none contains undefined ; none is not undefined
    lr = undefined ; lr < undefined ; acc < 1 ; acc >= 1 ; acc = 1 ; amp = false ; layers contains TWO ; layers = 4
    layers < 2 ; nested < 2 ; nested = 1 ; opt in [sgd] ; opt not in [adam] ; opt not contains ADAM ; tags = pap
    attr:id = 'of the flag' ; scalar:op = train ; count opt > 0 ; started < today ; started > today ; stopped = today
    started = yesterday ; false ; not true ; true and false ; false or false ; size = 4 ; status = RUNNING
    id = 4321dcba
""")


@pytest.mark.parametrize("text", [*NUMBERS, *TEXTS, *UNDEFINED, *LOOKED_UP, *TIMES, *TOGETHER, "\n lr\t=\r\n0.1 "])
def test_what_holds(text: str) -> None:
    assert holds(text)
    assert not holds(f"not ({text})")


@pytest.mark.parametrize("text", FALSE)
def test_what_does_not_hold(text: str) -> None:
    assert not holds(text)
    assert holds(f"not ({text})")


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("", "its end", "a name"),
        ("loss", "its end", "an operator: = != <"),
        ("loss <", "its end", "a value"),
        ("loss < and", "character 8", "a value"),
        ("loss << 3", "character 7", "a value"),
        ("loss < 3 lr = 1", "character 10", "`and`, `or` or the end"),
        ("label = two words", "character 13", "stands in quotes"),
        ("'loss' < 3", "character 1", "a name"),
        ("3 < loss", "character 1", "a name"),
        ("and = 3", "character 1", "a name"),
        ("loss < 'x", "character 8", "a quote that does not end"),
        ("`loss < 3", "character 1", "a quote that does not end"),
        ("`` = 3", "character 1", "a quote"),
        ("loss ! 3", "character 6", "means nothing"),
        ("(loss < 3", "its end", "`)`"),
        ("loss < 3)", "character 9", "the end"),
        ("loss not < 3", "character 10", "`in` or `contains`"),
        ("loss in 3", "character 9", "a list"),
        ("loss in [1", "its end", "`]`"),
        ("loss in (1]", "character 11", "`)`"),
        ("loss in []", "character 10", "a value"),
        ("loss in [1,]", "character 12", "a value"),
        ("loss = [1]", "character 8", "a value"),
        ("flag: = 3", "character 1", "behind the prefix"),
        ("min flag:lr < 3", "character 1", "min is of scalars only"),
        ("attr:op step < 3", "character 1", "step is of scalars only"),
        ("lr = 1 and avg loss step < 3", "character 12", "avg has no step"),
        ("started > soon", "character 11", "the time range 'soon' is not understood"),
        ("started = true", "character 11", "the time range 'true'"),
        ("started contains 2026", "character 9", "a time"),
        ("not", "its end", "a name"),
    ],
)
def test_what_cannot_be_read_says_where_and_what_is_possible(text: str, position: str, said: str) -> None:
    with pytest.raises(Usage) as caught:
        parse(text, NOW)
    assert f"cannot be read at {position}" in str(caught.value)
    assert said in str(caught.value)
    assert caught.value.hint


def test_limits() -> None:
    deep = "(" * MAX_DEPTH + "lr = 0.1" + ")" * MAX_DEPTH
    assert holds(deep)
    nots = parse("not " * MAX_DEPTH + "lr = 0.1", NOW)
    nested = "lr = 0.1"
    for _ in range(MAX_DEPTH // 2):
        nested = f"not (x = 1 or {nested})"
    for expression in (nots, parse(nested, NOW)):
        assert expression.holds(RUN)
        assert expression.needs_scalars
        assert parse(str(expression), NOW) == expression
    for text in (f"({deep})", "not " * (MAX_DEPTH + 1) + "lr = 0.1", "(" * 9_000, "not " * 2_000):
        with pytest.raises(Usage, match="nested more than 100 deep"):
            parse(text, NOW)
    many = " and ".join(["lr = 0.1"] * 700)
    assert holds(many)
    assert holds("lr in [" + ",".join(["0.1"] * 2_000) + "]")
    assert holds("lr < " + "9" * 9_000)
    with pytest.raises(Usage, match="characters long"):
        parse("lr = 1" + " " * MAX_LENGTH, NOW)


@pytest.mark.parametrize(
    ("text", "scalars", "sizes"),
    [
        ("loss < 1", True, False),
        ("lr = 1", True, False),
        ("flag:lr = 1", False, False),
        ("scalar:lr = 1", True, False),
        ("scalar:size = 1", True, False),
        ("size step = 1", True, False),
        ("flag:size = 1", False, False),
        ("attr:loss = 1", False, False),
        ("size > 1", False, True),
        ("attr:files > 1", False, True),
        ("status = running and (op = x or not files < 3)", False, True),
        ("status = running and not (op = x or min x < 3)", True, False),
        *((f"{name} is undefined", False, name in ("size", "files")) for name in ATTRIBUTES),
        ("true", False, False),
    ],
)
def test_what_must_be_measured_for_it(text: str, scalars: bool, sizes: bool) -> None:
    expression = parse(text, NOW)
    assert (expression.needs_scalars, expression.needs_sizes) == (scalars, sizes)
    filters = Filters(expressions=(parse("true", NOW), expression))
    assert (filters.needs_scalars, filters.needs_sizes) == (scalars, scalars or sizes)


def test_every_attribute_of_a_run_of_which_nothing_is_known() -> None:
    bare = Record(RunId("a" * 32), Summary(), Metadata())
    known = {name for name in ATTRIBUTES if not holds(f"{name} is undefined", bare)}
    assert known == {"id", "run", "short_id", "status", "marked"}
    assert holds("marked = false and lr is undefined and loss is undefined", bare)


def test_filters_hold_all_expressions_and_ranges() -> None:
    good, bad = parse("lr = 0.1", NOW), parse("lr = 0.2", NOW)
    inside, outside = Range(TODAY, None), Range(None, TODAY)
    never = Record(RUN.run, Summary(), Metadata())
    assert Filters(expressions=(good, good)).matches(RUN)
    assert not Filters(expressions=(good, bad)).matches(RUN)
    assert Filters(started=(inside, Range(None, TODAY + DAY))).matches(RUN)
    assert not Filters(started=(inside, outside)).matches(RUN)
    assert not Filters(started=(Range(None, None),)).matches(never)
    assert not Filters(expressions=(good,), marked=True, tags=("none",)).matches(RUN)
    assert not Filters().needs_sizes


@pytest.mark.parametrize("text", ["loss is undefined", "not loss < 1", "lr = 0.1", "size is undefined", "files != 1"])
def test_what_was_not_measured_is_not_undefined(text: str) -> None:
    measured = replace(RUN, summary=Summary(flags={"lr": 0.1}, size=0, files=0))
    unknown = replace(RUN, summary=Summary(flags={"lr": 0.1}))
    filters = Filters(expressions=(parse(text, NOW),))
    assert filters.matches(measured) is (text != "size is undefined")
    assert not filters.matches(unknown)
    assert Filters(expressions=(parse("flag:lr = 0.1", NOW),)).matches(unknown)


# -- any text, any expression, any run

WORDS = st.sampled_from(
    [
        *(
            "and",
            "or",
            "not",
            "in",
            "is",
            "contains",
            "undefined",
            "true",
            "(",
            ")",
            "[",
            "]",
            ",",
            "=",
            "!=",
            "<",
            ">=",
        ),
        *(
            "loss",
            "min",
            "step",
            "attr:",
            "flag:lr",
            "scalar:`a b`",
            "'a",
            "'a'",
            '"b"',
            "`",
            "\\",
            "-3",
            "1e5",
            "started",
        ),
        *("today", "size", "#", "é", "\0", "1e999", "nan"),
    ]
)
NAMES = st.sampled_from(
    ["loss", "lr", "min", "step", "and", "True", "a b", "`", "``", ".x", "flag:x", "5", "-1e5", "é#/"]
) | (some.words())
WRITTEN = st.sampled_from(["", "a", "'", '"', "\\", "\\'", "true", "5", "nan", "two words", "`"]) | some.words()


@st.composite
def names(draw: some.Draw) -> Name:
    aggregate = draw(st.none() | st.sampled_from(sorted(AGGREGATES)))
    step = draw(st.booleans()) and aggregate not in WITHOUT_STEP
    kinds = [None, "scalar"] if aggregate or step else [None, "attr", "flag", "scalar"]
    name = Name(draw(NAMES), draw(st.sampled_from(kinds)), aggregate, step)
    return Name("x") if name.is_time else name


def literals() -> st.SearchStrategy[Literal]:
    numbers = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
    written = numbers.map(str).map(lambda text: Literal(text, number(text)))
    constants = [Literal("true", True), Literal("false", False), Literal("undefined", None)]
    return WRITTEN.map(lambda text: Literal(text, text)) | written | st.sampled_from(constants)


def comparisons() -> st.SearchStrategy[Node]:
    one = st.tuples(literals())
    some_of_them = st.lists(literals(), min_size=1, max_size=3).map(tuple)
    return st.one_of(
        st.builds(Comparison, names(), st.just("="), one, st.booleans()),
        st.builds(Comparison, names(), st.sampled_from(["<", "<=", ">", ">="]), one),
        st.builds(Comparison, names(), st.sampled_from(["in", "contains"]), some_of_them, st.booleans()),
    )


def expressions() -> st.SearchStrategy[Expression]:
    def joined(nodes: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        some_of_them = st.lists(nodes, min_size=2, max_size=3).map(tuple)
        return st.builds(Not, nodes) | st.builds(And, some_of_them) | st.builds(Or, some_of_them)

    return st.recursive(comparisons() | st.builds(Constant, st.booleans()), joined, max_leaves=8).map(Expression)


def records() -> st.SearchStrategy[Record]:
    return st.builds(Record, st.just(RUN.run), some.summaries(), some.metadata())


@given(st.lists(WORDS, max_size=12).map(" ".join) | st.lists(WORDS, max_size=12).map("".join) | st.text())
def test_nothing_but_usage_comes_of_any_text(text: str) -> None:
    try:
        expression = parse(text, NOW)
    except Usage:
        return
    assert isinstance(expression.holds(RUN), bool)
    assert parse(str(expression), NOW) == expression


@given(expressions())
@example(Expression(Comparison(Name("min", step=True), "=", (Literal("a", "a"),))))
@example(Expression(Comparison(Name("step", None, "min"), "=", (Literal("a", "a"),))))
def test_what_is_printed_is_read_as_the_same(expression: Expression) -> None:
    assert parse(str(expression), NOW) == expression


@given(expressions(), records())
def test_an_expression_is_true_or_false_of_every_run_wherever_it_lies(expression: Expression, record: Record) -> None:
    """What a store tells of a run went through JSON; so does what a directory tells (see `attributes`)."""
    said = plain(record.summary.to_json())
    near, stored = (Summary.from_json(value) for value in (said, json.loads(json.dumps(said))))
    assert expression.holds(replace(record, summary=near)) is expression.holds(replace(record, summary=stored))
    assert isinstance(expression.holds(record), bool)


@given(st.text("0123456789.eE+-", max_size=8))
def test_numbers_are_numbers_of_python(text: str) -> None:
    if NUMBER.fullmatch(text):
        assert float(text) == pytest.approx(number(text), nan_ok=True)
