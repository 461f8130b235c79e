"""What of a run is worth showing while it is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guildsync.errors import UNSETTLED
from guildsync.tree import hashing
from guildsync.tree.dirs import open_directory
from guildsync.tree.scan import Hints, Scanned, View, scan
from guildsync.tree.settling import FORGOTTEN, GAP, Settling
from guildsync.tree.statcache import SETTLED_NS, Known
from tests.kit.trees import MIB, run_ids
from tests.kit.writers import Mapper, appended, generation

(RUN,) = run_ids(1)
SIZE = 3 * MIB


class Watcher:
    """Scans a run again and again, at times of its own. `hour`: the filesystem's clock is so far ahead."""

    def __init__(self, top: Path) -> None:
        self.top, self.now, self.hour, self.alive, self.blind = top, 1000.0, 0, True, False
        self.settling = Settling(lambda: self.now)
        self.view = View(once=True)
        self.known: Known | None = None
        top.mkdir()

    def scan(self, later: float = 0.0) -> Scanned:
        self.now += later
        fd = open_directory(os.fsencode(self.top))
        try:
            latest = max((path.stat().st_ctime_ns for path in self.top.rglob("*")), default=0)
            patience = self.settling.of(RUN, self.alive, latest + self.hour, self.blind)
            found = scan(RUN, fd, self.view, Hints(self.known, patience=patience))
            self.known = found.known
            return found
        finally:
            os.close(fd)

    def shows(self, later: float = 0.0) -> bool:
        """Is the file shown, as it is? If not, it must be said."""
        found = self.scan(later)
        entry = found.manifest.by_path.get(b"file")
        assert [problem.reason for problem in found.problems] == ([] if entry else [UNSETTLED])
        return entry is not None

    def write(self, data: bytes) -> None:
        with open(self.top / "file", "r+b" if (self.top / "file").exists() else "xb") as file:
            file.write(data)
            file.truncate()


@pytest.fixture
def watcher(tmp_path: Path) -> Watcher:
    return Watcher(tmp_path / "run")


def test_a_new_file_waits_until_two_readings_agree(watcher: Watcher) -> None:
    watcher.write(generation(1, SIZE))
    assert not watcher.shows()
    assert not watcher.shows(GAP / 2)
    assert watcher.shows(GAP)
    assert watcher.shows(0.01)


def test_what_is_rewritten_waits_and_what_was_shown_is_not_shown_again(watcher: Watcher) -> None:
    watcher.write(generation(1, SIZE))
    watcher.shows()
    assert watcher.shows(GAP)
    for number in range(2, 6):
        watcher.write(generation(number, SIZE))
        assert not watcher.shows(GAP)
    assert not watcher.shows(0.1)
    assert watcher.shows(GAP)


def test_what_is_being_rewritten_is_not_read(watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it was looked at twice and had not been written meanwhile."""
    watcher.write(generation(1, SIZE))
    watcher.shows()
    assert watcher.shows(GAP)
    readings, real = [], View.look
    monkeypatch.setattr(View, "look", lambda *what: readings.append(what) or real(*what))
    for number in range(2, 6):
        watcher.write(generation(number, SIZE))
        assert not watcher.shows(GAP)
    assert readings == []
    assert not watcher.shows(0.1)
    assert watcher.shows(GAP)
    assert len(readings) == 2


def test_what_is_written_while_it_is_read_is_not_read_again_at_once(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause is too short for that; and reading that took long is put off for long."""
    watcher.write(generation(1, SIZE))
    reads, pread = 0, os.pread

    def disturbed(fd: int, size: int, offset: int) -> bytes:
        nonlocal reads
        reads += 1
        data = pread(fd, size, offset)
        if reads == 1:
            watcher.write(generation(2, SIZE))
        return data

    monkeypatch.setattr(hashing.os, "pread", disturbed)
    assert not watcher.shows()
    assert reads == SIZE // MIB
    assert not watcher.shows(0.01)
    assert watcher.shows(GAP)


def test_bytes_that_change_without_stat_data_are_seen(watcher: Watcher) -> None:
    """P15: as a memory-mapped writer changes them."""
    watcher.write(generation(1, SIZE))
    with Mapper(watcher.top / "file") as mapper:
        mapper.store(1)
        watcher.shows()
        before = (watcher.top / "file").stat()
        mapper.store(2)
        os.utime(watcher.top / "file", ns=(before.st_atime_ns, before.st_mtime_ns))
        assert not watcher.shows(GAP)
        assert watcher.shows(GAP) or watcher.shows(GAP)
        mapper.store(3)
        assert not watcher.shows(GAP)


def test_what_only_grows_is_shown_as_it_grows(watcher: Watcher) -> None:
    """Through all sizes at which its parts are kept differently, and when it has many of them."""
    watcher.write(appended(1000))
    watcher.hour = 1_000_000_000
    assert watcher.shows()
    watcher.hour = 0
    for size in [2000, 900 * 1000, *range(MIB, 2 * MIB, 40_000)]:
        watcher.write(appended(size))
        assert watcher.shows(1.0), size


def test_a_new_file_that_grows_is_shown_from_the_second_reading_on(watcher: Watcher) -> None:
    watcher.write(appended(2 * MIB))
    assert not watcher.shows()
    for size in (3, 4, 5):
        watcher.write(appended(size * MIB))
        assert watcher.shows(GAP)


def test_a_file_that_is_begun_anew_is_no_growth(watcher: Watcher) -> None:
    watcher.write(generation(1, SIZE))
    watcher.shows()
    assert watcher.shows(GAP)
    for size in (2 * MIB, 3 * MIB, 4 * MIB):
        watcher.write(generation(2, size))
        assert not watcher.shows(GAP)
    assert watcher.shows(GAP)


def test_what_is_renamed_into_place_is_shown_at_once(watcher: Watcher, tmp_path: Path) -> None:
    for number in range(3):
        new = tmp_path / "new"
        new.write_bytes(generation(number, SIZE))
        os.utime(new, ns=(0, new.stat().st_mtime_ns - 1_000_000))
        os.replace(new, watcher.top / "file")
        assert watcher.shows()


def test_a_small_file_waits_a_moment(watcher: Watcher) -> None:
    watcher.write(b"some")
    assert not watcher.shows()
    watcher.hour = 50_000_000
    assert watcher.shows()


def test_what_is_old_is_shown_at_once(watcher: Watcher) -> None:
    watcher.write(generation(1, SIZE))
    watcher.hour = SETTLED_NS
    assert watcher.shows()


def test_where_times_say_nothing_what_is_old_waits_while_the_run_lives(watcher: Watcher) -> None:
    watcher.write(generation(1, SIZE))
    watcher.hour, watcher.blind = SETTLED_NS, True
    assert not watcher.shows()
    assert watcher.shows(GAP)
    watcher.alive = False
    assert Watcher.shows(watcher)


def test_what_nobody_looks_at_any_more_is_forgotten(watcher: Watcher) -> None:
    watcher.write(generation(1, SIZE))
    watcher.shows()
    (watcher.top / "file").unlink()
    watcher.scan(FORGOTTEN + 1)
    assert not watcher.settling._sights
