"""Memory and descriptors are bounded, and a full disk is a clean error that leaves the old version (promise P11)."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guildsync.errors import Unreachable
from tests.kit.measured import Measured, measured
from tests.kit.model import Person
from tests.kit.trees import MIB, noise, run_ids, snapshot, write_run

RSS = 400
DESCRIPTORS = 64
RUN, OTHER = run_ids(2)

soak = [pytest.mark.soak, pytest.mark.timeout(1800)]


def command(verb: str, person: Person, limit: int = 128) -> Measured:
    done = measured([verb, "--home", str(person.home), "-y", person.remote], os.environ, limit)
    print(f"{verb}: {done.rss:.0f} MiB, {done.descriptors} descriptors, {done.seconds:.1f} s: {done.said.strip()}")
    return done


def bounded(done: Measured, rss: int = RSS) -> Measured:
    assert done.code == 0, done.said
    assert done.rss <= rss
    assert 3 <= done.descriptors <= DESCRIPTORS
    return done


@pytest.fixture
def people(tmp_path: Path) -> Iterator[tuple[Person, Person]]:
    """Somebody with runs and somebody with none, who share a folder; all is removed at once, for it is much."""
    remote = f"file://{tmp_path}/store"
    yield Person(tmp_path / "a", remote), Person(tmp_path / "b", remote)
    shutil.rmtree(tmp_path)


def make_runs(person: Person, runs: int, files: int) -> None:
    """Runs of so many small files each, no two of them the same."""
    for run in run_ids(runs):
        write_run(person.home, run)
        directory = person.run(run)
        have = sum(row[0] == "file" for row in snapshot(directory).values())
        for number in range(files - have):
            below = directory / f"d{number // 1000}"
            if number % 1000 == 0:
                below.mkdir()
            (below / f"{number}.txt").write_text(f"run {run} file {number}\n" * 4)


def make_large(person: Person, size: int, random: bool) -> None:
    """One run with one file: of noise, or of a hole with some bytes in it."""
    write_run(person.home, RUN)
    with (person.run(RUN) / "large").open("wb") as file:
        for block in range(size // MIB if random else 0):
            file.write(noise(block, MIB))
        file.truncate(size)
        file.seek(size // 2 + 12345)
        file.write(b"some bytes")


def same_file(one: Path, other: Path) -> bool:
    def digest(path: Path) -> str:
        whole = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(4 * MIB):
                whole.update(block)
        return whole.hexdigest()

    return one.stat().st_size == other.stat().st_size and digest(one) == digest(other)


@pytest.mark.parametrize(
    ("runs", "files", "rss"),
    [(200, 50, RSS // 4), pytest.param(2000, 50, RSS, marks=soak), pytest.param(1, 100_000, RSS, marks=soak)],
)
def test_many_files_take_little(people: tuple[Person, Person], runs: int, files: int, rss: int) -> None:
    """A tenth of the files may take no more than leaves room for the rest."""
    a, b = people
    make_runs(a, runs, files)
    for _ in range(2):
        bounded(command("push", a), rss)
    for _ in range(2):
        bounded(command("pull", b), rss)
    assert b.runs() == a.runs()
    for run in a.runs():
        assert snapshot(b.run(run)) == snapshot(a.run(run))


@pytest.mark.parametrize(
    ("size", "random"),
    [
        (512 * MIB, True),
        pytest.param(6144 * MIB, False, marks=soak),
        pytest.param(5120 * MIB, True, marks=soak),
    ],
)
def test_a_large_file_takes_little(people: tuple[Person, Person], size: int, random: bool) -> None:
    a, b = people
    make_large(a, size, random)
    for _ in range(2):
        bounded(command("push", a))
    bounded(command("pull", b))
    assert same_file(a.run(RUN) / "large", b.run(RUN) / "large")


def test_no_more_descriptors_are_asked_for_than_are_promised(people: tuple[Person, Person]) -> None:
    """What was looked at may have missed a moment; the system misses none."""
    a, b = people
    make_runs(a, 60, 20)
    make_large(a, 48 * MIB, True)
    assert command("push", a, DESCRIPTORS).code == 0
    assert command("pull", b, DESCRIPTORS).code == 0
    assert b.runs() == a.runs()


# -- a disk that is full


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 24 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(directory)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small filesystem cannot be mounted: {done.stderr.decode().strip()}")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def failed_cleanly(done: Measured) -> None:
    """Said in words for people, with the exit code of a place that cannot be used now."""
    assert done.code == Unreachable.exit_code, done.said
    assert "space" in done.said
    assert "should not happen" not in done.said


def test_a_pull_to_a_full_disk_leaves_what_was_there(tmp_path: Path, small: Path) -> None:
    remote = f"file://{tmp_path}/store"
    a, b = Person(tmp_path / "a", remote), Person(small / "b", remote)
    write_run(a.home, RUN, {"weights": noise(1, MIB)})
    assert a.push().exit_code == 0
    assert b.pull().exit_code == 0
    before = snapshot(b.run(RUN))
    a.write(RUN, "weights", noise(2, 40 * MIB))
    write_run(a.home, OTHER)
    assert a.push().exit_code == 0
    assert command("pull", b).code != 0
    assert snapshot(b.run(RUN)) == before
    assert b.record(RUN).summary.status == "completed"
    assert b.push().problems == []
    assert a.verify().exit_code == 0
    a.write(RUN, "weights", noise(3, MIB))
    assert a.push().exit_code == 0
    assert b.pull().exit_code == 0  # nothing is left over that takes the room
    assert snapshot(b.run(RUN)) == snapshot(a.run(RUN))


def test_a_pull_to_a_full_disk_says_so(tmp_path: Path, small: Path) -> None:
    remote = f"file://{tmp_path}/store"
    a, b = Person(tmp_path / "a", remote), Person(small / "b", remote)
    write_run(a.home, RUN, {"weights": noise(1, 40 * MIB)})
    assert a.push().exit_code == 0
    failed_cleanly(command("pull", b))


def test_a_push_to_a_full_disk_leaves_what_was_there(tmp_path: Path, small: Path) -> None:
    remote = f"file://{small}/store"
    a, b = Person(tmp_path / "a", remote), Person(tmp_path / "b", remote)
    write_run(a.home, RUN, {"weights": noise(1, MIB)})
    assert a.push().exit_code == 0
    before = snapshot(a.run(RUN))
    a.write(RUN, "weights", noise(2, 40 * MIB))
    failed_cleanly(command("push", a))
    assert a.verify().exit_code == 0
    assert b.pull().exit_code == 0
    assert snapshot(b.run(RUN)) == before


def test_a_push_to_a_full_disk_goes_on_when_there_is_room(tmp_path: Path, small: Path) -> None:
    remote = f"file://{small}/store"
    a, b = Person(tmp_path / "a", remote), Person(tmp_path / "b", remote)
    write_run(a.home, RUN, {"weights": noise(1, MIB)})
    ballast = small / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 23 * MIB + 900_000)
    failed_cleanly(command("push", a))
    ballast.unlink()
    assert command("push", a).code == 0
    assert b.pull().exit_code == 0
    assert snapshot(b.run(RUN)) == snapshot(a.run(RUN))
