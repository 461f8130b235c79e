"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scripts.benchmarks import peers, report
from scripts.benchmarks.harness import Bench, Settings
from scripts.benchmarks.proxy import proxied
from scripts.benchmarks.rows import chosen, numbers
from scripts.benchmarks.tools import PEERS, WALK, Tool
from scripts.benchmarks.work import QUICK, Sizes
from tests.kit.servers import seaweedfs

_QUICK_TOOLS = "guildsync,restic,rclone,s5cmd"
_BIG_RUNS = 20_000


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures guildsync beside other tools.")
    parser.add_argument("kind", choices=["s3"], help="what is between the two sides: an S3 server on this machine")
    parser.add_argument("--rows", default="", help=f"some of {','.join(numbers())}; else all")
    parser.add_argument("--tools", default="", help=f"some of {','.join(PEERS)}; else all")
    parser.add_argument("--rtt", default="0,50", help="round-trip times in ms (default: 0,50)")
    parser.add_argument("-n", type=int, default=5, help="turns that count, after one warm-up (default: 5)")
    parser.add_argument("--big", action="store_true", help="W11 has 1,000,000 files in 20,000 runs, not a tenth")
    parser.add_argument("--quick", action="store_true", help="tiny workloads, one turn: shows that the harness works")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one run of a tool (default: 900)")
    parser.add_argument("--directory", help="where to work; all of W2 needs 30 GB (default: TMPDIR)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write raw measurements")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table, which is also printed")
    return parser.parse_args(argv)


def _settings(given: argparse.Namespace) -> Settings:
    sizes = QUICK if given.quick else Sizes()
    if given.big:
        sizes = replace(sizes, w11_runs=_BIG_RUNS)
    rtts = [float(word) for word in given.rtt.split(",")]
    turns, warm_ups = (1, 0) if given.quick else (given.n, 1)
    return Settings(sizes, turns, warm_ups, rtts, hurry=given.quick, timeout=given.timeout)


def _tools(words: str) -> tuple[list[Tool], dict[str, str]]:
    """Those that are here, in the order of the table, and why others are not."""
    wanted = {word.strip() for word in words.split(",")} if words else set(PEERS)
    if unknown := wanted - PEERS.keys():
        raise ValueError(f"no tool {', '.join(sorted(unknown))}: there are {', '.join(PEERS)}")
    found: list[Tool] = []
    missing: dict[str, str] = {}
    for name in PEERS:
        if name in wanted:
            try:
                found.append(peers.find(name))
            except peers.Missing as error:
                missing[name] = str(error)
                print(f"skipped: {error}", file=sys.stderr)
    return found, missing


def main(argv: Sequence[str]) -> int:
    """0: measured, whatever the times; 1: something failed, or was not delivered; 2: usage."""
    given = _arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers and files go as after an interrupt
    try:
        how = _settings(given)
        rows = chosen(given.rows, how.sizes)
        tools, missing = _tools(given.tools or (_QUICK_TOOLS if given.quick else ""))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    versions = {tool.name: peers.version(tool) for tool in tools}
    command = f"scripts/bench {shlex.join(argv)}"
    about = report.About(report.today(), report.machine(), versions, missing, command)
    tempfile.tempdir = given.directory
    with (
        tempfile.TemporaryDirectory(prefix="guildsync-bench-") as directory,
        seaweedfs(volume_mb=1024, growth=4) as server,
        proxied(server.endpoint) as proxy,
    ):
        results = Bench(server, proxy, Path(directory), [*tools, WALK], how).measure(rows)
    table = report.markdown(about, how, results)
    print(table)
    if given.markdown:
        given.markdown.write_text(table)
    if given.json:
        given.json.write_text(json.dumps(report.document(about, how, results), indent=1) + "\n")
    return 0 if all(result.good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
