"""Runs of several places, asked at the same time: what is where, and how it compares with this home."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from guildsync.errors import NOT_KEPT, GuildsyncError, NotFound
from guildsync.model.manifest import Digest
from guildsync.model.ports import Base, Bases, Reads, Replica, Scan
from guildsync.model.run import Record, RunId
from guildsync.model.select import Filters, newest_first, newness, select
from guildsync.model.standing import BOTH_CHANGED, ONLY_HERE, ONLY_THERE, standing

PARTIAL = 7


@dataclass(frozen=True)
class Place:
    """Somewhere to ask. `where` is it in words; `opened` makes its replica, and what that or anything of the replica
    raises is the place's own trouble; `listed` is told all runs that live there."""

    name: str
    where: str
    opened: Callable[[], AbstractContextManager[Replica]]
    listed: Callable[[Sequence[Record]], None] = lambda _: None


@dataclass(frozen=True)
class Question:
    """Which runs: `filters` say which of a place's runs count at all, `selectors` are understood among these, place by
    place; of what they choose everywhere the newest `limit` are wanted. `deleted`: those in the trash. `sizes`: with
    sizes, files and scalars. `compare`: how does each compare with this home?"""

    filters: Filters = field(default_factory=Filters)
    selectors: Sequence[str] = ()
    deleted: bool = False
    sizes: bool = False
    limit: int | None = None
    compare: bool = True


@dataclass(frozen=True)
class Found:
    """A run at one place, and its index among those that count there. `standing` is how it compares with the home's
    (see `model.standing`); None where nobody asked, where it cannot be told, and at home where another place has it."""

    place: str
    index: int
    record: Record
    standing: str | None = None


class Trouble(NamedTuple):
    """A place that could not be asked; or (`answered`) one where the selectors name nothing."""

    place: str
    error: GuildsyncError
    answered: bool = False


@dataclass(frozen=True)
class Survey:
    """The newest of the `total` runs that were chosen, and what went wrong, place by place."""

    found: tuple[Found, ...]
    total: int
    troubles: tuple[Trouble, ...] = ()

    @property
    def exit_code(self) -> int:
        """7 where a place could not be asked; one where there is nothing yet, or nothing of that name, was."""
        return PARTIAL if any(not isinstance(trouble.error, NotFound) for trouble in self.troubles) else 0


def survey(places: Sequence[Place], home: Place, bases: Callable[[Reads, Reads], Bases], question: Question) -> Survey:
    """Ask all places at the same time. Only runs that are wanted, and are both there and at home, are compared.

    Raises the first of what went wrong where something did everywhere."""
    compares = question.compare and len(places) > 1 and not question.deleted
    talks = [_Talk(place, question) for place in places]
    if compares and all(place.name != home.name for place in places):
        talks.append(_Talk(home, replace(question, sizes=False)))
    pool = ThreadPoolExecutor(len(talks))
    try:
        _each(pool, _Talk.list, talks)
        found, troubles = _chosen(talks[: len(places)], question)
        failed = troubles[0].error if len(troubles) == len(places) else None
        wanted = found[: question.limit]
        if compares:
            wanted = _compared(pool, talks, home.name, bases, wanted)
            troubles += [Trouble(t.name, t.error) for t in talks if t.error is not None and _is_news(t, troubles)]
        for talk in talks:
            talk.end()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)  # whoever interrupts waits for nobody
        raise
    pool.shutdown()
    if failed is not None:
        raise failed
    return Survey(tuple(wanted), len(found), tuple(troubles))


class _Talk:
    """What is said with one place. Each step may be carried out by another thread; no two are at the same time, and
    behind one that failed there is none."""

    def __init__(self, place: Place, question: Question) -> None:
        self.name, self._where = place.name, place.where
        self.records: dict[RunId, Record] = {}
        self.error: GuildsyncError | None = None
        self.replica: Replica | None = None
        self._steps = self._said(place, question)
        self._act: Callable[[Replica], None] = lambda _: None

    @property
    def is_known(self) -> bool:
        """Is it known which runs are there? Where nothing was ever made there are none."""
        return self.error is None or isinstance(self.error, _NothingThere)

    def _said(self, place: Place, question: Question) -> Generator[None, None, None]:
        """All of it is within the place's own context, which may have something to say about what is raised."""
        with place.opened() as replica:
            if not replica.is_there:
                raise nothing_at(self._where)
            self.replica = replica
            listed = list(replica.runs(question.deleted, question.sizes))
            if not question.deleted:
                place.listed(listed)
            self.records = {record.run: record for record in listed}
            yield
            self._act(replica)
            yield

    def list(self) -> None:
        self._step()

    def do(self, act: Callable[[Replica], None]) -> None:
        """Once, after `list`."""
        self._act = act
        self._step()

    def _step(self) -> None:
        try:
            next(self._steps)
        except GuildsyncError as exc:
            self.error, self.replica = exc, None

    def end(self) -> None:
        self._steps.close()


class _NothingThere(NotFound):
    pass


def nothing_at(where: str) -> NotFound:
    """What was never made says nothing about what was deleted."""
    return _NothingThere(f"there is nothing at {where} yet", "check the name; what is first delivered there makes it")


