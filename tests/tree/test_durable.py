"""What a commit made is durable before anybody can see it, each file by itself or all at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guildsync.errors import Unreachable
from guildsync.model.ports import RawUpdate
from guildsync.model.run import RunId
from guildsync.tree import durable
from guildsync.tree.durable import Durability
from guildsync.tree.home import Home
from guildsync.tree.tree import Tree
from tests.kit.replicas import Content, Directory
from tests.kit.trees import run_ids

ONE, OTHER = map(RunId, run_ids(2))
CONTENT = Content({b".guild/opref": b"x", b"a": b"a", b"d": Directory(0o700), b"d/b": b"b"})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "home"))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What became durable and what appeared, in order."""
    found: list[str] = []
    fsync, rename = os.fsync, os.rename

    def renamed(old, new, **fds):
        if os.fsdecode(new).endswith((ONE, OTHER)):
            found.append(f"appears {os.path.basename(os.fsdecode(new))}")
        rename(old, new, **fds)

    def synced(fd):
        found.append(f"synced {os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))}")
        fsync(fd)

    def all_synced(fd):
        assert os.stat(fd).st_dev == os.stat(f"/proc/self/fd/{fd}").st_dev
        found.append("all synced")
        return 0

    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(durable, "_syncfs", lambda: all_synced)
    return found


def commit(home: Home) -> list[str]:
    tree = Tree(home)
    try:
        updates = [RawUpdate(run, None, CONTENT.manifest, {"label": b"l\n"}, {}) for run in (ONE, OTHER)]
        for run in (ONE, OTHER):
            tree.stage(CONTENT.pieces(CONTENT.wants(run)))
        assert tree.commit(updates) == []
    finally:
        tree.close()
    return sorted(home.run_ids())


def test_many_files_become_durable_by_one_call_before_the_first_run_appears(home, told, monkeypatch):
    monkeypatch.setattr(durable, "MANY", 1)
    monkeypatch.setattr(durable, "_waiting", lambda: 0)
    assert home.identity
    told.clear()
    assert commit(home) == sorted([ONE, OTHER])
    begin = told.index("all synced")
    assert {*told[begin + 1 : begin + 3]} == {f"appears {ONE}", f"appears {OTHER}"}
    assert told[begin + 3 :] == ["synced runs"]
    assert not [word for word in told[:begin] if word.startswith("appears")]


@pytest.mark.parametrize("why", ["few", "neighbours", "no syncfs"])
def test_else_each_file_and_directory_is_synced_before_its_run_appears(home, told, monkeypatch, why):
    monkeypatch.setattr(durable, "MANY", 1000 if why == "few" else 1)
    monkeypatch.setattr(durable, "_waiting", lambda: 1 << 40 if why == "neighbours" else 0)
    if why == "no syncfs":
        monkeypatch.setattr(durable, "_syncfs", lambda: None)
    assert home.identity
    told.clear()
    commit(home)
    assert "all synced" not in told
    first = min(at for at, word in enumerate(told) if word.startswith("appears"))
    objects = len({want.digest for want in CONTENT.wants(ONE)})
    files, directories = (
        2 * (objects + 1),
        2 * 4 + 2,
    )  # with the label; `.guild/attrs` when it is written and at the end
    assert len([word for word in told[:first] if word.startswith("synced")]) == files + directories
    assert told[-1] == "synced runs"


def test_nothing_appears_where_it_could_not_be_written_out(home, monkeypatch):
    monkeypatch.setattr(durable, "MANY", 1)
    monkeypatch.setattr(durable, "_waiting", lambda: 0)
    monkeypatch.setattr(durable, "_syncfs", lambda: lambda fd: -1)
    with pytest.raises(Unreachable):
        commit(home)
    assert home.run_ids() == []


@pytest.mark.parametrize(
    ("release", "there"), [("5.8.0-1", True), ("6.18.44-x", True), ("5.7.19", False), ("x", False)]
)
def test_only_a_system_that_reports_failures_is_asked(monkeypatch, release, there):
    found = os.uname()
    monkeypatch.setattr(os, "uname", lambda: type(found)((found[0], found[1], release, *found[3:])))
    durable._syncfs.cache_clear()
    try:
        assert (durable._syncfs() is not None) == there
    finally:
        durable._syncfs.cache_clear()


def test_the_real_call_works(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(durable, "MANY", 1)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        durability = Durability(fd, 1, 1 << 40)
        assert durability.at_once
        durability.finish()
    finally:
        os.close(fd)
    assert durable._waiting() < 1 << 50
