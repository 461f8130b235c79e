"""The journal of a store, read: LIST, GET what is new, join; and one PUT for a commit."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from guildsync.errors import DAMAGED, Damaged, GuildsyncError, Problem, Unreachable
from guildsync.model.ports import Cache
from guildsync.store.fs import Absent, Files
from guildsync.store.journal import Commit, Facts, decode, encode, join, next_sequence, split_name
from guildsync.store.view import View

FORMAT_NAME = "guildsync.json"
FORMAT = 1
DIRECTORY = "journal"
CACHED = "journal"
POSITION = "position"

_ATTEMPTS = 10


@dataclass(frozen=True)
class Reading:
    """What the journal says now. With problems some of it could not be read: nobody may write from it (rule V3)."""

    view: View
    names: frozenset[str]
    problems: tuple[Problem, ...]

    @property
    def next_sequence(self) -> int:
        return next_sequence(self.view.facts, self.names)


class Journal:
    """Reads and writes the journal. Entries are immutable, so one that was read once is never fetched again."""

    def __init__(self, files: Files, cache: Cache, pool: Executor, warn: Callable[[str], None]) -> None:
        self._files, self._cache, self._pool, self._warn = files, cache, pool, warn
        self._states: dict[str, Facts] = {}
        self._known = False
        self._joined: tuple[frozenset[str], View] | None = None

    def read(self) -> Reading:
        """The union of all entries that a LIST started now shows; an entry that goes away meanwhile was summed up,
        so the LIST is made again (rule L4)."""
        for _ in range(_ATTEMPTS):
            names = self._list()
            try:
                problems = self._load(names)
            except Absent:
                continue
            view = self._view(frozenset(name for name in names if name in self._states))
            if not problems:
                self._note_position(view, names)
            return Reading(view, names, problems)
        raise Unreachable(f"the journal of {self._files.where} changes each time it is read", "try again")

    def put(self, commit: Commit) -> None:
        """Confirmed when it returns. The name never repeats, so putting the same bytes again is harmless."""
        data = encode(commit)
        self._files.put(f"{DIRECTORY}/{commit.name}", data)
        self._states[commit.name] = commit.state
        self._known = True
        self._cache.keep(CACHED, commit.name, data)

    def _list(self) -> frozenset[str]:
        found = (path.removeprefix(DIRECTORY + "/") for path in self._files.list(DIRECTORY))
        return frozenset(name for name in found if not name.startswith("."))

    def _load(self, names: frozenset[str]) -> tuple[Problem, ...]:
        wanted = sorted(names - self._states.keys())
        problems = []
        for name, (state, problem) in zip(wanted, self._pool.map(self._load_one, wanted), strict=True):
            if state is not None:
                self._states[name] = state
            if problem is not None:
                problems.append(problem)
        return tuple(problems)

    def _load_one(self, name: str) -> tuple[Facts | None, Problem | None]:
        cached = self._cache.load(CACHED, name)
        if cached is not None:
            try:
                return decode(name, cached).state, None
            except Damaged:
                pass  # the cache is only a cache
        try:
            split_name(name)
            data = self._files.get(f"{DIRECTORY}/{name}")
            commit = decode(name, data)
        except Damaged as exc:
            return None, Problem("", f"{DIRECTORY}/{name}".encode(), DAMAGED, exc.message)
        self._cache.keep(CACHED, name, data)
        return commit.state, None

    def _view(self, names: frozenset[str]) -> View:
        if self._joined is None or self._joined[0] != names:
            self._joined = (names, View(join(self._states[name] for name in names)))
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
