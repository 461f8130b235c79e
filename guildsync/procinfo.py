"""Which process is which: of which boot, started when, and whether it lives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, List, NamedTuple, Optional

MAX_PROCESS = 4096
"""Bytes of the file that holds a Started."""

_VERSION = 1
_PROC = sys.platform != "darwin"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_DEADLINE = 10.0


class Stat(NamedTuple):
    """A process as the system lists it. `start` is comparable on one boot alone. A zombie has ended, and its id is not
    free yet."""

    pid: int
    zombie: bool
    group: int
    session: int
    start: str


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Another after each boot of this machine; empty where the system has none."""
    if _PROC:
        try:
            with open(_BOOT_ID, "rb") as file:
                return file.read(100).decode("ascii", "replace").strip()
        except OSError:
            return ""
    return _said(["sysctl", "-n", "kern.bootsessionuuid"]) or _said(["sysctl", "-n", "kern.boottime"])


def stat(pid: int) -> Optional[Stat]:
    """None where there is no such process, or it cannot be seen."""
    if _PROC:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                return parsed_stat(file.read(4096))
        except OSError:
            return None
    return next(iter(_listed(["-p", str(pid)])), None)


def start_time(pid: int) -> Optional[str]:
    """When a process was started, in the system's own words; zombies have a start time, too."""
    found = stat(pid)
    return None if found is None else found.start


def processes() -> List[Stat]:
    """All that can be seen."""
    if not _PROC:
        return _listed(["-ax"])
    found = (stat(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [each for each in found if each is not None]


def parsed_stat(data: bytes) -> Optional[Stat]:
    """/proc/<pid>/stat. The name in it may hold anything: what counts stands behind the last parenthesis."""
    head, _, tail = data.rpartition(b")")
    words = tail.split()
    try:
        state, group, session, start = words[0], int(words[2]), int(words[3]), int(words[19])
        return Stat(int(head.partition(b" ")[0]), state in (b"Z", b"X", b"x"), group, session, str(start))
    except (IndexError, ValueError):
        return None


def _listed(which: List[str]) -> List[Stat]:
    """By ps, where there is no /proc; it does not show sessions as numbers."""
    found = []
    for line in _said(["ps", *which, "-o", "pid=", "-o", "pgid=", "-o", "stat=", "-o", "lstart="]).splitlines():
        words = line.split(None, 3)
        if len(words) == 4 and words[0].isdigit() and words[1].isdigit():
            found.append(Stat(int(words[0]), words[2].startswith("Z"), int(words[1]), 0, words[3].strip()))
    return found


def _said(argv: List[str]) -> str:
    try:
        ran = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_DEADLINE,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "TZ": "UTC"},
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return ran.stdout.decode("utf-8", "replace").strip()


@dataclass(frozen=True)
class Identity:
    """One process, and no other that later gets its id."""

    pid: int
    start: str
    boot: str

    def to_json(self) -> Any:
        return {"pid": self.pid, "start": self.start, "boot": self.boot}

    @classmethod
    def from_json(cls, value: Any) -> Identity:
        """Raises ValueError, TypeError, KeyError."""
        pid, start, boot = value["pid"], value["start"], value["boot"]
        if type(pid) is not int or not 1 < pid < 1 << 31 or not isinstance(start, str) or not isinstance(boot, str):
            raise ValueError("not a process")
        return cls(pid, start, boot)


def identity(pid: int) -> Optional[Identity]:
    start = start_time(pid)
    return None if start is None else Identity(pid, start, boot_id())


def is_there(wanted: Identity) -> bool:
    """Does its id still stand for it? Yes for a zombie: nobody else can have the id."""
    return wanted.boot == boot_id() and start_time(wanted.pid) == wanted.start


def is_alive(wanted: Identity) -> bool:
    """Is it running? No for a zombie."""
    if wanted.boot != boot_id():
        return False
    found = stat(wanted.pid)
    return found is not None and found.start == wanted.start and not found.zombie


@dataclass(frozen=True)
class Started:
    """What `.guild/sync/process` says of a run that a supervisor started: the supervisor, and the training process,
    whose id is that of its process group and session, too."""

    supervisor: Identity
    process: Identity

    def to_json(self) -> Any:
        return {"version": _VERSION, "supervisor": self.supervisor.to_json(), "process": self.process.to_json()}

    @classmethod
    def from_json(cls, value: Any) -> Started:
        """Raises ValueError, TypeError, KeyError."""
        if value["version"] != _VERSION:
            raise ValueError("another version")
        return cls(Identity.from_json(value["supervisor"]), Identity.from_json(value["process"]))

    def encode(self) -> bytes:
        return json.dumps(self.to_json(), sort_keys=True).encode() + b"\n"

    @property
    def is_alive(self) -> bool:
        """A training process that lost its supervisor still writes; a supervisor without it soon has its end."""
        return is_alive(self.process) or is_alive(self.supervisor)


def decode_started(data: bytes) -> Optional[Started]:
    """None for what is not one, or of a version we do not know."""
    try:
        return Started.from_json(json.loads(data))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
