"""What guildsync is to reach in a row, and whether it did: pure judgements over cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scripts.benchmarks.results import Cells, Sample
from scripts.benchmarks.tools import PEERS

US = "guildsync"
ONE_PER_FILE = tuple(name for name, kind in PEERS.items() if kind.files_are_objects)
OTHERS = tuple(name for name in PEERS if name != US)


@dataclass(frozen=True)
class Goal:
    """`value` is what was reached, None where a tool is missing; it may be at most `limit`. `rtt`: only there."""

    text: str
    limit: float
    unit: str
    value: Callable[[Cells], float | None]
    rtt: float | None = None


@dataclass(frozen=True)
class Verdict:
    goal: str
    reached: str
    met: bool | None
    """None: not measured."""


def judge(goals: Sequence[Goal], cells: Cells, rtt: float) -> list[Verdict]:
    """Of the goals that hold at `rtt`."""
    return [_verdict(goal, cells) for goal in goals if goal.rtt in {None, rtt}]


def _verdict(goal: Goal, cells: Cells) -> Verdict:
    value = goal.value(cells) if US in cells else None
    if value is None:
        return Verdict(goal.text, "not measured", None)
    digits = f"{value:.0f}" if value >= 20 or float(value).is_integer() else f"{value:.2f}"
    return Verdict(goal.text, f"{digits} {goal.unit}".strip(), value <= goal.limit)


def faster(factor: float, peers: Sequence[str], rtt: float | None = None, words: str = "") -> Goal:
    """At most `factor` times the seconds of the best of `peers`."""

    def value(cells: Cells) -> float | None:
        times = [cells[name].seconds for name in peers if name in cells]
        return cells[US].seconds / min(times) if times else None

    return Goal(words or f"≤ {factor:g} x {' or '.join(peers)}", factor, "x", value, rtt)


def requests(limit: int, words: str = "") -> Goal:
    return Goal(words or f"≤ {limit} request{'s' * (limit > 1)}", limit, "", _median(lambda one: one.request_count))


def memory(megabytes: int) -> Goal:
    return Goal(f"peak memory ≤ {megabytes} MB", megabytes, "MB", _median(lambda one: one.peak / 1e6))


def sent_share(limit: float, words: str) -> Goal:
    """The bytes that were sent, by those that were allowed."""
    return Goal(words, limit, "x", _median(lambda one: one.sent / one.allowed if one.allowed else float("inf")))


def _median(value: Callable[[Sample], float]) -> Callable[[Cells], float | None]:
    return lambda cells: cells[US].median(value)
