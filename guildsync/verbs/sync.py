"""push, pull, copy: read both sides, decide, send, publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from guildsync.errors import (
    ALIVE,
    CHANGED,
    MOVED,
    NOT_KEPT,
    PURGED,
    TORN,
    TRASHED,
    Problem,
)
from guildsync.errors import (
    INCOMPLETE as DID_NOT_END,
)
from guildsync.model.manifest import DIRECTORY, NOTHING, Digest, Manifest, digest_of, same
from guildsync.model.plan import (
    SOURCE,
    TARGET,
    Clash,
    Plan,
    Policy,
    agreed,
    apply,
    continued,
    diff,
    guard,
    noted,
    tails_to_compare,
)
from guildsync.model.ports import Base, Bases, Known, Only, Piece, Scan, Source, Target, Update, Want
from guildsync.model.run import NO_METADATA, Record, RunId, agreed_metadata, merge_metadata
from guildsync.verbs.both import (
    Both,
    Intent,
    arrived,
    as_far_as_read,
    conflict,
    field_name,
    manifest_of,
    rivalry,
    same_as,
    status_news,
    summary_of,
    trusted,
    unread,
    went_away,
)
from guildsync.verbs.deliver import Carrier, Delivery, wants_of
from guildsync.verbs.outcome import Clock, Outcome, Progress

ROUNDS = 5
_AGAIN = frozenset({TORN, MOVED, CHANGED})
"""What another round may mend."""
DELIVERED = frozenset({NOT_KEPT, TRASHED})

Choose = Callable[[Sequence[Record]], Sequence[Record]]


@dataclass(frozen=True)
class Removals:
    """What a sync is about to remove at the target: files and their bytes, in so many runs."""

    runs: int
    files: int
    size: int


def _nothing_comes_back(_: RunId) -> bool:
    return False


def _anything_goes(_: Removals) -> None:
    pass


def _at_once(_: bool) -> bool:
    return False


@dataclass(frozen=True)
class Options:
    """What a person asked for. `choose` picks among the source's runs, which have sizes and scalars where it wants
    `details`; `origin` names the source in what the target notes about a run that still runs there; `max_delete` lifts
    the safety stop up to that many files. `revives`: is a run brought back that was deleted at the target? `agree` is
    asked before anything is removed there, and raises to stop. Of `only` these runs (None: all) is anything asked, on
    either side. `defers` is told whether all that is to be sent is growth of files, and may put it off. `mirrors`: the
    target is told that more will soon be sent."""

    choose: Choose = field(default=lambda records: records)
    policy: Policy = field(default_factory=Policy)
    max_delete: int | None = None
    dry_run: bool = False
    origin: str = ""
    details: bool = False
    revives: Callable[[RunId], bool] = _nothing_comes_back
    agree: Callable[[Removals], None] = _anything_goes
    only: Only = None
    defers: Callable[[bool], bool] = _at_once
    mirrors: bool = False


class Sync:
    """One sync from `source` to `target`; `run` carries it out."""

    def __init__(
        self,
        source: Source,
        target: Target,
        bases: Bases,
        options: Options,
        progress: Progress | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._source, self._target, self._bases, self._options = source, target, bases, options
        self._progress = progress or Progress()
        self._clock = clock
        self._outcome = Outcome()
        self._renewed: list[RunId] = []
        self._revived: frozenset[RunId] = frozenset()
        self._leaves_out = options.policy.paths.leave_out

    def run(self) -> Outcome:
        """Deliver what is chosen. What cannot be delivered is in the outcome's problems; all else is durable."""
        outcome, began = self._outcome, self._clock()
        chosen: frozenset[RunId] | None = None
        for last in (False,) * (ROUNDS - 1) + (True,):
            records, there = self._list(chosen)
            problems: list[Problem] = []
            intents = self._decide(records, there, problems)
            if intents and self._options.defers(all(i.only_grows for i in intents)):
                outcome.deferred = tuple(intent.update.run for intent in intents)
                intents = []
            guard([(i.update.run, i.plan, i.have) for i in intents], self._options.max_delete)
            removals = _removals(intents)
            if removals.files and not self._options.dry_run:
                self._options.agree(removals)
            problems += self._deliver(intents)
            again = frozenset(RunId(problem.run) for problem in problems if problem.reason in _AGAIN)
            outcome.report(problem for problem in problems if last or problem.run not in again)
            if not again or self._options.dry_run:
                break
            chosen = again
        outcome.report([*self._source.problems, *self._target.problems])
        outcome.notes += _told(self._renewed, "stored anew: what they lay in was damaged, or is about to go")
        outcome.notes[:] = dict.fromkeys(outcome.notes)
        outcome.seconds = self._clock() - began
        return outcome

    # -- read both sides

    def _list(self, chosen: frozenset[RunId] | None) -> tuple[list[Record], dict[RunId, Record]]:
        """The chosen runs of the source that were not deleted at the target, or are to come back; what lives there."""
        only = chosen if chosen is not None else self._options.only
        listed = list(self._source.runs(sizes=self._options.details, **_among(only)))
        if chosen is None:
            records = list(self._options.choose(listed))
        else:
            records = [record for record in listed if record.run in chosen]
        there = {record.run: record for record in self._target.runs(deleted=None, **_among(only))}
        first = chosen is None
        revived = [r.run for r in records if first and _is_deleted(there, r.run) and self._options.revives(r.run)]
        if revived and not self._options.dry_run:
            self._outcome.report(self._target.reveal(revived))
            there = {record.run: record for record in self._target.runs(deleted=None, **_among(only))}
            revived = [run for run in revived if not _is_deleted(there, run)]
            self._revived = frozenset(revived)
        skipped = [r.run for r in records if _is_deleted(there, r.run) and r.run not in revived]
        if first:
            self._outcome.skipped = len(skipped)
            self._outcome.notes += _told(skipped, "deleted there and left out") + _told(revived, "brought back there")
        else:
            self._outcome.report(_gone_there(there[run]) for run in skipped)
        out = frozenset(skipped)
        there = {run: record for run, record in there.items() if not record.deleted}
        return [record for record in records if record.run not in out], there

    def _pairs(self, records: Sequence[Record], there: dict[RunId, Record]) -> Iterable[Both]:
        bases = {}
        for record in records:
            other = there.get(record.run)
            bases[record.run] = self._bases.load(record.run, other.content if other else None) if other else None
        wants, haves = self._scans(there, {run: _contents(base) for run, base in bases.items()})
        for record in records:
            run = record.run
            want, have, base, told = wants.get(run), haves.get(run), bases[run], bases[run]
            if want is None:
                yield Both(record, Scan(run, _NO_CONTENT, None, problems=(went_away(run),)), None, None, None, None)
                continue
            if have is not None and (base is None or have.content != base.content):
                base = self._bases.load(run, have.content)
            other = there.get(run) if have else None
            base = trusted(base, record, other) if other else None
            other = as_far_as_read(other, base) if other else None
            yield Both(as_far_as_read(record, base), want, other, have, base, told)

    def _scans(self, there: dict[RunId, Record], known: Known) -> tuple[dict[RunId, Scan], dict[RunId, Scan]]:
        """Both sides look at the same time at runs that have a base: neither needs the other's contents."""
        with_base = {run: contents for run, contents in known.items() if contents and run in there}
        pool = ThreadPoolExecutor(1)
        try:
            early = pool.submit(lambda: list(self._target.manifests(with_base)) if with_base else [])
            wants = {scan.run: scan for scan in self._source.manifests(known)}
            haves = {scan.run: scan for scan in early.result()}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        left = [run for run in wants if run in there and run not in with_base]
        if left or not with_base:
            present = {run: {*known[run], wants[run].content} for run in left}
            haves.update((scan.run, scan) for scan in self._target.manifests(present))
        return wants, haves

    # -- decide

    def _decide(self, records: Sequence[Record], there: dict[RunId, Record], problems: list[Problem]) -> list[Intent]:
        intents = []
        for both in self._pairs(records, there):
            problems += [*both.want.problems, *unread(both.record)]
            intent = self._intent(both, problems)
            if intent is not None:
                problems += intent.problems
                intents.append(intent)
        return intents

    def _intent(self, both: Both, problems: list[Problem]) -> Intent | None:
        run, want, have = both.record.run, both.want, both.have
        if both.untouched:
            self._outcome.same += 1
            return None
        wanted = both.wanted
        there = NOTHING if have is None else manifest_of(have, both.told, both.base) or same_as(have, wanted)
        if wanted is None or there is None:
            problems += have.problems if have is not None else ()
            return None
        if want.aim is not None:
            problems.append(
                Problem(run, None, DID_NOT_END, "an earlier sync to here did not end; sync it from there first")
            )
            return None
        problems += rivalry(run, want.rivals)
        if have is not None and have.content in want.rivals and self._options.policy.resolve is None:
            return None  # one of the versions in conflict is the target's own
        if have is not None and have.rivals and (self._options.policy.resolve is None or self._leaves_out):
            problems += rivalry(run, have.rivals)  # only as a whole can a run be the next version of all of them
            return None
        plan, base = self._plan(both, there, wanted)
        if plan.clashes:
            problems += [conflict(run, clash) for clash in plan.clashes]
            return None
        return self._settled_or_intent(both, plan, there, wanted, base)

    def _plan(self, both: Both, there: Manifest, wanted: Manifest) -> tuple[Plan, Manifest | None]:
        base = both.base.manifest if both.base is not None else None
        if both.have is not None and both.have.aim is not None:
            base = continued(base, there, *both.have.aim)
            if not self._options.dry_run:
                self._bases.save(both.record.run, arrived(both, base))
        policy = self._options.policy
        unreadable = any(problem.reason not in DELIVERED for problem in both.want.problems)
        if unreadable or both.record.run in self._revived:
            policy = replace(policy, delete=False)  # it is not gone, or nobody was asked yet about what came back
        known = base
        if self._source.problems:  # it may be older than what this base says that both sides had
            known, policy = None, replace(policy, delete=False)
        plan = diff(known, there, wanted, replace(policy, resolve=None))
        clashing = [clash.path for clash in plan.clashes]
        grown = [clash.path for clash in plan.clashes if self._is_growth(both.record.run, clash)]
        if clashing:
            plan = diff(known, there, wanted, policy, grown)
        if policy.resolve == TARGET:
            plan = replace(plan, conceded=tuple(path for path in clashing if path not in grown))
        return plan, base

    def _is_growth(self, run: RunId, clash: Clash) -> bool:
        """Is the shorter of two files how the longer one begins? Reads some of the longer one where their parts do not
        tell."""
        if clash.growth is None:
            return False
        side, longer, shorter = clash.growth
        tails = tails_to_compare(shorter, longer)
        if tails is None:
            return False
        short, covering = tails
        replica: Source = self._source if side == SOURCE else self._target
        wants = [Want(found.digest, found.size, run, clash.path, found.offset) for found in covering]
        read = {answer.want.digest: answer.data for answer in replica.fetch(wants) if isinstance(answer, Piece)}
        if any(want.digest not in read for want in wants):
            return False
        data = b"".join(read[want.digest] for want in wants)
        start = wants[0].offset if wants else 0
        return all(digest_of(data[found.offset - start :][: found.size]) == found.digest for found in short)

    def _settled_or_intent(
        self, both: Both, plan: Plan, there: Manifest, wanted: Manifest, base: Manifest | None
    ) -> Intent | None:
        """The intent, or None where both sides are as they should be (then that is the new base)."""
        record, have, known = both.record, both.have, both.there
        was = known.metadata if known is not None else NO_METADATA
        shared = both.base.metadata if both.base is not None else NO_METADATA
        metadata, overruled = merge_metadata(shared, was, record.metadata)
        self._outcome.notes += [
            f"run {record.run[:8]}: the {field_name(name)} there was replaced" for name in overruled
        ]
        files = bool(plan.changes) or have is None or not have.settled or bool(have.rivals)
        alive: tuple[Problem, ...] = ()
        if plan.changes and have is not None and have.alive:
            plan, files = Plan((), (), ()), False
            alive = (Problem(record.run, None, ALIVE, "it is running there; its files are left alone"),)
        result = apply(plan, there, wanted)
        after = Base.of(
            noted(agreed(base, result, wanted, plan.out), wanted, plan.conceded, plan.out),
            agreed_metadata(shared, metadata, record.metadata),
            record.summary.status,
            {result.content, wanted.content},
        )
        if not files and metadata == was and not status_news(both):
            if alive:
                self._outcome.report(alive)
            else:
                self._outcome.same += 1
                if both.base != after:
                    self._bases.save(record.run, after)
            return None
        update = Update(
            record.run,
            have=there if have is not None else None,
            want=result if files else None,
            summary=summary_of(both, plan, result),
            metadata=metadata,
            metadata_was=was,
            heads=have.heads if have is not None else (),  # several: all of one content, or to be resolved
            origin=self._options.origin,
            mirrored=self._options.mirrors,
        )
        return Intent(update, plan, there, after, alive, self._delivery(update, wanted, have))

    def _delivery(self, update: Update, wanted: Manifest, have: Scan | None) -> Delivery:
        """What must be at hand for the commit: the objects of what changes; of everything where the target must put
        down anew what it has."""
        if update.want is None:
            return Delivery(update, ())
        settled = have is None or have.settled
        was = update.have.by_path if update.have is not None else {}
        needed = [entry for entry in update.want.entries if not settled or not same(entry, was.get(entry.path))]
        theirs = [entry for entry in needed if same(entry, wanted.by_path.get(entry.path))]
        own = [entry for entry in needed if not same(entry, wanted.by_path.get(entry.path))]
        return Delivery(update, wants_of(update.run, theirs), wants_of(update.run, own))

    # -- send and publish

    def _deliver(self, intents: Sequence[Intent]) -> list[Problem]:
        outcome = self._outcome
        deliveries = [intent.delivery for intent in intents]
        by_run = {intent.update.run: intent for intent in intents}
        carrier = Carrier(self._source, self._target, self._clock, self._progress)
        missing = carrier.missing(deliveries)
        outcome.bytes_resumed = self._target.resumed
        total = sum(delivery.size for delivery in deliveries)
        crossing = sum(_sizes(deliveries, missing))
        self._progress.planned(len(deliveries), sum(delivery.files for delivery in deliveries), crossing)
        if self._options.dry_run:
            outcome.runs, outcome.bytes_total = len(deliveries), total
            outcome.files = sum(delivery.files for delivery in deliveries)
            outcome.bytes_reused = total - crossing
            return []
        for intent in intents:
            if intent.update.want is not None:
                self._bases.intend(intent.update.run, intent.update.want.content, intent.base)
        problems: list[Problem] = []
        for updates, failed in carrier.carry(deliveries, missing):
            problems += failed
            broken = {problem.run for problem in failed if problem.reason not in DELIVERED}
            for update in updates:
                if update.run not in broken:
                    self._count(by_run[update.run])
        outcome.bytes_sent += carrier.sent
        outcome.bytes_reused = max(0, outcome.bytes_total - outcome.bytes_sent)
        return problems

    def _count(self, intent: Intent) -> None:
        self._bases.save(intent.update.run, intent.base)
        self._outcome.runs += 1
        self._outcome.files += intent.delivery.files
        self._outcome.bytes_total += intent.delivery.size
        self._outcome.removed += len(intent.plan.removals)
        if intent.update.want is not None and intent.update.want == intent.update.have:
            self._renewed.append(intent.update.run)


