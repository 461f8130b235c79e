"""The stat cache never lies: whatever a writer does to times, the next push delivers the bytes (promise P15)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from guildsync import api
from guildsync.model.manifest import Digest, Manifest, digest_of, directory_entry, file_entry
from guildsync.model.ports import Piece, RawUpdate, Want
from guildsync.model.run import RunId
from guildsync.tree import hashing, scan, statcache, tree
from guildsync.tree.dirs import open_directory
from guildsync.tree.hashing import hash_bytes
from guildsync.tree.home import Home
from guildsync.tree.redact import redact
from guildsync.tree.statcache import BLIND, Stamp, StatCache, filesystem, stamp_of
from guildsync.tree.tree import Tree
from tests.kit.model import Person
from tests.kit.trees import EPOCH_NS, MIB, put, run_ids, write_run
from tests.kit.writers import Mapper, generation

RUN, OTHER = map(RunId, run_ids(2))
SIZE = 2 * MIB + 4096
SECOND_NS = 1_000_000_000
SEEING = ("ext4", "xfs", "btrfs")
"""Filesystems that notice a store through a mapping to a page that is clean."""

root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture(params=["disk", "tmpfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on a filesystem that sees mapped stores, and on one that does not."""
    if request.param == "disk":
        kind = filesystem(os.fsencode(tmp_path))
        if kind not in SEEING:
            pytest.skip(f"{tmp_path} is on {kind or 'an unknown filesystem'}, not on {', '.join(SEEING)}")
        yield tmp_path
        return
    if filesystem(b"/dev/shm") != "tmpfs" or not os.access("/dev/shm", os.W_OK):
        pytest.skip("/dev/shm is no tmpfs that may be written")
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def person(place: Path, memory_store: str) -> Person:
    found = Person(place / "home", memory_store)
    write_run(found.home, RUN, {"weights": generation(0, SIZE), "note": b"before"})
    return found


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The name of every file that a scan opens."""
    seen: list[bytes] = []
    opened = scan.open_file

    def counted(dir_fd: int, name: bytes) -> int:
        seen.append(name)
        return opened(dir_fd, name)

    monkeypatch.setattr(scan, "open_file", counted)
    return seen


def aged(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """From now on scans find every file so much older than it is."""
    now_ns = StatCache.now_ns
    monkeypatch.setattr(StatCache, "now_ns", lambda self: now_ns(self) + seconds * SECOND_NS)


def weights(person: Person) -> Path:
    return person.run(RUN) / "weights"


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def delivered(person: Person, name: str = "weights", run: str = RUN) -> bytes | None:
    """What a fresh home gets of a file."""
    with tempfile.TemporaryDirectory(dir=person.home.parent) as directory:
        fresh = Person(Path(directory) / "home", person.remote)
        assert fresh.pull().exit_code == 0
        return fresh.read(run, name)


def pushed(person: Person, files: int | None = None) -> None:
    outcome = person.push()
    assert (outcome.problems, outcome.exit_code) == ([], 0)
    if files is not None:
        assert outcome.files == files


def replaced(path: Path, data: bytes, mtime_ns: int = EPOCH_NS) -> None:
    """Another file of the same name and mtime, by one rename."""
    os.rename(put(path.parent, f"{path.name}.new", data, mtime_ns=mtime_ns), path)


def rewritten(path: Path, data: bytes, mtime_ns: int = EPOCH_NS) -> None:
    """The same file with other bytes and the same mtime."""
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(mtime_ns, mtime_ns))


# -- writers that map a file into their memory


def test_a_mapped_store_moves_no_time_where_nothing_is_written_back(person: Person) -> None:
    """What the cache has to cope with; on a disk, a page's first store after it was written back is seen."""
    blind = filesystem(os.fsencode(person.home)) in BLIND
    with Mapper(weights(person)) as mapper:
        mapper.store(1)
        for number in (2, 3):
            before = statcache.stamp_of(os.stat(weights(person)))
            mapper.store(number)
            assert statcache.stamp_of(os.stat(weights(person))) == before
        sync(weights(person))
        before = statcache.stamp_of(os.stat(weights(person)))
        mapper.store(4)
        assert (statcache.stamp_of(os.stat(weights(person))) == before) == blind


