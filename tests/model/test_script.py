"""What a script takes and how flags are given to it."""

from __future__ import annotations

import ast
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guildsync.errors import Usage
from guildsync.model.script import (
    ARGUMENTS,
    GLOBALS,
    Flag,
    Script,
    Target,
    analyse,
    command,
    fitted,
    format_flag,
    parse_flag,
    recorded,
    scalar,
    usual_flag,
    with_usual,
)

TRAIN = """\
'''Trains.'''
from __future__ import annotations
import sys
import os.path
lr = 0.1
epochs: int = 3
name = alias = "net"
debug = False
nothing = None
layers = [64, -32, ["a"]]
negative = -1e-3
_private = 1
__version__ = "1"
untyped: int
pair = (1, 2)
table = {}
joined = "a" + name
a, b = 1, 2
lr = 0.2
sys.path.insert(0, os.path.dirname(sys.argv[0]))
if debug:
    epochs = 1
    inner = 1
def f():
    local = 1
class C:
    attribute = 1
"""
GLOBAL = analyse(TRAIN)


def flags(*words: str) -> list[Flag]:
    return [parse_flag(word) for word in words]


def test_globals_are_public_names_that_get_a_literal_first() -> None:
    assert GLOBAL.kind == GLOBALS
    named = dict(lr=0.1, epochs=3, name="net", alias="net", debug=False, nothing=None)  # noqa: C408
    assert GLOBAL.globals == {**named, "layers": [64, -32, ["a"]], "negative": -1e-3}
    assert type(GLOBAL.globals["epochs"]) is int


@pytest.mark.parametrize(
    "text",
    [
        "import argparse",
        "import argparse as ap",
        "from argparse import ArgumentParser",
        "def main():\n    import argparse",
        "import click",
        "import fire",
        "import typer",
        "from absl import flags",
        "import absl.flags",
        "import docopt",
        "import optparse",
        "import sys\nprint(sys.argv[1])",
        "import sys\nprint(sys.argv)",
        "import sys\nprint(sys.argv[1:])",
        "from sys import argv",
        "from transformers import HfArgumentParser",
    ],
)
def test_what_parses_a_command_line_takes_arguments(text: str) -> None:
    assert analyse(text + "\nlr = 1\n").kind == ARGUMENTS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "import sys\nprint(sys.argv[0])",
        "from . import argparse",
        "from .argparse import x",
        "# import argparse",
        "'import argparse'",
        "import argparse_like",
        "x.argv",
    ],
)
def test_anything_else_takes_globals(text: str) -> None:
    assert analyse(text).kind == GLOBALS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ny = (\n", "line 2"),
        ("print 'python 2'", "line 1"),
        ("def f():\npass", "line 2"),
        ("x = 1\n\ty = 2", "line 2"),
        ("\0", ""),
        (b"# coding: nonsense\n", ""),
        (b"x = '\xff'\n", ""),
        ("x = '\ud800'", ""),
        ("(" * 10_000, ""),
        ("-" * 100_000 + "1", ""),
        ("x" + ".a" * 50_000, ""),
        ("1" * 10_000, ""),
    ],
    ids=range(12),
)
def test_what_is_no_python_is_said_with_its_line(text: str | bytes, said: str) -> None:
    with pytest.raises(Usage, match=f"^train.py.*{said}"):
        analyse(text, "train.py")


def test_bytes_are_decoded_as_python_does() -> None:
    assert analyse("# coding: latin-1\nname = 'caf\xe9'\n".encode("latin-1")).globals == {"name": "caf\xe9"}
    assert analyse(b"\xef\xbb\xbfname = 1\r\n").globals == {"name": 1}


@given(st.text() | st.binary() | st.text("()[]{}:=.\"'\\\n\t 01ex_-+*#@,abs", max_size=60))
def test_analyse_raises_usage_only(text: str | bytes) -> None:
    try:
        found = analyse(text)
    except Usage:
        return
    json.dumps(found.globals)


VALUES = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text()
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)


@given(NAMES, VALUES | st.lists(VALUES, max_size=4))
def test_a_flag_that_is_written_is_read_as_the_same(name: str, value: object) -> None:
    if "\0" in "".join(map(str, value if isinstance(value, list) else [value])):
        return
    script = Script(GLOBALS, {name: [] if isinstance(value, list) else None})
    found = fitted(script, [parse_flag(format_flag(name, value))])[name]  # type: ignore[arg-type]
    assert (found, type(found)) == (value, type(value))


@given(NAMES, VALUES)
def test_the_values_of_a_script_that_is_written_are_found(name: str, value: object) -> None:
    if isinstance(value, str) and not value.isascii():
        return
    if isinstance(value, float) and math.isinf(value):
        return
    assert analyse(f"{name}_ = {value!r}\n").globals == {f"{name}_": value}


