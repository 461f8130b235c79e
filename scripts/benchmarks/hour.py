"""What an hour of mirroring a run that runs costs, in requests and bytes, as the mirrors say it in the end."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.benchmarks import peers, report
from scripts.benchmarks.mirror import BEGIN, file_reader, wait
from scripts.benchmarks.mirrors import S3, SSH, keys_of, live_run
from scripts.benchmarks.sites import Site, s3_site, ssh_site
from scripts.benchmarks.tools import Guildsync, Place
from tests.kit.events import scalar_event
from tests.kit.trees import MIB, _record

LINE = 100
CHECKPOINT, EVERY = 20 * MIB, 120
"""Bytes of a checkpoint, and seconds between two."""

_ABOUT = (
    "A run that runs prints a line of {line} bytes and writes an event with one scalar every second, and every {every} "
    "s a checkpoint of {size} MiB that has nothing in common with the one before, to one of two names; twenty runs "
    "that have ended lie beside it. Mirrored for {minutes:g} minutes; what came before the end of the first look is "
    "left out. Requests to a bucket, or questions to a host over one connection."
)


@dataclass(frozen=True)
class Hour:
    """What a mirror says of an hour like the one it saw."""

    name: str
    requests: int
    sent: int
    received: int

    @property
    def row(self) -> str:
        megabytes = (f"{size / 1e6:,.1f} MB" for size in (self.sent, self.received))
        return f"| {self.name} | {self.requests:,} | {' | '.join(megabytes)} |"


class Failed(Exception):
    """A mirror ended early, or with problems."""


def write(run: Path, events: Path, until: float) -> None:
    """What a run writes, until then by the clock."""
    began = time.monotonic()
    step = 0
    while time.monotonic() < until:
        step += 1
        with (run / ".guild/output").open("ab") as file:
            file.write(b"%*d\n" % (LINE - 1, step))
        with events.open("ab") as file:
            file.write(_record(scalar_event("loss", 1 / step, step)))
        if step % EVERY == 1:
            new = run / "new.tmp"
            new.write_bytes(os.urandom(CHECKPOINT))
            new.rename(run / f"checkpoint-{step // EVERY % 2}")
        time.sleep(max(0.0, began + step - time.monotonic()))


def _begun(tool: Guildsync, place: Place, verb: str, seconds: float) -> subprocess.Popen[bytes]:
    (argv,) = tool.watch(place, verb)
    out, log = (place.state / "said").open("wb"), (place.state / "log").open("wb")
    with out, log:
        how: dict[str, Any] = {"cwd": place.home, "env": tool.environment(place), "stdin": subprocess.DEVNULL}
        return subprocess.Popen([*argv, "--json", "--for", f"{seconds:g}s"], stdout=out, stderr=log, **how)


def _said(name: str, place: Place, child: subprocess.Popen[bytes]) -> Hour:
    child.wait(BEGIN)
    rows = [json.loads(line) for line in (place.state / "said").read_text().splitlines()]
    if child.returncode or not rows or not rows[-1].get("hourly"):
        raise Failed(f"{name}: exit {child.returncode}: {(place.state / 'log').read_text()[-500:]}")
    return Hour(name, **rows[-1]["hourly"])


def _place(site: Site, directory: Path, name: str) -> Place:
    place = site.place(directory / name / "home", directory / name / "state")
    place.make()
    return place


def _measured(site: Site, kind: str, directory: Path, tool: Guildsync, seconds: float) -> list[Hour]:
    """A push of what is written here; a pull by somebody else of what is written there, or was pushed to there."""
    one = site.fresh(_place(site, directory, "push"))
    site.ready()
    other = replace(_place(site, directory, "pull"), far=one.far)
    tool.write(one, keys_of(kind, one))
    tool.write(other, keys_of(kind, other))
    events = live_run(one.home)
    run = events.parents[1]
    pushing = _begun(tool, one, "push", seconds)
    children = {"push": (one, pushing)}
    read = file_reader(events, other.home / events.relative_to(one.home))
    while pushing.poll() is None and not _delivered(one):
        time.sleep(0.1)
    children["pull"] = (other, _begun(tool, other, "pull", seconds))
    wait(read.begun, lambda: None, BEGIN, 0.1)
    write(run, events, time.monotonic() + seconds - BEGIN / 6)
    return [_said(f"{verb} --watch, {kind}", place, child) for verb, (place, child) in children.items()]


def _delivered(place: Place) -> bool:
    return b"delivered" in (place.state / "said").read_bytes()


def main(argv: Sequence[str]) -> int:
    """0: measured; 1: a mirror failed; 2: usage."""
    parser = argparse.ArgumentParser(prog="scripts/bench hour", description="Measures what a mirror costs an hour.")
    parser.add_argument("--places", default=f"{S3},{SSH}", help=f"some of {S3},{SSH} (default: both)")
    parser.add_argument("--minutes", type=float, default=10, help="for which each is mirrored (default: 10)")
    how = parser.parse_args(argv)
    sites: Mapping[str, Any] = {S3: s3_site, SSH: ssh_site}
    tool = peers.find(Guildsync)
    hours: list[Hour] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="guildsync-bench-")))
        for kind in how.places.split(","):
            site = stack.enter_context(sites[kind](directory / kind))
            hours += _measured(site, kind, directory / kind, Guildsync(tool.program), 60 * how.minutes)
    print(_ABOUT.format(line=LINE, size=CHECKPOINT // MIB, every=EVERY, minutes=how.minutes))
    print(f"\n{report.today()}, {report.machine()}. `{shlex.join(['scripts/bench', 'hour', *argv])}`.\n")
    print("| an hour of | requests | sent | received |\n|---|---|---|---|")
    print("\n".join(hour.row for hour in hours))
    return 0
