"""A command as a process of its own, and what it took: memory, descriptors, time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_LAUNCHER = """
import json, os, resource, select, sys, time
limit, argv = int(sys.argv[1]), sys.argv[2:]
began = time.monotonic()
pid = os.fork()
if pid == 0:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    os.dup2(2, 1)
    os.execv(argv[0], argv)
most, ended = 0, select.poll()
ended.register(os.pidfd_open(pid), select.POLLIN)
while not ended.poll(5):
    try:
        most = max(most, len(os.listdir(f"/proc/{pid}/fd")))
    except OSError:
        pass
_, status, usage = os.wait4(pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024, most, time.monotonic() - began]))
"""
"""Its child's peak of memory begins with what is resident here at the fork, which is next to nothing; a child of the
test's own process would begin with all of pytest."""


@dataclass(frozen=True)
class Measured:
    """`rss` is the peak of resident memory in MiB, `descriptors` the most that were open when it was looked."""

    code: int
    rss: float
    descriptors: int
    seconds: float
    said: str


def measured(argv: list[str], env: Mapping[str, str], limit: int = 128) -> Measured:
    """Run `python -m guildsync …`, which may open `limit` descriptors."""
    command = [sys.executable, "-m", "guildsync", *argv]
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(limit), *command],
        env={**env, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return Measured(*json.loads(ran.stdout), ran.stderr)


def resident(pid: int, most: bool = False) -> float:
    """Memory of a process in MiB: now, or (`most`) at its peak, which begins anew with each program it runs."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines if line.endswith(" kB"))
    return int(values["VmHWM" if most else "VmRSS"].split()[0]) / 1024


def children(pid: int) -> list[int]:
    """All that come from a process."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found += [int(name), *children(int(name))]
        except OSError:
            continue
    return found


@dataclass
class Descriptors:
    """The most that a process had open when it was looked."""

    most: int = 0


@contextmanager
def descriptors(pid: int) -> Iterator[Descriptors]:
    """Looks at a process, which goes on, again and again while the body does."""
    found, over = Descriptors(), threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            found.most = max(found.most, len(os.listdir(f"/proc/{pid}/fd")))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
