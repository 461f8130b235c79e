"""A mirror in a thread or a process of its own, and what both sides hold while it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guildsync import api
from tests.kit.measured import ROOT
from tests.kit.places import THERE, Place
from tests.kit.trees import assert_same, differences, run_ids, snapshot
from tests.kit.waiting import until

HERE = api.LOCAL
(RUN,) = run_ids(1)


@dataclass
class Running:
    """A mirror that goes on until `stop`. It is the Teller, too."""

    asked: threading.Event = field(default_factory=threading.Event)
    outcomes: list[api.Outcome] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    done: api.Mirrored | None = None
    error: BaseException | None = None
    thread: threading.Thread | None = None

    def delivered(self, done: api.Mirrored, outcome: api.Outcome) -> None:
        self.outcomes.append(outcome)

    def rests(self, done: api.Mirrored) -> None:
        pass

    def warns(self, text: str) -> None:
        self.warnings.append(text)

    @property
    def is_alive(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def stop(self) -> api.Mirrored:
        """Ends it cleanly; raises what it raised."""
        self.asked.set()
        return self.ended()

    def ended(self) -> api.Mirrored:
        """Once it has ended by itself."""
        assert self.thread is not None
        self.thread.join(60)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
        assert self.done is not None
        return self.done


@contextmanager
def mirror(
    context: api.Context, ends: tuple[str, str], terms: api.Terms = api.Terms(), **options: Any
) -> Iterator[Running]:
    """Goes on while the body does."""
    running = Running()

    def go_on() -> None:
        try:
            running.done = context.mirror(ends, api.Options(**options), terms, running, running.asked.is_set)
        except BaseException as exc:  # noqa: BLE001 -- `ended` raises it
            running.error = exc

    running.thread = threading.Thread(target=go_on, daemon=True)
    running.thread.start()
    try:
        yield running
    finally:
        running.asked.set()
        running.thread.join(60)
        assert not running.thread.is_alive()


@contextmanager
def watching(*argv: str, stderr: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    """A command of its own, that is gone afterwards."""
    command = [sys.executable, "-m", "guildsync", *argv]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True)
    try:
        yield child
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate(timeout=60)


def interrupted(child: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """What it says after Ctrl-C, and how it ends."""
    os.kill(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=60)
    return child.returncode, out.decode(), (err or b"").decode()


def is_same(one: Path, other: Path) -> bool:
    """Do both directories hold the same now? What goes away while it is looked at is a difference."""
    try:
        return one.is_dir() and other.is_dir() and not differences(snapshot(one), snapshot(other))
    except FileNotFoundError:
        return False


def until_same(one: Path, other: Path, seconds: float = 60.0) -> None:
    until(lambda: is_same(one, other), f"{one} and {other} hold the same", seconds)


@dataclass
class Pair:
    """Two homes, the first of which is mirrored to the second; `ends` names them."""

    context: api.Context
    ends: tuple[str, str]
    source: Path
    target: Path

    def run(self, run: str = RUN) -> Path:
        return self.source / "runs" / run

    def there(self, run: str = RUN) -> Path:
        return self.target / "runs" / run

    @property
    def argv(self) -> list[str]:
        """The same as a command."""
        way, home = ("push", self.source) if self.ends[0] == HERE else ("pull", self.target)
        return [way, "--home", str(home), "--watch", THERE]

    def mirror(self, terms: api.Terms = api.Terms(), **options: object) -> AbstractContextManager[Running]:
        return mirror(self.context, self.ends, terms, **options)

    def until_same(self, *runs: str) -> None:
        for run in runs or (RUN,):
            until_same(self.run(run), self.there(run))

    def same_in_the_end(self, *runs: str) -> None:
        for run in runs or (RUN,):
            assert_same(self.run(run), self.there(run))


def pair_of(place: Place, way: str, home: Path) -> Pair:
    context = api.open_context(str(home))
    if way == "push":
        return Pair(context, (HERE, THERE), home, place.home)
    return Pair(context, (THERE, HERE), place.home, home)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
