"""Words and tables for what was measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from scripts.benchmarks.goals import US, Verdict, judge
from scripts.benchmarks.harness import RowResult, Settings
from scripts.benchmarks.kinds import Column, Kind
from scripts.benchmarks.results import Cell, sound

_BEFORE: tuple[Column, ...] = (
    ("CPU s", lambda sample: sample.cpu),
    ("peak MB", lambda sample: sample.peak / 1e6),
)
_AFTER: tuple[Column, ...] = (
    ("MB sent", lambda sample: sample.sent / 1e6),
    ("MB received", lambda sample: sample.received / 1e6),
)


@dataclass(frozen=True)
class About:
    """Where and how it was measured; names no host and no person."""

    date: str
    machine: str
    versions: Mapping[str, str]
    missing: Mapping[str, str]
    command: str


def machine() -> str:
    cores = os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    python = f"Python {platform.python_version()}"
    return f"{cores} cores ({_processor()}), {memory:.0f} GiB, {platform.system()} {platform.release()}, {python}"


def today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def document(about: About, how: Settings, results: Sequence[RowResult]) -> dict[str, Any]:
    """All of it, as JSON would have it."""
    rows = [
        {
            "name": result.row.name,
            "text": result.row.text,
            "verified": result.verified,
            "rtts": [
                {
                    "ms": rtt,
                    "tools": {name: [asdict(sample) for sample in cell.samples] for name, cell in cells.items()},
                    "goals": [asdict(verdict) for verdict in judge(result.row.goals, sound(cells), rtt)],
                }
                for rtt, cells in result.cells.items()
            ],
        }
        for result in _ordered(results)
    ]
    return {"about": asdict(about), "settings": asdict(how), "rows": rows}


def markdown(kind: Kind, about: About, how: Settings, results: Sequence[RowResult]) -> str:
    ordered = _ordered(results)
    columns = (*_BEFORE, *kind.columns, *_AFTER)
    shared = [_sharing(ordered)] if kind.shared else []
    parts = [_title(kind, about, how), _summary(ordered), *shared, *(_section(result, columns) for result in ordered)]
    return "\n\n".join(parts) + "\n"


def _ordered(results: Sequence[RowResult]) -> list[RowResult]:
    return sorted(results, key=lambda result: int(result.row.number[1:]))


def _title(kind: Kind, about: About, how: Settings) -> str:
    turns = f"{how.turns} turn{'s' * (how.turns > 1)} after {how.warm_ups or 'no'} warm-up"
    lines = [
        f"# guildsync beside its peers: {kind.title}",
        "",
        f"{about.date} · {about.machine} · `{about.command}`",
        "",
        kind.about.format(turns=turns),
    ]
    if how.hurry:
        lines += [
            "",
            "**These are tiny workloads to show that the harness works: goals and ratios say nothing.**",
        ]
    lines += ["", "| tool | version |", "|---|---|"]
    lines += [f"| {name} | {words} |" for name, words in about.versions.items()]
    lines += [f"| {name} | not measured: {words} |" for name, words in about.missing.items()]
    return "\n".join(lines)


def _summary(results: Sequence[RowResult]) -> str:
    lines = ["| row | RTT ms | guildsync | best peer | ratio | goals met |", "|---|---|---|---|---|---|"]
    for result in results:
        for rtt, cells in result.cells.items():
            good = sound(cells)
            peers = sorted((cell.seconds, name) for name, cell in good.items() if name not in {US, *result.row.also})
            ours = good.get(US)
            best = f"{peers[0][1]} {_number(peers[0][0])} s" if peers else "-"
            ratio = f"{ours.seconds / peers[0][0]:.2f}" if ours and peers else "-"
            verdicts = [one for one in judge(result.row.goals, good, rtt) if one.met is not None]
            met = f"{sum(bool(one.met) for one in verdicts)} of {len(verdicts)}" if verdicts else "-"
            seconds = f"{_number(ours.seconds)} s" if ours else "failed" if US in cells else "-"
            lines.append(f"| {result.row.name} | {rtt:g} | {seconds} | {best} | {ratio} | {met} |")
    return "\n".join(lines)


def _sharing(results: Sequence[RowResult]) -> str:
    """Which tools opened connections of their own, though one was live."""
    rows: dict[str, dict[str, None]] = {}
    for result in results:
        for cells in result.cells.values():
            for name, cell in sound(cells).items():
                if any(sample.connections for sample in cell.counted):
                    rows.setdefault(name, {})[result.row.name] = None
    if not rows:
        return "Every tool used the live connection, in all rows."
    lines = [f"- {name}: {', '.join(names)}" for name, names in rows.items()]
    return "\n".join(("These opened connections of their own beside the live one:", "", *lines))


def _section(result: RowResult, columns: Sequence[Column]) -> str:
    heads = ("tool", "RTT ms", "seconds (min-max)", *(head for head, _ in columns))
    lines = [f"## {result.row.name}", "", result.row.text, "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for rtt, cells in result.cells.items():
        lines += [f"| {name} | {rtt:g} | {_values(cell, columns)} |" for name, cell in cells.items()]
    verdicts = [
        f"- {rtt:g} ms: {_judged(verdict)}"
        for rtt, cells in result.cells.items()
        for verdict in judge(result.row.goals, sound(cells), rtt)
    ]
    if verdicts:
        lines += ["", "Goals of guildsync:", "", *verdicts]
    if result.verified:
        good = result.verified == "ok"
        lines += ["", "`guildsync verify` read all of it back." if good else f"**Not verified: {result.verified}**"]
    return "\n".join(lines)


def _values(cell: Cell, columns: Sequence[Column]) -> str:
    if cell.trouble:
        return f"failed ({cell.trouble.replace('|', '/')})" + " | -" * len(columns)
    times = [sample.seconds for sample in cell.counted]
    spread = f"{_number(cell.seconds)} ({_number(min(times))}-{_number(max(times))})"
    return " | ".join((spread, *(_number(cell.median(value)) for _, value in columns)))


def _judged(verdict: Verdict) -> str:
    if verdict.met is None:
        return f"{verdict.goal}: {verdict.reached}"
    return f"{verdict.goal}: **{'met' if verdict.met else 'missed'}** ({verdict.reached})"


def _number(value: float) -> str:
    """Three digits or so; all of a whole number."""
    return (
        f"{value:.0f}"
        if value >= 100 or float(value).is_integer()
        else f"{value:.1f}"
        if value >= 10
        else f"{value:.3g}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
