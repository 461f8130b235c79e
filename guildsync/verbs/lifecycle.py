"""Runs where they lie: verify, label, delete, restore, purge, collect."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from guildsync.errors import (
    CHANGED,
    DAMAGED,
    MISSING,
    NotFound,
    Problem,
    exit_code_of,
)
from guildsync.model.manifest import Digest
from guildsync.model.ports import Collected, Lost, Replica, Update, Want
from guildsync.model.run import Metadata, Record, RunId, merge_metadata
from guildsync.verbs.deliver import wants_of
from guildsync.verbs.outcome import problem_row
from guildsync.verbs.sync import ROUNDS, Choose

_RUNS_AT_A_TIME = 64


@dataclass
class Verified:
    """What a verification read, and what is wrong."""

    runs: int = 0
    objects: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return exit_code_of(self.problems)

    def to_json(self) -> dict[str, Any]:
        rows = {reason: [problem_row(p) for p in self.problems if p.reason == reason] for reason in (DAMAGED, MISSING)}
        others = [problem_row(p) for p in self.problems if p.reason not in rows]
        return {"runs": self.runs, "objects": self.objects, "bytes": self.bytes, **rows, "problems": others}


def verify(replica: Replica, choose: Choose, quick: bool = False, details: bool = False) -> Verified:
    """Read every object of the chosen runs and compare it with its digest; `quick`: structure and sizes only.
    `details`: `choose` wants to know sizes and scalars."""
    found = Verified()
    runs = iter([record.run for record in choose(list(replica.runs(sizes=details)))])
    found.problems += replica.audit()
    while batch := list(islice(runs, _RUNS_AT_A_TIME)):
        found.runs += len(batch)
        if not quick:
            _read_all(replica, batch, found)
    found.problems[:] = dict.fromkeys(found.problems)
    return found


def _read_all(replica: Replica, batch: Sequence[RunId], found: Verified) -> None:
    places: dict[Digest, list[tuple[RunId, bytes]]] = {}
    wants: dict[Digest, Want] = {}
    for scan in replica.manifests(dict.fromkeys(batch, ())):
        found.problems += scan.problems
        for want in wants_of(scan.run, scan.manifest.entries if scan.manifest is not None else ()):
            wants.setdefault(want.digest, want)
            places.setdefault(want.digest, []).append((want.run, want.path))
    for answer in replica.fetch(wants.values()):
        if isinstance(answer, Lost):
            found.problems += _everywhere(answer.problem, places[answer.want.digest])
        else:
            found.objects += 1
            found.bytes += answer.want.size


def _everywhere(problem: Problem, places: Sequence[tuple[RunId, bytes]]) -> Iterator[Problem]:
    """One damaged object damages every file that is made of it."""
    for run, path in places:
        yield Problem(run, path, problem.reason, problem.detail)


@dataclass
class Acted:
    """What was done (or, with `--dry-run`, would be) to some of the `chosen` runs: those it was done to, and what went
    wrong."""

    runs: list[Record] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return exit_code_of(self.problems)

    def to_json(self) -> dict[str, Any]:
        return {"runs": [record.run for record in self.runs], "problems": [problem_row(p) for p in self.problems]}


class Picks(Protocol):
    """Chooses among runs; naming one that is `done` already is no error."""

    def __call__(self, records: Sequence[Record], done: Sequence[Record] = ..., /) -> Sequence[Record]: ...


Agree = Callable[[Sequence[Record]], None]
"""Is asked before something is done to these runs, and raises to stop."""


@dataclass(frozen=True)
class Request:
    """Which runs, who agrees (None: nobody needs to be asked), and whether it is only to be said what would be done.
    `details`: `choose` wants to know sizes and scalars."""

    choose: Picks
    agree: Agree | None = None
    dry_run: bool = False
    details: bool = False


def edit(replica: Replica, request: Request, change: Callable[[Metadata], Metadata]) -> Acted:
    """Make the metadata of the chosen runs what `change` says; those that are so already stay untouched. What others
    say of them at the same time stays said."""
    records = request.choose(list(replica.runs(sizes=request.details)))
    now = {record.run: change(record.metadata) for record in records}
    news = {record.run: record for record in records if now[record.run] != record.metadata}

    def write(runs: Collection[RunId]) -> list[Problem]:
        there, wanted, problems = {run: news[run] for run in runs}, now, list[Problem]()
        for last in (False,) * (ROUNDS - 1) + (True,):
            updates = [Update(run, None, None, None, wanted[run], there[run].metadata) for run in there]
            failed = replica.commit(updates)
            again = {problem.run for problem in failed if problem.reason == CHANGED and not last}
            there = {record.run: record for record in replica.runs() if record.run in again} if again else {}
            problems += [problem for problem in failed if problem.run not in there]
            if not there:
                break
            wanted = {r: merge_metadata(news[r].metadata, there[r].metadata, now[r])[0] for r in there}
        return problems

    return _done(request, list(news.values()), write)


def delete(replica: Replica, request: Request, permanent: bool = False) -> Acted:
    """Move the chosen runs to the trash; `permanent`: and give them up for good."""
    if permanent:
        return _done(request, _listed(replica, request, False, _is_purged), replica.hide, replica.purge)
    return _done(request, _listed(replica, request, False, _is_deleted), replica.hide)


def restore(replica: Replica, request: Request) -> Acted:
    """Move the chosen runs back from the trash."""
    return _done(request, _listed(replica, request, True, lambda record: not record.deleted), replica.reveal)


def purge(replica: Replica, request: Request) -> Acted:
    """Give up the chosen runs of the trash for good."""
    return _done(request, _listed(replica, request, True, _is_purged), replica.purge)


def collect(
    replica: Replica, grace: float | None, agree: Callable[[Collected], None] | None = None, dry_run: bool = False
) -> Collected:
    """Free what nothing refers to any more and is older than `grace` seconds (None: what is usual there). `agree` is
    told what that is, and raises to stop."""
    if dry_run or agree is not None:
        found = replica.collect(grace, dry=True)
        if dry_run:
            return found
        if agree is not None:
            agree(found)
    return replica.collect(grace)


def _is_deleted(record: Record) -> bool:
    return record.deleted


def _is_purged(record: Record) -> bool:
    return record.purged


def _listed(replica: Replica, request: Request, deleted: bool, is_done: Callable[[Record], bool]) -> Sequence[Record]:
    """Whoever is asked wants to know how much it is. Runs may be named that are as they are to be: so are some when the
    same command was interrupted."""
    there = list(replica.runs(deleted, sizes=request.details or request.agree is not None))
    try:
        return request.choose(there)
    except NotFound:
        return request.choose(there, [record for record in replica.runs(None) if is_done(record)])


def _done(request: Request, records: Sequence[Record], *acts: Callable[[Collection[RunId]], list[Problem]]) -> Acted:
    """Each act is for the runs that all before it succeeded with."""
    acted = Acted(list(records))
    if records and request.agree is not None and not request.dry_run:
        request.agree(records)
    for act in acts if records and not request.dry_run else ():
        acted.problems += act([record.run for record in acted.runs])
        failed = {problem.run for problem in acted.problems}
        acted.runs = [record for record in acted.runs if record.run not in failed]
    return acted
