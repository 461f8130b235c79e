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

from scripts.benchmarks import hour, mirror, peers, report
from scripts.benchmarks.harness import Bench, Settings
from scripts.benchmarks.kinds import KINDS, Kind
from scripts.benchmarks.rows import chosen, numbers
from scripts.benchmarks.tools import Tool
from scripts.benchmarks.work import QUICK, Sizes

_BIG_RUNS = 20_000


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures guildsync beside other tools. `mirror` and `hour`, in "
        "place of a kind, measure how late continuous mirrors are and what they cost; their `--help` says more.",
    )
    rows = "; ".join(f"{name}: {','.join(numbers(kind.rows))}" for name, kind in KINDS.items())
    tools = "; ".join(f"{name}: {','.join(kind.peers)}" for name, kind in KINDS.items())
    parser.add_argument(
        "kind", choices=KINDS, help="what is between the two sides: a server of that kind, started here"
    )
    parser.add_argument("--rows", default="", help=f"some of them, else all ({rows})")
    parser.add_argument("--tools", default="", help=f"some of them, else all ({tools})")
    parser.add_argument("--rtt", default="0,50", help="round-trip times in ms (default: 0,50)")
    parser.add_argument("-n", type=int, default=5, help="turns that count, after one warm-up (default: 5)")
    parser.add_argument("--big", action="store_true", help="W11 has 1,000,000 files in 20,000 runs, not a tenth")
    parser.add_argument("--quick", action="store_true", help="tiny workloads, one turn: shows that the harness works")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one run of a tool (default: 900)")
    parser.add_argument("--directory", help="where to work; W2 needs 5 GB for each tool, 10 over SSH (default: TMPDIR)")
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


def _tools(kind: Kind, words: str) -> tuple[list[Tool], dict[str, str]]:
    """Those that are here, in the order of the table, and why others are not."""
    wanted = {word.strip() for word in words.split(",")} if words else set(kind.peers)
    if unknown := wanted - kind.peers.keys():
        raise ValueError(f"no tool {', '.join(sorted(unknown))}: there are {', '.join(kind.peers)}")
    found: list[Tool] = []
    missing: dict[str, str] = {}
    for name, peer in kind.peers.items():
        if name in wanted:
            try:
                found.append(peers.find(peer))
            except peers.Missing as error:
                missing[name] = str(error)
                print(f"skipped: {error}", file=sys.stderr)
    return found, missing


def main(argv: Sequence[str]) -> int:
    """0: measured, whatever the times; 1: something failed, or was not delivered; 2: usage."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers and files go as after an interrupt
    others = {"mirror": mirror.main, "hour": hour.main}
    if argv and argv[0] in others:
        return others[argv[0]](argv[1:])
    given = _arguments(argv)
    try:
        how = _settings(given)
        kind = KINDS[given.kind]
        rows = chosen(kind.rows, given.rows, how.sizes)
        tools, missing = _tools(kind, given.tools or (kind.quick if given.quick else ""))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    versions = {tool.name: words for tool in tools if (words := peers.version(tool))}
    if kind.shared:
        versions["OpenSSH"] = peers.openssh()
    command = f"scripts/bench {shlex.join(argv)}"
    about = report.About(report.today(), report.machine(), versions, missing, command)
    bounds = [peers.find(bound) for bound in kind.bounds]
    tempfile.tempdir = given.directory
    with tempfile.TemporaryDirectory(prefix="guildsync-bench-") as directory, kind.site(Path(directory)) as site:
        results = Bench(site, Path(directory), [*tools, *bounds], how).measure(rows)
    table = report.markdown(kind, about, how, results)
    print(table)
    if given.markdown:
        given.markdown.write_text(table)
    if given.json:
        given.json.write_text(json.dumps(report.document(about, how, results), indent=1) + "\n")
    return 0 if all(result.good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
