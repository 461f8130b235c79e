"""Attributes and markers are read and written as bytes; LOCK says whether a run runs here."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from guildsync.procinfo import Identity, Started, identity
from guildsync.tree import attrs
from guildsync.tree.dirs import open_directory
from tests.kit.trees import put, run_ids, snapshot, write_run

RUN = run_ids(1)[0]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path, RUN, label="old")


@pytest.fixture
def fd(run: Path):
    found = open_directory(os.fsencode(run))
    yield found
    os.close(found)


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    return child.pid


def test_a_listing_reads_what_summary_and_metadata_need(run, fd):
    (run / ".guild/attrs/env").write_bytes(b"SECRET: x\n")
    found = attrs.read_attributes(fd, inflight=False)
    assert found.values["label"] == b"old\n"
    assert found.values["exit_status"] == b"0\n"
    assert "env" not in found.values
    assert found.opref == (run / ".guild/opref").read_bytes()
    assert (found.markers, found.alive, found.inflight, found.size) == (frozenset(), False, False, None)
    assert attrs.read_attributes(fd, inflight=True).inflight


@pytest.mark.parametrize("kind", ["link", "pipe", "directory", "large", "unreadable"])
def test_an_attribute_that_cannot_be_read_is_absent(run, fd, kind, monkeypatch):
    path = run / ".guild/attrs/label"
    path.unlink()
    if kind == "link":
        (run / "elsewhere").write_bytes(b"foreign\n")
        path.symlink_to("../../elsewhere")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "large":
        path.write_bytes(b"x" * (1 << 20) + b"x")
    else:
        path.write_bytes(b"x")
        real = os.open

        def denied(name, *args, **kwargs):
            if name == b"label":
                raise PermissionError
            return real(name, *args, **kwargs)

        monkeypatch.setattr(os, "open", denied)
    found = attrs.read_attributes(fd, False)
    assert "label" not in found.values
    assert "exit_status" in found.values


def test_a_directory_without_guild_is_a_run_without_attributes(tmp_path):
    fd = open_directory(os.fsencode(tmp_path))
    try:
        assert attrs.read_attributes(fd, False) == attrs.Attributes({}, None, frozenset(), False, False)
        assert not attrs.alive(fd)
    finally:
        os.close(fd)


# -- who runs


@pytest.mark.parametrize(
    ("lock", "expected"),
    [
        (lambda: b"%d" % os.getpid(), True),
        (lambda: b" %d\n" % os.getpid(), True),
        (lambda: b"1", True),  # somebody else's, perhaps
        (lambda: b"%d" % dead_pid(), False),
        (lambda: b"", False),
        (lambda: b"x", False),
        (lambda: b"0", False),
        (lambda: b"-1", False),
        (lambda: b"%d" % (1 << 31), False),
        (lambda: b"9" * 400, False),
        (lambda: b"\xff", False),
    ],
)
def test_a_lock_names_a_process_of_this_host(run, fd, lock, expected):
    put(run, ".guild/LOCK", lock())
    assert attrs.alive(fd) is expected
    found = attrs.read_attributes(fd, False)
    assert (found.alive, found.markers) == (expected, {"LOCK"})


def test_a_process_we_may_not_signal_is_one(monkeypatch):
    def refused(pid, number):
        assert (pid, number) == (4242, 0)
        raise PermissionError

    monkeypatch.setattr(attrs.os, "kill", refused)
    assert attrs.is_alive(b"4242")


def test_only_lock_says_that_it_runs_here(run, fd):
    put(run, ".guild/LOCK.remote", b"%d" % os.getpid())
    assert not attrs.alive(fd)
    assert attrs.read_attributes(fd, False).markers == {"LOCK.remote"}


def test_a_lock_that_is_a_link_says_nothing(run, fd):
    put(run, "pid", b"%d" % os.getpid())
    os.symlink("../pid", run / ".guild/LOCK")
    assert not attrs.alive(fd)


# -- writing


def test_attributes_are_set_and_removed_and_others_left_alone(run, fd):
    before = snapshot(run)
    attrs.write_attributes(fd, {"label": b"new\n", "tags": b"- a\n", "marked": None})
    assert (run / ".guild/attrs/label").read_bytes() == b"new\n"
    assert (run / ".guild/attrs/tags").read_bytes() == b"- a\n"
    attrs.write_attributes(fd, {"label": None, "tags": None})
    assert not (run / ".guild/attrs/label").exists()
    assert snapshot(run) == before


def test_markers_are_set_and_cleared_and_lock_is_never_touched(run, fd):
    put(run, ".guild/LOCK", b"77")
    attrs.write_attributes(fd, {}, {"LOCK.remote": b"gpu", "STAGED": b""})
    assert (run / ".guild/LOCK.remote").read_bytes() == b"gpu"
    assert attrs.read_attributes(fd, False).markers == {"LOCK", "LOCK.remote", "STAGED"}
    attrs.write_attributes(fd, {})
    assert attrs.read_attributes(fd, False).markers == {"LOCK", "LOCK.remote", "STAGED"}
    attrs.write_attributes(fd, {}, {"PENDING": b""})
    assert attrs.read_attributes(fd, False).markers == {"LOCK", "PENDING"}
    assert (run / ".guild/LOCK").read_bytes() == b"77"


def test_equal_bytes_are_not_written_again(run, fd):
    before = os.stat(run / ".guild/attrs/label")
    attrs.write_attributes(fd, {"label": b"old\n"})
    after = os.stat(run / ".guild/attrs/label")
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_nothing_is_made_where_there_is_nothing_to_say(tmp_path):
    fd = open_directory(os.fsencode(tmp_path))
    try:
        attrs.write_attributes(fd, {"label": None}, {})
        assert os.listdir(tmp_path) == []
        attrs.write_attributes(fd, {"label": b"x"}, {"PENDING": b""})
        assert (tmp_path / ".guild/attrs/label").read_bytes() == b"x"
        assert (tmp_path / ".guild/PENDING").exists()
    finally:
        os.close(fd)


@pytest.mark.parametrize("what", [".guild", ".guild/attrs"])
def test_a_link_in_the_way_is_not_followed(tmp_path, what):
    outside = tmp_path / "outside"
    (outside / "attrs").mkdir(parents=True)
    run = tmp_path / "run"
    (run / what).parent.mkdir(parents=True)
    (run / what).symlink_to(outside)
    fd = open_directory(os.fsencode(run))
    try:
        with pytest.raises(OSError, match=r"Not a directory|Too many"):
            attrs.write_attributes(fd, {"label": b"x"}, {"PENDING": b""})
        assert attrs.read_attributes(fd, False).values == {}
    finally:
        os.close(fd)
    assert [path.name for path in outside.rglob("*")] == ["attrs"]


def test_a_planted_temporary_name_is_not_written_through(run, fd, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    os.symlink(victim, run / ".guild/attrs/.guildsync-label")
    attrs.write_attributes(fd, {"label": b"new"})
    assert victim.read_bytes() == b"precious"
    assert (run / ".guild/attrs/label").read_bytes() == b"new"
    assert not os.path.lexists(run / ".guild/attrs/.guildsync-label")


def test_a_crash_before_the_rename_leaves_the_old_bytes(run, fd, monkeypatch):
    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(attrs.os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            attrs.write_attributes(fd, {"label": b"new"})
    assert (run / ".guild/attrs/label").read_bytes() == b"old\n"
    attrs.write_attributes(fd, {"label": b"newer"})
    assert (run / ".guild/attrs/label").read_bytes() == b"newer"


# -- who runs, as a supervisor of ours wrote it down


def claimed(run: Path, *who: Identity) -> None:
    (run / ".guild/attrs/exit_status").unlink(missing_ok=True)
    put(run, ".guild/sync/process", Started(*who).encode())


def test_a_process_file_tells_a_process_from_another_with_its_id(run, fd):
    me = identity(os.getpid())
    other, rebooted = replace(me, start="1"), replace(me, boot="another")
    for who, expected in (
        ((me, other), True),
        ((other, me), True),
        ((other, other), False),
        ((rebooted, rebooted), False),
    ):
        claimed(run, *who)
        for lock in (None, b"%d" % me.pid, b"%d\n" % me.pid):
            put(run, ".guild/LOCK", lock) if lock else (run / ".guild/LOCK").unlink(missing_ok=True)
            assert attrs.alive(fd) is expected
            found = attrs.read_attributes(fd, False)
            assert (found.alive, found.lost) == (expected, not expected)


def test_who_said_how_it_ended_is_not_lost(run, fd):
    gone = replace(identity(os.getpid()), start="1")
    claimed(run, gone, gone)
    put(run, ".guild/attrs/exit_status", b"1\n")
    found = attrs.read_attributes(fd, False)
    assert (found.alive, found.lost) == (False, False)


def test_who_ends_while_it_is_read_is_not_lost(run, fd, monkeypatch):
    gone = replace(identity(os.getpid()), start="1")
    claimed(run, gone, gone)
    real = Started.is_alive.fget

    def ends(started):
        put(run, ".guild/attrs/exit_status", b"3\n")
        return real(started)

    monkeypatch.setattr(Started, "is_alive", property(ends))
    found = attrs.read_attributes(fd, False)
    assert (found.lost, found.values["exit_status"]) == (False, b"3\n")


def test_a_lock_of_another_process_is_believed_beside_a_process_file(run, fd):
    gone = replace(identity(os.getpid()), start="1", pid=dead_pid())
    claimed(run, gone, gone)
    put(run, ".guild/LOCK", b"%d" % os.getpid())
    assert attrs.alive(fd)
    put(run, ".guild/LOCK", b"%d" % dead_pid())
    found = attrs.read_attributes(fd, False)
    assert (found.alive, found.lost) == (False, False)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 5000])
def test_a_process_file_that_cannot_be_read_says_nothing(run, fd, data):
    (run / ".guild/attrs/exit_status").unlink()
    put(run, ".guild/sync/process", data)
    found = attrs.read_attributes(fd, False)
    assert (found.alive, found.lost) == (False, False)
    put(run, ".guild/LOCK", b"%d" % os.getpid())
    assert attrs.alive(fd)
