"""A poll of stat data that loses nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from guildsync.tree.home import Home
from guildsync.tree.moves import LIVELY, QUICK, SLOW, Moves
from tests.kit.trees import run_ids, write_run

ONE, OTHER, THIRD = run_ids(3)


class Poll:
    """Moves at times of its own; nothing takes any time but waiting."""

    def __init__(self, home: Path) -> None:
        self.now = 0.0
        self.moves = Moves(Home(str(home)), clock=lambda: self.now, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds

    def moved(self, seconds: float) -> set[str] | None:
        found = self.moves.wait(seconds)
        return None if found is None else set(found)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for run in (ONE, OTHER):
        write_run(tmp_path, run)
    return tmp_path


@pytest.fixture
def poll(home: Path) -> Poll:
    found = Poll(home)
    assert found.moved(0.0) is None
    assert found.moved(2 * LIVELY) == set()
    return found


def change(home: Path, run: str, name: str = "train.py") -> None:
    with (home / "runs" / run / name).open("ab") as file:
        file.write(b"more\n")


def test_what_changes_is_found_and_then_soon(home: Path, poll: Poll) -> None:
    change(home, ONE)
    began = poll.now
    assert poll.moved(60.0) == {ONE}
    assert poll.now - began <= SLOW
    for _ in range(3):
        change(home, ONE)
        began = poll.now
        assert poll.moved(60.0) == {ONE}
        assert poll.now - began <= QUICK
    assert poll.moved(2 * SLOW) == set()


@pytest.mark.parametrize("name", [".guild/attrs/label", ".guild/LOCK.remote", "checkpoints/model.pt", "new"])
def test_all_that_lies_in_a_run_counts(home: Path, poll: Poll, name: str) -> None:
    change(home, OTHER, name)
    assert poll.moved(SLOW) == {OTHER}


def test_what_a_supervisor_writes_does_not_count(home: Path, poll: Poll) -> None:
    (home / "runs" / ONE / ".guild/sync").mkdir()
    poll.moved(SLOW)
    change(home, ONE, ".guild/sync/heartbeat")
    assert poll.moved(SLOW) == set()


def test_a_process_that_ends_without_a_word_counts(home: Path, poll: Poll) -> None:
    (home / "runs" / ONE / ".guild/LOCK").write_text(str(os.getpid()))
    assert poll.moved(SLOW) == {ONE}
    os.utime(home / "runs" / ONE / ".guild/LOCK")
    assert poll.moved(SLOW) == {ONE}
    assert poll.moved(2 * LIVELY) == set()
    assert ONE in poll.moves._lively  # it is alive


def test_runs_that_come_go_and_come_back(home: Path, poll: Poll) -> None:
    write_run(home, THIRD)
    assert poll.moved(SLOW) == {THIRD}
    shutil.move(str(home / "runs" / THIRD), str(home / "aside"))
    assert poll.moved(SLOW) == {THIRD}
    shutil.move(str(home / "aside"), str(home / "runs" / THIRD))
    assert poll.moved(SLOW) == {THIRD}


def test_a_home_that_goes_and_comes_back(home: Path, poll: Poll) -> None:
    (home / "runs").rename(home / "away")
    assert poll.moved(SLOW) == {ONE, OTHER}
    assert poll.moved(SLOW) == set()
    (home / "away").rename(home / "runs")
    assert poll.moved(SLOW) == {ONE, OTHER}
