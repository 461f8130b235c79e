"""Measures: prepares places, lets the tools take turns, and checks that they did what they were asked."""

from __future__ import annotations

import os
import shutil
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.benchmarks import work
from scripts.benchmarks.launch import launch
from scripts.benchmarks.results import Cell, Sample
from scripts.benchmarks.rows import Row
from scripts.benchmarks.sites import Site
from scripts.benchmarks.tools import Place, Steps, Tool, manifest_size
from scripts.benchmarks.trees import LARGE, census, difference

AGE = 61.0
"""Seconds: so old are the files of a workload when they are first sent, as those of finished runs are."""

PAUSE = 2.1
"""Seconds between a change and what is measured: many tools take times for equal only where they are seconds ago."""


@dataclass(frozen=True)
class Settings:
    """`turns` counted ones after `warm_ups`; `rtts` in milliseconds; `timeout` in seconds for one run of a tool;
    `hurry` waits for no disk, and not for files to be old."""

    sizes: work.Sizes
    turns: int
    warm_ups: int
    rtts: Sequence[float]
    hurry: bool = False
    timeout: float = 900.0


@dataclass
class RowResult:
    row: Row
    cells: dict[float, dict[str, Cell]]
    """By round-trip time, then by tool."""

    verified: str = ""
    """What became of reading back what guildsync pushed; empty where that was not asked."""

    @property
    def good(self) -> bool:
        troubles = [cell.trouble for cells in self.cells.values() for cell in cells.values()]
        return self.verified in {"", "ok"} and not any(troubles)


@dataclass
class _Stand:
    """One tool with its place for one workload."""

    tool: Tool
    place: Place
    pushed: bool = False
    changes: int = 0


