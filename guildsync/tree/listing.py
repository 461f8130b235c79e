"""The runs of a home as a listing has them: attributes and markers, nothing parsed."""

from __future__ import annotations

import os
from typing import Iterator, List, Optional, Set

from guildsync.model.ports import Only, RawRecord
from guildsync.model.run import NO_ATTRIBUTES, RunId
from guildsync.tree import attrs
from guildsync.tree.home import Home
from guildsync.tree.measure import measured


def listed(home: Home, deleted: Optional[bool], sizes: bool, only: Only = None) -> Iterator[RawRecord]:
    """See `model.ports.Source.runs`. What was asked for by name costs no look at the others."""
    inflight = frozenset(home.inflight_runs())
    seen: Set[RunId] = set()
    for trashed in (False, True) if deleted is None else (deleted,):
        for run in home.run_ids(trashed) if only is None else only:
            try:
                fd = home.open_run(run, trashed)
            except OSError:
                continue  # it went away since the listing, or is no directory
            try:
                if run not in seen:
                    found = attrs.read_attributes(fd, run in inflight)
                    yield RawRecord(run, measured(home, run, fd, found) if sizes else found, trashed)
                    seen.add(run)
            finally:
                os.close(fd)
    for run in _purged(home, only) if deleted is None else ():
        if run not in seen:
            yield RawRecord(run, NO_ATTRIBUTES, deleted=True, purged=True)


def _purged(home: Home, only: Only) -> List[RunId]:
    return home.purged_runs() if only is None else [run for run in only if home.is_purged(run)]
