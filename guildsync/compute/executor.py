"""Runs of a home on the machine where they lie: started, followed, stopped."""

from __future__ import annotations

import os
import re
import time
from typing import Optional, Tuple

from guildsync.compute.claim import started_in
from guildsync.compute.local import launch, stop_run
from guildsync.compute.spec import Spec
from guildsync.errors import NotFound, SafetyStop, Usage
from guildsync.model.ports import Order, Output
from guildsync.model.run import RunId, checked_run_id
from guildsync.procinfo import is_alive

BLOCK = 1 << 20
_POLL = 0.02
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_STATUS = re.compile(rb"(-?[0-9]{1,9})\n?")


class LocalExecutor:
    """See `model.ports.Executor`."""

    def __init__(self, runs: bytes, umask: Optional[int] = None) -> None:
        """`runs`: the directory they lie in. `umask`: that of what is started; None: that of this process."""
        self._runs, self._umask = runs, umask

    def start(self, run: RunId, order: Order) -> bool:
        path = self._path(run)
        argv = [os.path.expanduser(order.argv[0]) if order.argv else "", *order.argv[1:]]
        if order.runner_at is not None:
            argv.insert(order.runner_at, os.path.join(os.path.dirname(os.path.abspath(__file__)), "runner.py"))
        spec = Spec(
            path,
            tuple(argv),
            order.env,
            order.secrets,
            order.init,
            order.activate,
            umask=self._umask,
            after=order.after,
        )
        return not launch(spec).already

    def output(self, run: RunId, offset: int, wait: float) -> Output:
        path = self._path(run)
        output = os.path.join(path, ".guild", "output")
        deadline = time.monotonic() + wait
        while True:
            ended, status = self._state(path)  # before reading: what comes after the end is nothing
            data = _read(output, offset, BLOCK)
            if data or ended or time.monotonic() >= deadline:
                return Output(data, ended and len(data) < BLOCK, status, max(_size(output), offset + len(data)))
            time.sleep(_POLL)

    def stop(self, run: RunId, patience: float) -> str:
        path = self._path(run)
        where = _elsewhere(path)
        if where is not None:
            raise SafetyStop(f"it runs on {where}", "stop it there")
        return stop_run(path, patience).outcome

    def _path(self, run: RunId) -> str:
        path = os.path.join(os.fsdecode(self._runs), checked_run_id(run))
        if not os.path.isdir(path):
            raise NotFound(f"there is no run {run} there")
        return path

    def _state(self, path: str) -> Tuple[bool, Optional[int]]:
        """As long as a run goes on elsewhere, what is pulled of it may grow."""
        if _elsewhere(path) is not None:
            return False, None
        found = _STATUS.fullmatch(_read(os.path.join(path, ".guild", "attrs", "exit_status"), 0, 64))
        if found is not None:
            return True, int(found[1])
        started = started_in(path)
        if started is not None:
            return not is_alive(started.supervisor), None
        return not _lives(_read(os.path.join(path, ".guild", "LOCK"), 0, 64)), None


def _elsewhere(path: str) -> Optional[str]:
    """The remote where a run that was pulled goes on."""
    marker = os.path.join(path, ".guild", "LOCK.remote")
    return _read(marker, 0, 256).decode("utf-8", "replace").strip() if os.path.lexists(marker) else None


def _lives(lock: bytes) -> bool:
    """Does a run that something else started seem to be running?"""
    try:
        os.kill(int(lock), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except OSError:
        return True
    return int(lock) > 0


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def _read(path: str, offset: int, size: int) -> bytes:
    if not 0 <= offset < 1 << 63:
        raise Usage("there is no such place in a file")
    try:
        fd = os.open(path, _READ)
    except OSError:
        return b""
    try:
        return os.pread(fd, size, offset)
    except OSError:
        return b""
    finally:
        os.close(fd)
