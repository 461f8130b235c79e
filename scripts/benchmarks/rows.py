"""The rows of the table: workload, what is done with it, and the goals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.benchmarks import work
from scripts.benchmarks.goals import ONE_PER_FILE, OTHERS, US, Goal, faster, memory, requests, sent_share
from scripts.benchmarks.tools import Walk
from scripts.benchmarks.work import Change, Sizes

SLACK = 16 << 10
"""Bytes of heads and listings that a small push may send beside its data."""


@dataclass(frozen=True)
class Row:
    """`fresh`: every turn begins with an empty bucket and no caches; else everything was pushed before. `change`: made
    to the home before every turn. `cold`: what the tool keeps here is removed before. `allowed`: bytes a push may send,
    of the change and its manifest. `tools`: only these, `also`: these measures too, which are no peers; `once`: one
    turn without a warm-up."""

    name: str
    text: str
    workload: str
    verb: str = "push"
    fresh: bool = False
    cold: bool = False
    change: Callable[[Path, int, Sizes], Change] | None = None
    allowed: Callable[[Change, int], float] | None = None
    goals: tuple[Goal, ...] = ()
    tools: tuple[str, ...] | None = None
    also: tuple[str, ...] = ()
    once: bool = False

    @property
    def number(self) -> str:
        return self.name.partition(" ")[0]


def _grown(change: Change, manifest: int) -> float:
    return 1.1 * change.size + SLACK + manifest


_SMALL = (
    requests(4, "≤ 4 requests (3 more than where nothing changed)"),
    sent_share(1, "sends ≤ 1.1 x what changed + 16 KiB + the manifest of the run"),
)
_THROUGHPUT = (
    faster(1 / 0.9, OTHERS, words="≥ 0.9 x the throughput of the best (≤ 1.11 x its time)"),
    memory(300),
)

# The order is that in which they are measured: rows of a workload are neighbours, those that change the home come last.
ROWS = (
    Row(
        "W1 push",
        "First push of 200 runs of 50 files, 40 MB in all; 20 source files are the same in all runs.",
        "W1",
        fresh=True,
        goals=(
            faster(0.6, ("restic",), rtt=0),
            faster(0.4, ("restic",), rtt=50),
            faster(0.1, ONE_PER_FILE, words="≤ 0.1 x the best that stores every file as an object"),
            requests(12),
        ),
    ),
    Row(
        "W4 no-op",
        "W1 pushed again; nothing has changed.",
        "W1",
        goals=(requests(1), faster(0.5, ("restic",)), faster(0.5, ("rclone",))),
    ),
    Row("W7 pull", "W1 pulled into an empty home.", "W1", verb="pull", goals=(faster(0.6, ("restic",)),)),
    Row(
        "W5 one file",
        "W1 pushed again after one file of 9 KB was replaced.",
        "W1",
        change=work.edit_file,
        allowed=_grown,
        goals=_SMALL,
    ),
    Row(
        "W2 push",
        "First push of one run with two checkpoints of 1 GiB of random bytes.",
        "W2",
        fresh=True,
        goals=_THROUGHPUT,
    ),
    Row("W2 pull", "These two checkpoints pulled into an empty home.", "W2", verb="pull", goals=_THROUGHPUT),
    Row(
        "W2 third",
        "Push after one more checkpoint of 256 MiB came to that run.",
        "W2",
        change=work.add_checkpoint,
        goals=_THROUGHPUT,
    ),
    Row(
        "W3 push",
        "First push of 20 runs: 30 common source files, an event file of 20 MB, a checkpoint of 50 MB that half of the "
        "runs share.",
        "W3",
        fresh=True,
    ),
    Row("W8 copied run", "Push after one run of W3 was copied under a new id.", "W3", change=work.copy_run),
    Row(
        "W6 grown log",
        "Push after a log of 20 MB grew by 64 KiB.",
        "W6",
        change=work.grow_log,
        allowed=_grown,
        goals=_SMALL,
    ),
    Row(
        "W9 fine-tuning",
        "Push of a second checkpoint of 256 MiB in a new run: 90 % of its bytes are those of the first, but shifted by "
        "a longer header.",
        "W9",
        change=work.fine_tune,
        allowed=lambda change, _: change.size,
        goals=(sent_share(0.2, "sends ≤ 20 % of the file"),),
    ),
    Row(
        "W10 list, cold",
        "List of 1,000 remote runs; nothing about them is kept here. (rclone, s5cmd and aws list 1,000 directories, "
        "restic those of its last snapshot: names only, where guildsync shows operation, time, status and label.)",
        "W10",
        verb="list",
        cold=True,
        goals=(requests(5), faster(0.5, ("rclone",))),
    ),
    Row(
        "W10 list, warm",
        "The same list again.",
        "W10",
        verb="list",
        goals=(requests(1), faster(0.5, ("rclone",))),
    ),
    Row(
        "W11 push",
        "First push of {runs:,} runs of 50 tiny files, {files:,} in all (one turn).",
        "W11",
        fresh=True,
        goals=(memory(400),),
        tools=(US,),
        once=True,
    ),
    Row(
        "W11 no-op",
        "W11 pushed again; nothing has changed. The peer is a bare walk with one lstat a file, in Python.",
        "W11",
        goals=(faster(1.3, (Walk.name,)), memory(400)),
        tools=(US, Walk.name),
    ),
    Row("W11 list", "List of the {runs:,} remote runs.", "W11", verb="list", tools=(US,)),
)


def chosen(rows: Sequence[Row], words: str, sizes: Sizes) -> list[Row]:
    """Those of a list like `W1,W4`, or all; ValueError names what there is not."""
    wanted = {word.strip().upper() for word in words.split(",") if word.strip()}
    unknown = wanted - set(numbers(rows))
    if unknown:
        raise ValueError(f"no row {', '.join(sorted(unknown))}: there are {', '.join(numbers(rows))}")
    scale = {"runs": sizes.w11_runs, "files": sizes.w11_runs * work.W11_FILES}
    return [replace(row, text=row.text.format(**scale)) for row in rows if not wanted or row.number in wanted]


def numbers(rows: Sequence[Row]) -> list[str]:
    return sorted({row.number for row in rows}, key=lambda name: int(name[1:]))
