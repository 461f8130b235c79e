"""The trash of a home: runs put away and brought back by one rename each, and given up for good."""

from __future__ import annotations

import errno
import os
from typing import Callable, Collection, Iterator, List, Tuple

from guildsync.errors import ALIVE, CHANGED, MISSING, UNREADABLE, Problem
from guildsync.model.ports import Collected
from guildsync.model.run import RunId, checked_run_id
from guildsync.tree import attrs
from guildsync.tree.dirs import open_directory, remove_tree, sync_path
from guildsync.tree.home import Home

_LEFT = "it lies on another filesystem than the trash: put `runs` and `trash` on one"

Act = Callable[[RunId], List[Problem]]


class HomeTrash:
    """See `model.ports.Trash`. Wherever it dies, a run lives, lies in the trash, or was purged: one of them."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def hide(self, runs: Collection[RunId]) -> List[Problem]:
        return self._each(runs, self._hide)

    def reveal(self, runs: Collection[RunId]) -> List[Problem]:
        return self._each(runs, self._reveal)

    def purge(self, runs: Collection[RunId]) -> List[Problem]:
        """A tombstone stands before the run goes; its files are removed where nobody looks."""
        staging = self._home.staging()
        try:
            return self._each(runs, lambda run: self._purge(run, staging.fd))
        finally:
            staging.close(keep=False)

    def collect(self, dry: bool = False) -> Collected:
        """Free what processes that died have staged, and nobody can go on with; and end what was begun with runs that
        they had purged."""
        files = size = 0
        for path in self._home.left_behind():
            counted = _measure(path)
            files, size = files + counted[0], size + counted[1]
        if not dry:
            self._home.sweep()
            self._forget_gone()
        return Collected(files, size)

    def _forget_gone(self) -> None:
        if not self._home.inflight_runs():
            return
        with self._home.lock():
            for run in self._home.inflight_runs():
                if not any(map(os.path.lexists, self._paths(run))):
                    self._home.end(run)

    def _each(self, runs: Collection[RunId], act: Act) -> List[Problem]:
        problems: List[Problem] = []
        if not runs:
            return problems
        self._home.prepare()
        with self._home.lock():
            for run in sorted(map(checked_run_id, runs)):
                try:
                    problems += act(run)
                except OSError as exc:
                    detail = _LEFT if exc.errno == errno.EXDEV else exc.strerror or str(exc)
                    problems.append(Problem(run, None, UNREADABLE, detail))
            sync_path(self._home.trash)
            sync_path(self._home.runs)
        return problems

    def _hide(self, run: RunId) -> List[Problem]:
        living, trashed = self._paths(run)
        try:
            if _is_running(living):
                return [Problem(run, None, ALIVE, "it is running here: stop it first")]
        except FileNotFoundError:
            known = self._home.is_deleted(run) or self._home.is_purged(run)
            return [] if known else [Problem(run, None, MISSING, "there is no such run")]
        if self._home.is_deleted(run):
            detail = "an older run of the same id lies in the trash: `guildsync runs purge` it first"
            return [Problem(run, None, CHANGED, detail)]
        os.rename(living, trashed)
        return []

    def _reveal(self, run: RunId) -> List[Problem]:
        living, trashed = self._paths(run)
        self._home.forget_purged(run)
        if not self._home.is_deleted(run):
            return []
        if os.path.lexists(living):
            return [Problem(run, None, CHANGED, "a run of the same id lives here: delete that first")]
        os.rename(trashed, living)
        return []

    def _purge(self, run: RunId, staging: int) -> List[Problem]:
        living, trashed = self._paths(run)
        if not self._home.is_deleted(run):
            return []
        if _is_running(trashed):
            return [Problem(run, None, ALIVE, "it is running here, from the trash: stop it first")]
        if not os.path.lexists(living):
            self._home.note_purged(run)
        os.rename(trashed, os.fsencode(run), dst_dir_fd=staging)
        self._home.end(run)
        try:
            remove_tree(os.fsencode(run), staging)
        except OSError:
            pass  # it is nobody's run any more; what could not be removed is left where nobody looks
        return []

    def _paths(self, run: RunId) -> Tuple[bytes, bytes]:
        name = os.fsencode(run)
        return os.path.join(self._home.runs, name), os.path.join(self._home.trash, name)


def _is_running(path: bytes) -> bool:
    """Is a process of the run in this directory alive? Raises OSError where there is none."""
    fd = open_directory(path)
    try:
        return attrs.alive(fd)
    finally:
        os.close(fd)


def _measure(path: bytes) -> Tuple[int, int]:
    """(files, bytes) at or below a path that is ours."""
    files = size = 0
    for info in _stats(path):
        files, size = files + 1, size + info.st_size
    return files, size


def _stats(path: bytes) -> Iterator[os.stat_result]:
    for top, _, names in os.walk(path):
        for name in names:
            try:
                yield os.lstat(os.path.join(top, name))
            except OSError:
                continue  # another one removes it
