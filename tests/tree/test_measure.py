"""Size, files and scalars of a run, measured where it lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from guildsync.model.run import NO_ATTRIBUTES, RunId
from guildsync.tree import measure, scalars
from guildsync.tree.dirs import open_directory
from guildsync.tree.home import Home
from guildsync.tree.tree import Tree
from tests.kit.events import record, scalar_event
from tests.kit.trees import put, run_ids, snapshot, write_run

RUN = RunId(run_ids(1)[0])
EVENTS = ".guild/events.out.tfevents.9"


def logged(*values: float, start: int = 0) -> bytes:
    return b"".join(record(scalar_event("mine", value, step)) for step, value in enumerate(values, start))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path, RUN)


@pytest.fixture
def fd(run: Path) -> Iterator[int]:
    found = open_directory(os.fsencode(run))
    yield found
    os.close(found)


def test_sizes_are_those_of_entries_alone(home: Home, run: Path, fd: int) -> None:
    os.symlink("/etc", run / "link")
    put(run, ".guild/LOCK", b"1")
    sizes = [size for kind, _, size, *_ in snapshot(run).values() if kind == "file"]
    found = measure.measured(home, RUN, fd, NO_ATTRIBUTES)
    assert (found.files, found.size) == (len(sizes), sum(sizes))


def test_scalars_are_read_once(home: Home, run: Path, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Tree(home).close()
    home.prepare()
    put(run, EVENTS, logged(3.0, 2.0))
    assert measure.measured(home, RUN, fd, NO_ATTRIBUTES).scalars["mine"]["last"] == 2.0
    put(run, EVENTS, logged(3.0, 2.0, 1.0))
    read: list[int] = []
    real = scalars.read_records

    def reading(fd: int, offset: int, *rest: object) -> int:
        read.append(offset)
        return real(fd, offset, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(scalars, "read_records", reading)
    found = measure.measured(home, RUN, fd, NO_ATTRIBUTES).scalars["mine"]
    assert (found["first"], found["last"], found["last_step"], found["count"]) == (3.0, 1.0, 2, 3)
    assert len(logged(3.0, 2.0)) in read
    assert 0 not in read


def test_a_home_that_cannot_be_written_says_them_too(home: Home, run: Path, fd: int) -> None:
    put(run, EVENTS, logged(0.5))
    (run.parents[1] / ".guildsync").write_bytes(b"in the way")
    assert measure.measured(home, RUN, fd, NO_ATTRIBUTES).scalars["mine"]["last"] == 0.5


def test_a_scan_says_the_scalars_of_what_it_saw_unless_that_is_known(home: Home, run: Path) -> None:
    put(run, EVENTS, logged(0.5))
    tree = Tree(home)
    (scan,) = tree.manifests({RUN: ()})
    assert scan.scalars is not None
    assert scan.scalars["mine"]["last"] == 0.5
    (again,) = tree.manifests({RUN: (scan.content,)})
    assert (again.manifest, again.scalars) == (None, None)
    tree.close()
