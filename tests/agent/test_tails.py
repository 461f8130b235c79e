"""What grew crosses as what was appended to it, in both directions."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from guildsync.agent import tails
from guildsync.agent.client import FarTree
from guildsync.agent.server import serve
from guildsync.errors import Damaged, Unreachable
from guildsync.model.manifest import digest_of
from guildsync.model.ports import Lost, Piece, Want
from guildsync.model.run import RunId
from guildsync.tree.home import Home
from guildsync.tree.tree import Tree
from tests.kit.trees import noise, run_ids, write_run

RUN = RunId(run_ids(1)[0])
LOG = 300_000
SLACK = 2_000
"""Bytes that a call takes beside what it carries."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_run(tmp_path / "home", RUN)
    (tmp_path / "home/runs" / RUN / "log").write_bytes(noise(1, LOG))
    return tmp_path / "home"


@pytest.fixture
def far(home: Path) -> Iterator[FarTree]:
    near, there = socket.socketpair()
    tree = Tree(Home(str(home)))
    thread = threading.Thread(target=serve, args=(tree, there, there), daemon=True)
    thread.start()
    with FarTree(near, near) as client:
        yield client
    thread.join(10)
    tree.close()


def log_of(home: Path) -> Path:
    return home / "runs" / RUN / "log"


def want_of(data: bytes, path: bytes = b"log", offset: int = 0) -> Want:
    return Want(digest_of(data), len(data), RUN, path, offset)


def sent(far: FarTree, data: bytes, want: Want | None = None) -> int:
    """Bytes that it takes to bring an object there, which is missing."""
    want = want or want_of(data)
    assert far.missing([want]) == {want.digest}
    before = far.bytes_out
    far.stage([Piece(want, data)])
    assert far.missing([want]) == set()
    return far.bytes_out - before


def came(far: FarTree, want: Want, data: bytes) -> int:
    """Bytes that it takes to have an object from there."""
    before = far.bytes_in
    assert list(far.fetch([want])) == [Piece(want, data)]
    return far.bytes_in - before


def test_what_was_appended_here_is_all_that_is_sent(far: FarTree, home: Path) -> None:
    grown = log_of(home).read_bytes() + b"one line more\n"
    assert sent(far, grown) < SLACK


def test_what_was_appended_there_is_all_that_comes_once_the_rest_has_come(far: FarTree, home: Path) -> None:
    data = log_of(home).read_bytes()
    assert came(far, want_of(data), data) > LOG
    for _ in range(3):
        data += b"one line more\n"
        log_of(home).write_bytes(data)
        assert came(far, want_of(data), data) < SLACK


def test_a_part_behind_others_grows_as_well(far: FarTree, home: Path) -> None:
    data = log_of(home).read_bytes()[100_000:]
    assert came(far, want_of(data, offset=100_000), data) > LOG - 100_000
    grown = data + b"one line more\n"
    assert sent(far, grown, want_of(grown, offset=100_000)) < SLACK
    log_of(home).write_bytes(noise(1, LOG) + b"one line more\n")
    assert came(far, want_of(grown, offset=100_000), grown) < SLACK


@pytest.mark.parametrize("changed", [noise(2, LOG + 10), noise(1, LOG)[:-1] + b"xy"])
def test_what_did_not_grow_crosses_whole(far: FarTree, home: Path, changed: bytes) -> None:
    data = log_of(home).read_bytes()
    came(far, want_of(data), data)
    assert sent(far, changed) > len(changed)
    log_of(home).write_bytes(changed)
    assert came(far, want_of(changed), changed) > len(changed)


def test_what_is_cut_needs_nothing_but_its_new_end(far: FarTree, home: Path) -> None:
    assert sent(far, log_of(home).read_bytes()[: LOG // 2]) < SLACK


def test_what_is_small_or_one_of_many_is_not_asked_for(far: FarTree, home: Path) -> None:
    small = home / "runs" / RUN / "small"
    small.write_bytes(noise(3, tails.LEAST - 1))
    grown = small.read_bytes() + noise(4, 5000)
    assert sent(far, grown, want_of(grown, b"small")) > len(grown)
    others = [want_of(b"%d" % number, b"%d" % number) for number in range(tails.FEW)]
    log = log_of(home).read_bytes() + b"more"
    assert len(far.missing([want_of(log), *others])) == len(others) + 1
    before = far.bytes_out
    far.stage([Piece(want_of(log), log)])
    assert far.bytes_out - before > LOG


@pytest.mark.parametrize("name", [".guild/attrs/env", ".guild/ENV"])
def test_nothing_is_said_of_captured_environments(far: FarTree, home: Path, name: str) -> None:
    path = home / "runs" / RUN / name
    path.write_bytes(b"HOME=/root\n" * 1000)
    grown = path.read_bytes() + b"USER=root\n"
    assert sent(far, grown, want_of(grown, name.encode())) > len(grown)


def test_what_changes_there_meanwhile_is_no_beginning(far: FarTree, home: Path) -> None:
    """It can be tried again."""
    grown = log_of(home).read_bytes() + b"one line more\n"
    assert far.missing([want_of(grown)])
    log_of(home).write_bytes(noise(5, LOG))
    with pytest.raises(Unreachable, match="changed there"):
        far.stage([Piece(want_of(grown), grown)])
    assert sent(far, grown) > LOG


def test_a_file_that_went_away_there_is_lost(far: FarTree, home: Path) -> None:
    data = log_of(home).read_bytes()
    came(far, want_of(data), data)
    log_of(home).unlink()
    (found,) = far.fetch([want_of(data + b"more")])
    assert isinstance(found, Lost)


def test_only_so_much_is_kept() -> None:
    kept = tails.Carried(budget=25_000)
    pieces = [Piece(want_of(data, b"%d" % number), data) for number, data in enumerate([os.urandom(10_000)] * 3)]
    for piece in pieces:
        kept.keep(piece)
    kept.keep(pieces[1])
    more = [want_of(piece.data + b"more", piece.want.path) for piece in pieces]
    assert list(kept.begun(more)) == more[1:]
    assert kept.completed(more[2], 10_000, b"more") == pieces[2].data + b"more"
    for want, size in ((more[0], 10_000), (more[2], 9_999)):
        with pytest.raises(Damaged):
            kept.completed(want, size, b"more")
