"""A file that is written while it is pushed: one moment of it is delivered, or it is named (promise P13)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from guildsync import api
from guildsync.errors import TORN
from guildsync.tree import hashing
from tests.kit.model import Person
from tests.kit.trees import MIB, run_ids, write_run
from tests.kit.writers import appended, generation, stretches, writing

RUN, OTHER = run_ids(2)
PUSHES = 2

soak = [pytest.mark.soak, pytest.mark.timeout(1800)]
sizes = pytest.mark.parametrize("size", [40 * MIB, pytest.param(200 * MIB, marks=soak)])


@pytest.fixture
def person(tmp_path: Path, memory_store: str) -> Person:
    found = Person(tmp_path / "home", memory_store)
    write_run(found.home, RUN, {"still": b"as it is"})
    return found


def checkpoint(person: Person, data: bytes) -> Path:
    path = person.run(RUN) / "checkpoint"
    path.write_bytes(data)
    return path


def pushes_while(
    person: Person, path: Path, way: str, size: int, is_a_moment: Callable[[bytes], bool], block: int = MIB
) -> list[api.Outcome]:
    """Pushes while another process writes; each is whole or names the file, and what readers get is a moment of it."""
    outcomes = []
    reader = Person(person.home.parent / "reader", person.remote)
    with writing(path, way, size, block):
        for _ in range(PUSHES):
            outcome = person.push()
            outcomes.append(outcome)
            named = [(problem.run, problem.path, problem.reason) for problem in outcome.problems]
            assert named in ([], [(RUN, b"checkpoint", TORN)])
            assert outcome.exit_code == (7 if named else 0)
            assert reader.pull().problems == []
            got = reader.read(RUN, "checkpoint")
            assert got is not None or named
            assert got is None or is_a_moment(got)
    settled = person.push()
    assert (settled.problems, settled.exit_code) == ([], 0)
    assert reader.pull().exit_code == 0
    assert reader.read(RUN, "checkpoint") == path.read_bytes()
    assert reader.read(RUN, "still") == b"as it is"
    assert person.verify().exit_code == 0
    return outcomes


@sizes
def test_a_file_rewritten_in_place_is_no_mixture(person: Person, size: int) -> None:
    """A moment of it is one generation, or as far as the writer was: the next one's beginning, the rest of this one."""

    def is_a_moment(data: bytes) -> bool:
        found = stretches(data)
        return len(data) == size and (len(found) == 1 or (len(found) == 2 and found[0] == found[1] + 1))

    path = checkpoint(person, generation(0, size))
    pushes_while(person, path, "in_place", size, is_a_moment)


@sizes
def test_a_file_truncated_and_rewritten_is_no_mixture(person: Person, size: int) -> None:
    """A moment of it is how one generation begins."""
    path = checkpoint(person, generation(0, size))
    pushes_while(person, path, "rewritten", size, lambda data: len(stretches(data)) <= 1)


@sizes
def test_a_file_replaced_by_renames_is_one_of_them(person: Person, size: int) -> None:
    """The writer's next file, half written, may be delivered beside it, or be what is named."""
    path = checkpoint(person, generation(0, size))
    assert person.push().exit_code == 0

    def is_a_moment(data: bytes) -> bool:
        return len(data) == size and len(stretches(data)) == 1

    reader = Person(person.home.parent / "reader", person.remote)
    with writing(path, "renamed", size):
        for _ in range(PUSHES):
            outcome = person.push()
            assert {(problem.run, problem.reason) for problem in outcome.problems} <= {(RUN, TORN)}
            assert outcome.exit_code == (7 if outcome.problems else 0)
            assert reader.pull().problems == []
            assert is_a_moment(reader.read(RUN, "checkpoint") or b"")
            assert len(stretches(reader.read(RUN, "checkpoint.new") or b"")) <= 1
    assert person.push(delete=True).exit_code == 0
    assert reader.pull(delete=True).exit_code == 0
    assert reader.read(RUN, "checkpoint") == path.read_bytes()
    assert person.verify().exit_code == 0


