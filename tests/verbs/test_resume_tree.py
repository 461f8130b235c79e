"""An interrupted sync into a home goes on where it was: what crosses again, and what shows meanwhile (promise P9)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guildsync import api
from guildsync.model.ports import Piece
from guildsync.remotes import opened_home
from guildsync.tree import tree as tree_module
from guildsync.tree.home import Home
from guildsync.tree.kept import HomeBases
from guildsync.tree.staged import StagedFiles
from guildsync.tree.tree import Tree
from guildsync.verbs.sync import Options, Sync
from tests.kit.model import Person
from tests.kit.replicas import Site
from tests.kit.trees import MIB, assert_same, noise, run_ids, write_run

ROOT = Path(__file__).parents[2]
LARGE, SMALL, *_ = run_ids(2)
SIZE = 64 * MIB
AT_ONCE = 4 * MIB
"""Bytes that a killed process may not have noted."""


@pytest.fixture
def person(tmp_path: Path) -> Person:
    """Somebody who has one large run and a small one, all of it in a store."""
    found = Person(tmp_path / "a" / "guild", (tmp_path / "store").as_uri())
    write_run(found.home, SMALL)
    write_run(found.home, LARGE, {f"part{n}": noise(n, SIZE // 4) for n in range(4)})
    assert found.push().exit_code == 0
    return found


@pytest.fixture
def fresh(person: Person, tmp_path: Path) -> Person:
    return replace(person, home=tmp_path / "b" / "guild")


def staging(person: Person) -> list[str]:
    top = person.home / ".guildsync" / "staging"
    return os.listdir(top) if top.exists() else []


def wanted(person: Person) -> int:
    dry = person.pull(dry_run=True)
    assert dry.bytes_sent == 0
    return dry.bytes_total - dry.bytes_reused


def assert_delivered(fresh: Person, person: Person) -> None:
    assert fresh.runs() == person.runs()
    for run in fresh.runs():
        assert_same(fresh.run(run), person.run(run))
    assert staging(fresh) == []
    assert fresh.pull().same == len(person.runs())


def cut_after(size: int, act: Callable[[], None]) -> Callable[..., None]:
    """`StagedFiles.add` that acts once so many bytes have been staged."""
    add, staged = StagedFiles.add, [0]

    def counted(pieces: Iterable[Piece]) -> Iterable[Piece]:
        for piece in pieces:
            yield piece
            staged[0] += len(piece.data)
            if staged[0] >= size:
                act()

    def adding(self: StagedFiles, pieces: Iterable[Piece]) -> None:
        add(self, counted(pieces))

    return adding


def interrupt() -> None:
    raise KeyboardInterrupt


def interrupted(fresh: Person, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(StagedFiles, "add", cut_after(size, interrupt))
        with pytest.raises(KeyboardInterrupt):
            fresh.pull()


def test_an_interrupted_pull_goes_on(person: Person, fresh: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = wanted(fresh)
    assert whole >= SIZE
    interrupted(fresh, 20 * MIB, monkeypatch)
    assert LARGE not in fresh.runs()
    left = wanted(fresh)
    assert whole - 24 * MIB <= left <= whole - 20 * MIB
    interrupted(fresh, 20 * MIB, monkeypatch)
    done = fresh.pull()
    assert (done.problems, done.exit_code) == ([], 0)
    assert done.bytes_resumed >= 40 * MIB
    assert done.bytes_sent + done.bytes_resumed == whole
    assert_delivered(fresh, person)


def test_a_dry_run_says_what_is_there_and_leaves_it(
    person: Person, fresh: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(fresh, 20 * MIB, monkeypatch)
    dry = [fresh.pull(dry_run=True) for _ in range(2)]
    done = fresh.pull()
    assert [each.bytes_resumed for each in dry] == [done.bytes_resumed] * 2
    assert done.bytes_resumed >= 20 * MIB
    assert_delivered(fresh, person)


def test_looking_meanwhile_takes_nothing_away(person: Person, fresh: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what was staged of the small run, which is delivered first."""
    small = sum(path.stat().st_size for path in person.run(SMALL).rglob("*") if path.is_file())
    interrupted(fresh, 20 * MIB, monkeypatch)
    assert fresh.push().exit_code == 0
    list(fresh.context().runs(api.LOCAL))
    assert fresh.pull(choose=api.Choice((SMALL,))).exit_code == 0
    assert fresh.pull().bytes_resumed >= 20 * MIB - small
    assert_delivered(fresh, person)


