"""Packs: every object comes back as it went in or not at all, by few reads."""

from __future__ import annotations

import hashlib
import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from guildsync.errors import Damaged
from guildsync.model.manifest import Digest, digest_of
from guildsync.store import pack as under_test
from guildsync.store.journal import PackFact
from guildsync.store.pack import (
    HEADER,
    MAX_INDEX,
    MAX_RAW,
    RAW,
    RAW_LIMIT,
    ROW,
    TRAILER,
    ZSTD,
    Packer,
    Row,
    SealedPack,
    coalesce,
    index_range,
    pack_path,
    read_index,
    unpack,
)

SALT = bytes(range(16))


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def packed(*objects: bytes) -> SealedPack:
    packer = Packer(salt=SALT)
    for data in objects:
        packer.add(digest_of(data), data)
    return packer.seal()


def rows_of(sealed: SealedPack, data: bytes | None = None) -> dict[Digest, Row]:
    start, stop = index_range(sealed.fact)
    return read_index(sealed.fact, (sealed.data if data is None else data)[start:stop])


def read(row: Row, data: bytes) -> bytes:
    return unpack(row, memoryview(data)[row.offset : row.offset + row.stored])


objects = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda data, times: data * times, st.binary(min_size=1, max_size=20), st.integers(1, 20_000)),
    st.builds(noise, st.integers(0, 300_000), st.integers(0, 3)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(objects, min_size=1, max_size=6))
def test_what_is_packed_comes_back(found: list[bytes]) -> None:
    sealed = packed(*found)
    rows = rows_of(sealed)
    assert set(rows) == {digest_of(data) for data in found}
    assert tuple(rows.values()) == sealed.index
    for data in found:
        assert read(rows[digest_of(data)], sealed.data) == data
    for span in coalesce(rows.values(), gap=100, limit=1000):
        part = sealed.data[span.start : span.stop]
        for row in span.rows:
            start = row.offset - span.start
            assert digest_of(unpack(row, part[start : start + row.stored])) == row.digest


def test_a_pack_is_laid_out_as_its_format_says() -> None:
    sealed = packed(b"one", b"two" * 100)
    data, fact = sealed.data, sealed.fact
    assert data[:8] == b"gsyncpk\x01"
    assert data[8:24] == SALT
    assert data[24:27] == b"one"
    assert fact.name == hashlib.sha256(data).hexdigest()
    assert fact.size == len(data)
    assert TRAILER.size == 48
    assert ROW.size == 57
    offset, digest, magic = TRAILER.unpack(data[-48:])
    assert (offset, digest.hex(), magic) == (fact.index_offset, fact.index_digest, b"gsyncidx")
    index = data[offset:-48]
    assert hashlib.sha256(index).digest() == digest
    assert ROW.unpack(index[:57]) == (hashlib.sha256(b"one").digest(), 24, 3, 3, 0)
    assert pack_path(fact.name) == f"packs/{fact.name[:2]}/{fact.name}"


def test_a_name_never_repeats() -> None:
    names = set()
    for _ in range(3):
        packer = Packer()
        packer.add(digest_of(b"x"), b"x")
        names.add(packer.seal().fact.name)
    assert len(names) == 3
    with pytest.raises(ValueError):
        Packer(salt=b"short")


def test_a_duplicate_is_packed_once() -> None:
    packer = Packer()
    packer.add(digest_of(b"x"), b"x")
    size = packer.size
    assert size == HEADER + 1
    packer.add(digest_of(b"x"), b"x")
    assert (packer.size, packer.objects) == (size, 1)
    assert digest_of(b"x") in packer
    assert digest_of(b"y") not in packer


def test_a_packer_is_full_from_its_target_on() -> None:
    packer = Packer(target=HEADER + 100)
    packer.add(digest_of(noise(99)), noise(99))
    assert not packer.full
    packer.add(digest_of(b"x"), b"x")
    assert packer.full


def test_an_empty_pack_is_refused_and_a_sealed_one_is_spent() -> None:
    packer = Packer()
    with pytest.raises(ValueError):
        packer.seal()
    packer.add(digest_of(b""), b"")
    rows = rows_of(packed(b""))
    assert unpack(rows[digest_of(b"")], b"") == b""
    packer.seal()
    with pytest.raises(ValueError):
        packer.seal()
    with pytest.raises(ValueError):
        packer.add(digest_of(b"x"), b"x")


def test_an_object_above_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "MAX_RAW", 10)
    with pytest.raises(ValueError):
        Packer().add(digest_of(b"x" * 11), b"x" * 11)


@pytest.mark.parametrize("size", [1, 1000, 192 << 10, (192 << 10) + 1, 1 << 20])
def test_what_does_not_shrink_is_stored_as_it_is(size: int) -> None:
    (row,) = packed(noise(size)).index
    assert (row.codec, row.stored, row.raw) == (RAW, size, size)


