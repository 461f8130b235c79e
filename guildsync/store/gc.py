"""What may be removed, proved; and its removal (rules G1 to G5 and H1 of the store's protocol)."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TypeVar

from guildsync.errors import Damaged, Unreachable
from guildsync.model.manifest import Digest, Manifest
from guildsync.model.ports import Collected
from guildsync.store.checkpoint import table_path
from guildsync.store.draft import good_packs
from guildsync.store.fs import Absent, Files, Size
from guildsync.store.journal import Claim, Commit, Facts, Version
from guildsync.store.mirrored import outdated
from guildsync.store.objects import Found, Objects
from guildsync.store.pack import EMPTY, ROW, pack_path
from guildsync.store.reading import GRACE_AT_LEAST, Journal, Reading
from guildsync.store.stage import SMALLEST, Stage
from guildsync.store.view import View

HISTORY = 30 * 86400.0
"""Seconds for which a version that was replaced can still be had."""
SPARSE = 0.5
"""A pack of whose bytes fewer than this share are needed is written anew."""
FEW = 8
"""So many small packs are put together, or none."""
LEFT_OVER = 86400.0
"""Seconds after which a temporary file is nobody's: no put takes as long."""
PROBE = "probe-"
"""Files of such names are put and removed at once, to see what the store makes of them."""
_ATTEMPTS = 10
_DIGEST = re.compile(r"[0-9a-f]{64}")
_HINT = "`guildsync verify` names all damage; restore what it names from a copy first"

Needs = Mapping[str, Collection[Digest]]
"""By version, the objects it is made of, its manifest among them."""
Locate = Callable[[Digest], str | None]
"""A pack, neither condemned nor dropped, that holds an object."""
T = TypeVar("T")


# -- what to do: pure


def prunable(view: View, stored: Mapping[str, float], now: float, keep: float) -> frozenset[str]:
    """Rule H1: the versions that were replaced longer than `keep` seconds ago, of runs all of whose heads are settled,
    and what mirrors need not keep. `stored` says when a commit came, by the store's clock; nothing is known of the
    others. What replaced a version may have been given up itself since."""
    replaced: dict[str, float] = {}
    counted = view.living | view.facts.purged
    for version in (each for each in view.facts.versions if each.id in counted):
        since = stored.get(version.id.partition("/")[0], now)
        for before in version.replaces:
            replaced[before] = min(since, replaced.get(before, since))
    settled = [run for run in view.runs() if all(view.settled(head.id) for head in view.heads(run))]
    past = (version.id for run in settled for version in view.past(run))
    old = (version for version in past if now - replaced.get(version, now) > keep)
    return frozenset(old).union(*(outdated(view, run) for run in settled))


def condemnable(view: View, ages: Mapping[str, float], worn: Collection[str], grace: float) -> frozenset[Digest]:
    """Rule G1: the packs older than `grace` that no living version needs, and those of `worn`, which are better written
    anew. `ages` are those of the packs that are there, in seconds."""
    spared = view.facts.condemned | view.facts.dropped | (view.needed_packs() - frozenset(map(Digest, worn)))
    return frozenset(Digest(pack) for pack, age in ages.items() if age >= grace and pack not in spared)


def mergeable(sizes: Mapping[Digest, int]) -> frozenset[Digest]:
    """Of packs that are needed, of these sizes, the small ones that are to be put together: enough of them, none larger
    than all the others. So what is copied comes into a pack that is twice as large at least, and no byte is copied
    often."""
    small = sorted((size, name) for name, size in sizes.items() if size < SMALLEST)
    together, count = 0, 0
    for number, (size, _) in enumerate(small, 1):
        count = number if size <= together else count
        together += size
    return frozenset(name for _, name in small[:count]) if count >= FEW else frozenset()


def stranded(view: View) -> tuple[str, ...]:
    """The living versions without a good claim: what they are made of must be rescued (rule G3)."""
    return tuple(sorted(version for version in view.living if view.good_claim(version) is None))


def to_copy(view: View, needs: Needs, locate: Locate) -> frozenset[Digest]:
    """The objects of stranded versions that lie in no good pack."""
    return frozenset(digest for version in stranded(view) for digest in needs[version] if locate(digest) is None)


