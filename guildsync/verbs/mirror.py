"""push --watch, pull --watch: wait for a hint, then the same sync again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from guildsync.errors import (
    CHANGED,
    MOVED,
    TORN,
    UNSETTLED,
    NoRoom,
    NotFound,
    Problem,
    SafetyStop,
    Unreachable,
    exit_code_of,
)
from guildsync.model.ports import NO_TRAFFIC, Bases, Hints, Source, Target, Traffic
from guildsync.model.run import PENDING, RUNNING, STAGED, Record, RunId
from guildsync.verbs.agenda import LATEST, Agenda, Look
from guildsync.verbs.outcome import Clock, Outcome, Progress, crossing, problem_row
from guildsync.verbs.sync import Options, Sync

SLICE = 1.0
"""Seconds that a wait for a hint takes at the most: then it is seen whether to end."""
FLUSH, PATIENT_FLUSH = 3.0, 30.0
"""Seconds that the end waits for files that are being rewritten: where somebody asked for it, and where nobody did."""
TELLING = 30.0
"""Seconds from which on a rate says something."""
NEVER = 60.0
"""Seconds after which a file that is still being rewritten is spoken of."""
ROUNDS = 5
_SOON, _LATER = 0.05, 0.2
"""Seconds until what is held back is looked at again: at first, and when that has been done a few times."""
_SHORTEST, _LONGEST = 0.5, 15.0
_ACTIVE = frozenset({RUNNING, PENDING, STAGED})
_PASSES = frozenset({UNSETTLED, TORN, MOVED, CHANGED})
"""Reasons that time may mend."""


@dataclass(frozen=True)
class Sides:
    """What is mirrored, while the connections to it last. `hints` are the source's."""

    source: Source
    target: Target
    bases: Bases
    hints: Hints


Opened = Callable[[], AbstractContextManager[Sides]]
"""Opens both sides anew."""


@dataclass(frozen=True)
class Terms:
    """`lasts` seconds at the most; `ends`: when all chosen runs have ended. `each`: whether a run is chosen does not
    depend on the others. Looks begin `every` seconds apart, and what only grows is sent every `growth` seconds."""

    lasts: float | None = None
    ends: bool = False
    each: bool = True
    every: float = 0.0
    growth: float = 0.0


@dataclass
class Mirrored:
    """What a mirror did so far: counters as in an Outcome, of deliveries. `lag`: seconds from the first hint to the end
    of the last delivery. `waiting` are files that are being rewritten, by run and path; `problems` are those that
    are left in the end. `hourly` is what an hour costs at the rate since the first look, where that is worth saying."""

    runs: set[RunId] = field(default_factory=set)
    deliveries: int = 0
    files: int = 0
    bytes_total: int = 0
    bytes_sent: int = 0
    removed: int = 0
    lag: float = 0.0
    seconds: float = 0.0
    waiting: frozenset[tuple[str, bytes | None]] = frozenset()
    traffic: Traffic = NO_TRAFFIC
    hourly: Traffic | None = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return exit_code_of(self.problems)

    def add(self, outcome: Outcome) -> None:
        self.deliveries += 1
        self.files += outcome.files
        self.bytes_total += outcome.bytes_total
        self.bytes_sent += outcome.bytes_sent
        self.removed += outcome.removed

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": len(self.runs),
            "deliveries": self.deliveries,
            "files": self.files,
            "bytes_total": self.bytes_total,
            "bytes_sent": self.bytes_sent,
            "removed": self.removed,
            "seconds": round(self.seconds, 3),
            "traffic": self.traffic._asdict(),
            "hourly": self.hourly._asdict() if self.hourly else None,
            "problems": [problem_row(problem) for problem in self.problems],
        }


class Teller(Protocol):
    """Told what happens, by the thread that mirrors."""

    def delivered(self, done: Mirrored, outcome: Outcome) -> None:
        """A look sent something."""

    def rests(self, done: Mirrored) -> None:
        """Nothing is to be done now."""

    def warns(self, text: str) -> None:
        """Something that a person should know."""


class Silent:
    """Keeps to itself what it is told."""

    def delivered(self, done: Mirrored, outcome: Outcome) -> None:
        pass

    def rests(self, done: Mirrored) -> None:
        pass

    def warns(self, text: str) -> None:
        pass