@pytest.mark.parametrize("size", [1000, 192 << 10, (192 << 10) + 1, 1 << 20])
def test_what_shrinks_is_compressed(size: int) -> None:
    (row,) = packed(b"abcdefgh" * (size // 8)).index
    assert row.codec == ZSTD
    assert row.stored < row.raw // 5


def test_the_probe_looks_at_the_start_the_middle_and_the_end() -> None:
    half, dull = noise(256 << 10), bytes(256 << 10)
    for data in (dull + half + half, half + dull + half, half + half + dull):
        (row,) = packed(data).index
        assert row.codec == ZSTD, "one sample of three shrinks"
    inner = bytes(300 << 10)
    edges = noise(64 << 10) + inner + noise(400 << 10) + inner + noise(64 << 10)
    (row,) = packed(edges).index
    assert row.codec == RAW, "none of the samples shrinks: nobody looks at the rest"


def test_what_shrinks_by_less_than_a_tenth_is_stored_as_it_is() -> None:
    (row,) = packed(noise(9_500) + bytes(500)).index
    assert row.codec == RAW
    (row,) = packed(noise(8_500) + bytes(1_500)).index
    assert row.codec == ZSTD


def test_any_flipped_byte_of_objects_and_index_is_noticed() -> None:
    found = [b"plain text " * 20, noise(50), b"zeros" + bytes(300)]
    sealed = packed(*found)
    assert {row.codec for row in sealed.index} == {RAW, ZSTD}
    start, stop = index_range(sealed.fact)
    for place in range(len(sealed.data)):
        for mask in (1, 0x80, 0xFF):
            data = bytearray(sealed.data)
            data[place] ^= mask
            assert digest_of(bytes(data)) != sealed.fact.name
            if HEADER <= place < start:
                (hit,) = (row for row in sealed.index if row.offset <= place < row.offset + row.stored)
                with pytest.raises(Damaged):
                    read(hit, bytes(data))
            elif start <= place < stop:
                with pytest.raises(Damaged):
                    rows_of(sealed, bytes(data))


@pytest.mark.parametrize("text", [b"plain text " * 20, noise(50)])
def test_short_long_and_foreign_bytes_are_no_object(text: bytes) -> None:
    sealed = packed(text)
    (row,) = sealed.index
    stored = sealed.data[row.offset : row.offset + row.stored]
    frame = zstandard.ZstdCompressor().compress
    for bad in (b"", stored[:-1], stored + b"\0", stored + stored, noise(len(stored), 9), frame(noise(len(text), 9))):
        with pytest.raises(Damaged):
            unpack(row, bad)
    with pytest.raises(Damaged):
        unpack(row._replace(stored=row.stored + 1), stored + b"\0")
    for wrong in (
        row._replace(raw=row.raw + 1),
        row._replace(raw=row.raw - 1),
        row._replace(stored=row.stored + 1),
        row._replace(digest=digest_of(b"")),
        row._replace(codec=1 - row.codec),
        row._replace(codec=2),
    ):
        with pytest.raises(Damaged):
            unpack(wrong, stored)


def test_a_frame_never_unpacks_to_more_than_its_row_says(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 20))
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20))

    def never(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("decompressed")

    monkeypatch.setattr(under_test.zstandard, "ZstdDecompressor", never)
    for stored in (bomb, silent):
        row = Row(digest_of(bytes(1 << 20)), HEADER, len(stored), 1000, ZSTD)
        with pytest.raises(Damaged):
            unpack(row, stored)


GOOD = Row(digest_of(b"x"), HEADER, 10, 10, RAW)
END = HEADER + 100


def index_of(*rows: Row) -> tuple[PackFact, bytes]:
    """An index whose digest is right, for a pack with 100 bytes of objects."""
    data = b"".join(ROW.pack(bytes.fromhex(row.digest), *row[1:]) for row in rows)
    return PackFact(digest_of(b"pack"), END + len(data) + TRAILER.size, END, digest_of(data)), data


def test_a_sound_index_is_read() -> None:
    last = Row(digest_of(b"y"), END - 10, 10, MAX_RAW, ZSTD)
    assert read_index(*index_of(GOOD, last)) == {GOOD.digest: GOOD, last.digest: last}


@pytest.mark.parametrize(
    "row",
    [
        GOOD,  # twice
        Row(digest_of(b"y"), HEADER - 1, 10, 10, RAW),
        Row(digest_of(b"y"), 0, 10, 10, RAW),
        Row(digest_of(b"y"), END - 9, 10, 10, RAW),
        Row(digest_of(b"y"), HEADER, 101, 101, RAW),
        Row(digest_of(b"y"), (1 << 64) - 1, 10, 10, RAW),
        Row(digest_of(b"y"), HEADER, (1 << 64) - 1, (1 << 64) - 1, RAW),
        Row(digest_of(b"y"), HEADER, 10, 11, RAW),
        Row(digest_of(b"y"), HEADER, 10, 10, ZSTD),
        Row(digest_of(b"y"), HEADER, 0, 10, ZSTD),
        Row(digest_of(b"y"), HEADER, 10, MAX_RAW + 1, ZSTD),
        Row(digest_of(b"y"), HEADER, 10, 20, 2),
    ],
)
def test_a_hostile_index_is_refused(row: Row) -> None:
    with pytest.raises(Damaged):
        read_index(*index_of(GOOD, row))


def test_an_index_must_match_its_fact() -> None:
    fact, data = index_of(GOOD)
    wrong = fact._replace(index_digest=digest_of(b"other"))
    for pair in ((wrong, data), (fact, data[:-1]), (fact, data + b"\0"), (fact, b"")):
        with pytest.raises(Damaged):
            read_index(*pair)
    longer = fact._replace(size=fact.size + ROW.size)
    with pytest.raises(Damaged):
        read_index(longer, data)


@pytest.mark.parametrize(
    ("size", "offset"),
    [
        (END + ROW.size + TRAILER.size + 1, END),
        (END + TRAILER.size, END),
        (END, END + 1),
        (HEADER + ROW.size + TRAILER.size - 1, HEADER - 1),
        (END + (MAX_INDEX // ROW.size + 1) * ROW.size + TRAILER.size, END),
    ],
)
def test_a_hostile_fact_has_no_index(size: int, offset: int) -> None:
    with pytest.raises(Damaged):
        index_range(PackFact(digest_of(b"pack"), size, offset, digest_of(b"")))


def test_only_a_digest_names_a_pack() -> None:
    with pytest.raises(Damaged):
        pack_path("../../etc/passwd")


def row_at(offset: int, stored: int) -> Row:
    return Row(digest_of(f"{offset},{stored}".encode()), offset, stored, stored, RAW)


def spans(*rows: Row, gap: int = 10, limit: int = 100) -> list[tuple[int, int]]:
    return [(span.start, span.stop) for span in coalesce(rows, gap, limit)]


def test_reads_are_coalesced_across_small_gaps_up_to_the_limit() -> None:
    assert spans() == []
    assert spans(row_at(100, 10), row_at(0, 10)) == [(0, 10), (100, 110)]
    assert spans(row_at(0, 10), row_at(20, 10)) == [(0, 30)]
    assert spans(row_at(0, 10), row_at(21, 10)) == [(0, 10), (21, 31)]
    assert spans(row_at(0, 50), row_at(50, 50)) == [(0, 100)]
    assert spans(row_at(0, 50), row_at(50, 51)) == [(0, 50), (50, 101)]
    assert spans(row_at(0, 10), row_at(10, 500), row_at(510, 10)) == [(0, 10), (10, 510), (510, 520)]
    assert spans(row_at(0, 50), row_at(10, 10), row_at(55, 5)) == [(0, 60)]
    assert spans(row_at(0, 500), row_at(450, 5), row_at(495, 5)) == [(0, 500), (450, 455), (495, 500)]


@given(
    st.lists(st.builds(row_at, st.integers(0, 2000), st.integers(0, 300)), max_size=30),
    st.integers(0, 200),
    st.integers(1, 500),
)
def test_spans_hold_every_row_once_and_keep_gap_and_limit(rows: list[Row], gap: int, limit: int) -> None:
    found = coalesce(rows, gap, limit)
    assert sorted(row for span in found for row in span.rows) == sorted(rows)
    assert [span.start for span in found] == sorted(span.start for span in found)
    for span in found:
        assert span.start == min(row.offset for row in span.rows)
        assert span.stop == max(row.offset + row.stored for row in span.rows)
        assert span.stop - span.start <= limit or len(span.rows) == 1
        reach = span.start
        for row in sorted(span.rows, key=lambda row: row.offset):
            assert row.offset - reach <= gap
            reach = max(reach, row.offset + row.stored)


def test_one_read_is_for_no_more_than_fits_into_memory() -> None:
    """However well its objects were pressed."""
    rows = [Row(digest_of(b"%d" % n), HEADER + 10 * n, 10, 1 << 20, ZSTD) for n in range(40)]
    spans = coalesce(rows)
    assert [row for span in spans for row in span.rows] == rows
    assert all(sum(row.raw for row in span.rows) <= RAW_LIMIT for span in spans)
    assert len(spans) == 3
    (alone,) = coalesce([rows[0]._replace(raw=1 << 29)])
    assert len(alone.rows) == 1
