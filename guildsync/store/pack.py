"""Objects <-> packs: compression, index, coalesced ranged reads.

A pack is MAGIC, 16 random bytes (so that no name ever repeats), objects back to back, the index (one row an object),
and a trailer that says where the index begins. Its name is the SHA-256 of all its bytes.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import zstandard

from guildsync.errors import Damaged
from guildsync.model.manifest import Digest, checked_digest, digest_of
from guildsync.store.journal import PackFact

MAGIC = b"gsyncpk\x01"
INDEX_MAGIC = b"gsyncidx"
SALT = 16
HEADER = len(MAGIC) + SALT
ROW = struct.Struct(">32sQQQB")
TRAILER = struct.Struct(">Q32s8s")
EMPTY = HEADER + TRAILER.size
"""Bytes of a pack beside its objects and their rows."""

RAW, ZSTD = 0, 1
LARGEST_PACK = 16 << 20
"""Bytes from which a pack is full, without its index; on slow links they are smaller."""
MAX_RAW = 1 << 30
"""No object is larger, packed or not."""
MAX_INDEX = 256 << 20

SAMPLE = 64 << 10
WORTH = 0.9
"""What does not shrink below this ratio is stored as it is."""

GAP = 256 << 10
LIMIT = 8 << 20
RAW_LIMIT = 16 << 20
"""Bytes of objects, once decoded, that one read is for: several reads are under way, and all fits into memory."""


class Row(NamedTuple):
    """Where an object stands in its pack: `stored` bytes at `offset`, `raw` bytes once decoded by `codec`."""

    digest: Digest
    offset: int
    stored: int
    raw: int
    codec: int


@dataclass(frozen=True)
class SealedPack:
    """A pack that is ready to be stored under `pack_path(fact.name)`."""

    fact: PackFact
    data: bytes
    index: tuple[Row, ...]


class Span(NamedTuple):
    """One ranged read, [start, stop), and the rows that lie in it."""

    start: int
    stop: int
    rows: tuple[Row, ...]


def pack_path(name: str) -> str:
    """Where a pack lies below the root of its store."""
    return f"packs/{checked_digest(name)[:2]}/{name}"


class Packer:
    """Collects objects for one pack; spent once it is sealed. Keeps references to the bytes it is given."""

    def __init__(self, target: int = LARGEST_PACK, salt: bytes | None = None) -> None:
        """`target`: the size in bytes from which it is full. `salt`: 16 bytes that are never used again."""
        salt = os.urandom(SALT) if salt is None else salt
        if len(salt) != SALT:
            raise ValueError(f"a pack needs {SALT} random bytes")
        self._target = target
        self._chunks = [MAGIC, salt]
        self._rows: dict[Digest, Row] = {}
        self._size = HEADER
        self._sealed = False
        self._compressor = zstandard.ZstdCompressor(level=1)

    @property
    def size(self) -> int:
        """Bytes so far, without index and trailer."""
        return self._size

    @property
    def objects(self) -> int:
        return len(self._rows)

    @property
    def full(self) -> bool:
        return self._size >= self._target

    def __contains__(self, digest: str) -> bool:
        return digest in self._rows

    def add(self, digest: Digest, data: bytes) -> None:
        """Adds an object of which the caller knows the digest; one that is already there is passed over."""
        if self._sealed:
            raise ValueError("the pack is sealed")
        if digest in self._rows:
            return
        if len(data) > MAX_RAW:
            raise ValueError(f"an object of {len(data)} bytes is larger than allowed")
        stored, codec = self._pressed(data)
        self._rows[digest] = Row(checked_digest(digest), self._size, len(stored), len(data), codec)
        self._chunks.append(stored)
        self._size += len(stored)

    def seal(self) -> SealedPack:
        """The finished pack; raises ValueError for one without objects."""
        if self._sealed or not self._rows:
            raise ValueError("a pack is sealed once, and holds at least one object")
        self._sealed = True
        rows = tuple(self._rows.values())
        index = b"".join(ROW.pack(bytes.fromhex(row.digest), *row[1:]) for row in rows)
        found = hashlib.sha256(index)
        data = b"".join([*self._chunks, index, TRAILER.pack(self._size, found.digest(), INDEX_MAGIC)])
        self._chunks.clear()
        fact = PackFact(digest_of(data), len(data), self._size, Digest(found.hexdigest()))
        return SealedPack(fact, data, rows)

    def _pressed(self, data: bytes) -> tuple[bytes, int]:
        if len(data) > 3 * SAMPLE:
            starts = (0, (len(data) - SAMPLE) // 2, len(data) - SAMPLE)
            samples = (self._compressor.compress(data[start : start + SAMPLE]) for start in starts)
            if sum(map(len, samples)) > WORTH * 3 * SAMPLE:
                return data, RAW
        pressed = self._compressor.compress(data)
        return (pressed, ZSTD) if len(pressed) <= WORTH * len(data) else (data, RAW)


def index_range(fact: PackFact) -> tuple[int, int]:
    """Where in the pack the bytes of its index stand: (start, stop)."""
    start, stop = fact.index_offset, fact.size - TRAILER.size
    if start < HEADER or not 0 < stop - start <= MAX_INDEX or (stop - start) % ROW.size:
        raise Damaged(f"the pack {fact.name} has an impossible size")
    return start, stop


def read_index(fact: PackFact, data: bytes) -> dict[Digest, Row]:
    """The rows of a pack by digest, from the bytes at `index_range`; raises Damaged unless all can be trusted."""
    start, stop = index_range(fact)
    if len(data) != stop - start or digest_of(data) != fact.index_digest:
        raise Damaged(f"the index of the pack {fact.name} does not match its digest")
    rows: dict[Digest, Row] = {}
    for digest, offset, stored, raw, codec in ROW.iter_unpack(data):
        row = Row(Digest(digest.hex()), offset, stored, raw, codec)
        if row.digest in rows or not _possible(row, start):
            raise Damaged(f"the index of the pack {fact.name} has an impossible row")
        rows[row.digest] = row
    return rows


def _possible(row: Row, end: int) -> bool:
    if row.codec not in (RAW, ZSTD) or row.raw > MAX_RAW:
        return False
    sizes = row.stored == row.raw if row.codec == RAW else 0 < row.stored < row.raw
    return sizes and row.offset >= HEADER and row.offset + row.stored <= end


def unpack(row: Row, stored: bytes | memoryview) -> bytes:
    """The object of a row from its stored bytes; raises Damaged unless it is the very one."""
    data = bytes(stored) if row.codec == RAW else _decompressed(row, stored)
    if len(stored) != row.stored or len(data) != row.raw or digest_of(data) != row.digest:
        raise Damaged(f"the object {row.digest} does not match its digest")
    return data


def _decompressed(row: Row, stored: bytes | memoryview) -> bytes:
    try:
        if row.codec == ZSTD and zstandard.frame_content_size(stored) == row.raw <= MAX_RAW:
            return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise Damaged(f"the object {row.digest} cannot be decompressed") from exc
    raise Damaged(f"the object {row.digest} is not stored as its index says")


def coalesce(rows: Iterable[Row], gap: int = GAP, limit: int = LIMIT) -> list[Span]:
    """Few ranged reads, sorted, for the rows of one pack: across gaps up to `gap` bytes, none above `limit` bytes, nor
    for more than RAW_LIMIT bytes of objects, except for a single larger row."""
    spans: list[list[Row]] = []
    start = stop = raw = 0
    for row in sorted(rows, key=lambda row: (row.offset, row.stored)):
        end = max(stop, row.offset + row.stored)
        if spans and row.offset - stop <= gap and end - start <= limit and raw + row.raw <= RAW_LIMIT:
            spans[-1].append(row)
            stop, raw = end, raw + row.raw
        else:
            spans.append([row])
            start, stop, raw = row.offset, row.offset + row.stored, row.raw
    return [Span(rows[0].offset, max(row.offset + row.stored for row in rows), tuple(rows)) for rows in spans]
