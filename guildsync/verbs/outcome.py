"""What a sync did: counters and problems, as they are told to people and scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from guildsync.errors import CONFLICT, Problem, SafetyStop, exit_code_of
from guildsync.model.manifest import text
from guildsync.model.ports import Reads, Traffic
from guildsync.model.run import RunId


@dataclass
class Outcome:
    """`runs` and `files` were delivered, `same` runs were there already, `skipped` were deleted there; bytes are of
    files' content: all that was to be delivered, what of it crossed, what the target had already, and what of that an
    interrupted sync had brought. `deferred` runs are to be delivered later. `requests`: None where nobody counts."""

    runs: int = 0
    files: int = 0
    same: int = 0
    bytes_total: int = 0
    bytes_sent: int = 0
    bytes_reused: int = 0
    bytes_resumed: int = 0
    removed: int = 0
    skipped: int = 0
    deferred: tuple[RunId, ...] = ()
    seconds: float = 0.0
    requests: int | None = None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        if self.problems and self.runs == 0 and all(p.reason == CONFLICT and p.path is not None for p in self.problems):
            return SafetyStop.exit_code  # nothing was sent, and a flag decides
        return exit_code_of(self.problems)

    def report(self, problems: Iterable[Problem]) -> None:
        """Add problems, each path's first one only."""
        seen = {(problem.run, problem.path) for problem in self.problems}
        for problem in problems:
            if (problem.run, problem.path) not in seen:
                self.problems.append(problem)
                seen.add((problem.run, problem.path))

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "files": self.files,
            "bytes_total": self.bytes_total,
            "bytes_sent": self.bytes_sent,
            "bytes_reused": self.bytes_reused,
            "bytes_resumed": self.bytes_resumed,
            "requests": self.requests,
            "seconds": round(self.seconds, 3),
            "problems": [problem_row(problem) for problem in self.problems],
        }


def problem_row(problem: Problem) -> dict[str, Any]:
    """A problem for `--json`; a path that is not UTF-8 is percent-encoded, and says so."""
    row: dict[str, Any] = {"run": problem.run or None, "path": None, "reason": problem.reason, "detail": problem.detail}
    if problem.path is not None:
        path = text(problem.path)
        row["path"] = path if isinstance(path, str) else path["percent"]
        if not isinstance(path, str):
            row["path_encoding"] = "percent"
    return row


class Progress:
    """Told what happens while it does, it counts, and calls `seen` after each step. No count ever runs backwards: what
    another round plans comes on top of what is done."""

    def __init__(self, seen: Callable[[Progress], None] | None = None) -> None:
        self.runs = self.files = self.size = 0
        self.runs_done = self.files_done = self.bytes_done = 0
        self._seen = seen

    def planned(self, runs: int, files: int, size: int) -> None:
        """Totals, before the first byte."""
        self.runs = max(self.runs, self.runs_done + runs)
        self.files = max(self.files, self.files_done + files)
        self.size = max(self.size, self.bytes_done + size)
        self._tell()

    def moved(self, size: int) -> None:
        """So many bytes more are accounted for."""
        self.bytes_done += size
        self.size = max(self.size, self.bytes_done)
        self._tell()

    def committed(self, runs: int, files: int) -> None:
        """So many runs more are delivered for good, and so many files of them."""
        self.runs_done += runs
        self.files_done += files
        self._tell()

    def _tell(self) -> None:
        if self._seen is not None:
            self._seen(self)


def crossing(*sides: Reads) -> Traffic | None:
    """What crossed to all of them and back; None where nobody counts."""
    found = [side.traffic for side in sides]
    told = [traffic for traffic in found if traffic is not None]
    return reduce(Traffic.plus, told) if told else None


Clock = Callable[[], float]
