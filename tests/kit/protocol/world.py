"""A store, its journal and packs, as processes share it in a search: every reading of it is the project's own merge."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, pairwise
from typing import Any, NamedTuple, Protocol

from guildsync.model.manifest import Digest, digest_of
from guildsync.model.run import RunId, Summary
from guildsync.store import checkpoint, gc
from guildsync.store.draft import Draft
from guildsync.store.journal import Claim, Commit, Facts, PackFact, Version, join
from guildsync.store.mirrored import summary_text
from guildsync.store.reading import Reading
from guildsync.store.view import View
from tests.kit.protocol.search import Found

STORE = "0" * 32
LETTERS = "abcdef"
"""A letter stands for the object whose bytes it is."""

Journal = frozenset[int]
"""The entries that are there, by their numbers in `World.commits`."""
Request = tuple[str, Any]
"""Something that was sent and has not arrived: ("commit" or "copy", its number) or ("delete", a pack)."""
Told = tuple[Any, ...]
"""("stored", "purged" or "pruned", version), ("hidden" or "live", run, sequence, commit), ("edited", same, label)."""


class Stored(NamedTuple):
    """What is in the store, what is on its way there, and what people were told and rely on."""

    journal: Journal
    packs: frozenset[str]
    under_way: frozenset[Request] = frozenset()
    told: frozenset[Told] = frozenset()


class State(NamedTuple):
    stored: Stored
    processes: tuple[Process, ...]


class Process(Protocol):
    """A value: somebody who may do one of a few things next, or die, which is never to move again."""

    @property
    def name(self) -> str: ...

    def moves(self, world: World, stored: Stored) -> Iterable[Move]: ...


Move = tuple[str, Process, Stored]
"""What is done, in words, and what the process and the store are afterwards."""


@dataclass(frozen=True)
class Content:
    """What a run is made of: a letter an object. To a draft it is a manifest, whose own bytes are the first object."""

    letters: str

    @property
    def content(self) -> Digest:
        return Digest(self.letters)

    @property
    def entries(self) -> tuple[Content, ...]:
        return (self,)

    def encode(self) -> bytes:
        return self.letters[:1].encode()

    def objects(self) -> list[Object]:
        return [Object(digest_of(letter.encode())) for letter in self.letters]


class Object(NamedTuple):
    digest: Digest


def objects(letters: str) -> frozenset[Digest]:
    return frozenset(found.digest for found in Content(letters).objects())


def merged(commits: Sequence[Commit]) -> View:
    """What a reading of these entries says."""
    return View(join([Facts(stores=frozenset([STORE])), *(commit.facts for commit in commits)]))


@dataclass(frozen=True)
class Rules:
    """What processes go by: functions of the project, and an order of steps. With any of it changed, data is lost."""

    merge: Callable[[Sequence[Commit]], View] = merged
    up_to_date: Callable[[View, str], bool] = View.settled  # W1
    proves: bool = True  # W4: read again after a commit
    condemns: bool = True  # G2: condemn, then read
    reads_again: bool = True  # G2: decide from a reading that began after it
    droppable: Callable[[View, Collection[str]], frozenset[Digest]] = gc.droppable  # G2
    repeated: Callable[[View, Collection[Digest]], frozenset[Claim]] = gc.repeated  # G4
    rescues: bool = True  # G3
    rescues_apart: bool = False  # G4: claims and drop in two commits
    drops: str = "before"  # G4, G5: the packs are deleted: "after", "never"
    prunable: Callable[..., frozenset[str]] = gc.prunable  # H1
    outdated: Callable[[View, str], frozenset[str]] | None = None  # H1, by a mirror; None: what `Draft` says
    summary: Callable[[Reading, str, Iterable[Digest]], Commit] = checkpoint.summary  # K1
    deletes_first: bool = False  # K2: before the checkpoint is there
    reveals: bool = False  # E1: a push writes a mark


@dataclass(frozen=True)
class Scope:
    """Who shares a store, what it holds at first, and what may happen to requests.

    `late`: a writer's commit arrives at any time after it was sent; `late_deletes`: so do DELETEs of packs; `copies`:
    what has arrived may arrive once more. `any_pack`: a collector may condemn any pack; `together`: all at once.
    `paged`: a LIST shows what was there when it began, and any of what came meanwhile. `reads_before`: writers use the
    leave that rule W3 gives. `lists_after`: collectors list packs some time after they read the journal (rule G1)."""

    processes: tuple[Process, ...]
    facts: tuple[Facts, ...]
    packs: tuple[tuple[str, str], ...] = ()
    late: bool = False
    late_deletes: bool = False
    copies: bool = False
    any_pack: bool = False
    together: bool = False
    paged: bool = False
    reads_before: bool = True
    lists_after: bool = False


@dataclass
class Seen:
    """A reading, and what follows from it alone, worked out once."""

    world: World
    journal: Journal

    @cached_property
    def view(self) -> View:
        return self.world.rules.merge([self.world.commits[number] for number in sorted(self.journal)])

    @cached_property
    def reading(self) -> Reading:
        commits = {(commit := self.world.commits[number]).name: commit for number in sorted(self.journal)}
        sums = tuple(commit for commit in commits.values() if commit.sums)
        return Reading(self.view, frozenset(commits), (), sums, {}, commits)

    @cached_property
    def needed(self) -> frozenset[str]:
        return frozenset(self.view.needed_packs())

    @cached_property
    def relied_on(self) -> frozenset[str]:
        """The packs that must be there: those of every claim that readers may go by."""
        view = self.view
        free = (claim for version in view.living for claim in view.claims(version))
        return frozenset(p for c in free if view.facts.dropped.isdisjoint(c.packs) for p in c.packs)

    @cached_property
    def scant(self) -> str | None:
        """A claim on packs that do not hold what its version is made of."""
        for version in sorted(self.view.living):
            for claim in self.view.claims(version):
                held = frozenset().union(*(self.world.holds[pack] for pack in claim.packs))
                if not self.world.needs(self.view, version) <= held:
                    return f"{self.world.short(version)} is not all on {'+'.join(claim.packs)}"
        return None


@dataclass
class World:
    """A scope under some rules. All that is worked out of values is kept: equal values are one."""

    scope: Scope
    rules: Rules = field(default_factory=Rules)
    commits: list[Commit] = field(default_factory=list)
    drafts: dict[int, Draft] = field(default_factory=dict)
    holds: dict[str, frozenset[Digest]] = field(default_factory=dict)
    _numbers: dict[Commit, int] = field(default_factory=dict)
    _seen: dict[Journal, Seen] = field(default_factory=dict)
    _same: dict[Any, Any] = field(default_factory=dict)
    _known: dict[Hashable, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = ["the first", *(process.name for process in self.scope.processes)]

    def first(self) -> State:
        """Everybody was told of what the store holds at first."""
        self.holds.update((pack, objects(letters)) for pack, letters in self.scope.packs)
        commits = [Commit(STORE, n, commit_id(0, n), facts) for n, facts in enumerate(self.scope.facts, 1)]
        journal = frozenset(map(self.number, commits))
        packs, view = frozenset(pack for pack, _ in self.scope.packs), self.seen(journal).view
        told = {("stored", version) for version in view.living} | {("purged", gone) for gone in view.facts.purged}
        return State(Stored(journal, packs, told=frozenset(told)), self.scope.processes)

    def moves(self, state: State) -> Iterator[tuple[str, State]]:
        stored, processes = state
        for place, process in enumerate(processes):
            for what, after, there in process.moves(self, stored):
                others = (*processes[:place], self.same(after), *processes[place + 1 :])
                yield f"{process.name} {what}", State(self.same(there), self.same(others))
        for request in sorted(stored.under_way):
            yield f"{request[0]} arrives", State(self.same(self._arrived(request, stored)), processes)

    def _arrived(self, request: Request, stored: Stored) -> Stored:
        kind, about = request
        under_way = stored.under_way - {request}
        if kind == "delete":
            return stored._replace(packs=stored.packs - {about}, under_way=under_way)
        if kind == "commit" and self.scope.copies:
            under_way |= {("copy", about)}
        there = told(stored, "pruned", self.commits[about].facts.purged)
        return there._replace(journal=stored.journal | {about}, under_way=under_way)

    def under(self, scope: Scope, rules: Rules) -> World:
        """The same store for others, who go by other rules."""
        return replace(self, scope=scope, rules=rules, _known={})

    # -- values that are worked out once

    def same(self, value: Any) -> Any:
        return self._same.setdefault(value, value)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def seen(self, journal: Journal) -> Seen:
        found = self._seen.get(journal)
        if found is None:
            found = self._seen[journal] = Seen(self, journal)
        return found

    def listings(self, before: Journal, now: Journal) -> list[Journal]:
        """All that a LIST may show which ends now, and began when the journal was as `before`."""
        news = sorted(now - before)
        return [before.union(some) for size in range(len(news) + 1) for some in combinations(news, size)]

    # -- what is in the store

    def number(self, commit: Commit) -> int:
        number = self._numbers.setdefault(commit, len(self.commits))
        if number == len(self.commits):
            self.commits.append(commit)
        return number

    def say(self, journal: Journal, who: str, count: int, facts: Facts) -> int:
        """The commit that somebody makes of a reading."""
        reading = self.seen(journal).reading
        return self.number(Commit(STORE, reading.next_sequence, self.commit_id(who, count), facts))

    def commit_id(self, who: str, count: int) -> str:
        if who not in self.names:
            self.names.append(who)
        return commit_id(self.names.index(who), count)

    def pack(self, who: str, count: int, held: Collection[Digest]) -> str:
        """A new pack: its name says who put it, and as the how many-th, and what it holds, so it never repeats."""
        name = f"{who}-{count}{''.join(letter for letter in LETTERS if digest_of(letter.encode()) in held)}"
        self.holds[name] = frozenset(held)
        return name

    def find(self, digests: Iterable[Digest], packs: Iterable[str]) -> dict[Digest, tuple[str, None]]:
        """Each object in the first of these packs that holds it (as `store.objects.Objects` answers)."""
        left, found = set(digests), {}
        for pack in packs:
            here = left & self.holds[pack]
            found.update(dict.fromkeys(here, (pack, None)))
            left -= here
        return found

    def needs(self, view: View, version: str) -> frozenset[Digest]:
        known = view.version(version)
        assert known is not None
        return objects(known.content)

    # -- in words

    def short(self, id_: str) -> str:
        """A commit or a version, by who made it."""
        commit, slash, run = id_.partition("/")
        author, count = int(commit[:8], 16), int(commit[9:13], 16)
        return f"{self.names[author] if author < len(self.names) else 'somebody'}.{count}{slash}{run}"

    def story(self, found: Found[State]) -> str:
        """What led to what is wrong: what was done, and what of it came into the journal."""
        lines = [str(found)]
        for (_, before), (what, after) in pairwise(found.path):
            news = sorted(after.stored.journal - before.stored.journal)
            lines.append("; ".join([f"  {what}", *(self._said(self.commits[number]) for number in news)]))
        return "\n".join(lines)

    def _said(self, commit: Commit) -> str:
        facts = commit.facts
        said = [f"{self.short(claim.version)} is on {'+'.join(claim.packs)}" for claim in sorted(facts.claims)]
        said += [f"condemned {pack}" for pack in sorted(facts.condemned)]
        said += [f"dropped {pack}" for pack in sorted(facts.dropped)]
        said += [f"purged {self.short(version)}" for version in sorted(facts.purged)]
        said += [f"{mark.value} by {self.short(mark.commit)}" for mark in sorted(facts.marks)]
        return f"{self.short(commit.id)} says: {', '.join(said)}"


def commit_id(author: int, count: int) -> str:
    return f"{author:08x}-{count:04x}-4000-8000-000000000000"


def pack_fact(name: str) -> PackFact:
    return PackFact(Digest(name), 2, 1, Digest(name))


def version_facts(run: str, letters: str, *packs: str, mirrored: int = 0) -> Facts:
    """Of a version that was there before anybody came; `mirrored`: the how many-th that a mirror committed."""
    manifest = digest_of(letters[:1].encode())
    id_, summary = f"{commit_id(0, max(1, mirrored))}/{run}", summary_text(Summary(), mirrored > 0)
    before = (f"{commit_id(0, mirrored - 1)}/{run}",) if mirrored > 1 else ()
    version = Version(id_, RunId(run), manifest, Digest(letters), summary, before)
    claim = Claim(version.id, tuple(map(Digest, packs)))
    return Facts(frozenset(), frozenset(map(pack_fact, packs)), frozenset([version]), frozenset([claim]))


def told(stored: Stored, kind: str, versions: Iterable[str]) -> Stored:
    return stored._replace(told=stored.told.union((kind, version) for version in versions))
