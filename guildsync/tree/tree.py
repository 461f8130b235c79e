"""Tree: runs as plain directories; stage, publish, descriptor-relative."""

from __future__ import annotations

import errno
import os
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from itertools import compress
from typing import (
    Callable,
    Collection,
    Dict,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    TypeVar,
    Union,
)

from guildsync.errors import (
    ALIVE,
    CHANGED,
    INCOMPLETE,
    MISSING,
    MOVED,
    PURGED,
    TORN,
    UNREADABLE,
    GuildsyncError,
    Problem,
)
from guildsync.model.manifest import FILE, Digest, Entry, Manifest, digest_of
from guildsync.model.ports import Collected, Lost, Moment, Only, Piece, RawRecord, RawUpdate, Scan, Step, Want
from guildsync.model.ports import Known as Asked
from guildsync.model.run import RunId
from guildsync.tree import attrs
from guildsync.tree.dirs import sync_path
from guildsync.tree.durable import Durability
from guildsync.tree.folder import HomeFolder
from guildsync.tree.hashing import Cut, Torn
from guildsync.tree.here import Here
from guildsync.tree.home import Home, translated
from guildsync.tree.lane import Lane
from guildsync.tree.listing import listed
from guildsync.tree.measure import scalars_of
from guildsync.tree.moves import Moves
from guildsync.tree.publish import Laid, appear, assemble, cut_short, laid_down, rewrite
from guildsync.tree.reader import Reader
from guildsync.tree.scan import Hints, Scanned, View, scan
from guildsync.tree.settling import Settling
from guildsync.tree.staged import StagedFiles, Staging, logged
from guildsync.tree.statcache import TICK_NS, Known, Stamp, StatCache
from guildsync.tree.trash import HomeTrash

_SYNCERS = 8
_CHUNK = 64
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MUCH = 1 << 20
_LITTLE = 1 << 30
"""Bytes free that are hardly enough."""

Act = Callable[[StagedFiles, RawUpdate, Durability], List[Problem]]
T = TypeVar("T")
R = TypeVar("R")


