"""How long it takes until what is written on one side can be read on the other, while mirrors run: p50 and p99."""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.benchmarks import peers, report
from scripts.benchmarks.mirrors import FOLDER, MIRRORS, S3, SSH, Mirror, Watch, live_run
from scripts.benchmarks.sites import S3Site, Site, s3_site, ssh_site
from scripts.benchmarks.tools import Guildsync, Place
from tests.kit.events import scalar_event
from tests.kit.trees import _record, make_flood

LOOK = 0.0005
"""Seconds between two looks at a file; at a bucket, twenty times as many."""
PAUSES = (0.3, 1.0)
"""Seconds between what is seen and the next write, at random."""
BEGIN, LATEST, FLOODED = 120.0, 60.0, 600.0
"""Seconds until the first version must be there, any write, and all of a flood."""

_ABOUT = (
    "An event file of a run that is running grows by one record at a time, {writes} of them ({s3} to S3), at random "
    "0.3 to 1 s after the one before was seen. Visible means that a reader at the other side finds the file as long "
    "as it was made (by stat, without pause), or that a bucket has one more object in its journal; what is pulled from "
    "a bucket counts from the end of the push that brought it there. Seconds, p50 / p99. Twenty runs that have ended "
    "lie beside it. All tools over ssh use one live connection; the round-trip time (RTT) is added by a proxy. A tool "
    "that failed, or ended, says so; `-` means that it does not go there."
)

_FLOOD = (
    "{files} small files are written into a run that is running, in fifty directories, as fast as one thread writes. "
    "Seconds from the last of them until all are at the other side. Twenty runs that have ended lie beside it. All "
    "tools over ssh use one live connection; the round-trip time (RTT) is added by a proxy. A tool that failed, or "
    "ended, says so; `-` means that it does not go there."
)


@dataclass
class Latencies:
    """Of one tool at one place. `trouble`: why there are no more of them."""

    tool: str
    place: str
    seconds: list[float] = field(default_factory=list)
    trouble: str = ""

    def quantile(self, share: float) -> float:
        """The least that is not below this share of them."""
        return sorted(self.seconds)[max(0, math.ceil(share * len(self.seconds)) - 1)]

    @property
    def words(self) -> str:
        if self.trouble or not self.seconds:
            return self.trouble or "nothing was written"
        if len(self.seconds) == 1:
            return f"{self.seconds[0]:.2f}"
        return f"{self.quantile(0.5):.3f} / {self.quantile(0.99):.3f}"


class Failed(Exception):
    """A mirror ended, or what was written did not come."""


@contextmanager
def running(mirror: Mirror, place: Place, kind: str) -> Iterator[Callable[[], None]]:
    """The processes of a mirror; yields what raises Failed once one of them has ended. They are interrupted in the end,
    and killed where that does not end them."""
    log = place.state / "log"
    children: list[subprocess.Popen[bytes]] = []

    def alive() -> None:
        if any(child.poll() is not None for child in children):
            said = log.read_bytes()[-2000:].decode(errors="replace").strip().splitlines()
            raise Failed(f"it ended: {' '.join(said[-2:])[-200:]}")

    try:
        with log.open("ab") as output:
            how = {"cwd": place.home, "env": dict(mirror.environment(place)), "start_new_session": True}
            files = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            for argv in mirror.start(place, kind):
                children.append(subprocess.Popen(argv, **how, **files))  # noqa: PERF401 (each is to be ended)
        yield alive
    finally:
        for child in children:
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(child.pid, sign)
        except ProcessLookupError:
            pass
        try:
            child.wait(15)
            return
        except subprocess.TimeoutExpired:
            continue


def wait(seen: Callable[[], bool], alive: Callable[[], None], most: float, look: float) -> float:
    """Seconds until it is seen; raises Failed after `most` of them, or where the mirror has ended."""
    began = time.perf_counter()
    checked = began
    while not seen():
        now = time.perf_counter()
        if now - began > most:
            raise Failed(f"not seen after {most:.0f} s")
        if now - checked > 1:
            alive()
            checked = now
        time.sleep(look)
    return time.perf_counter() - began


@dataclass(frozen=True)
class Reader:
    """Who looks at the other side. `begun`: the first version is there; `now` grows with what comes."""

    begun: Callable[[], bool]
    now: Callable[[], int]
    look: float = LOOK


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def file_reader(written: Path, read: Path) -> Reader:
    return Reader(lambda: _size(read) == written.stat().st_size, lambda: _size(read))


