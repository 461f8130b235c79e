"""Content-defined parts: a file that shifted keeps most of its objects."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

SMALLEST, USUAL, LARGEST = 256 << 10, 1 << 20, 4 << 20
"""Bytes of a part. They are part of the format: other sizes would cut known content anew."""

Cut = Callable[[int, int, int], Iterator[memoryview]]


@cache
def content_cut() -> Cut | None:
    """A cutter (see `tree.hashing.Cut`) by FastCDC; None where its compiled package is not there."""
    try:
        from pyfastcdc import FastCDC
    except ImportError:
        return None
    chunker: Any = FastCDC(avg_size=USUAL, min_size=SMALLEST, max_size=LARGEST)

    def cut(fd: int, start: int, stop: int) -> Iterator[memoryview]:
        return (chunk.data for chunk in chunker.cut_stream(_Section(fd, start, stop)))

    return cut


class _Section(io.RawIOBase):
    """The bytes [start, stop) of a file, without moving its position."""

    def __init__(self, fd: int, start: int, stop: int) -> None:
        self._fd, self._offset, self._stop = fd, start, stop

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._stop - self._offset]
        count = os.preadv(self._fd, [view], self._offset) if view else 0
        self._offset += count
        return count
