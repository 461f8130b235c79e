"""Hash a file once, without ever taking a mixture of two versions for one."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Callable, Iterable, Iterator, List, NamedTuple, Optional, Tuple, Union

from guildsync.model.manifest import PART_SIZE, Digest, Entry, Part

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

Buffer = Union[bytes, memoryview]
Cut = Callable[[int, int, int], Iterable[Buffer]]
"""(descriptor, start, stop) -> the bytes between as consecutive pieces, each to be a part; fewer where the file is
shorter. No piece is larger than an object may be, and each may be spoilt by asking for the next."""

SHORT_PART = 256 << 10
"""Parts below this come from growth in small steps."""

_ATTEMPTS = 3
_SHORT_PARTS = 16


class Hashed(NamedTuple):
    """What a file held: its size, the digest of its bytes, and the parts they are kept as. `data` are the bytes where
    they are one object. `grew`: they begin with all that the file was before."""

    size: int
    digest: Digest
    parts: Tuple[Part, ...]
    mtime_ns: int
    data: Optional[bytes] = None
    grew: bool = False


class Torn(Exception):
    """The file changed each time it was read."""


def hash_bytes(data: bytes, mtime_ns: int) -> Hashed:
    """`data` as if it were a whole file."""
    if len(data) <= PART_SIZE:
        return Hashed(len(data), Digest(hashlib.sha256(data).hexdigest()), (), mtime_ns, data)
    parts = []
    view = memoryview(data)
    for start in range(0, len(data), PART_SIZE):
        piece = view[start : start + PART_SIZE]
        parts.append(Part(Digest(hashlib.sha256(piece).hexdigest()), len(piece)))
    return Hashed(len(data), Digest(hashlib.sha256(data).hexdigest()), tuple(parts), mtime_ns)


def hash_file(fd: int, before: Optional[Entry] = None, cut: Optional[Cut] = None, once: bool = False) -> Hashed:
    """The file behind `fd`. One that only grew meanwhile is taken as the prefix it had; raises Torn for any other
    change in each of three readings, or in the first (`once`).

    `before` is what the file was: where it begins with that still, it keeps its parts and gets some for its tail.
    `cut` says where parts end, else they are of equal size.
    """
    cut = cut or even
    for _ in range(1 if once else _ATTEMPTS):
        now = os.fstat(fd)
        if now.st_size <= PART_SIZE:
            data = os.pread(fd, now.st_size + 1, 0)
            if len(data) == now.st_size and _unchanged(now, os.fstat(fd)):
                return hash_bytes(data, now.st_mtime_ns)._replace(grew=_begins(data, before))
        first = _hash(fd, now.st_size, before, cut)
        after = os.fstat(fd)
        if first is None:
            continue
        is_prefix_likely = after.st_size > now.st_size or (after.st_size == now.st_size and not once)
        if _unchanged(now, after) or (is_prefix_likely and _hash(fd, now.st_size, before, cut) == first):
            return Hashed(now.st_size, first[0], first[1], now.st_mtime_ns, grew=first[2])
    raise Torn


def _begins(data: bytes, before: Optional[Entry]) -> bool:
    if before is None or before.digest is None or before.size > len(data):
        return False
    return hashlib.sha256(memoryview(data)[: before.size]).hexdigest() == before.digest


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


def even(fd: int, start: int, stop: int) -> Iterator[bytes]:
    """The bytes of a file in pieces of equal size; fewer where it is shorter (see `Cut`)."""
    for offset in range(start, stop, PART_SIZE):
        yield read_at(fd, min(PART_SIZE, stop - offset), offset)


def read_at(fd: int, size: int, offset: int) -> bytes:
    """`size` bytes of a file, fewer only at its end."""
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _hash(fd: int, size: int, before: Optional[Entry], cut: Cut) -> Optional[Tuple[Digest, Tuple[Part, ...], bool]]:
    """Digest and parts of the first `size` bytes, and whether they begin with what was there `before`; None where the
    file is shorter."""
    kept = tuple(Part(found.digest, found.size) for found in before.objects()) if before is not None else ()
    start = before.size if before is not None and before.size <= size else 0
    whole = hashlib.sha256()
    count = _add(whole, even(fd, 0, start))
    grew = before is not None and before.size <= size and whole.hexdigest() == before.digest
    if start and (not grew or _crumbled(kept)):
        found = _hash(fd, size, None, cut)
        return found and (*found[:2], grew)
    parts: List[Part] = []
    if size <= PART_SIZE:
        count += _add(whole, even(fd, start, size))
    else:
        parts += kept if start else ()
        with ThreadPoolExecutor(1) as other:  # hashing lets go of the interpreter
            for piece in cut(fd, start, size):
                added = other.submit(whole.update, piece)
                parts.append(Part(Digest(hashlib.sha256(piece).hexdigest()), len(piece)))
                added.result()
                count += len(piece)
    return (Digest(whole.hexdigest()), tuple(parts), grew) if count == size else None


def _crumbled(parts: Tuple[Part, ...]) -> bool:
    """So many short parts that the file is better cut anew."""
    return sum(1 for part in parts if part.size < SHORT_PART) > _SHORT_PARTS


def _add(whole: Hash, pieces: Iterable[Buffer]) -> int:
    count = 0
    for piece in pieces:
        whole.update(piece)
        count += len(piece)
    return count