@given(st.text())
def test_scalars_never_raise(text: str) -> None:
    assert isinstance(scalar(text), (bool, int, float, str, type(None)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[
            ("1", 1),
            ("-1", -1),
            ("+1", 1),
            ("010", 10),
            ("0.1", 0.1),
            ("1e-5", 1e-5),
            ("1E5", 1e5),
            (".5", 0.5),
            ("5.", 5.0),
        ],
        *[("yes", True), ("No", False), ("TRUE", True), ("off", False), ("null", None), ("~", None), ("", "")],
        *[("1_000", "1_000"), ("1:30", "1:30"), ("y", "y"), ("tRUE", "tRUE"), ("None", "None"), ("1.2.3", "1.2.3")],
        *[
            ("inf", math.inf),
            (".inf", math.inf),
            ("-.INF", -math.inf),
            ("0x10", "0x10"),
            ("\u0661", "\u0661"),
            (" 1", " 1"),
        ],
        *[("a=b", "a=b"), ("[1, 2]", "[1, 2]"), ("1" * 5000, "1" * 5000), ("2024-01-01", "2024-01-01")],
        *[("'1'", "1"), ("'it''s'", "it's"), ('"a\\nb"', "a\nb"), ('"\\q"', "\\q"), ("'", "'"), ("'a'b'", "'a'b'")],
    ],
)
def test_values_are_typed_as_guild_types_them(text: str, value: object) -> None:
    found = parse_flag(f"x={text}").value
    assert (found, type(found)) == (value, type(value))


def test_not_a_number() -> None:
    assert all(math.isnan(scalar(text)) for text in ("nan", ".nan", "NaN", ".NAN"))  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["lr", "", "=1", "--lr=1", "-l=1", "a b=1", "1x=1", "a\n=1", "x=\0", "a;b=1"])
def test_what_is_no_flag(word: str) -> None:
    with pytest.raises(Usage):
        parse_flag(word)


def test_globals_decide_the_type_of_flags() -> None:
    given = flags("lr=1", "epochs=2", "name=50", "debug=1", "nothing=x", "layers=1 two 3.5", "negative=nan")
    found = fitted(GLOBAL, given)
    assert math.isnan(found.pop("negative"))  # type: ignore[arg-type]
    assert found == {"lr": 1.0, "epochs": 2, "name": "50", "debug": True, "nothing": "x", "layers": [1, "two", 3.5]}
    assert type(found["lr"]) is float
    found = fitted(GLOBAL, flags("lr='auto'", "debug=null", "layers=[1, 'a, b', \"c\"]", "name='x'", "epochs=1.5"))
    assert found == {"lr": "auto", "debug": None, "layers": [1, "a, b", "c"], "name": "x", "epochs": 1.5}
    assert fitted(GLOBAL, flags("layers=[]", "name=yes")) == {"layers": [], "name": "yes"}


@pytest.mark.parametrize(
    "word", ["lr=fast", "lr=yes", "epochs=", "debug=maybe", "layers=[1, [2]]", "layers=[1, 'a]", "layers=a 'b"]
)
def test_values_that_do_not_fit(word: str) -> None:
    with pytest.raises(Usage, match=word.partition("=")[0]):
        fitted(GLOBAL, flags(word))


def test_an_unknown_global_is_named_with_its_near_miss() -> None:
    with pytest.raises(Usage, match="no global 'epoch'; did you mean 'epochs'") as caught:
        fitted(GLOBAL, flags("epoch=3"))
    assert "lr" in str(caught.value.hint)
    with pytest.raises(Usage, match="twice"):
        fitted(GLOBAL, flags("lr=3", "lr=4"))


def test_what_is_executed_for_globals() -> None:
    target = Target("train.py")
    assert command(GLOBAL, target, [], ["--x", "1"], "python3", "/r.py") == ("python3", "-u", "train.py", "--x", "1")
    found = command(GLOBAL, target, flags("name=$(touch x)", "lr=1"), ["a"], "python3", "/r.py")
    expected = '{"lr": 1.0, "name": "$(touch x)"}'
    assert found == ("python3", "-u", "/r.py", "--flags", expected, "train.py", "a")
    found = command(GLOBAL, Target("pkg.train", is_module=True), flags("epochs=1"), [], "python3", "/r.py")
    assert found == ("python3", "-u", "/r.py", "--flags", '{"epochs": 1}', "-m", "pkg.train")
    assert command(GLOBAL, Target("-x.py"), [], [], "p", "/r.py") == ("p", "-u", "./-x.py")
    for name in ("-c", "a..b", "a b", "", "a/b"):
        with pytest.raises(Usage):
            command(GLOBAL, Target(name, is_module=True), [], [], "p", "/r.py")


