"""Which files of a run that is watched are worth showing now: what rests, and what only grows."""

from __future__ import annotations

import stat
import time
from dataclasses import dataclass, replace
from typing import Callable, Dict, NamedTuple, Optional, Tuple

from guildsync.model.manifest import PART_SIZE, Digest, Entry
from guildsync.tree.statcache import SETTLED_NS, Stamp, Stat, stamp_of

GAP = 0.5
"""Seconds between two readings that must find the same bytes. Both, and the sending of what they found, are to fit into
a pause of three seconds."""
STILL_NS = 20_000_000
"""A file that is one object rests where it was last written so long ago, by the clock of its filesystem."""
FORGOTTEN = 600.0
"""Seconds after which what was seen of a file that nobody looks at any more is forgotten."""
LONG, SHARE = 0.5, 4
"""Reading a large file again is put off by so many times what it took; but of what waits only by what took longer than
so long: all that is done of it is to fit into a pause."""


class Seen(NamedTuple):
    """A path as it was read. `grew`: it begins with what it was compared with."""

    entry: Optional[Entry]
    grew: bool = False


Read = Callable[[Optional[Entry]], Seen]
"""Reads a path now, compared with what it was."""


@dataclass(frozen=True)
class _Sight:
    """A file as it was last read, by a reading that began at `at` and took `took` seconds; it was first seen with
    these bytes at `since`. `shown` is what was last worth showing of it; `seen` is how it was last looked at."""

    digest: Digest
    stamp: Stamp
    at: float
    took: float
    since: float
    entry: Entry
    shown: Optional[Entry]
    seen: Stamp

    @property
    def is_shown(self) -> bool:
        return self.shown is not None and self.shown.digest == self.digest

    @property
    def again_at(self) -> float:
        pause = SHARE * self.took if self.is_shown else max(GAP, SHARE * (self.took - LONG))
        return self.at + self.took + pause

    def is_rewritten(self, stamp: Stamp) -> bool:
        """Was it written since it was last looked at, in a way that cannot be growth?"""
        return self.seen.inode == stamp.inode and self.seen.size == stamp.size and self.seen != stamp


class Settling:
    """Remembers, from one scan to the next, what it saw of files.

    Stat data cannot say that a file rests: a memory-mapped writer changes bytes without them. So a large file is shown
    when two readings, `GAP` seconds apart, found the same bytes and the same stat data, and is not read while these say
    that it is being rewritten; a small one, which is read by one call, is shown where it is still. Either is shown at
    once where it only grew, or was renamed into place.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sights: Dict[Tuple[str, bytes], _Sight] = {}

    def of(self, run: str, alive: bool, now_ns: Optional[int], blind: bool) -> Patience:
        """For one scan. `now_ns`: the time by the filesystem's clock (None: it has none); `blind`: there, mapped memory
        never changes the times of its file."""
        gone = self._clock() - FORGOTTEN
        self._sights = {path: sight for path, sight in self._sights.items() if path[0] != run or sight.at > gone}
        return Patience(self, run, alive and (blind or now_ns is None), now_ns)

    def look(self, path: Tuple[str, bytes], info: Stat, cached: Optional[Entry], read: Read, still: bool) -> Seen:
        """What is to be shown of a file; no entry: nothing for now. `still`: nobody was writing to it just now."""
        sight, stamp, began = self._sights.get(path), stamp_of(info), self._clock()
        is_large = info.st_size > PART_SIZE
        if is_large and sight is not None and (sight.is_rewritten(stamp) or began < sight.again_at):
            self._sights[path] = replace(sight, seen=stamp)
            rests = sight.is_shown and sight.stamp == stamp
            return Seen(sight.shown if rests else None)
        shown, since = sight.shown if sight is not None else cached, began
        before = shown or (sight.entry if sight is not None else None)
        if before is not None and before.size == info.st_size and _moved(sight, before, info):
            before = None  # it cannot have grown, and is hardly what it was: one reading tells as much as two
        entry, grew = read(before)
        if entry is None or entry.digest is None:
            return Seen(entry)
        grew = grew or (shown is not None and shown.digest == entry.digest)
        if sight is not None and (sight.digest, sight.stamp) == (entry.digest, stamp):
            since = sight.since
        shows = grew or _is_whole(sight, info) or (began - since >= GAP if is_large else still)
        if shows and not is_large:
            self.forget(path)  # what the caller has cached of it says as much
            return Seen(entry)
        took = self._clock() - began
        shown = entry if shows else shown
        self._sights[path] = _Sight(entry.digest, stamp, began, took, since, entry, shown, stamp)
        return Seen(entry if shows else None)

    def forget(self, path: Tuple[str, bytes]) -> None:
        self._sights.pop(path, None)


class Patience:
    """What one scan asks of a Settling."""

    def __init__(self, settling: Settling, run: str, always: bool, now_ns: Optional[int]) -> None:
        self._settling, self._run, self._always, self._now_ns = settling, run, always, now_ns

    def look(self, path: bytes, info: Stat, cached: Optional[Entry], read: Read) -> Seen:
        """What is to be shown of a path that has to be read; no entry: nothing for now. `cached` is what it was."""
        if not stat.S_ISREG(info.st_mode) or self._is_old(info):
            self._settling.forget((self._run, path))
            return read(cached)
        still = self._now_ns is None or self._now_ns - info.st_mtime_ns >= STILL_NS
        return self._settling.look((self._run, path), info, cached, read, still)

    def _is_old(self, info: Stat) -> bool:
        """So old that, had it changed since, its times would say so."""
        if self._always:
            return False
        return self._now_ns is None or max(info.st_mtime_ns, info.st_ctime_ns) <= self._now_ns - SETTLED_NS


def _moved(sight: Optional[_Sight], before: Entry, info: Stat) -> bool:
    """Was it written since it was shown, or since it was `before`?"""
    if sight is None:
        return info.st_mtime_ns != before.mtime_ns
    return not (sight.is_shown and sight.stamp == stamp_of(info))


def _is_whole(sight: Optional[_Sight], info: Stat) -> bool:
    """Another file has the name, and something was done to it after it was last written: it was renamed."""
    return (sight is None or sight.stamp.inode != info.st_ino) and info.st_ctime_ns > info.st_mtime_ns
