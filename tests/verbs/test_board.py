"""TensorBoard, with default flags, on the mirror of a run that is being written elsewhere: it shows every point."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.board import Board, board, install
from tests.kit.events import event_bytes, scalar_event
from tests.kit.mirrors import interrupted, watching
from tests.kit.places import THERE, kinds, new_place
from tests.kit.trees import _record as record
from tests.kit.trees import run_ids, write_run
from tests.kit.waiting import until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

(RUN,) = run_ids(1)
EVENTS = "logs/events.out.tfevents.1700000000.host"
TAGS = ("loss", "accuracy")
BEFORE, POINTS = 3, 25
"""So many points are there when TensorBoard starts, and in the end."""
PAUSE = 0.8
"""Seconds between points: TensorBoard looks every five."""


@pytest.fixture(scope="session")
def tensorboard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("tensorboard"))


class Training:
    """A run in a home, that runs as long as this process does."""

    def __init__(self, home: Path) -> None:
        self.top, self.steps = write_run(home, RUN, exit_status=None, stopped=None), 0
        self.events = self.top / EVENTS
        self.events.parent.mkdir()
        self.events.write_bytes(event_bytes())
        (self.top / ".guild/LOCK").write_text(str(os.getpid()))

    def log(self, count: int) -> None:
        for _ in range(count):
            with self.events.open("ab") as file:
                for tag in TAGS:
                    file.write(record(scalar_event(tag, self.steps + 0.5, self.steps)))
            self.steps += 1

    def end(self) -> None:
        (self.top / ".guild/attrs/exit_status").write_text("0\n")
        (self.top / ".guild/LOCK").unlink()


@pytest.fixture(params=kinds("disk", "ssh"))
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The home of the remote `there`."""
    return new_place(request.param, tmp_path, tmp_path / "target", request).home


@contextmanager
def mirrored(target: Path) -> Iterator[None]:
    """What is written there comes to this home, until Ctrl-C."""
    with watching("--home", str(target), "pull", THERE, "--watch") as child:
        yield
        code, out, err = interrupted(child)
    assert (code, err) == (130, "")
    assert out.startswith("Mirrored 1 run (")


def shows(found: Board, run: str, steps: int) -> bool:
    wanted = {step: step + 0.5 for step in range(steps)}
    return all(found.points(run, tag) == wanted for tag in TAGS)


def test_tensorboard_shows_every_point_of_a_run_that_is_mirrored_while_it_is_written(
    tensorboard: Path, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    (target / "runs").mkdir(parents=True)
    training = Training(source)
    training.log(BEFORE)
    with mirrored(target), board(tensorboard, target / "runs", tmp_path / "board") as found:
        name = f"{RUN}/logs"
        until(lambda: shows(found, name, BEFORE), "what was there at first")
        file = target / "runs" / RUN / EVENTS
        inode = file.stat().st_ino
        while training.steps < POINTS:
            training.log(1)
            time.sleep(PAUSE)
        until(lambda: shows(found, name, POINTS), f"{POINTS} points of a run that runs")
        training.log(1)
        training.end()
        until(lambda: shows(found, name, POINTS + 1), "the last point")
        assert file.stat().st_ino == inode, "it was replaced"
    assert file.read_bytes() == training.events.read_bytes()


def test_tensorboard_would_not_follow_a_file_that_is_replaced(tensorboard: Path, tmp_path: Path) -> None:
    """Why files that only grew are appended to in place; and that the test above can fail."""
    training = Training(tmp_path / "source")
    training.log(BEFORE)
    top = tmp_path / "target"
    file = top / training.events.name

    def replaced() -> None:
        new = top.parent / "new"
        new.write_bytes(training.events.read_bytes())
        new.rename(file)

    top.mkdir()
    replaced()
    with board(tensorboard, top, tmp_path / "board") as found:
        until(lambda: shows(found, ".", BEFORE), "what was there at first")
        for _ in range(POINTS - BEFORE):
            training.log(1)
            replaced()
            time.sleep(PAUSE)
        (top / "later").mkdir()
        (top / "later" / training.events.name).write_bytes(training.events.read_bytes())
        until(lambda: shows(found, "later", POINTS), "a file that came later: so it has looked again")
        assert not shows(found, ".", POINTS)
