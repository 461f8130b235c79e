"""watchdog -> "look again"; the only module that knows watchdog."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

from guildsync.model.ports import Only
from guildsync.model.run import RunId, is_run_id
from guildsync.tree.home import Home
from guildsync.tree.moves import Moves

QUICK, SLOW = 1.0, 3.0
"""Seconds between two looks at stat data beside the events: at runs that move, and at all of them."""
_SUPERVISORS = os.path.join(".guild", "sync")  # it writes there that it lives, and no sync takes it along
PAUSE = 0.25
"""A wait is interrupted so often to see whether the directory is still the one that is watched."""


class WatchedHome:
    """When files of a home on this machine move (`model.ports.Hints`). Events come at once, and may be lost without a
    word: in a flood, by an unmount, where the system has no more watches to give. So stat data are compared, too."""

    def __init__(self, home: Home, clock: Callable[[], float] = time.monotonic) -> None:
        self._home, self._clock = home, clock
        self._top = os.fsdecode(home.runs)
        self._moves = Moves(home, QUICK, SLOW, clock)
        self._news = threading.Event()
        self._lock = threading.Lock()
        self._moved: set[RunId] = set()
        self._all = False
        self._observer: Any = None
        self._watched: tuple[int, int] | None = None

    def wait(self, seconds: float) -> Only:
        end = self._clock() + seconds
        while True:
            if self._follow_root():
                return None
            moved = self._taken()
            if moved is None or moved:
                return moved
            polled = self._moves.look() if seconds > 0 else moved
            left = end - self._clock()
            if polled is None or polled or left <= 0:
                return polled
            self._news.wait(min(left, PAUSE, max(0.0, self._moves.due - self._clock())))

    def close(self) -> None:
        """No thread of it is left; twice is harmless."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join()

    def _taken(self) -> Only:
        with self._lock:
            self._news.clear()
            moved, self._moved = frozenset(self._moved), set()
            is_all, self._all = self._all, False
        return None if is_all else moved

    def _note(self, *paths: Any) -> None:
        """To be told of what events name: what lies in a run, the directory of all runs, or what is neither."""
        with self._lock:
            for path in filter(None, map(os.fsdecode, paths)):
                name, _, below = os.path.relpath(path, self._top).partition(os.sep)
                if below.startswith(_SUPERVISORS):
                    continue
                if is_run_id(name):
                    self._moved.add(RunId(name))
                    self._news.set()
                elif name in (os.curdir, os.pardir):
                    self._all = True
                    self._news.set()

    def _follow_root(self) -> bool:
        """Watch the directory that has the name now; True where that is another one than before."""
        try:
            info = os.stat(self._top)
            now: tuple[int, int] | None = (info.st_dev, info.st_ino)
        except OSError:
            now = None
        if now == self._watched:
            return False
        self._watched = now
        self.close()
        if now is not None:
            self._observer = _observed(self._top, self._note)
        return True


class Periodic:
    """Of a place where nobody says that something moves: everywhere, every so many seconds."""

    def __init__(
        self, every: float, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._every, self._clock, self._sleep = every, clock, sleep
        self._due = clock() + every

    def wait(self, seconds: float) -> Only:
        self._sleep(max(0.0, min(seconds, self._due - self._clock())))
        if self._clock() < self._due:
            return frozenset()
        self._due = self._clock() + self._every
        return None


def _observed(top: str, note: Callable[..., None]) -> Any:
    """An observer that runs; None where the system has no watches left, or none at all."""
    from watchdog import events
    from watchdog.observers import Observer

    class Handler(events.FileSystemEventHandler):
        def on_any_event(self, event: Any) -> None:
            if not (event.is_directory and event.event_type == events.EVENT_TYPE_MODIFIED):
                note(event.src_path, event.dest_path)

    logging.getLogger("watchdog").propagate = False  # what it says of lost events is looked for anyway
    logging.getLogger("watchdog").addHandler(logging.NullHandler())
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"watchdog\.")
    wanted = [
        events.FileCreatedEvent,
        events.FileModifiedEvent,
        events.FileMovedEvent,
        events.FileDeletedEvent,
        events.FileClosedEvent,
        events.DirCreatedEvent,
        events.DirMovedEvent,
        events.DirDeletedEvent,
    ]
    observer = Observer()
    try:
        observer.schedule(Handler(), top, recursive=True, event_filter=wanted)
        observer.start()
    except OSError:
        return None
    return observer
