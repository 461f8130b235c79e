"""When a mirror looks next, and at which runs: decided from times alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from guildsync.model.ports import Only
from guildsync.model.run import RunId

SETTLE = 0.03
"""Seconds from the first hint to the look: who writes is perhaps not done in one call."""
LATEST = 5.0
"""Seconds after which what moved is there, however much else does."""
REST = 1.0
"""A look is followed by as much time without one as it took, at most so many seconds: a file that rests for three must
be seen twice in them."""
NEAR = 0.5
RECONCILE = 600.0
"""Seconds between two looks at everything."""
ASLEEP = 30.0
"""Seconds without a sign of this process after which it may have missed anything."""


@dataclass(frozen=True)
class Look:
    """`runs`: what to look at; None: everything. `since`: when it was first heard that something moved."""

    runs: frozenset[RunId] | None
    since: float


class Agenda:
    """All times are seconds of one clock. `every`: looks begin at least so far apart."""

    def __init__(self, now: float, every: float = 0.0) -> None:
        self._every = every
        self._seen_at = now
        self._not_before = self._all_due = now
        self._all_since: float | None = now
        self._due: dict[RunId, float] = {}
        self._since: dict[RunId, float] = {}

    def awake(self, now: float) -> None:
        """To be told every few seconds: who slept longer looks at everything."""
        if now - self._seen_at > ASLEEP:
            self.everything(now)
        self._seen_at = now

    def hinted(self, moved: Only, now: float) -> None:
        if moved is None:
            self.everything(now)
        for run in moved or ():
            self._since.setdefault(run, now)
            self._due[run] = min(self._due.get(run, now + SETTLE), now + SETTLE)

    def again(self, runs: Collection[RunId], now: float, wait: float, since: float | None = None) -> None:
        """Look at these once more, then. `since`: when it was first heard of what is still to be done."""
        for run in runs:
            if since is not None:
                self._since[run] = min(since, self._since.get(run, since))
            self._due[run] = min(self._due.get(run, now + wait), now + wait)

    def everything(self, now: float, wait: float = 0.0) -> None:
        if now + wait < self._all_due:
            self._all_due, self._all_since = now + wait, now

    def is_near(self, now: float) -> bool:
        """Is something due so soon, or kept waiting by the last look alone, that further hints may wait with it?"""
        return min([self._all_due, *self._due.values()]) <= max(self._not_before, now + NEAR)

    @property
    def next_at(self) -> float:
        return max(self._not_before, min([self._all_due, *self._due.values()]))

    def due(self, now: float) -> Look | None:
        """What is to be looked at now; it is off the agenda with that."""
        if now < self.next_at:
            return None
        if now >= self._all_due:
            heard = [] if self._all_since is None else [self._all_since]
            look = Look(None, min([*heard, *self._since.values()], default=now))
            self._due, self._since = {}, {}
            self._all_due, self._all_since = now + RECONCILE, None
            return look
        runs = frozenset(run for run, at in self._due.items() if at <= now)
        since = min((self._since.pop(run) for run in runs if run in self._since), default=now)
        for run in runs:
            del self._due[run]
        return Look(runs, since)

    def looked(self, began: float, now: float) -> None:
        """A look ended: the next one leaves room for others, and comes in time."""
        self._seen_at = now
        self._not_before = now + max(min(now - began, REST), self._every - (now - began))
