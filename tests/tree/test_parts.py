"""Parts: what shifted or grew keeps most of its objects."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guildsync import cutting
from guildsync.model.manifest import MAX_OBJECT, PART_SIZE, Entry, Manifest, file_entry
from guildsync.tree import hashing
from guildsync.tree.hashing import Cut, Hashed, even, hash_file
from tests.kit.trees import MIB, noise

CUTS = pytest.mark.parametrize("cut", [even, cutting.content_cut()], ids=["even", "content"])


def hashed(path: Path, before: Entry | None = None, cut: Cut | None = None) -> Hashed:
    fd = os.open(path, os.O_RDONLY)
    try:
        return hash_file(fd, before, cut)
    finally:
        os.close(fd)


def entry_of(found: Hashed) -> Entry:
    return file_entry(b"f", 0o644, found.size, found.digest, found.mtime_ns, found.parts)


def sizes(found: Hashed) -> list[int]:
    return [part.size for part in found.parts]


@CUTS
@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 5 * MIB + 17])
def test_parts_are_the_file(tmp_path: Path, cut: Cut, size: int) -> None:
    data = noise(1, size)
    (tmp_path / "f").write_bytes(data)
    found = hashed(tmp_path / "f", None, cut)
    Manifest([entry_of(found)])
    assert bool(found.parts) == (size > PART_SIZE)
    assert max(sizes(found), default=0) <= MAX_OBJECT
    offset = 0
    for part in found.parts:
        assert part.digest == hashing.hash_bytes(data[offset : offset + part.size], 0).digest
        offset += part.size


def test_shifted_content_keeps_most_of_its_objects(tmp_path: Path) -> None:
    data = noise(2, 24 * MIB)
    (tmp_path / "f").write_bytes(data)
    (tmp_path / "g").write_bytes(data[:1000] + b"a few bytes more" + data[1000:])
    cut = cutting.content_cut()
    assert cut is not None
    one, other = (hashed(tmp_path / name, None, cut) for name in "fg")
    new = sum(part.size for part in set(other.parts) - set(one.parts))
    assert 0 < new <= 2 * cutting.LARGEST
    again, shifted = (hashed(tmp_path / name, None, even) for name in "fg")
    assert not set(again.parts) & set(shifted.parts), "even parts cannot do it: this test would not notice"


@CUTS
def test_growth_keeps_the_parts_and_adds_some(tmp_path: Path, cut: Cut) -> None:
    (tmp_path / "f").write_bytes(noise(3, 3 * MIB + 5))
    before = hashed(tmp_path / "f", None, cut)
    with (tmp_path / "f").open("ab") as file:
        file.write(noise(4, 64 << 10))
    after = hashed(tmp_path / "f", entry_of(before), cut)
    assert after.parts[: len(before.parts)] == before.parts
    assert sizes(after)[len(before.parts) :] == [64 << 10]
    Manifest([entry_of(after)])


@CUTS
def test_a_small_file_that_grows_large_is_its_first_part(tmp_path: Path, cut: Cut) -> None:
    (tmp_path / "f").write_bytes(noise(5, MIB - 10))
    before = hashed(tmp_path / "f", None, cut)
    with (tmp_path / "f").open("ab") as file:
        file.write(b"x" * 100)
    after = hashed(tmp_path / "f", entry_of(before), cut)
    assert sizes(after) == [MIB - 10, 100]
    assert after.parts[0].digest == before.digest


@CUTS
def test_what_changed_before_its_end_is_cut_anew(tmp_path: Path, cut: Cut) -> None:
    data = noise(6, 3 * MIB)
    (tmp_path / "f").write_bytes(data)
    before = hashed(tmp_path / "f", None, cut)
    (tmp_path / "f").write_bytes(b"other" + data[5:] + b"tail")
    assert hashed(tmp_path / "f", entry_of(before), cut) == hashed(tmp_path / "f", None, cut)


@CUTS
def test_many_small_growths_are_cut_anew(tmp_path: Path, cut: Cut) -> None:
    path = tmp_path / "f"
    path.write_bytes(noise(7, 2 * MIB))
    found = hashed(path, None, cut)
    most = 0
    for step in range(40):
        with path.open("ab") as file:
            file.write(noise(100 + step, 1000))
        found = hashed(path, entry_of(found), cut)
        most = max(most, len(found.parts))
    assert most <= 3 + 20
    assert sum(sizes(found)) == path.stat().st_size
