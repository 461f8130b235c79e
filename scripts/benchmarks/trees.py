"""Compares homes."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator
from pathlib import Path

LARGE = 1 << 28
"""Bytes of a home that is removed at once where it is not needed, lest the disk fill."""

_VIEWED = "env"
"""A file that guildsync redacts on its way out, so that its contents may change."""

_MARKS = frozenset({"LOCK.remote"})
"""What Guild AI writes into a run that it pulls."""


def census(home: Path) -> tuple[int, int]:
    """Count and bytes of the files below `home`."""
    files = size = 0
    for top, _, names in os.walk(home):
        files += len(names)
        size += sum(Path(top, name).lstat().st_size for name in names)
    return files, size


def difference(home: Path, other: Path) -> str:
    """What `other/runs` lacks, has in excess, or has with other contents; empty where they are alike."""
    ours, theirs = set(_files(home / "runs")), set(_files(other / "runs"))
    if ours != theirs:
        first = min(ours ^ theirs)
        return f"{len(ours - theirs)} files were not delivered, {len(theirs - ours)} are too many: {first}"
    for name in sorted(ours):
        one, two = home / "runs" / name, other / "runs" / name
        if two.name != _VIEWED and not filecmp.cmp(one, two, shallow=False):
            return f"other contents were delivered: {name}"
    return ""


def _files(top: Path) -> Iterator[str]:
    for directory, _, names in os.walk(top):
        yield from (os.path.relpath(os.path.join(directory, name), top) for name in names if name not in _MARKS)
