"""A clock that goes on only while everybody sleeps: hours of what threads do, in the time that the work takes."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

DEADLINE = 300.0
"""Seconds, real ones, that one turn may take."""
LEAST = 0.001
"""Seconds that pass in the shortest sleep."""


class World:
    """Threads that were begun here, of which one works at a time, until it sleeps: then the one that wakes first. While
    it works no time passes. `now` in seconds from the beginning."""

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = itertools.count()
        self._asleep: list[tuple[float, int, threading.Event]] = []
        self._over = threading.Semaphore(0)
        self._failed: list[BaseException] = []

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Only for threads of this world."""
        woken = self._enter(seconds)
        self._over.release()
        woken.wait()

    def begin(self, act: Callable[[], object]) -> threading.Thread:
        """`act` in a thread of its own, which comes to its turn in `go`. What it raises `go` does."""
        woken = self._enter(0.0)

        def live() -> None:
            woken.wait()
            try:
                act()
            except BaseException as exc:  # noqa: BLE001 -- `go` raises it
                self._failed.append(exc)
            finally:
                self._over.release()

        thread = threading.Thread(target=live, daemon=True)
        thread.start()
        return thread

    def go(self, until: float | None = None) -> None:
        """Up to this time; None: until all threads have ended."""
        while self._asleep and (until is None or self._asleep[0][0] <= until):
            self.now, _, woken = heapq.heappop(self._asleep)
            woken.set()
            assert self._over.acquire(timeout=DEADLINE), "a thread neither sleeps nor ends"
            if self._failed:
                raise self._failed.pop()
        self.now = self.now if until is None else until

    def _enter(self, seconds: float) -> threading.Event:
        woken = threading.Event()
        heapq.heappush(self._asleep, (self.now + max(LEAST, seconds), next(self._numbers), woken))
        return woken


class News(threading.Event):
    """Waiting for it is to sleep in a world: what comes meanwhile is seen afterwards."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            self._world.sleep(timeout or 0.0)
        return self.is_set()
