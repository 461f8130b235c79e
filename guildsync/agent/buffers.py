"""Bytes of frames on their way in and out, copied as seldom as can be."""

from __future__ import annotations

import fcntl
import itertools
import os
from collections import deque
from typing import Any, Deque, Dict

LARGE = 1 << 16
"""Bodies from this size on are neither copied on their way out nor gathered from pieces."""
_BUFFERS = 64
_PIPE = 1 << 20
_F_SETPIPE_SZ = 1031  # fcntl has no name for it before Python 3.10


class Body:
    """The body of a frame while it comes."""

    def __init__(self, size: int, came: memoryview) -> None:
        self.header: Dict[str, Any] = {}
        self.data = bytearray(size)
        self.data[: len(came)] = came
        self.missing = memoryview(self.data)[len(came) :]


class Outgoing:
    """Buffers on their way to a descriptor; large ones are not copied."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._queue: Deque[memoryview] = deque()
        self._small = bytearray()
        self.size = 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        if len(data) < LARGE:
            self._small += data
            return
        self._flush()
        self._queue.append(memoryview(data))

    def write(self) -> int:
        """What the descriptor takes at once, in bytes. Raises OSError."""
        self._flush()
        count = os.writev(self._fd, list(itertools.islice(self._queue, _BUFFERS)))
        left = count
        while left:
            first = self._queue[0]
            if left < len(first):
                self._queue[0] = first[left:]
                break
            left -= len(first)
            self._queue.popleft()
        self.size -= count
        return count

    def _flush(self) -> None:
        if self._small:
            self._queue.append(memoryview(self._small))
            self._small = bytearray()


def enlarge(fd: int) -> None:
    """Where it is a pipe: fewer wake-ups."""
    try:
        fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIPE)
    except OSError:
        pass  # it is none, or may not grow