@sizes
def test_a_file_that_only_grows_is_delivered_as_it_began(person: Person, size: int) -> None:
    """A prefix, each push one that is not shorter; nothing is reported."""
    before = appended(size)
    path = checkpoint(person, before)
    lengths = [0]

    def is_a_moment(data: bytes) -> bool:
        lengths.append(len(data))
        return data == appended(len(data))

    outcomes = pushes_while(person, path, "appended", size, is_a_moment, block=4096)
    assert [outcome.exit_code for outcome in outcomes] == [0] * PUSHES
    assert lengths[1] >= size
    assert lengths == sorted(lengths)


# -- a writer that moves at each step of a reader


class Steps:
    """Does something after every read of a file, of whichever kind, as long as it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None], until: int) -> None:
        self.reads = 0
        self._act, self._until = act, until
        for name in ("pread", "preadv"):
            monkeypatch.setattr(os, name, self._stepwise(getattr(os, name)))

    def _stepwise(self, read: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object) -> object:
            found = read(*args)
            if self.reads < self._until:
                self.reads += 1
                self._act(self.reads)
            return found

        return step


@pytest.mark.parametrize("until", [1, 2, 3, 5, 8, 13, 21, 34, 10_000])
@pytest.mark.parametrize("way", ["whole", "in turns"])
def test_a_write_between_any_two_reads_is_no_mixture(
    person: Person, monkeypatch: pytest.MonkeyPatch, until: int, way: str
) -> None:
    """Whenever the writer stops: what it left is delivered, and while it does not stop, nothing is. `in turns` it
    writes one block at a time, so that what lies there was never one generation."""
    size, block = 5 * MIB, MIB
    path = checkpoint(person, generation(0, size))
    states = [path.read_bytes()]

    def write(number: int) -> None:
        with path.open("r+b") as file:
            if way == "whole":
                file.write(generation(number, size))
            else:
                file.seek(number * block % size)
                file.write(generation(number, block))
        states.append(path.read_bytes())

    steps = Steps(monkeypatch, write, until)
    outcome = person.push()
    monkeypatch.undo()
    assert steps.reads > 0
    reader = Person(person.home.parent / "reader", person.remote)
    assert reader.pull().exit_code == 0
    got = reader.read(RUN, "checkpoint")
    if outcome.problems:
        assert [(problem.path, problem.reason) for problem in outcome.problems] == [(b"checkpoint", TORN)]
        assert outcome.exit_code == 7
        assert got is None
    else:
        assert outcome.exit_code == 0
        assert got == states[-1] == path.read_bytes()
    assert until < 10_000 or outcome.problems


def test_a_clock_that_ticks_slowly_makes_no_mixture(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where times do not tell that a file changed while it was hashed, the digests of its parts do when it is sent."""
    size = 12 * MIB
    path = checkpoint(person, generation(0, size))
    reader = Person(person.home.parent / "reader", person.remote)
    for at in range(1, 8):
        assert person.push().exit_code == 0

        def write(number: int, at: int = at) -> None:
            if number == at:
                with path.open("r+b") as file:
                    file.write(generation(at, size))

        with monkeypatch.context() as patch:
            patch.setattr(hashing, "_unchanged", lambda one, other: one.st_size == other.st_size)
            Steps(patch, write, at)
            assert person.context().push(person.remote, rehash=True).exit_code == 0
        assert reader.pull().exit_code == 0
        assert len(stretches(reader.read(RUN, "checkpoint") or b"")) == 1


def test_the_rest_of_the_home_is_delivered_beside_a_file_that_never_rests(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store had of the file before stays what it has."""
    write_run(person.home, OTHER)
    size = 3 * MIB
    path = checkpoint(person, generation(0, size))
    assert person.push().exit_code == 0
    path.write_bytes(generation(1, size))
    person.write(RUN, "still", b"not as it was")

    def write(number: int) -> None:
        path.write_bytes(generation(number + 1, size))

    Steps(monkeypatch, write, 100_000)
    outcome = person.push()
    monkeypatch.undo()
    assert [(problem.path, problem.reason) for problem in outcome.problems] == [(b"checkpoint", TORN)]
    assert outcome.exit_code == 7
    reader = Person(person.home.parent / "reader", person.remote)
    assert reader.pull().exit_code == 0
    assert reader.runs() == sorted([RUN, OTHER])
    assert reader.read(RUN, "checkpoint") == generation(0, size)
    assert reader.read(RUN, "still") == b"not as it was"
