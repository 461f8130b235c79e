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
from scripts.benchmarks.proxy import Proxy
from scripts.benchmarks.results import Cell, Sample
from scripts.benchmarks.rows import Row
from scripts.benchmarks.tools import WALK, Place, Steps, Tool, manifest_size
from tests.kit.servers import S3Server

AGE = 61.0
"""Seconds: so old are the files of a workload when they are first sent, as those of finished runs are."""

PAUSE = 2.1
"""Seconds between a change and what is measured: many tools take times for equal only where they are seconds ago."""

LARGE = 1 << 28
"""Bytes of a pulled home that is removed at once, lest the disk fill."""

_VIEWED = "env"
"""A file that guildsync redacts on its way out, so that its size may change."""


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
    """One server, one proxy, one temporary directory."""

    def __init__(self, server: S3Server, proxy: Proxy, directory: Path, tools: Sequence[Tool], how: Settings) -> None:
        self._client = server.client()
        self._proxy = proxy
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
            stands.append(_Stand(tool, Place(mine / "home", mine / "state", "", self._proxy.endpoint)))
        shutil.rmtree(top / "origin")
        self._sync()
        return stands

    def _sync(self) -> None:
        """What one tool wrote is not to be written while the next one is measured."""
        if not self._how.hurry:
            os.sync()

    def _tear_down(self, stands: Sequence[_Stand]) -> None:
        for stand in stands:
            self._drop_bucket(stand)
            shutil.rmtree(stand.place.home.parent)

    def _drop_bucket(self, stand: _Stand) -> None:
        if stand.place.bucket:
            self._client.delete_bucket(Bucket=stand.place.bucket)

    def _row(self, row: Row, stands: Sequence[_Stand]) -> RowResult:
        result = RowResult(row, {rtt: {} for rtt in self._how.rtts})
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
        stand.pushed = stand.pushed or (row.verb == "push" and not sample.trouble)
        if row.allowed is not None and change is not None:
            sample = replace(sample, allowed=row.allowed(change, manifest_size(stand.place.home, change.run)))
        return sample

    def _reset(self, stand: _Stand) -> str:
        """An empty bucket and nothing kept here; answers what went wrong."""
        self._drop_bucket(stand)
        bucket = f"bench-{uuid.uuid4().hex[:16]}"
        self._client.create_bucket(Bucket=bucket)
        # the server makes room for a bucket when the first object comes; nobody is to wait for that
        self._client.put_object(Bucket=bucket, Key="probe", Body=b"x")
        self._client.delete_object(Bucket=bucket, Key="probe")
        stand.place = replace(stand.place, bucket=bucket)
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
        if not sample.trouble and _census(place.home) != _census(stand.place.home):
            sample = replace(sample, trouble="not everything was delivered")
        if _census(place.home)[1] > LARGE:
            shutil.rmtree(top)  # the many small files of others stay: ext4 is slow to make files where some just went
        return sample

    def _sample(self, stand: _Stand, verb: str, place: Place, rtt: float) -> Sample:
        steps: Steps = getattr(stand.tool, verb)(place)
        self._proxy.delay(rtt)
        self._proxy.take()
        cost = self._launched(stand.tool, steps, place)
        time.sleep(0.02 + rtt / 1000)  # what is under way belongs to this run
        passed = self._proxy.take()
        self._proxy.delay(0)
        return Sample(
            **cost,
            requests=passed["requests"],
            sent=passed["sent"],
            received=passed["received"],
            connections=passed["connections"],
            proxy_cpu=passed["cpu"],
            trouble=self._words(cost["code"]),
        )

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
    nowhere = Place(Path(), Path(), "", "")
    return tool.name != WALK.name and bool(getattr(tool, row.verb)(nowhere))


def _census(home: Path) -> tuple[int, int]:
    """Count and bytes of the files below `runs`."""
    files = size = 0
    for top, _, names in os.walk(home / "runs"):
        files += len(names)
        size += sum(Path(top, name).lstat().st_size for name in names if name != _VIEWED)
    return files, size


def _failure(trouble: str) -> Sample:
    return Sample(1, 0.0, 0.0, 0, {}, 0, 0, 0, 0.0, trouble=f"preparation: {trouble}")


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
