"""What was measured: samples, and cells of samples of one tool in one row at one round-trip time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Sample:
    """One run of a tool. Seconds, bytes; `allowed` are the bytes that its row lets it send."""

    code: int
    seconds: float
    cpu: float
    peak: int
    requests: Mapping[str, int]
    sent: int
    received: int
    connections: int
    proxy_cpu: float
    link_cpu: float = 0.0
    """Of the process that holds the connection all tools share."""
    allowed: float | None = None
    warm_up: bool = False
    trouble: str = ""
    """Why it does not count: what the tool said last, or what it did not deliver."""

    @property
    def request_count(self) -> int:
        return sum(self.requests.values())


@dataclass
class Cell:
    """The samples of one tool in one row at one round-trip time."""

    samples: list[Sample] = field(default_factory=list)

    @property
    def counted(self) -> list[Sample]:
        return [sample for sample in self.samples if not sample.warm_up]

    @property
    def trouble(self) -> str:
        """Of the first sample that failed, the warm-up included; empty where all went well."""
        return next((sample.trouble for sample in self.samples if sample.trouble), "")

    def median(self, value: Callable[[Sample], float]) -> float:
        return median(value(sample) for sample in self.counted)

    @property
    def seconds(self) -> float:
        return self.median(lambda sample: sample.seconds)


Cells = Mapping[str, Cell]
"""By tool, only those in which nothing failed."""


def sound(cells: Mapping[str, Cell]) -> Cells:
    return {name: cell for name, cell in cells.items() if cell.counted and not cell.trouble}
