"""Three homes and a store in a stateful model: every version ever written is somewhere (promises P2, P3, P8)."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.kit.model import World
from tests.kit.trees import run_ids

RUNS = run_ids(2)
PATHS = ("log", "model.pt", "deep/er/table")

homes = st.integers(0, 2)
runs = st.sampled_from([RUNS[0], RUNS[0], RUNS[1]])
paths = st.sampled_from([PATHS[0], PATHS[0], *PATHS[1:]])
data = st.sampled_from([None, None, None, b"a", b"ab", b""])
"""None is something that nobody ever wrote."""
verbs = st.sampled_from(["push", "pull"])
deaths = st.tuples(st.integers(0, 7) | st.integers(0, 45), st.booleans())


class Homes(RuleBasedStateMachine):
    """Every rule is one thing that a person does, or one command."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="guildsync-homes-")
        top = Path(os.path.realpath(self.directory.name))
        self.world = World.below(top, self.remote(top))
        self.written = 0

    def remote(self, top: Path) -> str:
        return f"memory://{uuid.uuid4().hex}"

    def teardown(self) -> None:
        try:
            self.world.settle()
        finally:
            self.world.wipe()
            self.directory.cleanup()

    def has(self, who: int, run: str) -> bool:
        return run in self.world.people[who].runs()

    def bytes(self, drawn: bytes | None) -> bytes:
        self.written += 1
        return b"<%d>" % self.written if drawn is None else drawn

    @initialize(everywhere=st.booleans())
    def begin(self, everywhere: bool) -> None:
        if everywhere:
            self.world.new_run(0, RUNS[0], {"log": b"first", "model.pt": b"first"})
            self.world.sync(0, "push")
            for who in (1, 2):
                self.world.sync(who, "pull")

    @rule(who=homes, run=runs, one=data, other=data)
    def new_run(self, who: int, run: str, one: bytes | None, other: bytes | None) -> None:
        self.world.new_run(who, run, {"log": self.bytes(one), "deep/er/table": self.bytes(other)})

    @rule(who=homes, run=runs, path=paths, new=data)
    def replace(self, who: int, run: str, path: str, new: bytes | None) -> None:
        if self.has(who, run):
            self.world.write(who, run, path, self.bytes(new))

    @rule(who=homes, run=runs, path=paths, more=data)
    def append(self, who: int, run: str, path: str, more: bytes | None) -> None:
        if self.has(who, run):
            self.world.append(who, run, path, self.bytes(more))

    @rule(who=homes, run=runs, path=paths)
    def remove(self, who: int, run: str, path: str) -> None:
        if self.has(who, run):
            self.world.remove(who, run, path)

    @rule(who=homes, run=runs, label=st.sampled_from([None, "good", "bad"]))
    def label(self, who: int, run: str, label: str | None) -> None:
        if self.has(who, run):
            self.world.say(who, run, "label", label)

    @rule(who=homes, run=runs, tags=st.lists(st.sampled_from(["x", "y"]), max_size=2, unique=True))
    def tag(self, who: int, run: str, tags: list[str]) -> None:
        if self.has(who, run):
            self.world.say(who, run, "tags", tags or None)

    @rule(who=homes)
    def push(self, who: int) -> None:
        self.world.sync(who, "push")

    @precondition(lambda self: self.world._versions)
    @rule(who=homes)
    def pull(self, who: int) -> None:
        self.world.sync(who, "pull")

    @precondition(lambda self: self.world._versions)
    @rule(who=homes, verb=verbs, side=st.sampled_from(["source", "source", "target"]))
    def resolve(self, who: int, verb: str, side: str) -> None:
        self.world.sync(who, verb, side)

    @precondition(lambda self: self.world._versions)
    @rule(who=homes, verb=verbs, die=deaths, again=st.booleans())
    def die(self, who: int, verb: str, die: tuple[int, bool], again: bool) -> None:
        self.world.sync(who, verb, die=die)
        self.world.check()
        if again:
            self.world.sync(who, verb)

    @invariant()
    def laws(self) -> None:
        self.world.check()
        self.world.verify()


class HomesOnAFolder(Homes):
    """The same with a store that renames."""

    def remote(self, top: Path) -> str:
        return f"file://{top}/store"


def test_three_homes_and_a_store_never_lose_a_version() -> None:
    run_state_machine_as_test(Homes, settings=settings(max_examples=45, stateful_step_count=25, deadline=None))


def test_three_homes_and_a_folder_never_lose_a_version() -> None:
    run_state_machine_as_test(HomesOnAFolder, settings=settings(max_examples=12, stateful_step_count=25, deadline=None))


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machine", [Homes, HomesOnAFolder])
def test_three_homes_and_a_store_for_long(machine: type[Homes]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=1500, stateful_step_count=60, deadline=None))