def new_claims(view: View, needs: Needs, locate: Locate) -> frozenset[Claim]:
    """Of stranded versions, once what had to be copied is copied and `locate` knows where to."""
    claims = set()
    for version in stranded(view):
        packs = {locate(digest) for digest in needs[version]}
        claims.add(Claim(version, tuple(sorted(Digest(pack) for pack in packs if pack is not None))))
    return frozenset(claims)


def droppable(view: View, earlier: Collection[str]) -> frozenset[Digest]:
    """Rule G2: of the packs that an earlier reading (which ended before this one began) saw condemned for longer than
    the grace time, those that are to be dropped now."""
    return (view.facts.condemned & frozenset(map(Digest, earlier))) - view.facts.dropped


def repeated(view: View, drop: Collection[Digest]) -> frozenset[Claim]:
    """Rule G4: one good claim, said once more, of every living version that has a claim on what is dropped. So nobody
    reads that a pack was dropped without what took its place."""
    claims = set()
    for version in view.living:
        good = view.good_claim(version)
        if good is not None and any(not set(claim.packs).isdisjoint(drop) for claim in view.claims(version)):
            claims.add(good)
    return frozenset(claims)


# -- doing it


@dataclass(frozen=True)
class _Seen:
    """A reading that ended, what lies in the store, by the store's clock `now`, and by pack the bytes that living
    versions need of it."""

    reading: Reading
    packs: Mapping[Digest, Size]
    now: float
    needed: Mapping[Digest, int]

    @property
    def sparse(self) -> frozenset[Digest]:
        """The packs that hardly any version needs."""
        sizes = self.packs.items()
        return frozenset(name for name, size in sizes if self.needed.get(name, 0) < SPARSE * (size - EMPTY))

    def small(self, grace: float) -> frozenset[Digest]:
        """Those older than `grace` that are to be put together."""
        ages, spared = self.ages(), self.sparse | self.reading.view.facts.condemned
        return mergeable(
            {name: self.packs[name] for name in self.needed.keys() & self.packs.keys() - spared if ages[name] >= grace}
        )

    def freed(self, packs: Collection[Digest]) -> int:
        """Bytes that are free without these: what is needed of them is copied."""
        return sum(max(0, self.packs[name] - self.needed.get(name, 0)) for name in packs)

    def ages(self) -> dict[str, float]:
        """Where the filesystem does not say since when a pack is there, it is as young as can be."""
        since = {name: self.now if size.modified is None else size.modified for name, size in self.packs.items()}
        return {name: self.now - since[name] for name in since}

    def condemned(self, grace: float) -> frozenset[Digest]:
        """Those not dropped yet that have been condemned for at least `grace` seconds."""
        since = self.reading.modified
        old = [commit for name, commit in self.reading.commits.items() if self.now - since.get(name, self.now) >= grace]
        long = frozenset(pack for commit in old for pack in commit.facts.condemned)
        return long - self.reading.view.facts.dropped


