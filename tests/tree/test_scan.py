"""A run's directory is taken as it is at one moment, or what could not be is named."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from pathlib import Path

import pytest

from guildsync.errors import NOT_KEPT, TORN, UNREADABLE
from guildsync.model.manifest import MARKERS, METADATA_ATTRIBUTES
from guildsync.tree import hashing, scan
from guildsync.tree.dirs import open_directory
from guildsync.tree.hashing import Torn, read_file
from tests.kit.trees import MIB, noise, put, run_ids, snapshot, ugly_run

RUN = run_ids(1)[0]


def scanned(directory: Path) -> scan.Scanned:
    fd = open_directory(os.fsencode(directory))
    try:
        return scan.scan(RUN, fd, scan.View())
    finally:
        os.close(fd)


def problems(found: scan.Scanned) -> list[tuple[bytes | None, str]]:
    assert all(problem.run == RUN for problem in found.problems)
    return [(problem.path, problem.reason) for problem in found.problems]


class Writer:
    """Does something to a file after each of the first so many reads of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, act, times: int = 1) -> None:
        self.reads = 0
        self._act, self._times, self._pread = act, times, os.pread
        monkeypatch.setattr(hashing.os, "pread", self)

    def __call__(self, fd: int, size: int, offset: int) -> bytes:
        data = self._pread(fd, size, offset)
        self.reads += 1
        if self._times:
            self._times -= 1
            self._act()
        return data


def entry_of(found: scan.Scanned, path: bytes):
    return found.manifest.by_path.get(path)


def test_everything_is_as_it_lies_there(tmp_path):
    run = ugly_run(tmp_path, RUN)
    found = scanned(run)
    assert found.problems == ()
    rows = snapshot(run)
    assert found.manifest.by_path.keys() == rows.keys()
    for entry in found.manifest.entries:
        kind, mode, size, digest, target, mtime_ns = rows[entry.path]
        assert (entry.kind, entry.mode, entry.size, entry.digest, entry.target) == (kind, mode, size, digest, target)
        assert mtime_ns in (None, entry.mtime_ns)


def test_parts_are_the_file(tmp_path):
    data = noise(1, 2 * MIB + 1)
    put(tmp_path, "f", data)
    put(tmp_path, "one", data[:MIB])
    found = scanned(tmp_path)
    parts = entry_of(found, b"f").parts
    assert [part.size for part in parts] == [MIB, MIB, 1]
    blocks = [data[:MIB], data[MIB : 2 * MIB], data[2 * MIB :]]
    assert [part.digest for part in parts] == [hashlib.sha256(block).hexdigest() for block in blocks]
    assert entry_of(found, b"one").parts == ()


# -- files that change while they are read


def test_a_file_rewritten_once_is_read_again(tmp_path, monkeypatch):
    path = put(tmp_path, "f", b"a" * 3 * MIB)
    Writer(monkeypatch, lambda: put(tmp_path, "f", b"b" * 3 * MIB, mtime_ns=2))
    found = scanned(tmp_path)
    assert found.problems == ()
    with open(path, "rb") as file:
        assert entry_of(found, b"f").digest == hashlib.sha256(file.read()).hexdigest()
    assert entry_of(found, b"f").digest == hashlib.sha256(b"b" * 3 * MIB).hexdigest()


def test_a_file_rewritten_each_time_is_torn_and_no_entry(tmp_path, monkeypatch):
    put(tmp_path, "f", b"a" * 3 * MIB)
    put(tmp_path, "other", b"x")
    numbers = iter(range(1, 1000))

    def rewrite():
        number = next(numbers)
        put(tmp_path, "f", bytes([number % 256]) * 3 * MIB, mtime_ns=number)

    Writer(monkeypatch, rewrite, times=1000)
    found = scanned(tmp_path)
    assert problems(found) == [(b"f", TORN)]
    assert found.manifest.by_path.keys() == {b"other"}


