"""Hash a file once, without ever taking a mixture of two versions for one."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, List, NamedTuple, Optional, Tuple

from guildsync.model.manifest import PART_SIZE, Digest, Entry, Part

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

_ATTEMPTS = 3
_SHORT_PARTS = 16


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


def hash_file(fd: int, before: Optional[Entry] = None) -> Hashed:
    """The file behind `fd`. One that only grew meanwhile is taken as the prefix it had; raises Torn for any other
    change in each of three readings.

    `before` is what the file was: where it begins with that still, it keeps its parts and gets some for its tail.
    """
    for _ in range(_ATTEMPTS):
        now = os.fstat(fd)
        first = _hash(fd, now.st_size, before)
        after = os.fstat(fd)
        if first is None:
            continue
        if _unchanged(now, after) or (after.st_size >= now.st_size and _hash(fd, now.st_size, before) == first):
            return Hashed(now.st_size, first[0], first[1], now.st_mtime_ns)
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


def _hash(fd: int, size: int, before: Optional[Entry]) -> Optional[Tuple[Digest, Tuple[Part, ...]]]:
    """Digest and parts of the first `size` bytes; None where the file is shorter."""
    kept = tuple(Part(found.digest, found.size) for found in before.objects()) if before is not None else ()
    start = before.size if before is not None and before.size <= size and not _crumbled(kept) else 0
    whole = hashlib.sha256()
    if start and not _read_into(fd, whole, 0, start):
        return None
    if start and before is not None and whole.hexdigest() != before.digest:
        return _hash(fd, size, None)
    if size <= PART_SIZE:
        return (Digest(whole.hexdigest()), ()) if _read_into(fd, whole, start, size - start) else None
    parts: List[Part] = list(kept) if start else []
    for offset in range(start, size, PART_SIZE):
        part = hashlib.sha256()
        if not _read_into(fd, whole, offset, min(PART_SIZE, size - offset), part):
            return None
        parts.append(Part(Digest(part.hexdigest()), min(PART_SIZE, size - offset)))
    return Digest(whole.hexdigest()), tuple(parts)


def _crumbled(parts: Tuple[Part, ...]) -> bool:
    """So many short parts that the file is better cut anew."""
    return sum(1 for part in parts if part.size < PART_SIZE) > _SHORT_PARTS


def _read_into(fd: int, whole: Hash, offset: int, size: int, part: Optional[Hash] = None) -> bool:
    """Hash `size` bytes at `offset`; False where the file ends before."""
    end = offset + size
    while offset < end:
        block = os.pread(fd, min(PART_SIZE, end - offset), offset)
        if not block:
            return False
        whole.update(block)
        if part is not None:
            part.update(block)
        offset += len(block)
    return True
