"""The journal of a store, read: LIST, GET what is new, join; and one PUT for a commit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field

from guildsync.errors import DAMAGED, Damaged, GuildsyncError, Problem, Unreachable
from guildsync.model.manifest import Digest
from guildsync.model.ports import Cache
from guildsync.store.fs import Absent, Files, Size
from guildsync.store.journal import (
    Commit,
    Facts,
    condensed,
    decode,
    encode,
    is_said,
    join,
    next_sequence,
    split_name,
)
from guildsync.store.view import View

FORMAT_NAME = "guildsync.json"
FORMAT = 1
DIRECTORY = "journal"
CACHED = "journal"
POSITION = "position"

GRACE_AT_LEAST = 600.0
"""Seconds that a checkpoint is there, for everybody, before anything is deleted that it sums up (rule K4)."""

_ATTEMPTS = 10
_WAVE = 8
"""How many entries a reader fetches before it looks which of the others it still needs; twice as many each time."""


def _now() -> tuple[float, float]:
    """Seconds. The first may be set back, the second may stand still while the computer sleeps."""
    return time.time(), time.monotonic()


@dataclass(frozen=True)
class Reading:
    """What the journal says now. With problems some of it could not be read: nobody may write from it (rule V3).

    `names` are all entries that are there, `commits` those that were read, `checkpoints` those that sum up others,
    `modified` the times since when entries are there, by the store's clock, in seconds, as far as it says so."""

    view: View
    names: frozenset[str]
    problems: tuple[Problem, ...]
    checkpoints: tuple[Commit, ...] = ()
    modified: Mapping[str, float] = field(default_factory=dict)
    commits: Mapping[str, Commit] = field(default_factory=dict)

    @property
    def next_sequence(self) -> int:
        return next_sequence(self.view.facts, self.names)

    @property
    def tables(self) -> tuple[Digest, ...]:
        """The index objects that checkpoints name which no other sums up."""
        summed = {name for checkpoint in self.checkpoints for name in checkpoint.sums}
        last = (checkpoint for checkpoint in self.checkpoints if checkpoint.name not in summed)
        return tuple(sorted({table for checkpoint in last for table in checkpoint.tables}))

    @property
    def stored(self) -> dict[str, float]:
        """When commits came, by their ids, as far as entries that are there, or checkpoints, say so."""
        times = {name.partition("-")[2]: since for name, since in self.modified.items() if name in self.commits}
        for commit, since in (row for checkpoint in self.checkpoints for row in checkpoint.times):
            times[commit] = min(since, times.get(commit, since))
        return times