@pytest.mark.parametrize("age", [0, 3, 61])
def test_every_push_delivers_what_a_mapped_writer_stored_before(
    person: Person, monkeypatch: pytest.MonkeyPatch, age: int
) -> None:
    """No LOCK says that the writer runs. A file of 61 s was written back by the system, which is done for it here."""
    aged(monkeypatch, age)
    with Mapper(weights(person)) as mapper:
        for number in range(1, 9):
            stored = mapper.store(number)
            if age > 60:
                sync(weights(person))
            pushed(person)
            assert delivered(person) == stored
        stored = mapper.store(1000)
    pushed(person)
    assert delivered(person) == stored
    pushed(person, 0)


@pytest.mark.parametrize("age", [0, 3, 61])
@pytest.mark.parametrize("written_back", [False, True])
def test_a_run_that_ended_is_delivered_as_its_mapped_writer_left_it(
    person: Person, monkeypatch: pytest.MonkeyPatch, age: int, written_back: bool
) -> None:
    """LOCK stands as long as the writer runs, as Guild has it. Then nothing is relied on: stat data may be what they
    were, and pages may be older than they should be."""
    aged(monkeypatch, age)
    with Mapper(weights(person)) as mapper:
        lock = Path(os.fsdecode(put(person.run(RUN), ".guild/LOCK", b"%d" % mapper.pid)))
        mapper.store(1)
        for _ in range(2):
            if written_back:
                sync(weights(person))
            pushed(person)
        stored = mapper.store(2)
    lock.unlink()
    pushed(person, 1)
    assert delivered(person) == stored
    pushed(person, 0)


@pytest.mark.parametrize("age", [0, 3, 61])
@pytest.mark.parametrize("after", [1, 2])
def test_a_mapped_store_during_a_push_is_delivered_by_the_next(
    person: Person, monkeypatch: pytest.MonkeyPatch, age: int, after: int
) -> None:
    aged(monkeypatch, age)
    with Mapper(weights(person)) as mapper:
        mapper.store(1)
        if age > 60:
            sync(weights(person))
        reads, pread = 0, os.pread

        def store_then(fd: int, size: int, offset: int) -> bytes:
            nonlocal reads
            data = pread(fd, size, offset)
            reads += size > 4096
            if reads == after:
                mapper.store(2)
            return data

        monkeypatch.setattr(hashing.os, "pread", store_then)
        person.push()
        assert reads >= after
        monkeypatch.setattr(hashing.os, "pread", pread)
        if age > 60:
            sync(weights(person))
        pushed(person)
        assert delivered(person) == generation(2, SIZE)
        stored = mapper.store(3)
    pushed(person)
    assert delivered(person) == stored


