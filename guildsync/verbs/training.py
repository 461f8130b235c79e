"""Runs on an executor: followed to their end, and stopped."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from guildsync.errors import ALIVE, Damaged, GuildsyncError, NotFound, Problem, Refused, SafetyStop, Unreachable, Usage
from guildsync.model.ports import Executor, Order
from guildsync.model.run import RUNNING, Record, RunId
from guildsync.verbs.lifecycle import Acted, Request
from guildsync.verbs.outcome import Clock

WAIT = 5.0
"""Seconds that one question for more output waits for some."""
PATIENCE = 150.0
"""Seconds without an answer after which a run is no longer followed. It goes on."""
_SHORTEST, _LONGEST = 0.5, 15.0
_BLOCK = 1 << 20
LEFT = "left"
"""What an executor says where not even KILL ended all of a run."""

Opened = Callable[[], AbstractContextManager[Executor]]
"""Opens a connection to the executor anew."""


@dataclass(frozen=True)
class Followed:
    """`offset`: bytes of output that were taken. `exit_status` None: it ended without saying how."""

    offset: int
    exit_status: int | None

    @property
    def exit_code(self) -> int:
        """How a command ends that waited for it: as the run did; 128 + N: signal N ended it; 1: it is lost."""
        if self.exit_status is None:
            return GuildsyncError.exit_code
        return 128 - self.exit_status if self.exit_status < 0 else min(self.exit_status, 255)


class Line:
    """One executor over a connection that may break: what can be asked twice is asked again, over another one."""

    def __init__(
        self,
        opened: Opened,
        warn: Callable[[str], None],
        clock: Clock = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._opened, self._warn, self._clock, self._sleep = opened, warn, clock, sleep

    def start(self, run: RunId, order: Order) -> bool:
        """False: it was started before. A run is started once, however often this is asked."""
        started = False

        def begin(executor: Executor) -> bool:
            nonlocal started
            started = executor.start(run, order)
            return True

        self._kept(begin)
        return started

    def follow(self, run: RunId, take: Callable[[bytes], None], offset: int = 0) -> Followed:
        """Hands over what the run prints, from `offset` on, every byte once, until it has ended."""
        at, status = offset, None

        def some(executor: Executor) -> bool:
            nonlocal at, status
            found = executor.output(run, at, WAIT)
            if found.data:
                take(found.data)
                at += len(found.data)
            status = found.exit_status
            return found.ended

        self._kept(some)
        return Followed(at, status)

    def _kept(self, step: Callable[[Executor], bool]) -> None:
        """Take steps until one says that it was the last."""
        failing_since: float | None = None
        pause = _SHORTEST
        while True:
            try:
                with self._opened() as executor:
                    while not step(executor):
                        failing_since, pause = None, _SHORTEST
                return
            except Unreachable as exc:
                now = self._clock()
                if failing_since is None:
                    failing_since = now
                    self._warn(f"{exc.message}; trying again")
                if now - failing_since > PATIENCE:
                    raise
                self._sleep(pause * random.uniform(0.7, 1.3))
                pause = min(2 * pause, _LONGEST)


def tail(executor: Executor, run: RunId, lines: int) -> int:
    """Where the last `lines` lines begin of what a run has printed so far. Only these are read, from the end on."""
    end = begin = executor.output(run, 0, 0.0).size
    starts: list[int] = []
    while begin and len(starts) <= lines:
        stop, begin = begin, max(0, begin - _BLOCK)
        data = _between(executor, run, begin, stop)
        starts = [begin + match.end() for match in re.finditer(b"\n", data)] + starts
    begun = [start for start in ([] if begin else [0]) + starts if start < end]
    return begun[-lines:][0] if begun and lines else end


def _between(executor: Executor, run: RunId, begin: int, end: int) -> bytes:
    data = b""
    while len(data) < end - begin:
        block = executor.output(run, begin + len(data), 0.0).data
        if not block:
            raise Damaged("what a run printed became shorter")
        data += block
    return data[: end - begin]


def stop(executor: Executor, records: Sequence[Record], request: Request, patience: float) -> Acted:
    """What is done to each run; those where nothing ran are left out. Raises what `request.agree` raises."""
    running = [record for record in records if record.summary.status == RUNNING]
    acted = Acted(running)
    if running and request.agree is not None and not request.dry_run:
        request.agree(running)
    for record in running if not request.dry_run else ():
        try:
            if executor.stop(record.run, patience) == LEFT:
                acted.problems.append(Problem(record.run, None, ALIVE, "something of it is still there, though killed"))
        except (Usage, NotFound, SafetyStop, Refused) as exc:
            acted.problems.append(Problem(record.run, None, ALIVE, exc.message))
    failed = {problem.run for problem in acted.problems}
    acted.runs = [record for record in acted.runs if record.run not in failed]
    return acted