class Journal:
    """Reads and writes the journal. Entries are immutable, so one that was read once is never fetched again."""

    def __init__(
        self,
        files: Files,
        cache: Cache,
        pool: Executor,
        warn: Callable[[str], None],
        clock: Callable[[], tuple[float, ...]] = _now,
    ) -> None:
        self._files, self._cache, self._pool, self._warn, self._clock = files, cache, pool, warn, clock
        self._commits: dict[str, Commit] = {}
        self._known = False
        self._joined: tuple[frozenset[str], View] | None = None

    def read(self, whole: bool = False) -> Reading:
        """The union of all entries that a LIST started now shows. An entry that goes away meanwhile was summed up, so
        the LIST is made again (rule L4); so is one that took so long that, where listings have no order, a checkpoint
        may have been put and what it sums up deleted meanwhile (K4). `whole`: what is summed up is read, too."""
        for _ in range(_ATTEMPTS):
            before = self._clock()
            listed = self._list()
            if max(now - then for then, now in zip(before, self._clock(), strict=True)) > GRACE_AT_LEAST / 2:
                continue
            names = frozenset(listed)
            try:
                problems = self._load(names, whole)
            except Absent:
                continue
            known = names & self._commits.keys()
            view = self._view(known)
            if not problems:
                self._note_position(view, names)
                self._forget(names, view.facts)
            commits = {name: self._commits[name] for name in sorted(known)}
            checkpoints = tuple(commit for commit in commits.values() if commit.sums)
            modified = {name: size.modified for name, size in listed.items() if size.modified is not None}
            return Reading(view, names, problems, checkpoints, modified, commits)
        said = f"the journal of {self._files.where} changes each time it is read, or takes too long to be listed"
        raise Unreachable(said, "try again")

    def put(self, commit: Commit) -> str:
        """Confirmed when it returns the entry's name, which never repeats: putting the same bytes again is harmless."""
        data = encode(commit)
        self._files.put(f"{DIRECTORY}/{commit.name}", data)
        self._commits[commit.name] = commit
        self._known = True
        self._cache.keep(CACHED, commit.name, data)
        return commit.name

    def entry(self, name: str) -> Commit | None:
        """One that a reading listed, whether it was read or not; None where it cannot be read. Raises Absent."""
        found = self._commits.get(name) or self._load_one(name)
        return found if isinstance(found, Commit) else None

    def is_sound(self, name: str) -> bool:
        """The entry itself is there and whole, not only what this home's cache has of it."""
        try:
            decode(name, self._files.get(f"{DIRECTORY}/{name}"))
        except (Damaged, Absent):
            return False
        return True

    def remove(self, names: Iterable[str]) -> None:
        """Delete entries that a checkpoint sums up which everybody sees (K2, K4); one that is gone is no error."""
        for _ in self._pool.map(self._files.remove, [f"{DIRECTORY}/{name}" for name in names]):
            pass

    def _list(self) -> dict[str, Size]:
        found = ((path.removeprefix(DIRECTORY + "/"), size) for path, size in self._files.list(DIRECTORY).items())
        return {name: size for name, size in found if not name.startswith(".")}

    def _load(self, names: frozenset[str], whole: bool) -> tuple[Problem, ...]:
        """Fetch what is listed and not known yet, the newest first; unless `whole`, not what a checkpoint that is known
        sums up, which joining would add nothing to. Such an entry may even be unreadable: nobody needs it."""
        summed = {name for known in names & self._commits.keys() for name in self._commits[known].sums}
        problems: dict[str, Problem] = {}
        left, wave = sorted(names - self._commits.keys(), reverse=True), _WAVE
        while left := [name for name in left if whole or name not in summed]:
            some, left = left[:wave], left[wave:]
            for name, found in zip(some, self._pool.map(self._load_one, some), strict=True):
                if isinstance(found, Commit):
                    self._commits[name] = found
                    summed.update(found.sums)
                else:
                    problems[name] = found
            wave *= 2
        return tuple(problem for name, problem in sorted(problems.items()) if name not in summed)

    def _load_one(self, name: str) -> Commit | Problem:
        cached = self._cached(name)
        if cached is not None:
            return cached
        try:
            split_name(name)
            data = self._files.get(f"{DIRECTORY}/{name}")
            commit = decode(name, data)
        except Damaged as exc:
            return Problem("", f"{DIRECTORY}/{name}".encode(), DAMAGED, exc.message)
        self._cache.keep(CACHED, name, data)
        return commit

    def _cached(self, name: str) -> Commit | None:
        cached = self._cache.load(CACHED, name)
        try:
            return None if cached is None else decode(name, cached)
        except Damaged:
            return None  # the cache is only a cache

    def _forget(self, names: frozenset[str], facts: Facts) -> None:
        """Keep no longer what was deleted and says nothing that those which are there do not. Of what says more this
        home may have the last copy."""
        gone = {*self._commits, *self._cache.names(CACHED)} - names
        there = condensed(facts) if gone else facts
        for name in gone:
            commit = self._commits.get(name) or self._cached(name)
            if commit is not None and is_said(commit.state, there):
                self._commits.pop(name, None)
                self._cache.drop(CACHED, name)

    def _view(self, names: frozenset[str]) -> View:
        if self._joined is None or self._joined[0] != names:
            commits = [self._commits[name] for name in names]
            stores = Facts(stores=frozenset(commit.store for commit in commits))
            self._joined = (names, View(join([stores, *(commit.facts for commit in commits)])))
        return self._joined[1]

    def _require_format(self) -> None:
        """A first look at a store: raises GuildsyncError where its README for programs names another format."""
        try:
            value = json.loads(self._files.get(FORMAT_NAME))
        except (Absent, ValueError, RecursionError):
            return
        found = value.get("format") if isinstance(value, dict) else None
        if found != FORMAT:
            said = f"{self._files.where} has format {str(found)[:20]}, this guildsync knows format {FORMAT}"
            raise GuildsyncError(said, "a newer guildsync wrote it: update this one")

    def _note_position(self, view: View, names: frozenset[str]) -> None:
        """Warn where a store is not what this home saw last: another one, or an older state of it."""
        if view.store is None:
            return
        if not self._known and self._cache.load(POSITION, POSITION) is None:
            self._require_format()
        self._known = True
        now = next_sequence(view.facts, names) - 1
        seen = (self._cache.load(POSITION, POSITION) or b"").decode(errors="replace").split()
        if len(seen) == 2 and seen[1].isdigit():
            if seen[0] not in view.facts.stores:
                self._warn(f"{self._files.where} holds another store than when this home used it last")
            elif int(seen[1]) > now:
                self._warn(f"{self._files.where} went back in time: commits that this home saw are not there any more")
        current = f"{view.store} {now}"
        if seen != current.split():
            self._cache.keep(POSITION, POSITION, current.encode())
