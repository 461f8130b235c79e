"""What becomes of runs where they lie: verify."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from guildsync.errors import DAMAGED, MISSING, Problem, exit_code_of
from guildsync.model.manifest import Digest
from guildsync.model.ports import Lost, Replica, Want
from guildsync.model.run import RunId
from guildsync.verbs.deliver import wants_of
from guildsync.verbs.outcome import problem_row
from guildsync.verbs.sync import Choose

_RUNS_AT_A_TIME = 64


@dataclass
class Verified:
    """What a verification read, and what is wrong."""

    runs: int = 0
    objects: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return exit_code_of(self.problems)

    def to_json(self) -> dict[str, Any]:
        rows = {reason: [problem_row(p) for p in self.problems if p.reason == reason] for reason in (DAMAGED, MISSING)}
        others = [problem_row(p) for p in self.problems if p.reason not in rows]
        return {"runs": self.runs, "objects": self.objects, "bytes": self.bytes, **rows, "problems": others}


def verify(replica: Replica, choose: Choose, quick: bool = False) -> Verified:
    """Read every object of the chosen runs and compare it with its digest; `quick`: structure and sizes only."""
    found = Verified()
    runs = iter([record.run for record in choose(list(replica.runs()))])
    found.problems += replica.audit()
    while batch := list(islice(runs, _RUNS_AT_A_TIME)):
        found.runs += len(batch)
        if not quick:
            _read_all(replica, batch, found)
    found.problems[:] = dict.fromkeys(found.problems)
    return found


def _read_all(replica: Replica, batch: Sequence[RunId], found: Verified) -> None:
    places: dict[Digest, list[tuple[RunId, bytes]]] = {}
    wants: dict[Digest, Want] = {}
    for scan in replica.manifests(dict.fromkeys(batch, ())):
        found.problems += scan.problems
        for want in wants_of(scan.run, scan.manifest.entries if scan.manifest is not None else ()):
            wants.setdefault(want.digest, want)
            places.setdefault(want.digest, []).append((want.run, want.path))
    for answer in replica.fetch(wants.values()):
        if isinstance(answer, Lost):
            found.problems += _everywhere(answer.problem, places[answer.want.digest])
        else:
            found.objects += 1
            found.bytes += answer.want.size


def _everywhere(problem: Problem, places: Sequence[tuple[RunId, bytes]]) -> Iterator[Problem]:
    """One damaged object damages every file that is made of it."""
    for run, path in places:
        yield Problem(run, path, problem.reason, problem.detail)