class Collector:
    """One collection. It keeps nothing between calls: any goes on where another stopped, and nobody waits for the grace
    time; the next one does the rest."""

    def __init__(self, files: Files, journal: Journal, objects: Objects, stage: Stage, pool: Executor) -> None:
        self._files, self._journal, self._objects, self._stage, self._pool = files, journal, objects, stage, pool

    def collect(self, grace: float, dry: bool = False) -> Collected:
        """Condemn what nobody needs, and drop and delete what has been condemned for `grace` seconds. `dry`: only say
        what would be done. Raises Damaged, with nothing removed, where something cannot be read."""
        seen = self._look()
        old = prunable(seen.reading.view, seen.reading.stored, seen.now, HISTORY)
        if old and not dry:
            self._say(seen.reading, Facts(purged=old))
        if old:
            seen = self._look(old)
        view = seen.reading.view
        condemn = condemnable(view, seen.ages(), seen.sparse | seen.small(grace), grace)
        earlier = seen.condemned(grace) | (condemn if grace <= 0 else frozenset())
        if dry:
            return _collected(seen, len(old), (earlier | view.facts.dropped) & seen.packs.keys())
        if condemn:
            self._say(seen.reading, Facts(condemned=condemn))
        dropped, last = self._drop(earlier)
        gone = dropped & seen.packs.keys()
        self._remove(pack_path(name) for name in sorted(gone))
        self._sweep(last, seen.now, max(grace, GRACE_AT_LEAST))
        return _collected(seen, len(old), gone)

    def _look(self, given_up: frozenset[str] = frozenset()) -> _Seen:
        """Rule G1's reading, and the proof that every living version finds its objects where its claim says. Versions
        that are `given_up` count as purged."""
        now = self._clock()
        reading, needed = self._agreed(lambda found: self._prove(_without(found, given_up)), whole=True)
        reading = _without(reading, given_up)
        packs = _named(self._files.list("packs", deep=True), pack_path)
        return _Seen(reading, packs, now, needed)

    def _agreed(self, act: Callable[[Reading], T], whole: bool = False) -> tuple[Reading, T]:
        """A reading, and what `act` makes of it. Where it misses something (Absent), somebody else may have moved
        that, and it is read anew. Raises Damaged where the journal goes on saying that it is there."""
        before = None
        for _ in range(_ATTEMPTS):
            reading = self._journal.read(whole)
            if reading.problems:
                raise Damaged(f"{self._files.where}: {reading.problems[0].detail}: nothing is removed", _HINT)
            try:
                return reading, act(reading)
            except Absent as exc:
                if before == reading.view.facts:
                    raise Damaged(f"{self._files.where}: {exc}: nothing is removed", _HINT) from exc
                before = reading.view.facts
        raise Unreachable(f"{self._files.where} changes each time it is read", "try again")

    def _prove(self, reading: Reading) -> dict[Digest, int]:
        """By pack, the bytes that living versions need of it, rows of its index among them: a pack of tiny objects, all
        of which are needed, is needed whole. Raises Absent where a claim lacks an object."""
        view, places = reading.view, set[Found]()
        self._load(reading, view.needed_packs())
        for version, objects in self._objects_of(view, sorted(view.living)):
            claim = view.claim(version)
            found = self._objects.find(objects, claim.packs if claim is not None else ())
            if len(found) < len(objects):
                raise Absent(f"run {version[-32:]} claims no pack that holds {min(objects - found.keys())}")
            places.update(found.values())
        needed: dict[Digest, int] = {}
        for pack, row in places:
            needed[Digest(pack)] = needed.get(Digest(pack), 0) + row.stored + ROW.size
        return needed

    def _drop(self, earlier: Collection[str]) -> tuple[frozenset[Digest], Reading]:
        """Rules G2 to G4: all packs that are dropped in the end, and the reading that it was made from."""
        reading, rescued = self._agreed(self._rescue)
        drop = droppable(reading.view, earlier)
        facts = replace(rescued, claims=rescued.claims | repeated(reading.view, drop), dropped=drop)
        if facts != Facts():
            self._say(reading, facts)
        return reading.view.facts.dropped | drop, reading

    def _rescue(self, reading: Reading) -> Facts:
        """Rule G3: copies of what stranded versions need of condemned packs, confirmed, and claims on them. Raises
        Absent where a pack is gone, Damaged where an object is."""
        view = reading.view
        lost = stranded(view)
        if not lost:
            return Facts()
        self._load(reading, [fact.name for fact in view.facts.adds if fact.name not in view.facts.dropped])
        needs = dict(self._objects_of(view, lost))
        good: list[str] = [*good_packs(view)]
        where = self._objects.find({digest for objects in needs.values() for digest in objects}, good)
        copies = to_copy(view, needs, lambda digest: where[digest][0] if digest in where else None)
        condemned = sorted(view.facts.condemned - view.facts.dropped)
        found = self._objects.find(copies, condemned)
        if len(found) < len(copies):
            raise Absent(f"no pack holds {min(copies - found.keys())}")
        for (_, row), data in self._objects.read(found.values()):
            if isinstance(data, Exception):
                raise data
            self._stage.add(row.digest, data)
        own = self._stage.flush()
        where |= self._objects.find(copies, own)
        claims = new_claims(view, needs, lambda digest: where[digest][0])
        return Facts(adds=frozenset(own.values()), claims=claims)

    def _objects_of(self, view: View, versions: Iterable[str]) -> Iterable[tuple[str, set[Digest]]]:
        """What each version is made of. Raises Absent where its manifest's pack is gone, Damaged where it is bad."""
        by_manifest: dict[Digest, list[Version]] = {}
        places = {}
        for version in map(view.version, versions):
            if version is None:
                continue
            by_manifest.setdefault(version.manifest, []).append(version)
            claim = view.claim(version.id)
            places.update(self._objects.find([version.manifest], claim.packs if claim is not None else ()))
        for (_, row), data in self._objects.read(places.values()):
            if isinstance(data, Exception):
                raise data
            entries = Manifest.decode(data).entries
            digests = {row.digest, *(part.digest for entry in entries for part in entry.objects())}
            for version in by_manifest.pop(row.digest):
                yield version.id, set(digests)
        for lost in by_manifest.values():
            raise Absent(f"run {lost[0].run} claims no pack that holds its manifest")

    def _load(self, reading: Reading, packs: Iterable[str]) -> None:
        wanted = set(packs)
        facts = (fact for fact in reading.view.facts.adds if fact.name in wanted)
        for failed in self._objects.load(facts, reading.tables).values():
            if isinstance(failed, Damaged):
                raise failed

    def _say(self, reading: Reading, facts: Facts) -> None:
        store = reading.view.store
        if store is None:
            raise Damaged(f"{self._files.where} holds packs, and no journal says what for", _HINT)
        self._journal.put(Commit(store, reading.next_sequence, str(uuid.uuid4()), facts))

    def _clock(self) -> float:
        """What the store says of a file that it has just been given. Raises Unreachable where it does not show it."""
        name = f"{PROBE}{uuid.uuid4()}"
        self._files.put(name, b"what time is it")
        try:
            found = self._files.list("").get(name)
        finally:
            self._files.remove(name)
        if found is None:
            hint = "nothing is removed from a store whose listings lag"
            raise Unreachable(f"{self._files.where} does not show what was just written", hint)
        return 0.0 if found.modified is None else found.modified

    def _sweep(self, reading: Reading, now: float, grace: float) -> None:
        """Index objects that no checkpoint names any more, and what interrupted puts and probes left."""
        for directory in ("", "packs", "index", "journal"):
            listed = self._files.list(directory, deep=bool(directory))
            unnamed = {table_path(name) for name in _named(listed, table_path).keys() - set(reading.tables)}
            for path, size in listed.items():
                age = 0.0 if size.modified is None else now - size.modified
                left = path.rpartition("/")[2].startswith((".", PROBE))
                if (path in unnamed and age > grace) or (left and age > LEFT_OVER):
                    self._files.remove(path)

    def _remove(self, paths: Iterable[str]) -> None:
        for _ in self._pool.map(self._files.remove, paths):
            pass


def _without(reading: Reading, versions: frozenset[str]) -> Reading:
    """As if these had been purged."""
    facts = reading.view.facts
    return replace(reading, view=View(replace(facts, purged=facts.purged | versions))) if versions else reading


def _named(listed: Mapping[str, Size], path: Callable[[str], str]) -> dict[Digest, Size]:
    """By digest, the files that lie where `path` says; whatever else lies there is not ours."""
    names = ((name.rpartition("/")[2], name, size) for name, size in listed.items())
    return {Digest(last): size for last, name, size in names if _DIGEST.fullmatch(last) and path(last) == name}


def _collected(seen: _Seen, old: int, gone: frozenset[Digest]) -> Collected:
    """What is condemned, or will be when it is older, waits."""
    facts, ages = seen.reading.view.facts, {str(name): 0.0 for name in seen.packs}
    unneeded = (facts.condemned - facts.dropped) | condemnable(seen.reading.view, ages, seen.sparse, 0.0)
    waiting = (unneeded - gone) & seen.packs.keys()
    return Collected(len(gone), seen.freed(gone), len(waiting), seen.freed(waiting), old)
