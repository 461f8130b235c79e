"""Progress: one line on a terminal, and nothing anywhere else."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import guildsync
from guildsync.cli import terminal
from guildsync.cli.progress import Line, told
from guildsync.cli.terminal import Terminal
from tests.cli.conftest import Cli
from tests.cli.test_main import on_a_terminal
from tests.kit.trees import MIB, noise, put, run_ids

ERASE = "\r\x1b[K"


class Screen(io.StringIO):
    """A terminal, as far as anybody asks."""

    def isatty(self) -> bool:
        return True

    @property
    def drawn(self) -> list[str]:
        return self.getvalue().split(ERASE)[1:]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    screen = Screen()
    monkeypatch.setattr(terminal, "sys", SimpleNamespace(stderr=screen))
    monkeypatch.setenv("TERM", "xterm")
    return screen


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_line_that_is_cleared_before_the_last(home: Path, store: str) -> None:
    for run in run_ids(3):
        put(home / "runs" / run, "large", noise(int(run[:4], 16), 3 * MIB))
    code, seen = on_a_terminal("push", store)
    assert code == 0
    before, _, last = seen.rpartition(ERASE)
    assert last.startswith("Pushed 3 runs (")
    drawn = [line for line in before.split(ERASE) if line]
    assert re.fullmatch(r"Pushing 0 of 3 runs, 0 of \d+ files, 0 B of [\d.]+ MB", drawn[0])
    assert all("\n" not in line and len(line) < 80 for line in drawn)
    code, seen = on_a_terminal("pull", store, "-H", f"{home}-2")
    assert code == 0
    assert seen.startswith(f"{ERASE}Pulling 0 of 3 runs, ")
    assert seen.rpartition(ERASE)[2].startswith("Pulled 3 runs (")


@pytest.mark.parametrize("option", ["-q", "--json", "--dry-run"])
def test_nothing_where_it_would_be_in_the_way(home: Path, store: str, option: str) -> None:
    assert ERASE not in on_a_terminal("push", store, option)[1]


def test_nothing_on_a_dumb_terminal_or_on_none(cli: Cli, shell: Cli, home: Path, store: str) -> None:
    assert "\x1b" not in on_a_terminal("push", store, "1", TERM="dumb")[1]
    assert shell("push", store, "2").err == ""
    assert cli("push", store, "3").err == ""


def test_nothing_to_do_draws_nothing(cli: Cli, home: Path, store: str) -> None:
    assert cli("push", store).code == 0
    assert on_a_terminal("push", store) == (0, f"Nothing to push: 3 runs are already on {store}\r\n")


def test_runs_files_bytes_and_rate(screen: Screen) -> None:
    clock = Clock()
    progress = guildsync.Progress(Line(Terminal(), "Pushing", clock).draw)
    progress.planned(2, 30, 4_000_000)
    clock.now = 1.0
    progress.moved(1_000_000)
    clock.now = 2.0
    progress.moved(2_000_000)
    progress.committed(1, 20)
    clock.now = 2.2
    progress.moved(0)
    assert screen.drawn == [
        "Pushing 0 of 2 runs, 0 of 30 files, 0 B of 4.0 MB",
        "Pushing 0 of 2 runs, 0 of 30 files, 1.0 MB of 4.0 MB, 1.0 MB/s",
        "Pushing 0 of 2 runs, 0 of 30 files, 3.0 MB of 4.0 MB, 1.5 MB/s",
        "Pushing 1 of 2 runs, 20 of 30 files, 3.0 MB of 4.0 MB, 1.4 MB/s",
    ]


def test_at_most_ten_updates_a_second(screen: Screen) -> None:
    clock = Clock()
    progress = guildsync.Progress(Line(Terminal(), "Pushing", clock).draw)
    progress.planned(1, 1, 100_000)
    for _ in range(1000):
        clock.now += 0.002
        progress.moved(100)
    assert 15 <= len(screen.drawn) <= 21


def test_the_rate_is_that_of_the_last_seconds(screen: Screen) -> None:
    clock = Clock()
    progress = guildsync.Progress(Line(Terminal(), "Pushing", clock).draw)
    progress.planned(1, 1, 100_000_000)
    for second in range(20):
        clock.now += 1.0
        progress.moved(5_000_000 if second < 10 else 1_000_000)
    assert screen.drawn[-1].endswith("1.0 MB/s")


def test_another_round_runs_nothing_backwards() -> None:
    seen = []
    progress = guildsync.Progress(lambda p: seen.append((p.runs_done, p.runs, p.files_done, p.bytes_done, p.size)))
    progress.planned(3, 30, 1000)
    progress.moved(900)
    progress.committed(2, 25)
    progress.planned(1, 1, 300)
    progress.moved(400)
    progress.committed(1, 5)
    assert seen == [
        (0, 3, 0, 0, 1000),
        (0, 3, 0, 900, 1000),
        (2, 3, 25, 900, 1000),
        (2, 3, 25, 900, 1200),
        (2, 3, 25, 1300, 1300),
        (3, 3, 30, 1300, 1300),
    ]


def test_warnings_and_errors_have_lines_of_their_own(screen: Screen) -> None:
    def interrupted() -> None:
        with told(Terminal(color="never"), "Pushing", True) as (progress, warn, _):
            progress.planned(1, 1, 10)
            warn("the store went back in time")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert screen.getvalue() == (
        f"{ERASE}Pushing 0 of 1 run, 0 of 1 file, 0 B of 10 B{ERASE}warning: the store went back in time\n"
    )


def test_nothing_is_drawn_behind_the_end_and_the_line_is_gone(screen: Screen) -> None:
    with told(Terminal(), "Pushing", True) as (progress, _, _):
        progress.planned(1, 1, 10)
    progress.moved(10)
    assert screen.drawn == ["Pushing 0 of 1 run, 0 of 1 file, 0 B of 10 B", ""]


def test_a_terminal_that_went_away_does_not_end_the_transfer(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(text: str) -> int:
        tries.append(text)
        raise OSError(5, "Input/output error")

    tries = []
    monkeypatch.setattr(screen, "write", gone)
    with told(Terminal(), "Pushing", True) as (progress, _, _):
        progress.planned(1, 1, 10)
        progress.moved(10)
    assert len(tries) == 1
