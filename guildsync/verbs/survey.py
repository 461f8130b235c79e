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
    raises is the place's own trouble; `listed` is told all runs that live there. `keeps_env`: captured environments are
    seen there as they are."""

    name: str
    where: str
    opened: Callable[[], AbstractContextManager[Replica]]
    listed: Callable[[Sequence[Record]], None] = lambda _: None
    keeps_env: bool = False


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

    @property
    def is_failure(self) -> bool:
        """Where nothing was ever made there is nothing to be told; and nothing of that name may be at one place."""
        return not isinstance(self.error, NotFound if self.answered else _NothingThere)


@dataclass(frozen=True)
class Survey:
    """The newest of the `total` runs that were chosen, and what went wrong, place by place."""

    found: tuple[Found, ...]
    total: int
    troubles: tuple[Trouble, ...] = ()

    @property
    def exit_code(self) -> int:
        """7 where a place could not be asked; one where there is nothing yet, or nothing of that name, was."""
        return PARTIAL if any(trouble.is_failure for trouble in self.troubles) else 0


def survey(
    places: Sequence[Place], homes: Callable[[bool], Place], bases: Callable[[Reads, Reads], Bases], question: Question
) -> Survey:
    """Ask all places at the same time. Only runs that are wanted, and are both there and at home, are compared. `homes`
    is this home, with captured environments as they are, or not: each place is compared with the one that is like it.

    Raises the first of what went wrong where something did everywhere."""
    asked = [_Talk(place, question) for place in places]
    compares = question.compare and len(places) > 1 and not question.deleted
    mine = _homes(homes, asked, question) if compares else {}
    talks = [*asked, *(talk for talk in mine.values() if talk not in asked)]
    pool = ThreadPoolExecutor(len(talks))
    try:
        _each(pool, _Talk.list, talks)
        found, troubles = _chosen(asked, question)
        failed = troubles[0].error if len(troubles) == len(places) else None
        wanted = found[: question.limit]
        if compares:
            wanted = _compared(pool, asked, mine, bases, wanted)
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
        self.name, self.keeps_env = place.name, place.keeps_env
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
                raise nothing_at(place.where)
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


def _is_news(talk: _Talk, troubles: Iterable[Trouble]) -> bool:
    """Of one place only its first trouble is; and a home that nobody asked for need not be there."""
    return all(trouble.place != talk.name for trouble in troubles) and not isinstance(talk.error, _NothingThere)


# -- comparing


def _homes(homes: Callable[[bool], Place], asked: Sequence[_Talk], question: Question) -> dict[bool, _Talk]:
    """This home as places are compared with it, by whether they keep environments; asked for or not."""
    plain = homes(False)
    found = {False: next((talk for talk in asked if talk.name == plain.name), None)}
    others = replace(question, sizes=False)
    return {keeps: found.get(keeps) or _Talk(homes(keeps), others) for keeps in {False, *(t.keeps_env for t in asked)}}


def _compared(
    pool: ThreadPoolExecutor,
    asked: Sequence[_Talk],
    mine: Mapping[bool, _Talk],
    bases: Callable[[Reads, Reads], Bases],
    wanted: Sequence[Found],
) -> list[Found]:
    here = mine[False]
    if not here.is_known:
        return list(wanted)
    others = [talk for talk in asked if talk is not here]
    shared = {talk.name: [each.record for each in wanted if _is_shared(each, talk, here)] for talk in others}
    scans = {
        keeps: _here(home, [shared[t.name] for t in others if t.keeps_env == keeps]) for keeps, home in mine.items()
    }
    answers: dict[tuple[str, RunId], str] = {}

    def ask(talk: _Talk) -> None:
        home, known = mine[talk.keeps_env].replica, scans[talk.keeps_env]
        records = [record for record in shared[talk.name] if record.run in known]
        if home is not None and records:
            talk.do(lambda there: answers.update(_answers(talk.name, there, bases(home, there), records, known)))

    _each(pool, ask, [talk for talk in others if talk.replica is not None])
    return [_with_standing(each, here, others, answers) for each in wanted]


def _here(home: _Talk, groups: Iterable[Sequence[Record]]) -> dict[RunId, Scan]:
    """Those of the runs that others have as they are at home; none where that cannot be told."""
    known: dict[RunId, set[Digest]] = {}
    for record in (record for group in groups for record in group):
        known.setdefault(record.run, set()).update([record.content] if record.content is not None else [])
    scans: dict[RunId, Scan] = {}
    if known and home.replica is not None:
        home.replica.aliases  # noqa: B018 - what is found out once is not found out by several threads at a time
        home.do(lambda replica: scans.update(_scanned(replica, known)))
    return scans


def _is_shared(each: Found, talk: _Talk, here: _Talk) -> bool:
    return each.place == talk.name and each.record.run in here.records


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
