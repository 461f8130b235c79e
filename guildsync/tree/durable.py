"""Make what was written survive a power cut: each file by itself, or very many at once where nobody else is waiting."""

from __future__ import annotations

import functools
import os
from typing import Callable, Dict, Optional

MANY = 256
"""From so many files on one call for the whole filesystem may be cheaper than one for each."""
ALLOWED = 256 << 20
"""Bytes of others that such a call may have to wait for; neighbours' checkpoints are larger."""

_WRITE_AND_WAIT = 7  # SYNC_FILE_RANGE_WAIT_BEFORE | WRITE | WAIT_AFTER
_MEMINFO = "/proc/meminfo"
_HONEST = (5, 8)
"""The Linux from which on syncfs says when writing failed."""


class Durability:
    """How the files of one commit become durable. `at_once`: all of them by `finish`, else each by `sync`."""

    def __init__(self, fd: int, files: int, size: int) -> None:
        """`fd` lies on their filesystem; they are so many, of so many bytes."""
        self._fd = fd
        self._sync_all = _syncfs() if files >= MANY and _waiting() <= 2 * size + ALLOWED else None

    @property
    def at_once(self) -> bool:
        return self._sync_all is not None

    def sync(self, fd: int) -> None:
        """A file or a directory that is complete."""
        if self._sync_all is None:
            os.fsync(fd)

    def finish(self) -> None:
        """Afterwards all that was given to `sync` is durable. Raises OSError."""
        if self._sync_all is not None and self._sync_all(self._fd) != 0:
            raise OSError("the filesystem could not be written out")


EACH = Durability(-1, 0, 0)


def write_back(fd: int) -> None:
    """Have the pages written that a memory-mapped writer dirtied: its next touch changes the file's times again."""
    sync = _sync_file_range()
    if sync is None or sync(fd, 0, 0, _WRITE_AND_WAIT) != 0:
        os.fsync(fd)


def _waiting() -> int:
    """Bytes that wait to be written, everybody's."""
    try:
        with open(_MEMINFO, encoding="ascii") as file:
            rows: Dict[str, str] = dict(line.split(":", 1) for line in file if ":" in line)
        return sum(int(rows[name].split()[0]) for name in ("Dirty", "Writeback")) << 10
    except (OSError, KeyError, ValueError, IndexError):
        return 1 << 62


@functools.lru_cache(maxsize=None)
def _syncfs() -> Optional[Callable[[int], int]]:
    """None where there is none that can be relied on."""
    import ctypes

    release = os.uname().release.split(".")
    try:
        if os.uname().sysname != "Linux" or (int(release[0]), int(release[1])) < _HONEST:
            return None
    except (IndexError, ValueError):
        return None
    return getattr(ctypes.CDLL(None), "syncfs", None)


@functools.lru_cache(maxsize=None)
def _sync_file_range() -> Optional[Callable[[int, int, int, int], int]]:
    """Pages alone, without a flush of the device; None where the system cannot."""
    import ctypes

    found = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if found is not None:
        found.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return found
