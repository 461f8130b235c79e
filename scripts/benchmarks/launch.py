"""Runs commands one after the other and says what they cost; a small process of its own, for a child's peak memory
is never less than that of the process that started it. Takes a JSON document on standard input, answers one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TIMED_OUT = 124


def launch(
    steps: Sequence[Sequence[str]], cwd: Path, env: Mapping[str, str], log: Path, timeout: float
) -> dict[str, Any]:
    """Answers `code` (the first that is not 0 ends it; 124 means out of time), `seconds`, `cpu` in seconds of
    processor and `peak` in bytes. Output goes to `log`."""
    order = {"steps": steps, "cwd": str(cwd), "env": dict(env), "log": str(log), "timeout": timeout}
    argv = [sys.executable, "-I", "-S", __file__]
    done = subprocess.run(argv, input=json.dumps(order), capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _one(argv: list[str], env: dict[str, str], log: int, timeout: float) -> tuple[int, Any]:
    to_log = [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
    nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    child = os.posix_spawn(argv[0], argv, env, file_actions=[nothing, *to_log], setpgroup=0)
    late = False

    def end(*_: object) -> None:
        nonlocal late
        late = True
        os.killpg(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    _, status, usage = os.wait4(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return TIMED_OUT if late else os.waitstatus_to_exitcode(status), usage


def _main() -> None:
    order = json.load(sys.stdin)
    os.chdir(order["cwd"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    unit = 1 if sys.platform == "darwin" else 1024
    code, cpu, peak, began = 0, 0.0, 0, time.perf_counter()
    for argv in order["steps"]:
        left = max(0.01, order["timeout"] - (time.perf_counter() - began))
        code, usage = _one(argv, order["env"], log, left)
        cpu += usage.ru_utime + usage.ru_stime
        peak = max(peak, usage.ru_maxrss * unit)
        if code:
            break
    print(json.dumps({"code": code, "seconds": time.perf_counter() - began, "cpu": cpu, "peak": peak}))


if __name__ == "__main__":
    _main()
