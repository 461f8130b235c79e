"""A command as a process of its own, and what it took: memory, descriptors, time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
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
