"""A mirror in a thread of its own, and what both sides hold while it goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guildsync import api
from tests.kit.trees import differences, snapshot
from tests.kit.waiting import until


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


def is_same(one: Path, other: Path) -> bool:
    """Do both directories hold the same now? What goes away while it is looked at is a difference."""
    try:
        return one.is_dir() and other.is_dir() and not differences(snapshot(one), snapshot(other))
    except FileNotFoundError:
        return False


def until_same(one: Path, other: Path, seconds: float = 60.0) -> None:
    until(lambda: is_same(one, other), f"{one} and {other} hold the same", seconds)