def bucket_reader(site: S3Site, bucket: str) -> Reader:
    def entries() -> int:
        return site.count(bucket, "store/journal/")

    return Reader(lambda: entries() > 0, entries, 20 * LOOK)


def measured(mirror: Mirror, place: Place, kind: str, site: Site | None, how: argparse.Namespace) -> Latencies:
    """`place` is made; what is mirrored is written here, or at the far end where the mirror goes the other way."""
    out = Latencies(mirror.name, kind)
    far = place.state / "far" if kind == S3 else Path(place.far)
    here, there = (far, place.home) if mirror.back else (place.home, far)
    events = live_run(here)
    (there / "runs").mkdir(parents=True, exist_ok=True)
    seen = there / events.relative_to(here)
    reader = file_reader(events, seen)
    if counts := isinstance(site, S3Site) and not mirror.back:
        reader = bucket_reader(site, place.far)
    rest = random.Random(1)
    try:
        _publish(mirror, here, place, kind)
        with running(mirror, place, kind) as alive:
            wait(reader.begun, alive, BEGIN, 0.05)
            time.sleep(3)  # what a tool does after its first pass is no latency
            if how.flood:
                out.seconds.append(_flooded(events.parents[1], seen.parents[1], how.flood, alive))
                return out
            for step in range(1, (how.s3_writes if kind == S3 else how.writes) + 1):
                time.sleep(rest.uniform(*PAUSES))
                before = reader.now()
                data = _record(scalar_event("loss", 1 / step, step))
                size = events.stat().st_size + len(data)
                with events.open("ab") as file:
                    file.write(data)
                _publish(mirror, here, place, kind)
                goal = before + 1 if counts else size
                has_come = lambda goal=goal: reader.now() >= goal  # noqa: E731
                out.seconds.append(wait(has_come, alive, LATEST, reader.look))
    except Failed as error:
        out.trouble = str(error)
    return out


def _flooded(here: Path, there: Path, files: int, alive: Callable[[], None]) -> float:
    """Seconds from the end of writing so many small files until all are there."""
    make_flood(here, files)

    def held(run: Path) -> dict[str, bytes]:
        flood = run / "flood"
        return {str(path.relative_to(flood)): path.read_bytes() for path in flood.rglob("*") if path.is_file()}

    def count() -> int:
        return sum(not name.startswith(".") for _, _, names in os.walk(there / "flood") for name in names)

    took = wait(lambda: count() == files, alive, FLOODED, 0.1)
    if held(here) != held(there):
        raise Failed("what is there is something else")
    return took


def _publish(mirror: Mirror, home: Path, place: Place, kind: str) -> None:
    for argv in mirror.publish(home, place, kind):
        how: dict[str, Any] = {"cwd": home, "env": dict(mirror.environment(place)), "capture_output": True}
        done = subprocess.run(argv, check=False, timeout=BEGIN, **how)
        if done.returncode != 0:
            raise Failed(f"what was written cannot be pushed: {done.stderr[-200:].decode(errors='replace')}")


def _one(
    mirror: Mirror, directory: Path, kind: str, site: Site | None, how: argparse.Namespace, rtt: float
) -> Latencies:
    top = Path(tempfile.mkdtemp(dir=directory))
    place = Place(top / "home", top / "state", str(top / "far"), "")
    if site is not None:
        place = site.place(place.home, place.state)
    place.make()
    if site is not None:
        site.renew()
        place = site.fresh(place)
        site.ready()
        site.delay(rtt)
    else:
        Path(place.far).mkdir()
    try:
        found = measured(mirror, place, kind, site, how)
    finally:
        if site is not None:
            site.delay(0)
    found.place = kind if site is None or kind == S3 else f"{kind}, {rtt:g} ms"
    print(f"{found.tool}, {found.place}: {found.words}", file=sys.stderr, flush=True)
    return found