def test_what_changed_meanwhile_comes_anew(person: Person, fresh: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(fresh, 40 * MIB, monkeypatch)
    data = person.read(LARGE, "part0")
    assert data is not None
    person.write(LARGE, "part0", b"x" + data[5 * MIB :] + data[: 5 * MIB])
    assert person.push().exit_code == 0
    whole = wanted(fresh)
    done = fresh.pull()
    assert (done.problems, done.exit_code) == ([], 0)
    assert 0 < done.bytes_sent <= whole
    assert done.bytes_resumed > 0
    assert_delivered(fresh, person)


KILLED = """
import os, signal, sys
from pathlib import Path
from guildsync.tree.staged import StagedFiles
from tests.kit.model import Person
from tests.verbs.test_resume_tree import cut_after
StagedFiles.add = cut_after(int(sys.argv[3]), lambda: os.kill(os.getpid(), signal.SIGKILL))
Person(Path(sys.argv[1]), sys.argv[2]).pull()
"""


def killed(fresh: Person, size: int) -> None:
    argv: list[Any] = [sys.executable, "-c", KILLED, fresh.home, fresh.remote, str(size)]
    done = subprocess.run(argv, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("after", [2 * MIB, 30 * MIB, SIZE])
def test_a_killed_pull_goes_on(person: Person, fresh: Person, after: int) -> None:
    whole = wanted(fresh)
    killed(fresh, after)
    assert LARGE not in fresh.runs()
    done = fresh.pull()
    assert (done.problems, done.exit_code) == ([], 0)
    assert done.bytes_resumed >= after - AT_ONCE
    assert done.bytes_sent + done.bytes_resumed == whole
    assert done.bytes_sent <= whole - after + AT_ONCE
    assert_delivered(fresh, person)


def test_killed_again_and_again_it_gets_done(person: Person, fresh: Person) -> None:
    whole = wanted(fresh)
    for cut in range(1, 4):
        killed(fresh, 18 * MIB)
        assert wanted(fresh) <= whole - cut * (18 * MIB - AT_ONCE)
    assert fresh.pull().bytes_sent <= whole - 3 * (18 * MIB - AT_ONCE)
    assert_delivered(fresh, person)


def test_cut_off_before_the_run_appears(person: Person, fresh: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = wanted(fresh)
    with monkeypatch.context() as patch:
        patch.setattr(tree_module, "appear", lambda *_: interrupt())
        with pytest.raises(KeyboardInterrupt):
            fresh.pull()
    assert fresh.runs() == []
    done = fresh.pull()
    assert (done.bytes_sent, done.bytes_resumed) == (0, whole)
    assert_delivered(fresh, person)


def test_a_far_home_goes_on_too(person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the agent's frames, without another round trip."""
    site = Site("far", tmp_path / "far")
    rounds = []

    def push() -> Any:
        here = Home(str(person.home))
        with opened_home(here) as source, site.opened() as target:
            bases = HomeBases(here, source.aliases, target.aliases)
            try:
                return Sync(source, target, bases, Options()).run()
            finally:
                assert site.far is not None
                rounds.append(site.far.round_trips)

    with monkeypatch.context() as patch:
        commit = Tree.commit
        patch.setattr(Tree, "commit", lambda *_: interrupt_quietly())
        with pytest.raises(api.GuildsyncError):
            push()
    assert not (site.home / "runs" / LARGE).exists()
    assert Tree.commit is commit
    done = push()
    assert (done.problems, done.bytes_sent) == ([], 0)
    assert done.bytes_resumed >= SIZE
    assert_same(site.home / "runs" / LARGE, person.run(LARGE))
    assert rounds[1] <= rounds[0]
    assert os.listdir(site.home / ".guildsync" / "staging") == []


def interrupt_quietly() -> None:
    raise RuntimeError("cut off")
