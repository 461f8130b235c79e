"""When to look again, as the far end of the pipe says it."""

from __future__ import annotations

from guildsync.agent.calls import Calls, each
from guildsync.agent.values import rows, run_of
from guildsync.errors import Damaged
from guildsync.model.ports import Only
from guildsync.model.run import RunId


class FarHints:
    """See `model.ports.Hints`; for one thread, the one that uses the FarTree. The far end compares stat data, and its
    answer is there in time for no channel to be taken for a dead one."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def wait(self, seconds: float) -> Only:
        if seconds <= 0:
            return frozenset()  # what was not asked for comes with the next answer
        found = list(self._calls.make("moved", each(_run_or_none), arguments=rows([seconds])))
        if None in found and len(found) > 1:
            raise Damaged("what moved is everything, and more")
        return None if None in found else frozenset(run for run in found if run is not None)


def _run_or_none(row: object) -> RunId | None:
    return None if row is None else run_of(row)