def _each(pool: ThreadPoolExecutor, act: Callable[[_Talk], None], talks: Sequence[_Talk]) -> None:
    """On a thread for each, unless there is only one."""
    for _ in pool.map(act, talks) if len(talks) > 1 else map(act, talks):
        pass


def _chosen(talks: Iterable[_Talk], question: Question) -> tuple[list[Found], list[Trouble]]:
    """What is chosen everywhere, newest first, and what went wrong, in the order of the places."""
    found: list[Found] = []
    troubles: list[Trouble] = []
    for talk in talks:
        if talk.error is not None:
            troubles.append(Trouble(talk.name, talk.error))
            continue
        listed = [record for record in newest_first(talk.records.values()) if question.filters.matches(record)]
        index = {record.run: n for n, record in enumerate(listed, 1)}
        try:
            chosen = select(listed, question.selectors) if question.selectors else listed
        except GuildsyncError as exc:
            troubles.append(Trouble(talk.name, exc, answered=True))
            continue
        found += [Found(talk.name, index[record.run], record) for record in chosen]
    return sorted(found, key=lambda each: newness(each.record)), troubles


def _is_news(talk: _Talk, troubles: Collection[Trouble]) -> bool:
    """A home that nobody asked for need not be there."""
    return all(trouble.error is not talk.error for trouble in troubles) and not isinstance(talk.error, _NothingThere)


# -- comparing


def _compared(
    pool: ThreadPoolExecutor,
    talks: Sequence[_Talk],
    home: str,
    bases: Callable[[Reads, Reads], Bases],
    wanted: Sequence[Found],
) -> list[Found]:
    (here,) = (talk for talk in talks if talk.name == home)
    if not here.is_known:
        return list(wanted)
    others = [talk for talk in talks if talk is not here]
    shared = {talk.name: _shared(talk, here, wanted) for talk in others}
    scans: dict[RunId, Scan] = {}
    if here.replica is not None:
        known = {run: {r.content for r in records if r.content} for run, records in _by_run(shared.values()).items()}
        here.do(lambda replica: scans.update(_scanned(replica, known)))
    answers: dict[tuple[str, RunId], str] = {}
    if here.replica is not None:
        mine: Reads = here.replica
        mine.aliases  # noqa: B018 - what is found out once is not found out by several threads at a time
        asking = [talk for talk in others if talk.replica is not None and shared[talk.name]]

        def ask(talk: _Talk) -> None:
            records = [record for record in shared[talk.name] if record.run in scans]
            talk.do(lambda there: answers.update(_answers(talk.name, there, bases(mine, there), records, scans)))

        _each(pool, ask, asking)
    return [_with_standing(each, here, others, answers) for each in wanted]


def _shared(talk: _Talk, here: _Talk, wanted: Iterable[Found]) -> list[Record]:
    return [each.record for each in wanted if each.place == talk.name and each.record.run in here.records]


def _by_run(groups: Iterable[Iterable[Record]]) -> dict[RunId, list[Record]]:
    found: dict[RunId, list[Record]] = {}
    for group in groups:
        for record in group:
            found.setdefault(record.run, []).append(record)
    return found


def _scanned(replica: Replica, known: Mapping[RunId, Collection[Digest]]) -> dict[RunId, Scan]:
    """By run, without manifests: of many runs they would fill the memory."""
    return {scan.run: replace(scan, manifest=None) for scan in replica.manifests(known)} if known else {}


def _answers(
    place: str, there: Replica, bases: Bases, records: Sequence[Record], here: Mapping[RunId, Scan]
) -> dict[tuple[str, RunId], str]:
    """The manifest of a run that is as it is here, or as a base says, does not cross; a store is asked for nothing."""
    told: dict[RunId, Base | None] = {}
    known: dict[RunId, set[Digest]] = {}
    for record in records:
        run, content = record.run, here[record.run].content
        told[run] = base = bases.load(run, record.content) if record.content != content else None
        of_base = (base.content, *base.seen) if base is not None else ()
        known[run] = {content, *of_base, *([record.content] if record.content is not None else [])}
    listed = {record.run: record for record in records}
    answers = {}
    for run, scan in _scanned(there, known).items():
        base, mine = told[run], here[run]
        if scan.content not in known[run]:
            base = bases.load(run, scan.content)  # a commit may have arrived that nobody was left to note
        if _is_sure(scan) and _is_sure(mine):
            alone = standing(mine.content, scan.content, base, listed[run].history)
            answers[place, run] = BOTH_CHANGED if scan.rivals else alone
    return answers


def _is_sure(scan: Scan) -> bool:
    """Was all of the run read, and is no commit of it cut off?"""
    return scan.aim is None and all(problem.reason == NOT_KEPT for problem in scan.problems)


def _with_standing(
    each: Found, here: _Talk, others: Sequence[_Talk], answers: Mapping[tuple[str, RunId], str]
) -> Found:
    run = each.record.run
    if each.place != here.name:
        return replace(each, standing=answers.get((each.place, run)) if run in here.records else ONLY_THERE)
    alone = all(talk.is_known and run not in talk.records for talk in others)
    return replace(each, standing=ONLY_HERE) if alone else each
