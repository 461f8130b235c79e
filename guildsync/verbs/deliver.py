"""Carry planned updates out: fetch -> stage -> commit, complete runs as they get complete."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from guildsync.errors import DAMAGED, MISSING, Problem
from guildsync.model.manifest import FILE, Digest, Entry, same
from guildsync.model.ports import Lost, Piece, Source, Target, Update, Want
from guildsync.model.run import RunId
from guildsync.verbs.outcome import Clock, Progress

COMMIT_BYTES = 256 << 20
COMMIT_SECONDS = 60.0


@dataclass(frozen=True)
class Delivery:
    """An update with the wants it depends on: those the source answers, and those that only the target itself can
    (objects of paths that the source does not have, where the target must store them anew)."""

    update: Update
    wants: tuple[Want, ...]
    own_wants: tuple[Want, ...] = ()

    @property
    def files(self) -> int:
        return len(self._changed)

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self._changed)

    @cached_property
    def _changed(self) -> tuple[Entry, ...]:
        return tuple(changed_files(self.update))


def changed_files(update: Update) -> Iterator[Entry]:
    """The files whose content or mode the update sets."""
    have = update.have.by_path if update.have is not None else {}
    for entry in update.want.entries if update.want is not None else ():
        if entry.kind == FILE and not same(entry, have.get(entry.path)):
            yield entry


class Carrier:
    """One pass of a sync. `sent` counts the bytes of objects that crossed."""

    def __init__(self, source: Source, target: Target, clock: Clock, progress: Progress) -> None:
        self._source, self._target, self._clock, self._progress = source, target, clock, progress
        self.sent = 0
        self._waiting: dict[RunId, set[Digest]] = {}
        self._places: dict[Digest, list[Want]] = {}
        self._failed: dict[RunId, list[Problem]] = {}
        self._withheld: dict[RunId, set[bytes]] = {}
        self._staged_since = 0
        self._committed_at = clock()

    def missing(self, deliveries: Sequence[Delivery]) -> set[Digest]:
        """What must cross for these."""
        wants = [want for each in deliveries for want in (*each.wants, *each.own_wants)]
        return self._target.missing(wants) if wants else set()

    def carry(
        self, deliveries: Sequence[Delivery], missing: set[Digest]
    ) -> Iterator[tuple[list[Update], list[Problem]]]:
        """Yields what was committed, or failed, as it happens. A run with a problem was not delivered whole."""
        for each in deliveries:
            wanted = [want for want in (*each.wants, *each.own_wants) if want.digest in missing]
            self._waiting[each.update.run] = {want.digest for want in wanted}
            for want in wanted:
                self._places.setdefault(want.digest, []).append(want)
        pending = {each.update.run: each.update for each in deliveries}
        own = {want.digest for each in deliveries for want in each.own_wants}
        firsts = [places[0] for places in self._places.values()]
        streams = [
            (self._source, [want for want in firsts if want.digest not in own]),
            (self._target, [want for want in firsts if want.digest in own]),
        ]
        answers = (answer for replica, wants in streams if wants for answer in replica.fetch(wants))
        more = True
        while more:
            self._staged_since, self._committed_at = 0, self._clock()
            run_out = _Once()
            if firsts:
                self._target.stage(self._until_due(answers, run_out))
            more = bool(firsts) and not run_out.happened
            ready = [pending.pop(run) for run, digests in self._waiting.items() if not digests and run in pending]
            yield self._commit(ready)

    def _until_due(self, answers: Iterator[Piece | Lost], run_out: _Once) -> Iterator[Piece]:
        for answer in answers:
            if isinstance(answer, Lost):
                self._note(answer.want.digest, answer.problem)
                continue
            self._arrived(answer.want.digest)
            self.sent += len(answer.data)
            self._staged_since += len(answer.data)
            self._progress.moved(len(answer.data))
            yield answer
            if self._staged_since >= COMMIT_BYTES or self._clock() - self._committed_at >= COMMIT_SECONDS:
                return
        run_out.happened = True

    def _arrived(self, digest: Digest) -> None:
        for want in self._places.pop(digest, ()):
            self._waiting[want.run].discard(digest)

    def _note(self, digest: Digest, problem: Problem) -> None:
        """An object cannot be had. Where it is damaged, the files made of it are withheld and the rest goes on; where
        its source only changed, the run is not sent in this pass."""
        for want in self._places.get(digest, ()):
            if problem.reason in (DAMAGED, MISSING):
                self._withheld.setdefault(want.run, set()).add(want.path)
            self._failed.setdefault(want.run, []).append(replace(problem, run=want.run, path=want.path))
        self._arrived(digest)

    def _commit(self, ready: list[Update]) -> tuple[list[Update], list[Problem]]:
        problems = [problem for update in ready for problem in self._failed.get(update.run, ())]
        updates = []
        for update in ready:
            withheld = frozenset(self._withheld.get(update.run, ()))
            if all(problem.path in withheld for problem in self._failed.get(update.run, ())):
                updates.append(replace(update, withheld=withheld))
        if updates:
            problems += self._target.commit(updates)
        failed = {problem.run for problem in problems}
        delivered = [update for update in updates if update.run not in failed]
        self._progress.committed(len(delivered), sum(1 for update in delivered for _ in changed_files(update)))
        return updates, problems


class _Once:
    happened = False


def wants_of(run: RunId, entries: Iterable[Entry]) -> tuple[Want, ...]:
    """The objects of these files, where they stand in the run."""
    return tuple(
        Want(found.digest, found.size, run, entry.path, found.offset) for entry in entries for found in entry.objects()
    )
