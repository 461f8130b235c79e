"""Processes of runs at the other end of the pipe."""

from __future__ import annotations

from guildsync.agent.calls import Calls, each
from guildsync.agent.values import PIECE_LIMITS, flag_of, order_row, output_of, rows, word_of
from guildsync.errors import Damaged
from guildsync.model.ports import Order, Output
from guildsync.model.run import RunId


class FarExecutor:
    """See `model.ports.Executor`; for one thread, the one that uses the FarTree."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def start(self, run: RunId, order: Order) -> bool:
        (done,) = self._calls.make("start", each(flag_of), arguments=rows([order_row(order)]), run=run)
        return done

    def output(self, run: RunId, offset: int, wait: float) -> Output:
        found = list(
            self._calls.make("output", lambda item: [output_of(item)], PIECE_LIMITS, rows([offset, wait]), run=run)
        )
        if len(found) != 1:
            raise Damaged("what a run printed comes twice, or not at all")
        return found[0]

    def stop(self, run: RunId, patience: float) -> str:
        (outcome,) = self._calls.make("stop", each(word_of), arguments=rows([patience]), run=run)
        return outcome