def test_a_process_of_the_run_that_ended_unseen_is_enough(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """The LOCK is still there, its process is not."""
    aged(monkeypatch, 61)
    with Mapper(weights(person)) as mapper:
        put(person.run(RUN), ".guild/LOCK", b"%d" % mapper.pid)
        mapper.store(1)
        pushed(person)
        stored = mapper.store(2)
    pushed(person, 1)
    assert delivered(person) == stored


# -- times that are put back, or tick too slowly


@pytest.mark.parametrize("age", [0, 3, 61])
@pytest.mark.parametrize("change", [rewritten, replaced])
def test_equal_size_and_mtime_hide_nothing(
    person: Person, monkeypatch: pytest.MonkeyPatch, age: int, change: Callable[[Path, bytes], None]
) -> None:
    aged(monkeypatch, age)
    pushed(person)
    for number in range(1, 6):
        data = generation(number, SIZE)
        change(weights(person), data)
        assert (os.stat(weights(person)).st_size, os.stat(weights(person)).st_mtime_ns) == (SIZE, EPOCH_NS)
        pushed(person, 1)
        assert delivered(person) == data
        pushed(person, 0)


@pytest.mark.parametrize("grain_ns", [1, SECOND_NS])
def test_what_changes_at_once_after_a_push_is_delivered(
    place: Path, memory_store: str, monkeypatch: pytest.MonkeyPatch, grain_ns: int
) -> None:
    """Within one tick of the clock of files, which on some filesystems is as long as a second."""

    def coarse(info: os.stat_result) -> statcache.Stamp:
        times = (info.st_mtime_ns // grain_ns * grain_ns, info.st_ctime_ns // grain_ns * grain_ns)
        return statcache.Stamp(info.st_size, *times, 0)

    monkeypatch.setattr(statcache, "stamp_of", coarse)
    monkeypatch.setattr(scan, "stamp_of", coarse)
    person, reader = Person(place / "home", memory_store), Person(place / "reader", memory_store)
    path = Path(os.fsdecode(put(person.run(RUN), "note", b"%6d" % 0)))
    pushed(person)
    for number in range(1, 201):
        (replaced if number % 3 == 0 else rewritten)(path, b"%6d" % number)
        pushed(person, 1)
        if number % 20 == 0:
            assert reader.pull().exit_code == 0
            assert reader.read(RUN, "note") == b"%6d" % number


@pytest.mark.parametrize("jump", [-10_000_000, 10_000_000])
def test_the_wall_clock_decides_nothing(
    person: Person, monkeypatch: pytest.MonkeyPatch, hashed: list[bytes], jump: int
) -> None:
    """Nothing of it makes a file older than it is, nor hides a change."""
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + jump)
    monkeypatch.setattr(time, "time_ns", lambda real=time.time_ns: real() + jump * SECOND_NS)
    pushed(person)
    for number in range(1, 6):
        rewritten(weights(person), generation(number, SIZE))
        pushed(person, 1)
        assert delivered(person) == generation(number, SIZE)
        hashed.clear()
        pushed(person, 0)
        assert b"weights" in hashed
        jump = -jump


@pytest.mark.parametrize("jump", [-10_000_000, 10_000_000])
def test_a_clock_of_files_that_jumps_hides_no_write(person: Person, monkeypatch: pytest.MonkeyPatch, jump: int) -> None:
    """The host's clock was set: files are from the future, or as old as can be."""
    pushed(person)
    for number in range(1, 6):
        aged(monkeypatch, jump)
        for change in (rewritten, replaced):
            data = generation(2 * number + (change is replaced), SIZE)
            change(weights(person), data)
            pushed(person, 1)
            assert delivered(person) == data
        jump = -jump


def test_a_mapped_writer_is_seen_whatever_the_clock_of_files_says(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's clock was set forward: what a writer stored to a moment ago looks old, and was not written back."""
    aged(monkeypatch, 3600)
    with Mapper(weights(person)) as mapper:
        mapper.store(1)
        pushed(person)
        stored = mapper.store(2)
        pushed(person)
        assert delivered(person) == stored


# -- what a row may be kept of


def scanned(run: Path, now_ns: int | None, known: statcache.Known | None = None) -> scan.Scanned:
    fd = open_directory(os.fsencode(run))
    try:
        return scan.scan(RUN, fd, scan.View(), scan.Hints(known, None if now_ns is None else lambda: now_ns))
    finally:
        os.close(fd)


def changed_ns(path: Path) -> int:
    info = os.lstat(path)
    return max(info.st_mtime_ns, info.st_ctime_ns)


@pytest.mark.parametrize("age_ns", [0, 2 * SECOND_NS - 1, 2 * SECOND_NS, 60 * SECOND_NS - 1, 60 * SECOND_NS])
def test_a_row_is_kept_only_of_what_is_old_and_written_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_ns: int
) -> None:
    """Older than two seconds, and synced before it was hashed or older than a minute."""
    order: list[str] = []
    path = Path(os.fsdecode(put(tmp_path, "note", b"x")))
    for name in ("fsync", "pread"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (order.append(name), real(*args))[1])
    known = scanned(tmp_path, changed_ns(path) + age_ns).known
    assert bool(known.stamps) == (known.fingerprint is not None)
    if known.stamps:
        assert age_ns >= 2 * SECOND_NS
        assert age_ns >= 60 * SECOND_NS or order[0] == "fsync"
    assert known.stamps or age_ns < 60 * SECOND_NS
    assert scanned(tmp_path, None).known.stamps == {}


def test_a_link_that_may_change_within_the_tick_keeps_no_run(tmp_path: Path) -> None:
    """A link is no longer than its name says, and `latest` points to names of one length."""
    (tmp_path / "latest").symlink_to("model-1")
    settled = changed_ns(tmp_path / "latest") + 2 * SECOND_NS
    assert scanned(tmp_path, settled - 1).known.fingerprint is None
    assert scanned(tmp_path, settled + 60 * SECOND_NS).known.fingerprint is not None


def test_a_file_that_changed_while_it_was_hashed_keeps_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it has the size and mtime that it had."""
    path = Path(os.fsdecode(put(tmp_path, "note", b"old")))
    pread = os.pread

    def rewrite_then(fd: int, size: int, offset: int) -> bytes:
        monkeypatch.setattr(hashing.os, "pread", pread)
        data = pread(fd, size, offset)
        rewritten(path, b"new")
        return data

    monkeypatch.setattr(hashing.os, "pread", rewrite_then)
    found = scanned(tmp_path, changed_ns(path) + 61 * SECOND_NS)
    assert found.known.stamps == {}
    assert found.known.fingerprint is None
    assert scanned(tmp_path, None, found.known).manifest.by_path[b"note"].digest == hashing.hash_bytes(b"new", 0).digest


def test_the_clock_is_that_of_the_filesystem_where_the_runs_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`runs` may be a link to a disk of another host, whose clock is another one."""
    elsewhere = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        if os.stat(elsewhere).st_dev == os.stat(tmp_path).st_dev:
            pytest.skip("/dev/shm and the temporary directory are one filesystem")
        (tmp_path / "home").mkdir()
        (tmp_path / "home/runs").symlink_to(elsewhere)
        home = Home(str(tmp_path / "home"))
        home.prepare()
        devices: list[int] = []
        fstat = os.fstat
        monkeypatch.setattr(statcache.os, "fstat", lambda fd: (devices.append(fstat(fd).st_dev), fstat(fd))[1])
        StatCache(home, "plain").now_ns()
        assert devices == [os.stat(elsewhere).st_dev]
    finally:
        shutil.rmtree(elsewhere)


@root
def test_nothing_is_kept_on_an_overlay_that_is_never_written_back(tmp_path: Path) -> None:
    """As in a live system, whose disk is an overlay above memory."""
    mounted = []

    def mount(*args: str | Path) -> None:
        done = subprocess.run(["mount", *map(str, args)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"mount: {done.stderr.decode().strip()}")
        mounted.append(args[-1])

    memory, merged, lower = tmp_path / "memory", tmp_path / "merged", tmp_path / "lower"
    for directory in (memory, merged, lower):
        directory.mkdir()
    try:
        mount("-t", "tmpfs", "tmpfs", memory)
        (memory / "upper").mkdir()
        (memory / "work").mkdir()
        options = f"lowerdir={lower},upperdir={memory}/upper,workdir={memory}/work"
        mount("-t", "overlay", "overlay", "-o", options, merged)
        home = Home(str(merged / "home"))
        home.prepare()
        assert not StatCache(home, "plain").usable
    finally:
        for target in reversed(mounted):
            subprocess.run(["umount", "-l", str(target)], check=False)


# -- the cache is worth its trouble


def test_a_run_that_settled_is_not_read_again(
    person: Person, monkeypatch: pytest.MonkeyPatch, hashed: list[bytes]
) -> None:
    blind = filesystem(os.fsencode(person.home)) in BLIND
    aged(monkeypatch, 61)
    pushed(person)
    hashed.clear()
    pushed(person, 0)
    assert bool(hashed) == blind
    assert person.push().same == 1


def test_only_what_changed_is_read_again(person: Person, monkeypatch: pytest.MonkeyPatch, hashed: list[bytes]) -> None:
    if filesystem(os.fsencode(person.home)) in BLIND:
        pytest.skip("nothing is kept on a filesystem that is blind")
    aged(monkeypatch, 61)
    write_run(person.home, OTHER)
    pushed(person)
    rewritten(person.run(RUN) / "note", b"beyond")
    hashed.clear()
    pushed(person, 1)
    assert hashed == [b"note"]
    assert delivered(person, "note") == b"beyond"


def test_what_is_asked_for_is_read_in_spite_of_the_cache(
    person: Person, monkeypatch: pytest.MonkeyPatch, hashed: list[bytes]
) -> None:
    aged(monkeypatch, 61)
    pushed(person)
    hashed.clear()
    outcome = person.context().push(person.remote, api.Options(), rehash=True)
    assert outcome.exit_code == 0
    assert b"weights" in hashed


def test_a_cache_that_cannot_be_read_only_costs_time(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    aged(monkeypatch, 61)
    pushed(person)
    top = person.home / ".guildsync" / "stat"
    kept = [path for path in top.rglob("*") if path.is_file()] if top.is_dir() else []
    for damage in (b"", b"{", b"{}\n{}\n[]", b"\xff\n", b'{"alive":1,"content":"x","fingerprint":1}\n{}\n'):
        for path in kept:
            path.write_bytes(damage)
        rewritten(weights(person), generation(len(damage) + 1, SIZE))
        pushed(person, 1)
        assert delivered(person) == generation(len(damage) + 1, SIZE)


def test_a_damaged_cache_is_no_cache(tmp_path: Path) -> None:
    home = Home(str(tmp_path))
    assert home.identity
    write_run(tmp_path, RUN)
    cache = StatCache(home, "plain")
    if not cache.usable:
        pytest.skip("nothing is kept on this filesystem")
    fd = home.open_run(RUN)
    known = scan.scan(RUN, fd, scan.View(), scan.Hints(clock=lambda: 1 << 62)).known
    os.close(fd)
    cache.keep(RUN, known)
    assert cache.load(RUN) == known
    (path,) = (tmp_path / ".guildsync/stat/1-plain").iterdir()
    whole = path.read_bytes()
    head = whole.index(b"\n")
    for at in range(head, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert cache.load(RUN) is None
    for at in range(0, len(whole), 11):
        path.write_bytes(whole[:at])
        assert cache.load(RUN) is None


def pulled(person: Person) -> Person:
    """Somebody who has pulled the run just now."""
    assert person.push().problems == []
    other = Person(person.home.parent / "other", person.remote)
    assert other.pull().problems == []
    return other


def test_what_was_just_pulled_is_not_read_again(
    place: Path, person: Person, monkeypatch: pytest.MonkeyPatch, hashed: list[bytes]
) -> None:
    """Its bytes are known, and on the disk: nobody has to wait until it is old. (But for a tick of the clock, which is
    left out here: a quick disk is done within it.)"""
    monkeypatch.setattr(tree, "TICK_NS", 0)
    if filesystem(os.fsencode(place)) in BLIND:
        pytest.skip("nothing is kept here")
    write_run(person.home, OTHER, {f"many{n}": generation(n, 40_000) for n in range(300)})
    (person.run(OTHER) / "link").symlink_to("many1")
    (person.run(OTHER) / ".guild/attrs/env").write_bytes(b"HOME: /home/u\nSECRET_TOKEN: hunter2\n")
    other = pulled(person)
    hashed.clear()
    assert other.push().same == 2
    assert hashed == []


def test_a_captured_environment_that_is_seen_as_another_is_read_again(
    place: Path, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it lies where environments are kept; here it would be redacted."""
    if filesystem(os.fsencode(place)) in BLIND:
        pytest.skip("nothing is kept here")
    monkeypatch.setattr(tree, "TICK_NS", 0)
    home = Home(str(person.home))
    data = b"HOME: /home/u\nSECRET_TOKEN: hunter2\n"
    entry = file_entry(b".guild/attrs/env", 0o644, len(data), digest_of(data), 1)
    run = Manifest([*(directory_entry(path, 0o755, 1) for path in (b".guild", b".guild/attrs")), entry])
    target = Tree(home)
    target.stage([Piece(Want(entry.digest or digest_of(b""), len(data), OTHER, entry.path, 0), data)])
    assert target.commit([RawUpdate(OTHER, None, run, {}, {})]) == []
    target.close()
    (scan,) = Tree(home).manifests({OTHER: ()})
    assert scan.manifest is not None
    assert scan.manifest.by_path[entry.path].digest == digest_of(redact(data)) != entry.digest


@pytest.mark.parametrize("keep_times", [False, True])
def test_what_changes_at_once_after_a_pull_is_delivered(person: Person, keep_times: bool) -> None:
    other = pulled(person)
    path = weights(other)
    info = path.stat()
    path.write_bytes(generation(7, SIZE))
    if keep_times:
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    done = other.push()
    assert (done.problems, done.runs) == ([], 1)
    assert person.pull().problems == []
    assert weights(person).read_bytes() == generation(7, SIZE)


def test_files_that_a_pull_left_alone_are_not_read_again(
    place: Path, person: Person, monkeypatch: pytest.MonkeyPatch, hashed: list[bytes]
) -> None:
    if filesystem(os.fsencode(place)) in BLIND:
        pytest.skip("nothing is kept here")
    other = pulled(person)
    aged(monkeypatch, 100)
    assert other.push().same == 1
    (person.run(RUN) / "note").write_bytes(b"after")
    assert person.push().runs == 1
    assert other.pull().runs == 1
    hashed.clear()
    assert other.push().same == 1
    assert b"weights" not in hashed
    assert b"note" in hashed


# -- a Tree that delivers again and again


class Receiver:
    """A home in which one Tree rewrites a large file of a run, as a mirror does."""

    def __init__(self, top: Path) -> None:
        write_run(top, RUN, {"weights": generation(0, SIZE)})
        self.path = top / "runs" / RUN / "weights"
        self.tree = Tree(Home(str(top)))

    def seen(self) -> Digest | None:
        (found,) = self.tree.manifests({RUN: ()})
        assert found.manifest is not None
        entry = found.manifest.by_path.get(b"weights")
        return entry.digest if entry is not None else None

    def rewrites(self, number: int) -> None:
        (found,) = self.tree.manifests({RUN: ()})
        assert found.manifest is not None
        data, was = generation(number, SIZE), found.manifest.by_path[b"weights"]
        hashed = hash_bytes(data, EPOCH_NS + number)
        entry = file_entry(b"weights", was.mode, len(data), hashed.digest, hashed.mtime_ns, hashed.parts)
        want = Manifest([each for each in found.manifest.entries if each != was] + [entry])
        pieces = [
            Piece(Want(part.digest, part.size, RUN, b"weights", part.offset), data[part.offset :][: part.size])
            for part in entry.objects()
        ]
        self.tree.runs()
        self.tree.missing([piece.want for piece in pieces])
        self.tree.stage(pieces)
        assert self.tree.commit([RawUpdate(RUN, found.manifest, want, {}, None)]) == []


@pytest.fixture
def receiver(place: Path) -> Iterator[Receiver]:
    found = Receiver(place / "receiver")
    yield found
    found.tree.close()


def test_a_large_file_that_was_just_placed_is_read_once(
    place: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, hashed: list[bytes]
) -> None:
    """But for a tick of the clock, which is left out here."""
    if filesystem(os.fsencode(place)) in BLIND:
        pytest.skip("nothing is kept here")
    monkeypatch.setattr(scan, "TICK_NS", 0)
    for number in (1, 2):
        receiver.rewrites(number)
        hashed.clear()
        assert {receiver.seen() for _ in range(3)} == {digest_of(generation(number, SIZE))}
        assert hashed.count(b"weights") == 1


@pytest.mark.parametrize("looked", [0, 1, 2])
@pytest.mark.parametrize("way", [rewritten, replaced])
def test_what_changes_after_it_was_placed_is_seen(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, way: Callable[[Path, bytes, int], None], looked: int
) -> None:
    """With the time that it had."""
    monkeypatch.setattr(scan, "TICK_NS", 0)
    receiver.rewrites(1)
    for _ in range(looked):
        receiver.seen()
    way(receiver.path, generation(2, SIZE), EPOCH_NS + 1)
    assert receiver.seen() == digest_of(generation(2, SIZE))


@pytest.mark.parametrize("age_ns", [scan.TICK_NS - 1, scan.TICK_NS])
def test_a_row_of_what_was_placed_is_kept_once_the_clock_has_ticked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_ns: int
) -> None:
    """And of what has other stat data by now, once it is old."""
    path = Path(os.fsdecode(put(tmp_path, "note", b"x")))
    stamp, clock = stamp_of(path.stat()), changed_ns(path) + age_ns

    def kept(placed: Stamp) -> bool:
        fd = open_directory(os.fsencode(tmp_path))
        try:
            hints = scan.Hints(clock=lambda: clock, placed={b"note": placed})
            return b"note" in scan.scan(RUN, fd, scan.View(), hints).known.stamps
        finally:
            os.close(fd)

    assert kept(stamp) == (age_ns >= scan.TICK_NS)
    assert not kept(stamp._replace(ctime_ns=stamp.ctime_ns - 1))


@pytest.mark.parametrize("looked", [0, 1])
def test_what_is_mapped_after_it_was_placed_is_seen(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, looked: int
) -> None:
    """None of its pages was dirty: the first store to it moves its time."""
    monkeypatch.setattr(scan, "TICK_NS", 0)
    receiver.rewrites(1)
    for _ in range(looked):
        receiver.seen()
    with Mapper(receiver.path) as mapper:
        for number in (2, 3):
            mapper.store(number)
            assert receiver.seen() == digest_of(generation(number, SIZE))


def after_placed(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Somebody acts as soon as the file has been renamed to its place."""
    rename = os.rename

    def renamed(*args: Any, **places: Any) -> None:
        rename(*args, **places)
        if args[1] == b"weights":
            act()

    monkeypatch.setattr(os, "rename", renamed)


def test_what_is_mapped_while_it_is_placed_is_seen(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pages may be dirty when its stat data are taken: they are written back before it is hashed."""
    monkeypatch.setattr(scan, "TICK_NS", 0)
    with ExitStack() as stack:
        mappers: list[Mapper] = []

        def mapped() -> None:
            mappers.append(stack.enter_context(Mapper(receiver.path)))
            mappers[-1].store(2)

        after_placed(monkeypatch, mapped)
        receiver.rewrites(1)
        for number in (2, 3, 4):
            mappers[-1].store(number)
            assert receiver.seen() == digest_of(generation(number, SIZE))


def test_what_is_removed_while_it_is_placed_stays_so(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    after_placed(monkeypatch, receiver.path.unlink)
    receiver.rewrites(1)
    assert receiver.seen() is None
