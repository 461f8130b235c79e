"""Store: runs as content-addressed objects; missing, stage, commit, fetch, verify."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from guildsync.errors import DAMAGED, MISSING, Damaged, GuildsyncError, Problem, Unreachable
from guildsync.model.manifest import Digest, Manifest, canonical, digest_of
from guildsync.model.ports import (
    Cache,
    Collected,
    Known,
    Lost,
    Moment,
    Only,
    Piece,
    Scan,
    Step,
    Traffic,
    Update,
    Want,
)
from guildsync.model.run import NO_METADATA, Metadata, Record, RunId, Summary
from guildsync.store.cache import NoCache
from guildsync.store.checkpoint import GRACE, Checkpointer
from guildsync.store.damage import Damage
from guildsync.store.draft import Draft, good_packs, summary_of
from guildsync.store.fs import Absent, Files
from guildsync.store.gc import PROBE, Collector
from guildsync.store.history import history
from guildsync.store.journal import HIDDEN, LIVE, NO_FACTS, Commit, Facts, Mark, Version
from guildsync.store.objects import Objects
from guildsync.store.pack import pack_path
from guildsync.store.reading import FORMAT, FORMAT_NAME, Journal, Reading
from guildsync.store.stage import Stage
from guildsync.store.view import View

JOBS = 4
"""Requests for packs at a time, at most."""
_ABOUT = {"about": "a guildsync store", "format": FORMAT}
_THREADS = 8
"""Requests at a time for what is small."""


class Store:
    """A store as a replica (`model.ports.Replica`). One instance serves one operation, or a mirror's many; `close` ends
    its threads."""

    def __init__(
        self,
        files: Files,
        cache: Cache | None = None,
        warn: Callable[[str], None] = lambda _: None,
        grace: float = GRACE,
        jobs: int = JOBS,
        memory: Cache | None = None,
    ) -> None:
        """`grace`: seconds for which what nobody needs any more is kept. `jobs`: packs on their way at a time.
        `memory`: where damage is remembered, also by who caches nothing."""
        cache = cache or NoCache()
        self._damage = Damage(memory or cache)
        self._files = files
        self._pool = ThreadPoolExecutor(max(_THREADS, jobs))
        self._journal = Journal(files, cache, self._pool, warn)
        self._objects = Objects(files, cache, self._pool, jobs)
        self._checkpointer = Checkpointer(files, self._journal, self._objects, grace)
        self._stage = Stage(files, self._objects, cache, self._pool, jobs)
        # Whoever opens a store wants to know what is there: the answer comes while he looks at his own side.
        self._first: Future[Reading] | None = self._pool.submit(self._journal.read)
        self._reading: Reading | None = None
        self._said: Reading
        self._listed = False
        self._shown: View | None = None
        self._grace = grace
        self._made_id = uuid.uuid4().hex

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._files.give_up()
        self._pool.shutdown(wait=True)

    @property
    def replica(self) -> str:
        """The smallest id that any client gave the store; a new store's first commit settles it."""
        return self._read().view.store or self._made_id

    @property
    def aliases(self) -> frozenset[str]:
        """All ids that clients gave this store: what was kept under one of them counts."""
        return self._read().view.facts.stores | {self.replica}

    @property
    def is_there(self) -> bool:
        return bool(self._read().names)

    @property
    def resumed(self) -> int:
        return self._stage.taken_over

    @property
    def problems(self) -> Sequence[Problem]:
        return self._read().problems

    @property
    def traffic(self) -> Traffic:
        return self._files.traffic

    # -- reading

    @property
    def hints(self) -> None:
        """Nobody is there who could say when something moves."""
        return None

    def runs(
        self,
        deleted: bool | None = False,
        sizes: bool = False,  # noqa: ARG002 - they are known
        only: Only = None,
    ) -> Iterator[Record]:
        view = self._read(anew=self._listed).view
        self._listed = True
        self._shown = view
        self._stage.disown(view.facts)  # by the indices that are forgotten next
        self._objects.forget(view.facts.dropped)
        for run in view.runs() if only is None else [run for run in only if view.versions(run)]:
            hidden = view.status(run) == HIDDEN
            current = view.current(run)
            if current is not None and deleted in (None, hidden):
                yield _record(view, current, hidden)
            elif current is None and deleted is None and view.is_purged(run):
                yield Record(run, Summary(), NO_METADATA, deleted=True, purged=True)

    def manifests(self, known: Known) -> Iterator[Scan]:
        view = self._read().view
        wanted: dict[RunId, Version] = {}
        for run, contents in known.items():
            current = view.current(run)
            if current is None:
                continue
            if current.content in contents:
                yield self._scan(view, current, None, ())
            else:
                wanted[run] = current
        yield from self._fetched_manifests(view, wanted)

    def fetch(self, wanted: Iterable[Want]) -> Iterator[Piece | Lost]:
        left = {want.digest: want for want in wanted}
        view = self._read().view
        failed = set(self._load(_claimed(view, {want.run for want in left.values()})))
        tried: set[tuple[str, Digest]] = set()
        last: dict[Digest, Problem] = {}
        while left:
            found = self._objects.find(left, _readable(view), tried)
            for (pack, row), data in self._objects.read(found.values()):
                tried.add((pack, row.digest))
                want = left[row.digest]
                if isinstance(data, bytes):
                    self._damage.acquit(pack, row.digest)
                    yield Piece(left.pop(row.digest), data)
                elif isinstance(data, Damaged):
                    last[row.digest] = Problem(want.run, want.path, DAMAGED, f"{data.message} (in pack {pack})")
                else:
                    last[row.digest] = Problem(want.run, want.path, MISSING, f"the pack {pack} is not there")
            if left:
                seen, view = view, self._read(anew=True).view
                if not found and view.facts == seen.facts:
                    break
                failed |= self._load(_readable(view)).keys()  # a collector may have moved them (rule V2)
        for pack, lost in [(pack, lost) for pack, lost in tried if lost in left]:
            self._damage.note(pack, lost)
        for pack in failed if left else ():
            self._damage.note(pack)
        for digest, want in left.items():
            missing = Problem(want.run, want.path, MISSING, f"no pack holds the object {digest}")
            yield Lost(want, last.get(digest, missing))

    def history(self, run: RunId) -> Sequence[Moment]:
        return history(self._read(), run)

    def audit(self) -> Iterator[Problem]:
        """Every pack that a restore of all runs needs is there, of its size, with its index."""
        reading = self._read(anew=True)
        yield from reading.problems
        view = reading.view
        sizes = self._files.list("packs", deep=True)
        facts = {fact.name: fact for fact in view.facts.adds}
        needed = frozenset(_claimed(view, view.runs()))
        for name in sorted(needed):
            path = pack_path(name)
            fact = facts.get(Digest(name))
            judge = self._damage.note if fact is None or sizes.get(path) != fact.size else self._damage.acquit
            judge(name)
            if fact is None or path not in sizes:
                yield Problem("", path.encode(), MISSING, "a pack that runs need is not there")
            elif sizes[path] != fact.size:
                yield Problem("", path.encode(), DAMAGED, f"a pack has {sizes[path]} bytes, not {fact.size}")
        # What the packs say themselves: no index object vouches for them.
        failed = self._objects.load(fact for fact in view.facts.adds if fact.name in needed)
        for pack, reason in failed.items():
            self._damage.note(pack)
            if isinstance(reason, Damaged):
                yield Problem("", pack_path(pack).encode(), DAMAGED, reason.message)

    def check(self) -> Iterator[Step]:
        where = self._files.where
        try:
            reading = self._read(anew=True)
            if reading.problems:
                yield Step("reachable", False, reading.problems[0].detail, "guildsync verify names all damage", 8)
                return
            runs = len(reading.view.runs())
            yield Step("reachable", True, f"{runs} runs at {where}" if reading.names else f"no store at {where} yet")
            self._probe()
        except GuildsyncError as exc:
            name = "reachable" if self._reading is None else "writable"
            yield Step(name, False, exc.message, exc.hint or "", exc.exit_code)
            return
        yield Step("writable", True, "an object was written, read back, listed and removed")

    def _probe(self) -> None:
        """Raises unless an object can be put, read, listed and removed."""
        name, data = f"{PROBE}{uuid.uuid4()}", uuid.uuid4().bytes
        self._files.put(name, data)
        try:
            same = self._files.get(name) == data and self._files.read(name, 4, 8) == data[4:8]
            listed = self._files.list("").get(name) == len(data)
        except Absent:
            same = listed = False
        finally:
            self._files.remove(name)
        if not same or not listed:
            raise Unreachable(f"{self._files.where} does not show what was just written", "it cannot hold a store")

    # -- writing

    def missing(self, wanted: Collection[Want]) -> set[Digest]:
        """An object is there if it lies in a pack that is neither condemned nor dropped (rule W1)."""
        view = self._read().view
        self._load(good_packs(view))
        digests = {want.digest for want in wanted}
        missing = digests - self._objects.find(digests, good_packs(view)).keys()
        self._stage.take_over(missing, view.facts)
        return {digest for digest in missing if digest not in self._stage}

    def stage(self, pieces: Iterable[Piece]) -> None:
        self._require_writable()
        for want, data in pieces:
            self._stage.add(want.digest, data)

    def commit(self, updates: Sequence[Update]) -> list[Problem]:
        """Rules W2 to W4: objects and manifests in confirmed packs, one journal object, then a reading that proves
        that nobody has condemned what it relies on."""
        reading = self._require_writable()
        problems = [
            Problem(update.run, path, MISSING, "its bytes could not be had; the run is not stored without them")
            for update in updates
            for path in sorted(update.withheld)
        ]
        updates = [update for update in updates if not update.withheld]
        for update in updates:
            if update.want is not None:
                data = update.want.encode()
                if self.missing([_manifest_want(update.run, data)]):
                    self._stage.add(digest_of(data), data)
        about = None
        if updates and not reading.names:
            about = self._pool.submit(self._files.put, FORMAT_NAME, canonical(_ABOUT))
        own = self._stage.flush()
        damaged = self._damage.news(self._said)
        draft = Draft(reading, str(uuid.uuid4()), own, damaged)
        for update in updates:
            problems += draft.add(update, self._objects)
        commit = draft.commit(reading.view.store or self._made_id)
        if commit is None:
            return problems
        if about is not None:
            about.result()
        self._journal.put(commit)
        self._damage.forget(damaged)
        after = self._read(anew=True)
        self._stage.forget(after.view.facts)
        self._checkpointer.tidy(after, commit.name, soon=any(update.mirrored for update in updates))
        return problems + draft.proof(after.view)

    # -- what nobody wants

    def hide(self, runs: Collection[RunId]) -> list[Problem]:
        self._mark(runs, HIDDEN)
        view = self._read().view
        return [Problem(run, None, MISSING, "there is no such run") for run in runs if not view.versions(run)]

    def reveal(self, runs: Collection[RunId]) -> list[Problem]:
        self._mark(runs, LIVE)
        return []

    def purge(self, runs: Collection[RunId]) -> list[Problem]:
        """Rule U1: it names the versions that were listed, not the run: a push that nobody saw lies in the trash."""
        seen = self._shown or self._read().view
        versions = frozenset(v.id for run in runs for v in seen.versions(run)) - self._read().view.facts.purged
        self._mark(runs, HIDDEN, Facts(purged=versions))
        return []

    def collect(self, grace: float | None, dry: bool = False) -> Collected:
        if not dry:
            self._require_writable()
        if not self._read().names:
            return Collected(0, 0)
        collector = Collector(self._files, self._journal, self._objects, self._stage, self._pool)
        found = collector.collect(self._grace if grace is None else grace, dry)
        if not dry:
            reading = self._read(anew=True)
            self._checkpointer.tidy(reading, max(reading.names))
        return found

    def _mark(self, runs: Collection[RunId], value: str, facts: Facts = NO_FACTS) -> None:
        """Rule E1: one commit of marks, for runs that are known and not marked so already."""
        reading = self._require_writable()
        view, commit = reading.view, str(uuid.uuid4())
        news = [run for run in runs if view.versions(run) and view.mark(run) != value]
        marks = frozenset(Mark(run, value, reading.next_sequence, commit) for run in news)
        facts = replace(facts, marks=marks)
        if facts != NO_FACTS and view.store is not None:
            name = self._journal.put(Commit(view.store, reading.next_sequence, commit, facts))
            self._checkpointer.tidy(self._read(anew=True), name)

    # -- inside

    def _read(self, anew: bool = False) -> Reading:
        if self._reading is None or anew:
            first, self._first = self._first, None
            self._said = self._journal.read() if first is None else first.result()
            self._reading = self._damage.applied(self._said)
            if not self._reading.names:
                self._files.require_root()
        return self._reading

    def _require_writable(self) -> Reading:
        reading = self._read()
        if reading.problems:
            first, more = reading.problems[0].detail, len(reading.problems) - 1
            raise Damaged(
                f"{self._files.where}: {first}{f' (and {more} more)' if more else ''}: nothing is written",
                "update guildsync if a newer one wrote it; else restore it from a cache that has it, or from a copy",
            )
        return reading

    def _load(self, packs: Iterable[str]) -> dict[str, Damaged | Absent]:
        wanted = set(packs)
        reading = self._read()
        return self._objects.load((fact for fact in reading.view.facts.adds if fact.name in wanted), reading.tables)

    def _fetched_manifests(self, view: View, wanted: dict[RunId, Version]) -> Iterator[Scan]:
        by_digest: dict[Digest, list[Version]] = {}
        for version in wanted.values():
            by_digest.setdefault(version.manifest, []).append(version)
        wants = [Want(digest, 0, versions[0].run, b"", 0) for digest, versions in by_digest.items()]
        for answer in self.fetch(wants):
            if isinstance(answer, Lost):
                for version in by_digest[answer.want.digest]:
                    problem = replace(answer.problem, run=version.run, path=None)
                    yield self._scan(view, version, None, (problem,))
                continue
            for version in by_digest[answer.want.digest]:
                try:
                    manifest = Manifest.decode(answer.data)
                    if manifest.content != version.content:
                        raise Damaged("the manifest is not the one that the journal describes")
                except Damaged as exc:
                    problem = Problem(version.run, None, DAMAGED, exc.message)
                    yield self._scan(view, version, None, (problem,))
                else:
                    yield self._scan(view, version, manifest, ())

    def _scan(self, view: View, current: Version, manifest: Manifest | None, problems: tuple[Problem, ...]) -> Scan:
        return Scan(
            current.run,
            current.content,
            manifest,
            settled=view.settled(current.id),
            heads=tuple(head.id for head in view.heads(current.run)),
            rivals=tuple(rival.content for rival in view.rivals(current.run)),
            problems=problems,
        )


def _record(view: View, current: Version, hidden: bool) -> Record:
    return Record(
        current.run,
        summary_of(current),
        Metadata.from_fields(view.fields(current.run)),
        current.content,
        current.manifest,
        tuple(head.id for head in view.heads(current.run)),
        hidden,
        view.history(current.run),
    )


def _manifest_want(run: RunId, data: bytes) -> Want:
    return Want(digest_of(data), len(data), run, b"", 0)


def _claimed(view: View, runs: Iterable[RunId]) -> list[str]:
    """The packs that suffice to read the heads of these runs."""
    claims = (view.claim(head.id) for run in runs for head in view.heads(run))
    return sorted({pack for claim in claims if claim is not None for pack in claim.packs})


def _readable(view: View) -> list[str]:
    """The packs that may still be there, those that stay first."""
    bad = view.facts.condemned - view.facts.dropped
    return [*good_packs(view), *sorted(bad)]