PARSER = analyse(
    """
import argparse
p = argparse.ArgumentParser()
p.add_argument("-l", "--lr", "--learning-rate", type=float, default=0.1)
p.add_argument("--cuda", action="store_true")
p.add_argument("--no-log", action="store_false", dest="log")
p.add_argument("--amp", action=argparse.BooleanOptionalAction, default=True)
p.add_argument("--sizes", nargs="+", type=int, default=[1, 2])
p.add_argument("--pair", nargs=2)
p.add_argument("--truth", type=bool, default=False)
p.add_argument("--other", type=str2bool, default=unknown())
p.add_argument("positional", default="x")
p.add_argument(*names, **keywords)
"""
)


def options(script: Script, *words: str) -> tuple[str, ...]:
    return command(script, Target("t.py"), flags(*words), [], "p", "/r.py")[3:]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        *[("lr=1e-5", ("--lr", "1e-5")), ("learning-rate=1.50", ("--learning-rate", "1.50")), ("lr=-1", ("--lr=-1",))],
        *[("cuda=yes", ("--cuda",)), ("cuda=no", ()), ("cuda=1", ("--cuda",)), ("no-log=yes", ("--no-log",))],
        *[("amp=yes", ("--amp",)), ("amp=no", ("--no-amp",)), ("sizes=3 4", ("--sizes", "3", "4"))],
        *[("pair='a b' c", ("--pair", "a b", "c")), ("truth=yes", ("--truth", "1")), ("truth=no", ("--truth", ""))],
        *[("other=yes", ("--other", "yes")), ("other=null", ()), ("other='null'", ("--other", "null"))],
        *[("unknown=no", ("--unknown", "no")), ("other=", ("--other", "")), ("other=--x", ("--other=--x",))],
    ],
)
def test_options_of_argparse(word: str, expected: tuple[str, ...]) -> None:
    assert options(PARSER, word) == expected


def test_what_is_recorded() -> None:
    defaults = {"cuda": False, "no-log": True, "amp": True, "sizes": [1, 2], "truth": False}
    assert recorded(PARSER, flags("learning-rate=1", "new=x")) == {**defaults, "learning-rate": 1, "new": "x"}
    assert recorded(GLOBAL, flags("lr=1")) == {**GLOBAL.globals, "lr": 1.0}


def test_options_of_others() -> None:
    click = analyse(
        "import click\n@click.option('--shout/--no-shout')\n@click.option('-v', '--verbose', is_flag=True)\ndef f(): 1"
    )
    assert options(click, "shout=no", "verbose=no", "x=yes", "y=no") == ("--no-shout", "--x", "--no-y")
    assert options(analyse("import fire"), "x=yes", "y=no", "z=1") == ("--x=True", "--y=False", "--z", "1")
    assert options(analyse("from absl import flags"), "x=yes", "y=no") == ("--x=True", "--y=False")
    assert options(analyse("import docopt"), "x=yes", "y=no") == ("--x",)


def test_arguments_go_as_they_are_before_options_unless_they_end_them() -> None:
    found = command(PARSER, Target("t.py"), flags("lr=1"), ["train", "-x"], "p", "/r.py")
    assert found == ("p", "-u", "t.py", "train", "-x", "--lr", "1")
    found = command(PARSER, Target("t.py"), flags("lr=1"), ["--", "-x"], "p", "/r.py")
    assert found == ("p", "-u", "t.py", "--lr", "1", "--", "-x")


def test_numbers_too_large_for_anybody_are_no_flags() -> None:
    assert analyse(f"big = 0x{'f' * 5000}\nok = 1\n").globals == {"ok": 1}
    assert ast.literal_eval("0xff") == 255


def test_usual_flags_are_for_scripts_that_are_seen_to_have_them() -> None:
    usual = [usual_flag(name, value) for name, value in (("lr", 0.5), ("layers", [1, "b c"]), ("none", 1), ("f", 2))]
    assert recorded(GLOBAL, with_usual(GLOBAL, (), usual)) == {**GLOBAL.globals, "lr": 0.5, "layers": [1, "b c"]}
    assert with_usual(GLOBAL, (parse_flag("lr=1"),), usual[:1]) == (parse_flag("lr=1"),)
    parses = analyse("import argparse\np.add_argument('--lr', '--rate')\nf = 1\n")
    assert with_usual(parses, (), usual) == (usual[0],)
    assert with_usual(parses, (parse_flag("rate=1"),), usual) == (parse_flag("rate=1"),)
    assert with_usual(Script(ARGUMENTS), (), usual) == ()


@pytest.mark.parametrize(("name", "value"), [("a b", 1), ("a", {}), ("a", [{}]), ("-x", 1), ("", 1)])
def test_what_no_flag_can_be_is_refused(name: str, value: object) -> None:
    with pytest.raises(Usage):
        usual_flag(name, value)