def _all(mirrors: Sequence[Mirror], directory: Path, how: argparse.Namespace) -> list[Latencies]:
    out: list[Latencies] = []
    kinds = how.places.split(",")
    if FOLDER in kinds:
        out += [_one(mirror, directory, FOLDER, None, how, 0) for mirror in mirrors if FOLDER in mirror.kinds]
    if SSH in kinds:
        with ssh_site(directory) as site:
            for rtt in map(float, how.rtt.split(",")):
                out += [_one(mirror, directory, SSH, site, how, rtt) for mirror in mirrors if SSH in mirror.kinds]
    if S3 in kinds:
        with s3_site(directory) as site:
            out += [_one(mirror, directory, S3, site, how, 0) for mirror in mirrors if S3 in mirror.kinds]
    return out


def _found(words: str) -> tuple[list[Mirror], dict[str, str]]:
    """The mirrors that are here, and why others are not; ValueError for a name that none has."""
    wanted = [word.strip() for word in words.split(";")] if words else list(MIRRORS)
    if unknown := set(wanted) - MIRRORS.keys():
        raise ValueError(f"no mirror {', '.join(sorted(unknown))}: there are {'; '.join(MIRRORS)}")
    here: list[Mirror] = []
    missing: dict[str, str] = {}
    for name in wanted:
        kind = MIRRORS[name]
        try:
            programs = [peers.located(need) for need in kind.needs] or [peers.find(Guildsync).program]
            here.append(kind(programs[0]))
        except peers.Missing as error:
            missing[name] = str(error)
            print(f"skipped: {error}", file=sys.stderr)
    return here, missing


def markdown(about: report.About, how: argparse.Namespace, found: Sequence[Latencies]) -> str:
    places = list(dict.fromkeys(each.place for each in found))
    by = {(each.tool, each.place): each.words for each in found}
    words = _FLOOD if how.flood else _ABOUT
    lines = ["# Mirrors", "", words.format(writes=how.writes, s3=how.s3_writes, files=how.flood), ""]
    lines += [f"{about.date}, {about.machine}. `{about.command}`.", ""]
    lines += ["| | " + " | ".join(places) + " |", "|---" * (len(places) + 1) + "|"]
    for tool in dict.fromkeys(each.tool for each in found):
        lines.append(f"| {tool} | " + " | ".join(by.get((tool, place), "-") for place in places) + " |")
    lines += ["", *(f"- {name} was left out: {why}" for name, why in about.missing.items())]
    lines += [f"- {name}: {said}" for name, said in about.versions.items()]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    """0: measured, whatever the times; 1: a mirror ended or did not mirror; 2: usage."""
    parser = argparse.ArgumentParser(prog="scripts/bench mirror", description="Measures from write to visible there.")
    parser.add_argument("--places", default="folder,ssh,s3", help="some of folder,ssh,s3 (default: all)")
    parser.add_argument("--tools", default="", help=f"some of these, divided by semicolons: {'; '.join(MIRRORS)}")
    parser.add_argument("--rtt", default="0,50", help="round-trip times over ssh in ms (default: 0,50)")
    parser.add_argument("--writes", type=int, default=100, help="default: 100")
    parser.add_argument(
        "--s3-writes", type=int, default=10, help="to S3, where each may take half a minute; default: 10"
    )
    parser.add_argument("--flood", type=int, default=0, metavar="FILES", help="all at once, and until all are there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all latencies")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table, which is also printed")
    how = parser.parse_args(argv)
    try:
        if how.flood and S3 in how.places.split(","):
            raise ValueError("a flood is measured in folder and ssh: --places folder,ssh")
        mirrors, missing = _found(how.tools)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    versions = {mirror.name: peers.said(mirror.program, *_version(mirror)) for mirror in mirrors}
    command = f"scripts/bench mirror {shlex.join(argv)}".strip()
    about = report.About(report.today(), report.machine(), versions, missing, command)
    with tempfile.TemporaryDirectory(prefix="guildsync-bench-", ignore_cleanup_errors=True) as directory:
        found = _all(mirrors, Path(directory), how)
    table = markdown(about, how, found)
    print(table)
    if how.markdown:
        how.markdown.write_text(table)
    if how.json:
        rows: dict[str, Any] = {"about": asdict(about), "latencies": [asdict(each) for each in found]}
        how.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if any(each.trouble for each in found) else 0


def _version(mirror: Mirror) -> Sequence[str]:
    module = isinstance(mirror, Watch) and Path(mirror.program).name != "guildsync"
    word = {"lsyncd": "--version", "unison": "-version"}.get(Path(mirror.program).name, "--version")
    return (*(("-m", "guildsync") if module else ()), word)
