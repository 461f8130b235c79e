"""Hash a file once, without ever taking a mixture of two versions for one."""

from __future__ import annotations

import hashlib
import os
from typing import List, NamedTuple, Optional, Tuple

from guildsync.model.manifest import PART_SIZE, Digest, Part

_ATTEMPTS = 3


class Hashed(NamedTuple):
    """What a file held: its size, the digest of its bytes, and the parts they are kept as."""

    size: int
    digest: Digest
    parts: Tuple[Part, ...]
    mtime_ns: int


class Torn(Exception):
    """The file changed each time it was read."""


def hash_bytes(data: bytes, mtime_ns: int) -> Hashed:
    """`data` as if it were a whole file."""
    parts = []
    if len(data) > PART_SIZE:
        view = memoryview(data)
        for start in range(0, len(data), PART_SIZE):
            piece = view[start : start + PART_SIZE]
            parts.append(Part(Digest(hashlib.sha256(piece).hexdigest()), len(piece)))
    return Hashed(len(data), Digest(hashlib.sha256(data).hexdigest()), tuple(parts), mtime_ns)


def hash_file(fd: int) -> Hashed:
    """The file behind `fd`. One that only grew meanwhile is taken as the prefix it had; raises Torn for any other
    change in each of three readings."""
    for _ in range(_ATTEMPTS):
        before = os.fstat(fd)
        first = _hash(fd, before.st_size)
        after = os.fstat(fd)
        if first is None:
            continue
        if _unchanged(before, after) or (after.st_size >= before.st_size and _hash(fd, before.st_size) == first):
            return Hashed(before.st_size, first[0], first[1], before.st_mtime_ns)
    raise Torn


def read_file(fd: int) -> Tuple[bytes, os.stat_result]:
    """All bytes of a small file behind `fd`; raises Torn as `hash_file` does."""
    for _ in range(_ATTEMPTS):
        before = os.fstat(fd)
        data = os.pread(fd, before.st_size + 1, 0)
        if len(data) == before.st_size and _unchanged(before, os.fstat(fd)):
            return data, before
    raise Torn


def _unchanged(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_size, one.st_mtime_ns, one.st_ctime_ns) == (other.st_size, other.st_mtime_ns, other.st_ctime_ns)


def _hash(fd: int, size: int) -> Optional[Tuple[Digest, Tuple[Part, ...]]]:
    """Digest and parts of the first `size` bytes; None where the file is shorter."""
    whole = hashlib.sha256()
    parts: List[Part] = []
    offset = 0
    while offset < size:
        block = os.pread(fd, min(PART_SIZE, size - offset), offset)
        if not block:
            return None
        while len(block) < PART_SIZE and offset + len(block) < size:
            more = os.pread(fd, min(PART_SIZE, size - offset) - len(block), offset + len(block))
            if not more:
                return None
            block += more
        whole.update(block)
        if size > PART_SIZE:
            parts.append(Part(Digest(hashlib.sha256(block).hexdigest()), len(block)))
        offset += len(block)
    return Digest(whole.hexdigest()), tuple(parts)
