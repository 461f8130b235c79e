"""Where in a home's runs objects lie already; whoever copies them hashes them again."""

from __future__ import annotations

from typing import Callable, Dict, Iterable, Optional

from guildsync.model.manifest import Digest, Manifest
from guildsync.model.ports import Want
from guildsync.model.run import RunId
from guildsync.tree.scan import Scanned

Lists = Callable[[RunId], Optional[Manifest]]


class Here:
    """What was scanned, or put down, by one sync; and once `widen` was called, what is remembered of other runs."""

    def __init__(self) -> None:
        self._scans: Dict[RunId, Scanned] = {}
        self._others: Optional[Dict[Digest, Want]] = None
        self._here: Optional[Dict[Digest, Want]] = None

    @property
    def is_wide(self) -> bool:
        return self._others is not None

    def note(self, run: RunId, found: Scanned) -> None:
        self._scans[run] = found
        self._here = None

    def widen(self, runs: Iterable[RunId], remembered: Lists) -> None:
        """Think of runs that were not scanned, too: where their objects lay when they were."""
        self._others, self._here = {}, None
        for run in runs:
            manifest = remembered(run) if run not in self._scans else None
            if manifest is not None:
                self._others.update(_objects(run, manifest))

    def forget(self) -> None:
        """Something of it is no longer so: nobody is to rely on any of it."""
        self._scans.clear()
        self._others, self._here = {}, None

    def objects(self) -> Dict[Digest, Want]:
        if self._here is None:
            self._here = dict(self._others or {})
            for run, scanned in self._scans.items():
                self._here.update(_objects(run, scanned.manifest))
        return self._here


def _objects(run: RunId, manifest: Manifest) -> Dict[Digest, Want]:
    return {
        part.digest: Want(part.digest, part.size, run, entry.path, part.offset)
        for entry in manifest.entries
        for part in entry.objects()
    }