class Tree:
    """A home as a replica (`model.ports.RawTree`). One instance serves one sync, or one after another. What it staged
    and did not publish is left when it is closed, or dies, for the next one of which the same objects are wanted.
    `rehash`: every file is read, whatever the stat cache says of it; `patient`: files that are being rewritten are held
    back until they rest."""

    def __init__(
        self,
        home: Home,
        keep_env: bool = False,
        cut: Optional[Cut] = None,
        rehash: bool = False,
        patient: bool = False,
    ) -> None:
        self._settling = Settling() if patient else None
        self.hints = Moves(home)
        self._home, self._rehash = home, rehash
        self._view = View(keep_env, cut, once=patient)
        self._trash = HomeTrash(home)
        self._here = Here()
        self._cache = StatCache(home, self._view.name)
        self._files: Optional[StagedFiles] = None
        self._lane: Optional[Lane] = None
        self._assembled: Dict[RunId, Laid] = {}
        self._placed: Dict[RunId, Mapping[bytes, Stamp]] = {}
        self._clock_ns = 0
        self._resumed = 0
        self._full = False

    @property
    def replica(self) -> str:
        return self._home.identity

    @property
    def aliases(self) -> FrozenSet[str]:
        return frozenset([self.replica])

    @property
    def is_there(self) -> bool:
        return self._home.exists()

    @property
    def problems(self) -> Sequence[Problem]:
        return ()

    def close(self) -> None:
        """What is staged does not keep a disk full: others have to write there, too."""
        if self._lane is not None:
            self._lane.close()
        if self._files is not None:
            self._files.close(keep=not self._full)
            self._files = None

    # -- reading

    def runs(self, deleted: Optional[bool] = False, sizes: bool = False, only: Only = None) -> Iterator[RawRecord]:
        """Whoever lists begins anew: what was read, and what was staged and lies in its runs now, is kept no longer."""
        self._view.recent.clear()
        if self._files is not None and not self._files.is_worth_keeping:
            self._files.close(keep=False)
            self._files = None
        return listed(self._home, deleted, sizes, only)

    def manifests(self, known: Asked) -> Iterator[Scan]:
        self._home.sweep()
        for run, contents in known.items():
            try:
                fd = self._home.open_run(run)
            except FileNotFoundError:
                continue
            except OSError as exc:
                yield Scan(run, Digest(""), None, problems=(_failed(run, None, exc),))
                continue
            try:
                is_alive = attrs.alive(fd)
                found = self._scan(run, fd, is_alive)
                is_known = found.content in contents
                scalars = None if is_known else scalars_of(self._home, run, fd, found.manifest)
            except OSError as exc:
                yield Scan(run, Digest(""), None, problems=(_failed(run, None, exc),))
                continue
            finally:
                os.close(fd)
            self._here.note(run, found)
            aim = self._home.aim(run)
            yield Scan(
                run,
                found.content,
                None if is_known else found.manifest,
                settled=not self._home.is_inflight(run),
                alive=is_alive,
                aim=cut_short(aim, found.manifest) if aim is not None else None,
                problems=found.problems,
                scalars=scalars,
            )

    def _scan(self, run: RunId, fd: int, is_alive: bool) -> Scanned:
        cache = self._cache
        known = None if self._rehash else cache.load(run)
        if known is not None and known.alive and not is_alive:
            known = known.only_hints()
        clock = cache.now_ns if cache.usable else None
        settling, now_ns = self._settling, cache.time_ns() if self._settling is not None else None
        patience = settling.of(run, is_alive, now_ns, not cache.usable) if settling is not None else None
        found = scan(run, fd, self._view, Hints(known, clock, patience, self._placed.get(run, {})))
        if found.known is not known or known.alive != is_alive:
            cache.keep(run, replace(found.known, alive=is_alive))
        return found

    def fetch(self, wanted: Iterable[Want]) -> Iterator[Union[Piece, Lost]]:
        reader = Reader(self._home, self._view)
        try:
            for want in wanted:
                data = self._view.recent.take(want.digest)
                if data is not None:
                    yield Piece(want, data)
                    continue
                try:
                    data = reader.read(want)
                except (OSError, Torn) as exc:
                    yield Lost(want, _failed(want.run, want.path, exc))
                    continue
                if len(data) != want.size or digest_of(data) != want.digest:
                    yield Lost(want, Problem(want.run, want.path, TORN, "it changed after it was listed"))
                    continue
                yield Piece(want, data)
        finally:
            reader.close()

    @property
    def traffic(self) -> None:
        return None

    @property
    def folder(self) -> HomeFolder:
        return HomeFolder(self._home)

    def history(self, run: RunId) -> Sequence[Moment]:  # noqa: ARG002 - directories are as they are now
        return ()

    def audit(self) -> Iterator[Problem]:
        for run in self._home.inflight_runs():
            yield Problem(run, None, INCOMPLETE, "an earlier sync of this run did not end")

    def check(self) -> Iterator[Step]:
        there = self._home.exists()
        hint = "" if there else "what is first delivered there makes it"
        found = f"{len(self._home.run_ids())} runs at {self._home.text}" if there else "no home yet"
        yield Step("reachable", True, found, hint)
        try:
            self._home.staging().close()
        except GuildsyncError as exc:
            yield Step("writable", False, exc.message, exc.hint or "", exc.exit_code)
            return
        yield Step("writable", True, "a file was made and removed")
        free = self._home.free_bytes()
        yield Step("space", True, f"{free / 1e9:.1f} GB free", "make room" if free < _LITTLE else "")

    # -- what nobody wants

    def hide(self, runs: Collection[RunId]) -> List[Problem]:
        return self._trash.hide(runs)

    def reveal(self, runs: Collection[RunId]) -> List[Problem]:
        return self._trash.reveal(runs)

    def purge(self, runs: Collection[RunId]) -> List[Problem]:
        return self._trash.purge(runs)

    def collect(self, grace: Optional[float], dry: bool = False) -> Collected:  # noqa: ARG002 - nothing here waits
        return self._trash.collect(dry)

    # -- writing

    def missing(self, wanted: Collection[Want]) -> Set[Digest]:
        """Takes over what a sync that was interrupted has staged of them. Where much would have to come, runs that this
        sync is not about are thought of, too."""
        if self._files is None:
            self._files = self._left_over({want.digest for want in wanted})
        if self._files is not None:
            self._resumed += self._files.take_over(wanted, self._here.objects())
        missing = self._absent(wanted)
        if not self._here.is_wide and sum(missing.values()) >= _MUCH:
            self._here.widen(self._home.run_ids(), self._remembered)
            missing = self._absent(wanted)
        return set(missing)

    def _absent(self, wanted: Collection[Want]) -> Dict[Digest, int]:
        here, files = self._here.objects(), self._files
        return {w.digest: w.size for w in wanted if w.digest not in here and (files is None or w.digest not in files)}

    def _remembered(self, run: RunId) -> Optional[Manifest]:
        known = self._cache.load(run)
        return None if known is None else known.manifest()

    def stage(self, pieces: Iterable[Piece]) -> None:
        try:
            (self._lane or self._staged()).add(pieces)
        except OSError as exc:
            raise self._translated(exc) from exc

    @property
    def staging(self) -> str:
        """The name of the directory where it stages, which others may `join`."""
        return self._staged().staging

    def join(self, staging: str) -> None:
        """From now on stage for another process, that has a Tree of this home; raises OSError."""
        self._lane = Lane(self._home, staging)

    def gather(self, wants: Iterable[Want]) -> None:
        """Those who joined say that they staged these; what they did not is still missing for a commit."""
        self._staged().gather(wants)

    @property
    def resumed(self) -> int:
        return self._resumed

    def commit(self, updates: Sequence[RawUpdate]) -> List[Problem]:
        """New runs appear whole by one rename; existing ones are changed path by path under an inflight marker."""
        try:
            return self._commit(updates)
        except OSError as exc:
            raise self._translated(exc) from exc

    def _translated(self, exc: OSError) -> Exception:
        self._full = self._full or exc.errno in _FULL
        return translated(self._home.text, exc)

    def _commit(self, updates: Sequence[RawUpdate]) -> List[Problem]:
        files = self._staged()
        problems: List[Problem] = []
        with self._home.lock():
            ready: List[RawUpdate] = []
            for update in updates:
                refused = self._refusals(update) or self._build(files, update)
                problems += refused
                if not refused:
                    ready.append(update)
            if any(problem.reason == MOVED for problem in problems):
                self._here.forget()  # another round must not rely on it
            problems += self._published(files, ready)
            sync_path(self._home.runs)
        return problems

    def _staged(self) -> StagedFiles:
        if self._files is None:
            self._files = self._staged_in(self._home.staging())
        return self._files

    def _left_over(self, wanted: Set[Digest]) -> Optional[StagedFiles]:
        """What an interrupted sync staged, if some of that is wanted; None also where it cannot be had."""

        def useful(fd: int) -> bool:
            return any(row.digest in wanted for row in logged(fd))

        found = self._home.left_over(useful) if wanted else None
        try:
            return None if found is None else self._staged_in(found)
        except OSError:
            return None

    def _staged_in(self, staging: Staging) -> StagedFiles:
        reader = Reader(self._home, self._view)
        try:
            return StagedFiles(staging, reader.read_or_none)
        except BaseException:
            staging.close(keep=True)
            raise

    def _refusals(self, update: RawUpdate) -> List[Problem]:
        """Why this update must not be carried out: the run is not what the plan was made for."""
        run = update.run
        try:
            fd = self._home.open_run(run)
        except FileNotFoundError:
            if self._home.is_deleted(run):
                return [Problem(run, None, CHANGED, "it was deleted here meanwhile")]
            if self._home.is_purged(run):
                return [Problem(run, None, PURGED, "it was purged here meanwhile")]
            if update.have is not None:
                return [Problem(run, None, CHANGED, "it was removed here meanwhile")]
            return []
        except OSError as exc:
            return [_failed(run, None, exc)]
        try:
            if attrs.changed(fd, update.attributes_were):
                return [Problem(run, None, CHANGED, "what people say of it changed here meanwhile")]
            if update.want is None:
                return []
            if attrs.alive(fd):
                return [Problem(run, None, ALIVE, "it is running here; its files are left alone")]
            if update.have is None:
                return [Problem(run, None, CHANGED, "it appeared here meanwhile")]
            return []
        finally:
            os.close(fd)

    def _build(self, files: StagedFiles, update: RawUpdate) -> List[Problem]:
        problems = []
        for entry in _new_files(update):
            problem = files.build(update.run, entry, self._here.objects())
            if problem is not None:
                problems.append(problem)
        return problems

    def _published(self, files: StagedFiles, updates: Sequence[RawUpdate]) -> List[Problem]:
        """Everything new is durable before the first of it can be seen."""
        made = [(each.run, entry) for each in updates for entry in _new_files(each)]
        durability = Durability(files.fd, len(made), sum(entry.size for _, entry in made))
        with ThreadPoolExecutor(1 if durability.at_once else _SYNCERS) as pool:
            _spread(pool, lambda one: files.finish(*one, durability), made)
            prepared = _spread(pool, lambda each: self._tried(self._prepare, files, each, durability), updates)
            durability.finish()
            self._clock_ns = self._cache.now_ns() if self._cache.usable else 0
            able = list(compress(updates, [not failed for failed in prepared]))
            published = _spread(pool, lambda each: self._tried(self._publish, files, each, durability), able)
        return [problem for found in (*prepared, *published) for problem in found]

    def _tried(self, act: Act, files: StagedFiles, update: RawUpdate, durability: Durability) -> List[Problem]:
        try:
            return act(files, update, durability)
        except OSError as exc:
            if exc.errno in _FULL:
                raise  # it concerns not this run alone
            return [_failed(update.run, None, exc)]

    def _prepare(self, files: StagedFiles, update: RawUpdate, durability: Durability) -> List[Problem]:
        if update.want is not None and update.have is None:
            assemble(files, update, update.want, durability)
            self._assembled[update.run] = laid_down(files.fd, update.run, update.want, self._view)
        return []

    def _publish(self, files: StagedFiles, update: RawUpdate, _: Durability) -> List[Problem]:
        run, want = update.run, update.want
        if want is None:
            fd = self._home.open_run(run)
            try:
                markers = None if attrs.alive(fd) else update.markers  # the process sets its own
                attrs.write_attributes(fd, update.attributes, markers, files.fd)
            finally:
                os.close(fd)
            return []
        if update.have is None:
            appear(self._home, files, update, want)
            known = self._assembled.pop(run).known(want, self._clock_ns - TICK_NS)
        else:
            was = self._cache.load(run)
            done = rewrite(self._home, files, update, update.have, want, self._view)
            if done.refused:
                return list(done.refused)
            self._placed[run] = done.placed
            stamps = was.stamps_still_good(want) if was is not None and not was.alive else {}
            known = Known.of(None, want, stamps)
        self._cache.keep(run, known)
        self._here.note(run, Scanned(known, (), want))
        return []


def _spread(pool: Executor, act: Callable[[T], R], items: Sequence[T]) -> List[R]:
    """What `act` answers for each, on all threads. Each takes many at a time: handing over one costs more than the
    usual act does, and threads that wake each other all the time get nothing done."""
    size = max(1, min(_CHUNK, len(items) // (2 * _SYNCERS)))
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    return [answer for answers in pool.map(lambda chunk: [act(item) for item in chunk], chunks) for answer in answers]


def _new_files(update: RawUpdate) -> Iterator[Entry]:
    if update.want is None:
        return
    have = update.have.by_path if update.have is not None else {}
    for entry in update.want.entries:
        if entry.kind != FILE or entry.path in update.withheld:
            continue
        there = have.get(entry.path)
        if there is None or there.identity() != entry.identity():
            yield entry


def _failed(run: str, path: Optional[bytes], exc: Exception) -> Problem:
    if isinstance(exc, Torn):
        return Problem(run, path, TORN, "it changes while it is read")
    if isinstance(exc, FileNotFoundError):
        return Problem(run, path, MISSING if path is None else TORN, "it is not there any more")
    detail = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    return Problem(run, path, UNREADABLE, detail)