def test_a_rewrite_that_puts_size_and_time_back_is_noticed(tmp_path, monkeypatch):
    """ctime moves whatever a writer does."""
    put(tmp_path, "f", b"a" * 2 * MIB, mtime_ns=7)
    info = os.stat(tmp_path / "f")

    def rewrite():
        put(tmp_path, "f", b"b" * MIB + b"c" * MIB, mtime_ns=7)

    Writer(monkeypatch, rewrite)
    found = scanned(tmp_path)
    assert os.stat(tmp_path / "f").st_mtime_ns == info.st_mtime_ns
    assert entry_of(found, b"f").digest == hashlib.sha256(b"b" * MIB + b"c" * MIB).hexdigest()


def test_a_file_that_only_grows_is_the_prefix_it_was(tmp_path, monkeypatch):
    path = put(tmp_path, "log", b"line\n" * MIB)
    when = os.stat(path).st_mtime_ns

    def grow():
        with open(path, "ab") as file:
            file.write(b"more\n")

    Writer(monkeypatch, grow, times=1000)
    found = scanned(tmp_path)
    assert found.problems == ()
    entry = entry_of(found, b"log")
    assert (entry.size, entry.mtime_ns) == (5 * MIB, when)
    assert entry.digest == hashlib.sha256(b"line\n" * MIB).hexdigest()


def test_a_file_that_grows_and_changes_before_its_end_is_torn(tmp_path, monkeypatch):
    path = put(tmp_path, "log", b"a" * 2 * MIB)
    numbers = iter(range(1, 1000))

    def scribble():
        with open(path, "r+b") as file:
            file.write(b"%d" % next(numbers))
            file.seek(0, os.SEEK_END)
            file.write(b"more")

    Writer(monkeypatch, scribble, times=1000)
    assert problems(scanned(tmp_path)) == [(b"log", TORN)]


def test_a_file_that_shrinks_is_read_again(tmp_path, monkeypatch):
    path = put(tmp_path, "f", b"a" * 2 * MIB)
    Writer(monkeypatch, lambda: os.truncate(path, 5))
    found = scanned(tmp_path)
    assert found.problems == ()
    assert entry_of(found, b"f").size == 5


def test_short_reads_are_completed(tmp_path, monkeypatch):
    data = noise(4, MIB + 100)
    put(tmp_path, "f", data)
    pread = os.pread
    monkeypatch.setattr(hashing.os, "pread", lambda fd, size, offset: pread(fd, min(size, 300_001), offset))
    entry = entry_of(scanned(tmp_path), b"f")
    assert entry.digest == hashlib.sha256(data).hexdigest()
    assert [part.size for part in entry.parts] == [MIB, 100]


def test_small_files_are_read_whole_or_torn(tmp_path, monkeypatch):
    path = put(tmp_path, "f", b"old")
    fd = os.open(path, os.O_RDONLY)
    try:
        Writer(monkeypatch, lambda: put(tmp_path, "f", b"newer", mtime_ns=3))
        assert read_file(fd)[0] == b"newer"
        numbers = iter(range(100))
        Writer(monkeypatch, lambda: put(tmp_path, "f", b"x" * next(numbers)), times=100)
        with pytest.raises(Torn):
            read_file(fd)
    finally:
        os.close(fd)


# -- what cannot be read, or is not kept


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_may_not_be_read_is_named_and_no_entry(tmp_path, monkeypatch, kind):
    put(tmp_path, "secret" if kind == "file" else "secret/below", b"x")
    put(tmp_path, "other", b"y")
    real = os.open

    def denied(name, *args, **kwargs):
        if name == b"secret":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", denied)
    found = scanned(tmp_path)
    assert problems(found) == [(b"secret", UNREADABLE)]
    assert found.problems[0].detail == "Permission denied"
    assert found.manifest.by_path.keys() == {b"other"}


def test_a_read_that_fails_is_named(tmp_path, monkeypatch):
    put(tmp_path, "bad", b"x")

    def broken(fd, size, offset):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(hashing.os, "pread", broken)
    assert problems(scanned(tmp_path)) == [(b"bad", UNREADABLE)]


