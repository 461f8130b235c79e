"""Scalars in output: the lines Guild AI takes them from, and the event file that TensorBoard reads."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guildsync.compute.scalars_out import (
    MAX_LINE,
    MAX_TAGS,
    Lines,
    OutputScalars,
    event,
    first_event,
    found_in,
    record,
)
from guildsync.tree.dirs import open_directory
from guildsync.tree.scalars import summarise
from tests.kit import events as expected
from tests.kit.trained import Trained
from tests.kit.trees import _record

NAME = ".guild/events.out.tfevents.1.host.2"

# as guild/summary.py of Guild AI 0.9.0 has them, aliases replaced
_KEY, _NUM = r"[_a-zA-Z]\S*", r"(?:[-+]?[0-9]*\.?(?:[0-9]+)?(?:[eE][-+]?[0-9]+)?|[nN][aA][nN]|[-+]?[iI][nN][fF])"
GUILD_STEP = re.compile(rf"{_KEY}:\s+{_NUM}\s+\((?:step\s+)?(?P<step>[0-9]+)\)$")
GUILD_VALUE = re.compile(rf"^({_KEY}):\s+({_NUM})(?:\s+\(.*\))?$")


def as_guild(line: str) -> dict[str, float]:
    line, found = line.rstrip(), {}
    for match in GUILD_STEP.finditer(line):
        found["step"] = float(match["step"])
    for match in GUILD_VALUE.finditer(line):
        try:
            found[match[1]] = float(match[2])
        except ValueError:
            pass
    return found


class Place:
    def __init__(self, path: Path) -> None:
        (path / ".guild").mkdir()
        self.path = path
        self.fd = open_directory(os.fsencode(path))
        self.guild = open_directory(b".guild", self.fd)
        self.out = OutputScalars(self.guild, Path(NAME).name, lambda: expected.WALL_TIME)

    def take(self, *lines: str) -> dict[str, Any]:
        self.out.take(lines)
        return self.read()

    def read(self) -> dict[str, Any]:
        file = self.path / NAME
        return summarise(self.fd, [(os.fsencode(NAME), file.stat().st_size)] if file.exists() else [], None)[0]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    found.out.close()
    os.close(found.guild)
    os.close(found.fd)


# -- lines


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("loss: 0.4", {"loss": 0.4}),
        ("step: 3", {"step": 3.0}),
        ("loss: 1e-5\r\n", {"loss": 1e-5}),
        ("val/acc@1:\t-.5", {"val/acc@1": -0.5}),
        ("loss: 0.4 (step 7)", {"loss": 0.4, "step": 7.0}),
        ("loss: 0.4 (7)", {"loss": 0.4, "step": 7.0}),
        ("loss: 0.4 (epoch 7)", {"loss": 0.4}),
        ("so far loss: 0.4 (step 7)", {"step": 7.0}),
        ("loss:  (step 7)", {"step": 7.0}),
        ("a:b: 1", {"a:b": 1.0}),
        ("loss: inf", {"loss": math.inf}),
        *(
            (line, {})
            for line in ("loss 0.4", "loss:0.4", " loss: 0.4", "loss: 0.4 x", "1a: 1", "loss: .", "loss: 0x1")
        ),
        *((line, {}) for line in ("", ":", ": 1", "loss:", "loss: ", "loss: 1_0", "\rloss: 1", "loss: (", "a: 1 (")),
    ],
)
def test_a_line_has_what_guild_finds_in_it(line: str, found: dict[str, float]) -> None:
    assert found_in(line) == found == as_guild(line)


PIECES = (
    "loss",
    "_a",
    "1",
    ":",
    ": ",
    "  ",
    "\t",
    "(",
    ")",
    "step ",
    "(step 3)",
    "(4)",
    " (5)",
    "-",
    ".",
    "e5",
    "nan",
    "Inf",
)


@given(st.lists(st.sampled_from((*PIECES, "\xa0", "é", "\x1f", "\u2028")), max_size=9).map("".join))
def test_any_line_has(line: str) -> None:
    assert str(found_in(line)) == str(as_guild(line))  # as text: NaN is not itself


@pytest.mark.parametrize(
    "line", ["a:" + " " * 60_000 + "(x", "a" * 60_000, "(1" * 30_000, "a:" * 30_000, "(step " * 10_000]
)
def test_no_line_takes_long(line: str) -> None:
    start = time.process_time()
    found_in(line + ")")
    assert time.process_time() - start < 0.5


@given(st.binary(max_size=300).map(lambda data: data.replace(b"z", b": \n")), st.lists(st.integers(1, 40)))
def test_lines_do_not_depend_on_how_they_come(data: bytes, cuts: list[int]) -> None:
    whole, pieces = Lines(), Lines()
    expect = whole.take(data) + whole.end()
    found, rest = [], data
    for cut in cuts:
        found += pieces.take(rest[:cut])
        rest = rest[cut:]
    assert found + pieces.take(rest) + pieces.end() == expect


def test_a_line_that_is_too_long_is_passed_over() -> None:
    lines = Lines()
    assert lines.take(b"a: 1\nb: ") == ["a: 1"]
    for _ in range(100):
        assert lines.take(b"1" * 1000) == []
    assert lines.take(b"\nc: 3\n") == ["c: 3"]
    assert lines.take(b"x:" * MAX_LINE + b"\nd: 4\n" + b"y:" * MAX_LINE) == ["d: 4"]
    assert lines.end() == []


# -- the file


def test_records_are_as_tensorboard_has_them() -> None:
    scalar = expected.scalar_event("loss", 0.5, 300)
    assert event(expected.WALL_TIME, ("loss", 0.5, 300)) == scalar
    assert record(scalar) == _record(scalar)
    file = record(first_event(expected.WALL_TIME)) + record(scalar)
    assert file == expected.event_bytes(scalar)


def test_there_is_no_file_without_a_scalar(place: Place) -> None:
    assert place.take("hello", "step: 1", "a: b") == {}
    assert not (place.path / NAME).exists()


def test_a_step_that_was_said_holds_until_the_next(place: Place) -> None:
    found = place.take("step: 1", "loss: 0.5", "step: 2", "loss: 0.25 (step 3)", "acc: 1")
    assert (found["loss"]["first_step"], found["loss"]["last_step"], found["loss"]["last"]) == (1, 3, 0.25)
    assert found["acc"]["last_step"] == 3


def test_without_one_a_tag_that_comes_again_begins_the_next(place: Place) -> None:
    found = place.take("loss: 3", "acc: 1", "loss: 2", "acc: 2", "loss: 1")
    assert (found["loss"]["first_step"], found["loss"]["last_step"], found["acc"]["last_step"]) == (0, 2, 1)


def test_values_that_no_float32_is(place: Place) -> None:
    found = place.take("a: 1e39", "b: -1e39", "c: nan", f"step: {10**30}", "d: 3.4028235e38", "step: 9e999", "e: 1")
    assert (found["a"]["last"], found["b"]["last"], found["c"]["last"]) == ("inf", "-inf", "nan")
    assert found["d"]["last"] == pytest.approx(3.4028235e38)
    assert found["e"]["last_step"] == 0


def test_tags_are_bounded(place: Place) -> None:
    found = place.take(*(f"t{n}: 1" for n in range(MAX_TAGS + 10)), "t0: 2", "x" * 2000 + ": 1")
    assert len(found) == MAX_TAGS
    assert found["t0"]["count"] == 2


def test_what_cannot_be_written_is_lost_and_what_is_there_stays_whole(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.take("loss: 1")
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: real(fd, data[:10]))
        place.take("loss: 2")
    found = place.take("loss: 3")
    assert (found["loss"]["count"], found["loss"]["last"]) == (2, 3.0)
    (place.path / "other").mkdir()
    Path(place.path / NAME).unlink()
    other = OutputScalars(place.guild, "no/such/directory", time.time)
    other.take(["loss: 1"])
    other.close()


def test_scalars_of_a_run_are_read_while_it_runs(run: Trained) -> None:
    """By the reader of our own listings, from the name that TensorBoard knows."""
    run.run(
        "for n in range(3):\n    print('step:', n)\n    print('loss:', 1 / (n + 1))\n"  # as it is written by hand
        "print('end: 7', end='')\n"
    )
    (file,) = (run.path / ".guild").glob("events.out.tfevents.*")
    fd = open_directory(os.fsencode(run.path))
    try:
        found, _ = summarise(fd, [(os.fsencode(file.relative_to(run.path)), file.stat().st_size)], None)
    finally:
        os.close(fd)
    assert found["loss"]["count"] == 3
    assert (found["loss"]["last"], found["loss"]["last_step"]) == (pytest.approx(1 / 3), 2)
    assert found["end"]["last"] == 7
