"""The rows of the table for SSH: the same workloads as with S3, and goals of their own."""

from __future__ import annotations

from dataclasses import replace

from scripts.benchmarks.goals import US, Goal, faster, memory, requests, sent_share
from scripts.benchmarks.rows import ROWS, Row
from scripts.benchmarks.sshtools import SSH_PEERS, OneChannel

_OTHERS = tuple(name for name in SSH_PEERS if name != US)
_DURABLE = ("rsync+fsync",)
_RSYNC = ("rsync",)

_THROUGHPUT = (
    faster(1 / 0.9, _OTHERS, words="≥ 0.9 x the throughput of the best (≤ 1.11 x its time)"),
    memory(300),
)
_CHANNELS = faster(0.5, (OneChannel.name,), 50, "≥ 2 x the throughput of one channel of OpenSSH (≤ 0.5 x its time)")
_GROWN = (sent_share(1, "sends ≤ 1.1 x what changed + 16 KiB + the manifest of the run"),)

_GOALS: dict[str, tuple[Goal, ...]] = {
    "W1 push": (
        faster(1.0, _DURABLE, 0, "≤ 1 x rsync --fsync"),
        faster(0.8, _DURABLE, 50, "≤ 0.8 x rsync --fsync"),
    ),
    "W4 no-op": (
        faster(1.2, _RSYNC, 0),
        faster(0.8, _RSYNC, 50),
        requests(1, "1 session: one process there"),
    ),
    "W7 pull": (faster(0.9, _RSYNC),),
    "W5 one file": _GROWN,
    "W2 push": (*_THROUGHPUT, _CHANNELS),
    "W2 pull": (*_THROUGHPUT, _CHANNELS),
    "W2 third": _THROUGHPUT,
    "W3 push": (),
    "W8 copied run": (faster(0.2, _RSYNC),),
    "W6 grown log": _GROWN,
    "W9 fine-tuning": (sent_share(0.2, "sends ≤ 20 % of the file"),),
}
_BESIDE_ONE_CHANNEL = {name for name, goals in _GOALS.items() if _CHANNELS in goals}


def _over_ssh(row: Row) -> Row:
    also = (OneChannel.name,) if row.name in _BESIDE_ONE_CHANNEL else ()
    return replace(row, goals=_GOALS[row.name], also=also)


SSH_ROWS = tuple(_over_ssh(row) for row in ROWS if row.name in _GOALS)
"""In the order in which they are measured."""