class Bench:
    """One far end, one temporary directory."""

    def __init__(self, site: Site, directory: Path, tools: Sequence[Tool], how: Settings) -> None:
        self._site = site
        self._directory = directory
        self._tools = tools
        self._how = how
        self._log = directory / "log"

    def measure(self, rows: Sequence[Row]) -> list[RowResult]:
        results: list[RowResult] = []
        for workload in dict.fromkeys(row.workload for row in rows):
            mine = [row for row in rows if row.workload == workload]
            names = {tool.name for tool in self._tools if any(_plays(row, tool) for row in mine)}
            stands = self._set_up(workload, [tool for tool in self._tools if tool.name in names])
            time.sleep(PAUSE if self._how.hurry else AGE)
            results += [self._row(row, [stand for stand in stands if _plays(row, stand.tool)]) for row in mine]
            self._tear_down(stands)
        return results

    def _set_up(self, workload: str, tools: Sequence[Tool]) -> list[_Stand]:
        _say(f"making {workload} ...")
        top = self._directory / workload
        work.make(workload, top / "origin", self._how.sizes)
        stands: list[_Stand] = []
        for tool in tools:
            mine = top / tool.name.replace(" ", "-")
            shutil.copytree(top / "origin", mine / "home")
            stands.append(_Stand(tool, self._site.place(mine / "home", mine / "state")))
        shutil.rmtree(top / "origin")
        self._sync()
        return stands

    def _sync(self) -> None:
        """What one tool wrote is not to be written while the next one is measured."""
        if not self._how.hurry:
            os.sync()

    def _tear_down(self, stands: Sequence[_Stand]) -> None:
        for stand in stands:
            self._site.drop(stand.place)
            shutil.rmtree(stand.place.home.parent)

    def _row(self, row: Row, stands: Sequence[_Stand]) -> RowResult:
        result = RowResult(row, {rtt: {} for rtt in self._how.rtts})
        self._site.renew()
        warm_ups, turns = (0, 1) if row.once else (self._how.warm_ups, self._how.turns)
        for rtt in self._how.rtts:
            cells = result.cells[rtt] = {stand.tool.name: Cell() for stand in stands}
            for turn in range(warm_ups + turns):
                for stand in stands:
                    cell = cells[stand.tool.name]
                    if not cell.trouble:
                        sample = replace(self._turn(row, stand, rtt), warm_up=turn < warm_ups)
                        cell.samples.append(sample)
                        words = sample.trouble or f"{sample.seconds:.2f} s"
                        _say(f"{row.name}, {rtt:g} ms, turn {turn + 1}, {stand.tool.name}: {words}")
        if row.verb == "push":
            result.verified = self._verified(stands)
        return result

    def _turn(self, row: Row, stand: _Stand, rtt: float) -> Sample:
        """Prepares without delay, then measures with it."""
        change = None
        trouble = ""
        if row.fresh:
            trouble = self._reset(stand)
        elif not stand.pushed:
            trouble = self._reset(stand) or self._push(stand)
        if row.change is not None:
            change = row.change(stand.place.home, stand.changes, self._how.sizes)
            stand.changes += 1
            time.sleep(PAUSE)
        if trouble:
            return _failure(trouble)
        if row.cold:
            stand.tool.forget(stand.place)
            stand.tool.configure(stand.place)
        self._sync()
        sample = self._pull(stand, rtt) if row.verb == "pull" else self._sample(stand, row.verb, stand.place, rtt)
        if row.verb == "push" and stand.tool.plain and not sample.trouble:
            sample = replace(sample, trouble=difference(stand.place.home, Path(stand.place.far)))
        stand.pushed = stand.pushed or (row.verb == "push" and not sample.trouble)
        if row.allowed is not None and change is not None:
            sample = replace(sample, allowed=row.allowed(change, manifest_size(stand.place.home, change.run)))
        return sample

    def _reset(self, stand: _Stand) -> str:
        """An empty far end and nothing kept here; answers what went wrong."""
        stand.place = self._site.fresh(stand.place)
        stand.pushed = False
        stand.tool.forget(stand.place)
        stand.tool.configure(stand.place)
        return self._do(stand.tool, stand.tool.create(stand.place), stand.place)

    def _push(self, stand: _Stand) -> str:
        trouble = self._do(stand.tool, stand.tool.push(stand.place), stand.place)
        stand.pushed = not trouble
        return trouble

    def _pull(self, stand: _Stand, rtt: float) -> Sample:
        """Into a new home, with nothing kept by the one that pushed."""
        top = stand.place.home.parent / f"pulled-{uuid.uuid4().hex}"
        place = replace(stand.place, home=top / "home", state=top / "state")
        place.make()
        stand.tool.configure(place, stand.place)
        sample = self._sample(stand, "pull", place, rtt)
        if not sample.trouble and not stand.tool.bound:
            sample = replace(sample, trouble=difference(stand.place.home, place.home))
        if census(place.home)[1] > LARGE:
            shutil.rmtree(top)  # the many small files of others stay: ext4 is slow to make files where some just went
        return sample

    def _sample(self, stand: _Stand, verb: str, place: Place, rtt: float) -> Sample:
        steps: Steps = getattr(stand.tool, verb)(place)
        self._site.ready()
        self._site.delay(rtt)
        self._site.take()
        cost = self._launched(stand.tool, steps, place)
        time.sleep(0.02 + rtt / 1000)  # what is under way belongs to this run
        passed = self._site.take()
        self._site.delay(0)
        return Sample(**cost, **passed, trouble=self._words(cost["code"]))

    def _verified(self, stands: Sequence[_Stand]) -> str:
        for stand in stands:
            steps = stand.tool.verify(stand.place)
            if steps and stand.pushed:
                return self._do(stand.tool, steps, stand.place) or "ok"
        return ""

    def _do(self, tool: Tool, steps: Steps, place: Place) -> str:
        """Carries out what is not measured; answers what went wrong."""
        return self._words(self._launched(tool, steps, place)["code"])

    def _launched(self, tool: Tool, steps: Steps, place: Place) -> dict[str, Any]:
        self._log.write_bytes(b"")
        return launch(steps, place.home, tool.environment(place), self._log, self._how.timeout)

    def _words(self, code: int) -> str:
        if not code:
            return ""
        said = self._log.read_bytes()[-2000:].decode(errors="replace").strip().splitlines()
        return f"exit {code}: {' '.join(said[-2:])[-300:]}"


def _plays(row: Row, tool: Tool) -> bool:
    """Whether the row is for the tool, and the tool can do what it asks."""
    if row.tools is not None:
        return tool.name in row.tools
    if tool.bound:
        return tool.name in row.also
    if tool.whole and row.verb == "push" and not row.fresh:
        return False
    nowhere = Place(Path(), Path(), "", "")
    return bool(getattr(tool, row.verb)(nowhere))


def _failure(trouble: str) -> Sample:
    return Sample(1, 0.0, 0.0, 0, {}, 0, 0, 0, 0.0, trouble=f"preparation: {trouble}")


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
