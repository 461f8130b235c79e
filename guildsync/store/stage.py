"""Objects on their way into new packs: a few uploads at a time, and what an interrupted push had sent taken over."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager

from guildsync.errors import Damaged
from guildsync.model.manifest import Digest, canonical, checked_digest
from guildsync.model.ports import Cache
from guildsync.store.fs import Files
from guildsync.store.journal import Facts, PackFact
from guildsync.store.objects import Objects
from guildsync.store.pack import LARGEST_PACK, Packer, SealedPack, pack_path

CACHED = "staged"
UNCONFIRMED = 56 << 20
"""Bytes of packs on their way, at most: what an interruption may cost, and what they take of memory."""
FIRST, SMALLEST = 2 << 20, 512 << 10
"""Bytes of the first pack, while nothing is known of the link, and of packs on the slowest one."""
QUICK, SLOW = 2.0, 10.0
"""Seconds that an upload takes: below the one the next pack is larger, above the other it is smaller."""


class Pace:
    """How large the next pack is to be and how many are under way, so that each takes seconds, whatever the link."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`most`: uploads at a time. `clock` in seconds."""
        self.target, self.lanes = FIRST, 1
        self._most, self._clock = most, clock
        self._busy = 0
        self._freed = threading.Condition()

    @contextmanager
    def lane(self) -> Iterator[None]:
        """Held while one pack is sent; waits for a free lane."""
        with self._freed:
            self._freed.wait_for(lambda: self._busy < self.lanes)
            self._busy += 1
        began = self._clock()
        try:
            yield
        finally:
            with self._freed:
                self._busy -= 1
                self._learn(self._clock() - began)
                self._freed.notify_all()

    def _learn(self, seconds: float) -> None:
        if seconds < QUICK:
            self.target, self.lanes = min(LARGEST_PACK, 2 * self.target), min(self._most, self.lanes + 1)
        elif seconds > SLOW:
            self.target, self.lanes = max(SMALLEST, self.target // 2), max(1, self.lanes - 1)


class Stage:
    """Nothing of it is relied on before it is confirmed. What is confirmed and not in the journal yet is noted at home:
    should this push end here, the next one takes it over."""

    def __init__(self, files: Files, objects: Objects, cache: Cache, pool: Executor, jobs: int) -> None:
        """`jobs`: uploads at a time, on the threads of `pool`."""
        self._files, self._objects, self._cache, self._pool = files, objects, cache, pool
        self._pace = Pace(jobs)
        self._packer = Packer(self._pace.target)
        self._under_way: deque[tuple[int, Future[PackFact]]] = deque()
        self._digests: set[Digest] = set()
        self._confirmed: dict[str, PackFact] = {}
        self._own: set[str] = set()
        self._left_over: dict[str, PackFact] | None = None
        self.taken_over = 0

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._digests

    def take_over(self, wanted: Collection[Digest], known: Facts) -> None:
        """Make use of the packs of interrupted pushes that hold some of these objects, and still are where they were.

        `known`: what the journal says: a pack that it names is no business of ours any more. `taken_over` counts the
        bytes of objects that need not be sent."""
        self.disown(known)
        left = self._notes(known)
        self._objects.load_cached(left.values())
        useful = [left.pop(name) for name in list(left) if not self._objects.index(name).keys().isdisjoint(wanted)]
        for fact, there in zip(useful, self._pool.map(self._objects.is_there, useful), strict=True):
            if not there:
                self._cache.drop(CACHED, fact.name)
                continue
            index = self._objects.index(fact.name)
            self.taken_over += sum(index[digest].raw for digest in index.keys() & set(wanted) - self._digests)
            self._note_confirmed(fact)
            self._digests |= index.keys()

    def add(self, digest: Digest, data: bytes) -> None:
        """Keep an object whose digest the caller has verified."""
        if digest in self._digests:
            return
        self._digests.add(digest)
        self._packer.add(digest, data)
        if self._packer.size >= self._due():
            self._send()

    def flush(self) -> dict[str, PackFact]:
        """Send what is left and wait until all packs are confirmed; answers every pack since `forget`."""
        if self._packer.objects:
            self._send()
        self._wait(0)
        return dict(self._confirmed)

    def forget(self, facts: Facts) -> None:
        """The packs are in the journal, whose facts these are. What lies in one that is condemned must be staged anew
        if it is wanted."""
        self.disown(facts)
        for confirmed in self._confirmed:
            self._cache.drop(CACHED, confirmed)
        self._confirmed.clear()

    def disown(self, facts: Facts) -> None:
        """What lies in a pack that is condemned is not there any more; once, for it may be on its way again."""
        gone = (facts.condemned | facts.dropped) & self._own
        for name in gone:
            self._digests -= self._objects.index(name).keys()
        self._own -= gone

    def _notes(self, known: Facts) -> dict[str, PackFact]:
        if self._left_over is None:
            named = {fact.name for fact in known.adds} | known.condemned | known.dropped
            self._left_over = {}
            for name in self._cache.names(CACHED):
                fact = _fact(self._cache.load(CACHED, name))
                if fact is None or fact.name != name or name in named:
                    self._cache.drop(CACHED, name)
                else:
                    self._left_over[name] = fact
        return self._left_over

    def _due(self) -> int:
        """Bytes from which a pack is to be sent: while all lanes are taken it may grow some more."""
        busy = sum(1 for _, upload in self._under_way if not upload.done())
        target = self._pace.target
        return target if busy < self._pace.lanes else min(LARGEST_PACK, 2 * target)

    def _send(self) -> None:
        sealed = self._packer.seal()
        self._packer = Packer(self._pace.target)
        self._wait(UNCONFIRMED - len(sealed.data))
        self._under_way.append((len(sealed.data), self._pool.submit(self._put, sealed)))

    def _put(self, sealed: SealedPack) -> PackFact:
        fact = sealed.fact
        with self._pace.lane():
            self._files.put(pack_path(fact.name), sealed.data)
        self._objects.keep(sealed)
        self._cache.keep(CACHED, fact.name, canonical(list(fact)))
        return fact

    def _wait(self, most: int) -> None:
        """Until no more than `most` bytes are under way."""
        while self._under_way and sum(size for size, _ in self._under_way) > max(0, most):
            self._note_confirmed(self._under_way.popleft()[1].result())

    def _note_confirmed(self, fact: PackFact) -> None:
        self._confirmed[fact.name] = fact
        self._own.add(fact.name)


def _fact(data: bytes | None) -> PackFact | None:
    """A note as it was written; None for anything else."""
    try:
        name, size, offset, index = json.loads(data or b"")
        return PackFact(checked_digest(name), int(size), int(offset), checked_digest(index))
    except (ValueError, TypeError, Damaged):
        return None
