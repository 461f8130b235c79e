"""Which runs of a home have moved, found by comparing stat data: a poll that loses nothing."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Callable, Dict, FrozenSet, Iterable, List, Optional, Set

from guildsync.errors import GuildsyncError
from guildsync.model.ports import Only
from guildsync.model.run import RunId
from guildsync.tree import attrs
from guildsync.tree.dirs import open_directory
from guildsync.tree.home import Home

QUICK, SLOW = 0.1, 5.0
"""Seconds between two looks at runs that move, and between two at all of them, where looks take next to no time."""
LIVELY = 60.0
"""For so many seconds after it moved a run is looked at often."""
SHARE = 20
"""A look may take one in so many seconds: where it takes long, looks are further apart."""
NOTHING: FrozenSet[RunId] = frozenset()

_SUPERVISORS = b".guild/sync"  # whether a process is alive is asked by itself


class Moves:
    """What moved in a home since it was last asked (`model.ports.Hints`). The first look says that everything did: what
    came before it is not known. Lively runs are looked at every `quick` seconds, all of them every `slow`."""

    def __init__(
        self,
        home: Home,
        quick: float = QUICK,
        slow: float = SLOW,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._home, self._quick, self._slow, self._clock, self._sleep = home, quick, slow, clock, sleep
        self._prints: Optional[Dict[RunId, str]] = None
        self._lively: Dict[RunId, float] = {}
        self._quick_at = self._slow_at = 0.0

    def wait(self, seconds: float) -> Only:
        end = self._clock() + seconds
        while True:
            moved = self.look()
            now = self._clock()
            if moved is None or moved or now >= end:
                return moved
            self._sleep(max(0.0, min(end, self.due) - now))

    @property
    def due(self) -> float:
        """When there is something to look at again, by the clock."""
        return min(self._quick_at, self._slow_at)

    def look(self) -> Only:
        """What moved, as far as it is time to look; comes at once."""
        began = self._clock()
        if self._prints is not None and began < self.due:
            return NOTHING
        is_first, everything = self._prints is None, began >= self._slow_at
        try:
            runs = self._home.run_ids()
        except GuildsyncError:
            runs = []  # it cannot be read now: what comes back has moved
        moved = self._compared(runs, everything)
        now = self._clock()
        self._quick_at = now + (self._quick if everything else max(self._quick, SHARE * (now - began)))
        if everything:
            self._slow_at = now + max(self._slow, SHARE * (now - began))
        return None if is_first else moved

    def _compared(self, runs: Iterable[RunId], everything: bool) -> FrozenSet[RunId]:
        before = self._prints or {}
        now: Dict[RunId, str] = {}
        moved: Set[RunId] = set()
        when = self._clock()
        for run in runs:
            if everything or run not in before or run in self._lively:
                now[run] = self._fingerprint(run)
            else:
                now[run] = before[run]
            if now[run] != before.get(run):
                moved.add(run)
                self._lively[run] = when + LIVELY
        moved |= before.keys() - now.keys()
        for run in [run for run, until in self._lively.items() if run not in now or until < when]:
            if run not in now or not self._is_alive(run):
                del self._lively[run]
        self._prints = now
        return frozenset(moved)

    def _fingerprint(self, run: RunId) -> str:
        whole = hashlib.sha256()
        try:
            fd = self._home.open_run(run)
        except OSError:
            return ""
        try:
            _add(whole.update, fd, b"")
            whole.update(b"%d" % attrs.alive(fd))
        finally:
            os.close(fd)
        return whole.hexdigest()

    def _is_alive(self, run: RunId) -> bool:
        try:
            fd = self._home.open_run(run)
        except OSError:
            return False
        try:
            return attrs.alive(fd)
        finally:
            os.close(fd)


def _add(tell: Callable[[bytes], None], fd: int, prefix: bytes) -> None:
    """All that lies below, markers and metadata too, since they are news. What cannot be read says nothing now."""
    try:
        with os.scandir(fd) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        return
    below: List[bytes] = []
    for entry in entries:
        name = os.fsencode(entry.name)
        if prefix + name == _SUPERVISORS:
            continue
        try:
            info = entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                below.append(name)
                tell(b"%b%b\0%o\n" % (prefix, name, info.st_mode))
            else:
                stamp = (info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
                tell(b"%b%b\0%o %d %d %d %d\n" % (prefix, name, *stamp))
        except OSError:
            continue
    for name in below:
        try:
            inner = open_directory(name, fd)
        except OSError:
            continue
        try:
            _add(tell, inner, prefix + name + b"/")
        finally:
            os.close(inner)
