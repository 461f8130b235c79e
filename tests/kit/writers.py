"""Other processes that change a file while it is synced: through a mapping, or by all the ways of writing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np

MIB = 1 << 20
STAMP = 8
"""Bytes of a generation's number, which is all that a file of that generation is made of."""

_MAPPED = """
import mmap, os, sys
size = os.stat(sys.argv[1]).st_size
fd = os.open(sys.argv[1], os.O_RDWR)
mapped = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
os.close(fd)
os.write(1, b"!")
while True:
    number = os.read(0, 8)
    if len(number) < 8:
        break
    mapped[:] = number * (size // 8) + number[: size % 8]
    os.write(1, b"!")
"""

_PAGED = """
import os, sys
size = os.stat(sys.argv[1]).st_size
fd = os.open(sys.argv[1], os.O_RDWR)
os.write(1, b"!")
while True:
    number = os.read(0, 8)
    if len(number) < 8:
        break
    page = number * 512
    for offset in range(0, size, len(page)):
        os.pwrite(fd, page[: size - offset], offset)
    os.write(1, b"!")
"""

_WRITER = """
import itertools, os, select, sys
path, way, size, block = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def asked():
    return bool(select.select([0], [], [], 0)[0])

def fill(fd, number):
    stamp = number.to_bytes(8, "little") * (block // 8)
    for offset in range(0, size, block):
        os.pwrite(fd, stamp[: size - offset], offset)

def in_place(number):
    fill(fd, number)

def rewritten(number):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    fill(fd, number)
    os.close(fd)

def renamed(number):
    fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    fill(fd, number)
    os.close(fd)
    os.rename(path + ".new", path)

def appended(number):
    count = block // 8
    data = b"".join((number * count + k).to_bytes(8, "little") for k in range(count))
    os.write(fd, data[: count * 5])
    os.write(fd, data[count * 5 :])

fd = os.open(path, os.O_WRONLY | (os.O_APPEND if way == "appended" else 0))
step = {"in_place": in_place, "rewritten": rewritten, "renamed": renamed, "appended": appended}[way]
first = os.fstat(fd).st_size // block if way == "appended" else 1
for number in itertools.count(first):
    step(number)
    if number == first:
        os.write(1, b"!")
    if asked():
        break
"""


class Mapper:
    """A process that has a file mapped into its memory, shared, and stores to it without any call to the system."""

    _program = _MAPPED

    def __init__(self, path: str | bytes | os.PathLike[str]) -> None:
        self._child = _python(self._program, os.fsdecode(path))
        self._size = os.stat(path).st_size
        self._wait()

    @property
    def pid(self) -> int:
        return self._child.pid

    def store(self, number: int) -> bytes:
        """Fill the mapping; answers what the file holds from now on."""
        stamp = number.to_bytes(STAMP, "little")
        assert self._child.stdin is not None
        self._child.stdin.write(stamp)
        self._wait()
        return stamp * (self._size // STAMP) + stamp[: self._size % STAMP]

    def end(self) -> None:
        """The process is gone afterwards."""
        _end(self._child)

    def _wait(self) -> None:
        assert self._child.stdout is not None
        assert self._child.stdout.read(1) == b"!"

    def __enter__(self) -> Mapper:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.end()


class Pager(Mapper):
    """A process that writes every page of a file in place, one call for each."""

    _program = _PAGED


@contextmanager
def writing(path: Path, way: str, size: int, block: int = MIB) -> Iterator[None]:
    """A process that writes a file in this way, generation after generation, from before the body until after it. One
    generation is there when the body begins; the last one is whole afterwards."""
    child = _python(_WRITER, str(path), way, str(size), str(block))
    try:
        assert child.stdout is not None
        assert child.stdout.read(1) == b"!"
        yield
        assert child.poll() is None
    finally:
        _end(child)


def generation(number: int, size: int) -> bytes:
    """A whole file of one generation; `size` is a multiple of a stamp's."""
    return number.to_bytes(STAMP, "little") * (size // STAMP)


def appended(size: int) -> bytes:
    """The first `size` bytes of what is appended for ever."""
    return np.arange(-(-size // STAMP), dtype="<u8").tobytes()[:size]


def stretches(data: bytes) -> list[int]:
    """The generations in the order in which they stand in a file, each named once for every stretch of it."""
    numbers = np.frombuffer(data, dtype="<u8")
    edges = np.flatnonzero(np.diff(numbers)) + 1
    return [int(number) for number in numbers[np.concatenate([np.arange(min(1, len(numbers))), edges])]]


def _python(code: str, *args: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-I", "-S", "-c", code, *args]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends by itself when its input ends."""
    try:
        child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