class NoBases:
    """Of two sides that meet once (see `model.ports.Bases`)."""

    def load(self, run: RunId, content: Digest | None) -> Base | None:  # noqa: ARG002 - the Protocol's names
        return None

    def intend(self, run: RunId, content: Digest, base: Base) -> None:
        pass

    def save(self, run: RunId, base: Base) -> None:
        pass


_NO_CONTENT = Digest("")


def _among(only: Only) -> dict[str, Any]:
    return {} if only is None else {"only": only}


def _contents(base: Base | None) -> tuple[Digest, ...]:
    return (base.content,) if base is not None else ()


def _sizes(deliveries: Iterable[Delivery], missing: set[Digest]) -> Iterable[int]:
    return {w.digest: w.size for d in deliveries for w in (*d.wants, *d.own_wants) if w.digest in missing}.values()


def _is_deleted(there: dict[RunId, Record], run: RunId) -> bool:
    return run in there and there[run].deleted


def _gone_there(record: Record) -> Problem:
    """Between two rounds: what an earlier one has sent of it was not acknowledged."""
    if record.purged:
        return Problem(record.run, None, PURGED, "it was purged there meanwhile")
    return Problem(record.run, None, CHANGED, "it was deleted there meanwhile: what was sent of it may not stay")


def _removals(intents: Iterable[Intent]) -> Removals:
    gone = [[c.have for c in intent.plan.removals if c.have and c.have.kind != DIRECTORY] for intent in intents]
    sizes = [entry.size for entries in gone for entry in entries]
    return Removals(sum(1 for entries in gone if entries), len(sizes), sum(sizes))


def _told(runs: Sequence[RunId], what: str) -> list[str]:
    if not runs:
        return []
    return [f"{len(runs)} {'run was' if len(runs) == 1 else 'runs were'} {what}: {_some(runs)}"]


def _some(runs: Sequence[RunId]) -> str:
    shown = ", ".join(run[:8] for run in runs[:5])
    return shown if len(runs) <= 5 else f"{shown} and {len(runs) - 5} more"