def test_what_goes_away_is_no_problem(tmp_path, monkeypatch):
    put(tmp_path, "a", b"x")
    real = os.open

    def vanish(name, *args, **kwargs):
        if name == b"a":
            os.unlink(tmp_path / "a")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", vanish)
    found = scanned(tmp_path)
    assert (found.manifest.entries, found.problems) == ((), ())


def test_pipes_and_sockets_are_named_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        directory = os.open(tmp_path, os.O_RDONLY)
        try:
            sock.bind(f"/proc/self/fd/{directory}/socket")
        finally:
            os.close(directory)
        put(tmp_path, "file", b"x")
        found = scanned(tmp_path)
    assert problems(found) == [(b"pipe", NOT_KEPT), (b"socket", NOT_KEPT)]
    assert found.manifest.by_path.keys() == {b"file"}


def test_a_file_that_becomes_a_pipe_does_not_block(tmp_path, monkeypatch):
    put(tmp_path, "a", b"x")
    real = os.open

    def swap(name, *args, **kwargs):
        if name == b"a":
            os.unlink(tmp_path / "a")
            os.mkfifo(tmp_path / "a")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", swap)
    assert problems(scanned(tmp_path)) == [(b"a", UNREADABLE)]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_link_swapped_in_is_not_followed(tmp_path, monkeypatch, kind):
    outside = tmp_path / "outside"
    put(outside, "secret" if kind == "directory" else "outside file", b"secret")
    run = tmp_path / "run"
    put(run, "x/y" if kind == "directory" else "x", b"mine")
    real = os.open

    def swap(name, *args, **kwargs):
        if name == b"x" and not (run / "x").is_symlink():
            os.rename(run / "x", tmp_path / "moved")
            os.symlink(outside if kind == "directory" else outside / "outside file", run / "x")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", swap)
    found = scanned(run)
    assert problems(found) == [(b"x", UNREADABLE)]
    assert found.manifest.entries == ()


def test_markers_metadata_and_the_supervisors_own_are_no_entries(tmp_path):
    for name in MARKERS:
        put(tmp_path, b".guild/" + name, b"x")
        put(tmp_path, b"sub/.guild/" + name, b"an ordinary file")
    for name in METADATA_ATTRIBUTES:
        put(tmp_path, b".guild/attrs/" + name, b"x")
    put(tmp_path, b".guild/sync/state", b"x")
    put(tmp_path, b".guild/job-packages/p/q", b"x")
    put(tmp_path, b".guild/LOCKS", b"kept")
    paths = scanned(tmp_path).manifest.by_path.keys()
    below = {b"sub", b"sub/.guild", *(b"sub/.guild/" + name for name in MARKERS)}
    assert paths == {b".guild", b".guild/attrs", b".guild/LOCKS"} | below


def test_a_tree_deeper_than_a_manifest_may_be_is_named(tmp_path):
    fd = open_directory(os.fsencode(tmp_path))
    for _ in range(258):
        os.mkdir(b"d", dir_fd=fd)
        below = open_directory(b"d", fd)
        os.close(fd)
        fd = below
    os.close(fd)
    found = scanned(tmp_path)
    assert problems(found) == [(b"/".join([b"d"] * 256), NOT_KEPT)]
    assert len(found.manifest.entries) == 255


def test_special_bits_are_left_out(tmp_path):
    path = put(tmp_path, "f", b"x")
    os.chmod(path, 0o4755)
    assert entry_of(scanned(tmp_path), b"f").mode == 0o755


def test_no_descriptor_stays_open(tmp_path, monkeypatch):
    ugly_run(tmp_path, RUN)
    before = len(os.listdir("/proc/self/fd"))
    scanned(tmp_path / "runs" / RUN)
    os.mkfifo(tmp_path / "runs" / RUN / "pipe")
    monkeypatch.setattr(hashing.os, "pread", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
    assert len(scanned(tmp_path / "runs" / RUN).problems) > 50
    assert len(os.listdir("/proc/self/fd")) == before
