"""The halves of the benchmark: what lies between the two sides, which tools, which rows, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.results import Sample
from scripts.benchmarks.rows import ROWS, Row
from scripts.benchmarks.sites import Site, s3_site, ssh_site
from scripts.benchmarks.sshrows import SSH_ROWS
from scripts.benchmarks.sshtools import SSH_PEERS, OneChannel
from scripts.benchmarks.tools import PEERS, Tool, Walk

Column = tuple[str, Callable[[Sample], float]]

_S3 = (
    "All tools move the same runs to and from the same SeaweedFS on this machine, in turns (A B A B …), medians of "
    "{turns}. A time is that of the whole process, start-up included; CPU is that of the process and its children, "
    "peak that of the largest of them. A proxy between tool and server counts requests and bytes, and adds half of the "
    "round-trip time (RTT) each way. Every first push goes to an empty bucket without caches on this side; every pull "
    "is checked for completeness. A tool that fails has no time."
)
_SSH = (
    "All tools move the same runs to and from the same sshd on this machine, in turns (A B A B …), medians of {turns}. "
    "A time is that of the whole process, start-up included; CPU is that of the process and its children, peak that of "
    "the largest of them. All use one live connection (ControlMaster) that was opened before the row, with OpenSSH's "
    "default cipher, guildsync too: encryption is its work, and stands in a column of its own; what is used at the far "
    "end is not counted. A proxy between ssh and sshd counts bytes, and adds half of the round-trip time (RTT) each "
    "way; sessions are the processes that sshd started. Every first push goes to an empty directory without caches on "
    "this side, nor modules of guildsync there. Every pull is compared with what was pushed, file by file, and so is "
    "every push, but those of restic and borg. guildsync and `rsync --fsync` wait for the disk, the others do not. tar "
    "and scp send everything each time, and are left out where something is there already. rsync+fsync is `rsync "
    "--fsync`; one channel is `cat` through a single session of ssh, a measure and no peer. A tool that fails has no "
    "time."
)


@dataclass(frozen=True)
class Kind:
    """`bounds` are the measures that rows may name. `about` has a place for `turns`. `quick`: what is measured in a
    hurry. `columns` stand between memory and bytes. `shared`: every tool should use a connection that is there."""

    title: str
    about: str
    peers: Mapping[str, type[Tool]]
    bounds: Sequence[type[Tool]]
    rows: Sequence[Row]
    quick: str
    columns: Sequence[Column]
    site: Callable[[Path], AbstractContextManager[Site]]
    shared: bool = False


KINDS = {
    "s3": Kind(
        "S3",
        _S3,
        PEERS,
        (Walk,),
        ROWS,
        "guildsync,restic,rclone,s5cmd",
        (("requests", lambda sample: sample.request_count),),
        s3_site,
    ),
    "ssh": Kind(
        "SSH",
        _SSH,
        SSH_PEERS,
        (OneChannel,),
        SSH_ROWS,
        "guildsync,rsync,rsync+fsync,tar+zstd",
        (
            ("connection's CPU s", lambda sample: sample.link_cpu),
            ("sessions", lambda sample: sample.request_count),
        ),
        ssh_site,
        shared=True,
    ),
}
