"""Two remotes that are to be synced: whether they can be, and that one process at a time mirrors them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from guildsync.config import LOCAL
from guildsync.errors import GuildsyncError, Usage
from guildsync.model.paths import Paths
from guildsync.remotes import Home, Remote

STORE = "store"
GROWTH = 30.0
"""Seconds between two commits to a store while files only grow."""
PASSING = (b"*.tmp", b"*-journal", b"*-wal", b"*-shm", b"*~", b".*.sw[a-p]", b".#*", b"#*#")
"""What programs put down for a moment beside the files they write: SQLite's journals, what editors drop. No mirror has
them."""


@contextmanager
def mirroring(home: Home, one: Remote, other: Remote) -> Iterator[None]:
    """Raises GuildsyncError where another process mirrors the same two places."""
    place = other.where if one.name == LOCAL else one.where
    with home.mirroring(place) as alone:
        if not alone:
            raise GuildsyncError(f"another guildsync mirrors {place} and this home already", "one at a time does it")
        yield


def lasting(paths: Paths) -> Paths:
    """Without what is there for a moment only."""
    return Paths(paths.includes, (*paths.excludes, *PASSING))


def alike(source: Remote, target: Remote) -> tuple[Remote, Remote]:
    """Both sides with the same view of captured environments: they travel as they are where every remote says so, and
    the home says nothing. Raises Usage where they would have to be redacted on their way out of a store."""
    kept = {side.name: side.config.keep_env for side in (source, target) if side.name != LOCAL}
    keep = all(kept.values())
    if source.layout == STORE and source.config.keep_env and not keep:
        raise Usage(
            f"{source.name} keeps captured environments as they are, and {target.name} does not",
            f"say `keep-env: true` at {target.name}, or pull the runs and push them: that leaves the secrets here",
        )
    one, other = (replace(side, config=replace(side.config, keep_env=keep)) for side in (source, target))
    return one, other


def same_place(source: str, target: str) -> Usage:
    if source == target:
        return Usage(f"{source} cannot be both source and target", "name two places")
    return Usage(
        f"{source} and {target} are the same place, by the id that lies there",
        "a home that was copied by hand keeps the id: remove .guildsync/identity in one of the two",
    )
