"""When to look at a home again: events, and stat data for what events miss."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from guildsync import hints
from guildsync.hints import Periodic, WatchedHome
from guildsync.tree.home import Home
from tests.kit.trees import run_ids, write_run
from tests.kit.waiting import until

ONE, OTHER, THIRD = run_ids(3)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for run in (ONE, OTHER):
        write_run(tmp_path, run)
    return tmp_path


def settled(found: WatchedHome) -> WatchedHome:
    """Once it has said all it has to say."""
    until(lambda: found.wait(1.2) == frozenset(), "nothing moves")
    return found


@pytest.fixture
def watched(home: Path) -> Iterator[WatchedHome]:
    found = WatchedHome(Home(str(home)))
    assert found.wait(0.0) is None  # what came before is not known
    yield settled(found)
    found.close()


@pytest.fixture
def deaf(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedHome]:
    """The system has no watches left."""
    monkeypatch.setattr(hints, "_observed", lambda *_: None)
    found = WatchedHome(Home(str(home)))
    yield settled(found)
    found.close()


def moved(found: WatchedHome) -> set[str]:
    """The runs that it names until it names one."""
    names: set[str] = set()

    def looked() -> bool:
        names.update(found.wait(1.0) or ())
        return bool(names)

    until(looked, "a hint")
    return names


def change(home: Path, run: str, name: str = "train.py") -> None:
    with (home / "runs" / run / name).open("ab") as file:
        file.write(b"more\n")


@pytest.mark.parametrize("which", ["watched", "deaf"])
@pytest.mark.parametrize("name", ["train.py", ".guild/attrs/label", ".guild/LOCK.remote", "checkpoints/new"])
def test_what_changes_is_named(which: str, name: str, home: Path, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(which)
    change(home, OTHER, name)
    assert moved(found) == {OTHER}


def test_events_come_before_stat_data_are_compared(watched: WatchedHome, home: Path) -> None:
    """Nobody looks at stat data before an hour has gone."""
    watched._moves._quick_at = watched._moves._slow_at = watched._clock() + 3600
    change(home, OTHER)
    assert moved(watched) == {OTHER}


def test_reading_moves_nothing(watched: WatchedHome, home: Path) -> None:
    watched._moves._quick_at = watched._moves._slow_at = watched._clock() + 3600
    for path in (home / "runs").rglob("*"):
        if path.is_file():
            path.read_bytes()
    (home / ".guildsync").mkdir(exist_ok=True)
    (home / ".guildsync" / "x").write_text("ours")
    assert watched.wait(0.3) == frozenset()


def test_what_a_supervisor_writes_is_no_news(watched: WatchedHome, home: Path) -> None:
    (home / "runs" / ONE / ".guild/sync").mkdir()
    settled(watched)
    change(home, ONE, ".guild/sync/heartbeat")
    assert watched.wait(1.5) == frozenset()


def test_runs_that_come_and_go(watched: WatchedHome, home: Path) -> None:
    write_run(home, THIRD)
    assert moved(watched) == {THIRD}
    settled(watched)
    change(home, THIRD, "checkpoints/model.pt")
    assert moved(watched) == {THIRD}
    settled(watched)
    shutil.rmtree(home / "runs" / THIRD)
    assert moved(watched) == {THIRD}


def test_a_root_that_goes_and_comes_back_is_watched_again(watched: WatchedHome, home: Path) -> None:
    (home / "runs").rename(home / "away")
    until(lambda: watched.wait(1.0) is None, "a look at everything")
    settled(watched)
    (home / "away").rename(home / "runs")
    until(lambda: watched.wait(1.0) is None, "a look at everything")
    settled(watched)
    watched._moves._quick_at = watched._moves._slow_at = watched._clock() + 3600
    change(home, OTHER)
    assert moved(watched) == {OTHER}


def test_no_thread_and_no_descriptor_stays(home: Path) -> None:
    def once() -> tuple[int, int]:
        found = WatchedHome(Home(str(home)))
        found.wait(0.0)
        found.close()
        found.close()
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    once()
    assert once() == once()


def test_a_place_where_nobody_says_anything_is_looked_at_every_so_often() -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    found = Periodic(5.0, lambda: now[0], sleep)
    said = [found.wait(2.0) for _ in range(6)]
    assert said == [frozenset(), frozenset(), None, frozenset(), frozenset(), None]
    assert now[0] == 10.0