def uptime() -> float:
    """Seconds; also those for which the computer slept, where the system counts them."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


class Mirror:
    """`run` mirrors until it is told to `stop`, or its terms are over."""

    def __init__(  # noqa: PLR0913 -- what is passed in for tests
        self,
        opened: Opened,
        options: Options,
        terms: Terms,
        teller: Teller,
        *,
        stop: Callable[[], bool],
        progress: Progress | None = None,
        clock: Clock = uptime,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._opened, self._terms, self._teller, self._stop = opened, terms, teller, stop
        self._progress, self._clock, self._sleep = progress or Progress(), clock, sleep
        self._options = replace(options, choose=self._choose, defers=self._defers, mirrors=True)
        self._asked = options.choose
        self._began = self._sent_at = clock()
        self._agenda = Agenda(self._began, terms.every)
        self._statuses: dict[RunId, str] = {}
        self._left_out: frozenset[RunId] = frozenset()
        self._held: dict[RunId, int] = {}
        self._held_since: dict[tuple[str, bytes | None], float] = {}
        self._problems: dict[str, list[Problem]] = {}
        self._warned: set[str] = set()
        self._is_last = self._was_there = False
        self._looks = 0
        self._past = NO_TRAFFIC
        self._steady: tuple[float, Traffic] | None = None
        self.done = Mirrored()

    def run(self) -> Mirrored:
        """Raises what opening the sides for the first time raises; later, only what time does not mend. A side that
        cannot be reached is tried again until the end, and is an error there."""
        pause, once = _SHORTEST, False
        while True:
            looks = self._looks
            try:
                with self._opened() as sides:
                    once = True
                    self._agenda.everything(self._clock())
                    try:
                        self._follow(sides)
                    finally:
                        self._past = self._crossed(sides)
                break
            except (Unreachable, NoRoom, NotFound) as exc:
                if self._looks > looks:
                    pause = _SHORTEST
                is_first = not once or (isinstance(exc, NotFound) and not self._was_there)
                if is_first or self._is_over:
                    raise
                self._warn(f"{exc.message}; trying again until it is there")
                self._rest(pause * random.uniform(0.7, 1.3))
                if self._is_over:
                    raise
                pause = min(2 * pause, _LONGEST)
        self.done.problems = [problem for found in self._problems.values() for problem in found]
        self.done.seconds = self._clock() - self._began
        self.done.traffic, self.done.hourly = self._past, self._hourly
        return self.done

    def _crossed(self, sides: Sides) -> Traffic:
        """On all connections so far."""
        return self._past.plus(crossing(sides.source, sides.target) or NO_TRAFFIC)

    @property
    def _hourly(self) -> Traffic | None:
        if self._steady is None or (lasted := self._clock() - self._steady[0]) < TELLING:
            return None
        return Traffic(*(round(3600 * count / lasted) for count in self._past.plus(self._steady[1], -1)))

    @property
    def _is_over(self) -> bool:
        lasts = self._terms.lasts
        return self._stop() or (lasts is not None and self._clock() - self._began >= lasts)

    def _follow(self, sides: Sides) -> None:
        agenda = self._agenda
        while not self._is_over:
            now = self._clock()
            agenda.awake(now)
            if agenda.next_at > now:
                self._wait(sides, agenda.next_at - now)
                continue
            agenda.hinted(sides.hints.wait(0.0), now)
            look = agenda.due(self._clock())
            if look is None:
                continue
            has_all = self._looked(sides, look)
            if self._all_ended:
                if has_all:
                    break
                agenda.everything(self._clock(), _LATER)
        self._finish(sides)

    def _wait(self, sides: Sides, seconds: float) -> None:
        """For a hint; where one is known already, only for its time to come: further ones come together."""
        if self._agenda.is_near(self._clock()):
            self._rest(seconds)
            return
        self._teller.rests(self.done)
        moved = sides.hints.wait(min(seconds, SLICE, self._left))
        self._agenda.hinted(moved, self._clock())

    @property
    def _left(self) -> float:
        lasts = self._terms.lasts
        return SLICE if lasts is None else max(0.0, self._began + lasts - self._clock())

    def _rest(self, seconds: float) -> None:
        end = self._clock() + seconds
        while not self._is_over and (left := end - self._clock()) > 0:
            self._sleep(min(left, SLICE / 4, self._left))

    # -- one look

    def _looked(self, sides: Sides, look: Look) -> bool:
        """Sync what the look is about. True: it was about everything, and there was nothing to do."""
        look = self._widened(look)
        began = self._clock()
        outcome = self._synced(sides, look)
        now = self._clock()
        self._looks += 1
        if self._steady is None and look.runs is None:
            self._steady = now, self._crossed(sides)
        self._agenda.looked(began, now)
        self._note(outcome, look, now)
        return look.runs is None and not outcome.runs and not self._held and not outcome.deferred

    def _widened(self, look: Look) -> Look:
        """What is not known yet may be chosen; where that depends on other runs, all of them are looked at."""
        unknown = look.runs - self._statuses.keys() if look.runs is not None else frozenset()
        if not unknown or self._terms.each:
            return look
        if unknown <= self._left_out and look.runs is not None:
            self._agenda.everything(self._clock(), LATEST)
            return Look(look.runs - unknown, look.since)
        return Look(None, look.since)

    def _synced(self, sides: Sides, look: Look) -> Outcome:
        if not sides.source.is_there or (self._was_there and not sides.target.is_there):
            raise Unreachable("one of the two sides is not there any more")
        options = replace(self._options, only=look.runs)
        try:
            outcome = self._sync(sides, options)
        except SafetyStop as exc:
            if self._is_last:
                raise
            self._warn(f"{exc.message}: nothing is removed for now")
            outcome = self._sync(sides, replace(options, policy=replace(options.policy, delete=False)))
        self._was_there = True
        if look.runs is None:  # what is deleted there from now on stays so
            self._options = replace(self._options, revives=Options().revives)
        return outcome

    def _sync(self, sides: Sides, options: Options) -> Outcome:
        return Sync(sides.source, sides.target, sides.bases, options, self._progress, self._clock).run()

    def _choose(self, records: Sequence[Record]) -> Sequence[Record]:
        """Who was chosen once stays so: a run that ended is no longer `running`, and has to be finished."""
        try:
            found = list(self._asked(records))
        except NotFound:
            if not self._statuses:
                raise
            found = []
        chosen = {record.run for record in found} | self._statuses.keys()
        listed = [record for record in records if record.run in chosen]
        for record in listed:
            if self._statuses.get(record.run) in _ACTIVE and record.summary.status not in _ACTIVE:
                self._agenda.everything(self._clock())
            self._statuses[record.run] = record.summary.status
        self._left_out = frozenset(record.run for record in records if record.run not in chosen) | self._left_out
        return listed

    def _defers(self, only_grows: bool) -> bool:
        return only_grows and not self._is_last and self._clock() - self._sent_at < self._terms.growth

    def _note(self, outcome: Outcome, look: Look, now: float) -> None:
        asked = self._statuses.keys() if look.runs is None else look.runs
        self._note_problems(outcome.problems, asked, now)
        if outcome.deferred:
            self._agenda.again(outcome.deferred, now, self._sent_at + self._terms.growth - now, look.since)
        for note in outcome.notes:
            self._warn(note)
        if outcome.runs:
            self._sent_at = now
            self.done.add(outcome)
            self.done.lag = now - look.since
            self.done.seconds = now - self._began
            self._teller.delivered(self.done, outcome)
        self.done.runs = set(self._statuses)

    def _note_problems(self, problems: Sequence[Problem], asked: Iterable[RunId], now: float) -> None:
        for run in ["", *asked]:
            self._problems.pop(run, None)
        for problem in problems:
            self._problems.setdefault(problem.run, []).append(problem)
        held = {RunId(problem.run) for problem in problems if problem.reason in _PASSES}
        for run in held:
            self._held[run] = self._held.get(run, -1) + 1
            self._agenda.again([run], now, min(_LATER, _SOON * 2.0 ** min(9, self._held[run])))
        for run in [run for run in asked if run not in held]:
            self._held.pop(run, None)
        waiting = {(problem.run, problem.path) for problem in problems if problem.reason == UNSETTLED}
        looked = set(asked)
        self._held_since = {
            at: since for at, since in self._held_since.items() if at in waiting or at[0] not in looked
        } | {at: self._held_since.get(at, now) for at in waiting}
        self.done.waiting = frozenset(self._held_since)
        for problem in problems:
            if now - self._held_since.get((problem.run, problem.path), now) > NEVER:
                name = (problem.path or b"").decode(errors="backslashreplace")
                self._warn(f"run {problem.run[:8]}: {name} has been rewritten for a minute, and is sent when it rests")

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._teller.warns(text)

    # -- the end

    @property
    def _all_ended(self) -> bool:
        return self._terms.ends and bool(self._statuses) and _ACTIVE.isdisjoint(self._statuses.values())

    def _finish(self, sides: Sides) -> None:
        """Everything once more, until a look finds nothing to do: that is the proof. What is being rewritten all the
        time is left."""
        self._is_last = True
        end = self._clock() + (FLUSH if self._stop() else PATIENT_FLUSH)
        for _ in range(ROUNDS):
            if self._looked(sides, Look(None, self._clock())):
                return
            while self._held and self._clock() < end:
                self._sleep(_LATER)
                self._looked(sides, Look(frozenset(self._held), self._clock()))
            if self._held:
                return
