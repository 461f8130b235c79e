"""Runs become new at their final names by steps that lose nothing of anybody's."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from guildsync.errors import ALIVE, CHANGED, UNREADABLE
from guildsync.model.manifest import Manifest
from guildsync.model.ports import RawUpdate, Scan
from guildsync.model.run import RunId
from guildsync.tree import publish, staged
from guildsync.tree.home import Home
from guildsync.tree.tree import Tree
from tests.kit.replicas import Content, Directory, File, Kind, Link, write
from tests.kit.trees import differences, run_ids, snapshot

RUN = RunId(run_ids(1)[0])
OLD: Mapping[bytes, Kind] = {
    b".guild/attrs/flags": b"lr: 1\n",
    b"a": b"old",
    b"b": b"old b",
    b"d/x": b"x",
    b"gone/y": b"y",
    b"l": Link(b"a"),
}
NEW: Mapping[bytes, Kind] = {
    b".guild/attrs/flags": b"lr: 1\n",
    b"a": b"new",
    b"b": b"old b",
    b"d/x": b"x",
    b"d/z": File(b"z", 0o600),
    b"l": Link(b"b"),
    b"n": Directory(0o700),
}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "home"))


@pytest.fixture
def run(home: Home) -> Path:
    """The old content, there already."""
    return write(home.text, RUN, Content(OLD))


@pytest.fixture
def tree(home: Home):
    found = Tree(home)
    yield found
    found.close()


def planned(tree: Tree, literal: Mapping[bytes, Kind] = NEW) -> RawUpdate:
    """An update made against what is there now, all of it staged."""
    content = Content(literal)
    scan: Scan | None = next(iter(tree.manifests({RUN: ()})), None)
    missing = tree.missing(content.wants(RUN))
    tree.stage(content.pieces(want for want in content.wants(RUN) if want.digest in missing))
    return RawUpdate(RUN, scan.manifest if scan else None, content.manifest, {}, {})


def manifest_of(home: Home) -> Manifest:
    (scan,) = Tree(home).manifests({RUN: ()})
    assert scan.manifest is not None
    return scan.manifest


def reasons(problems) -> list[tuple[bytes | None, str]]:
    return [(problem.path, problem.reason) for problem in problems]


# -- edits between plan and apply


def _edit(run: Path, path: str) -> None:
    (run / path).write_bytes(b"mine")


EDITS = {
    "a changed file": (lambda run: _edit(run, "a"), b"a"),
    "a grown file": (lambda run: (run / "a").write_bytes(b"old and more"), b"a"),
    "a mode": (lambda run: (run / "a").chmod(0o600), b"a"),
    "a removed file": (lambda run: (run / "a").unlink(), b"a"),
    "a file where one is to appear": (lambda run: _edit(run, "d/z"), b"d/z"),
    "a link where a directory is to appear": (lambda run: (run / "n").symlink_to("/tmp"), b"n"),
    "a change of what is to go": (lambda run: _edit(run, "gone/y"), b"gone/y"),
    "another link": (lambda run: ((run / "l").unlink(), (run / "l").symlink_to("d")), b"l"),
    "a file for a link": (lambda run: ((run / "l").unlink(), _edit(run, "l")), b"l"),
    "a directory that is gone": (lambda run: ((run / "d/x").unlink(), (run / "d").rmdir()), b"d"),
    "a link for a directory": (lambda run: ((run / "d").rename(run / "e"), (run / "d").symlink_to("e")), b"d"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_after_the_plan_is_kept_and_reported(home, run, tree, name):
    edit, path = EDITS[name]
    update = planned(tree)
    edit(run)
    mine = snapshot(run)
    assert reasons(tree.commit([update])) == [(path, CHANGED)]
    assert snapshot(run) == mine
    assert not home.is_inflight(RUN)
    assert planned(tree).have == manifest_of(home)  # the next plan sees it


def test_an_edit_of_another_path_is_kept_and_no_obstacle(home, run, tree):
    update = planned(tree)
    _edit(run, "b")
    _edit(run, "mine")
    assert tree.commit([update]) == []
    expected = Content({**NEW, b"b": b"mine", b"mine": b"mine"}).manifest
    assert manifest_of(home).content == expected.content


def test_a_touch_is_no_edit(home, run, tree):
    update = planned(tree)
    os.utime(run / "a", ns=(1, 1))
    assert tree.commit([update]) == []
    assert manifest_of(home).content == Content(NEW).manifest.content


def test_a_file_added_to_a_directory_that_is_to_go_is_kept(home, run, tree):
    update = planned(tree)
    _edit(run, "gone/mine")
    problems = tree.commit([update])
    assert [problem.reason for problem in problems] == [UNREADABLE]
    assert (run / "gone/mine").read_bytes() == b"mine"
    assert home.is_inflight(RUN)  # all else was done; the next sync goes on
    assert tree.commit([planned(tree, {**NEW, b"gone/mine": b"mine"})]) == []
    assert not home.is_inflight(RUN)


def test_a_run_that_was_removed_or_deleted_meanwhile_is_not_made_again(home, run, tree):
    update = planned(tree)
    target = Path(home.text) / "trash" / "runs" / RUN
    run.rename(target)
    assert reasons(tree.commit([update])) == [(None, CHANGED)]
    assert reasons(tree.commit([replace(update, have=None)])) == [(None, CHANGED)]
    target.rename(run.parent / "elsewhere")
    assert reasons(tree.commit([update])) == [(None, CHANGED)]
    assert not run.exists()


# -- a run that runs here


def test_a_running_run_is_never_written_but_its_metadata(home, run, tree):
    update = planned(tree)
    (run / ".guild/LOCK").write_bytes(b"%d" % os.getpid())
    mine = snapshot(run)
    assert reasons(tree.commit([update])) == [(None, ALIVE)]
    label = RawUpdate(RUN, update.have, None, {"label": b"new\n"}, {"LOCK.remote": b"x"})
    assert tree.commit([label]) == []
    assert (run / ".guild/attrs/label").read_bytes() == b"new\n"
    assert not (run / ".guild/LOCK.remote").exists()
    assert snapshot(run) == mine
    (run / ".guild/LOCK").unlink()
    assert tree.commit([update]) == []


# -- how it becomes


def test_what_does_not_change_keeps_its_inode_and_open_files_their_bytes(run, tree):
    inodes = {name: (run / name).stat().st_ino for name in ("b", "d/x", "d")}
    with (run / "a").open("rb") as reader:
        assert tree.commit([planned(tree)]) == []
        assert reader.read() == b"old"
    assert {name: (run / name).stat().st_ino for name in inodes} == inodes
    assert (run / "a").read_bytes() == b"new"


def test_modes_are_the_sources_whatever_the_umask(home, tree):
    literal = {b"f": File(b"x", 0o777), b"g": File(b"x", 0o400), b"d": Directory(0o777), b"d/e": Directory(0o500)}
    before = os.umask(0o077)
    try:
        assert tree.commit([planned(tree, literal)]) == []
    finally:
        os.umask(before)
    run = Path(home.text) / "runs" / RUN
    assert [stat.S_IMODE((run / p).stat().st_mode) for p in ("f", "g", "d", "d/e")] == [0o777, 0o400, 0o777, 0o500]
    assert tree.commit([planned(tree, {**literal, b"f": File(b"x", 0o600), b"d": Directory(0o700)})]) == []
    assert [stat.S_IMODE((run / p).stat().st_mode) for p in ("f", "g", "d", "d/e")] == [0o600, 0o400, 0o700, 0o500]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user to be refused like one")
def test_directories_nobody_may_write_are_made_by_anybody(tmp_path):
    for top in (tmp_path, *tmp_path.parents[:3]):
        top.chmod(top.stat().st_mode | 0o011)
    tmp_path.chmod(0o777)
    literal = {b"d": Directory(0o500), b"d/e": Directory(0o555), b"d/e/f": File(b"x", 0o400), b"d/l": Link(b"e")}
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setegid(65534)
            os.seteuid(65534)
            tree = Tree(Home(str(tmp_path / "home")))
            assert tree.commit([planned(tree, literal)]) == []
            tree.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert manifest_of(Home(str(tmp_path / "home"))) == Content(literal).manifest


class Recorder:
    """The system calls that matter, in order, as (name, what): what is an inode, or the last part of a path."""

    NAMES = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "symlink")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, object]] = []
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self._recording(name, getattr(os, name)))

    def _recording(self, name, real):
        def call(first, *args, **kwargs):
            what: object = first
            if name == "fsync":
                what = os.fstat(first).st_ino
            elif name == "rename":
                source = os.stat(first, dir_fd=kwargs.get("src_dir_fd"), follow_symlinks=False)
                what = (source.st_ino, os.path.basename(args[0]))
            elif name == "replace":
                what = os.path.basename(args[0])
            real(first, *args, **kwargs)
            self.calls.append((name, what))

        return call

    def index(self, name: str, what: object) -> int:
        return self.calls.index((name, what))

    def renamed(self, target: bytes) -> tuple[int, int]:
        """(when, inode) of what was renamed to a name."""
        return next((n, w[0]) for n, (c, w) in enumerate(self.calls) if c == "rename" and w[1] == target)


def test_a_new_run_is_durable_before_it_shows(home, tree, monkeypatch):
    update = planned(tree)
    calls = Recorder(monkeypatch)
    assert tree.commit([update]) == []
    run = Path(home.text) / "runs" / RUN
    shown, inode = calls.renamed(RUN.encode())
    assert inode == run.stat().st_ino
    for path in [run, *run.rglob("*")]:
        if not path.is_symlink():
            assert calls.index("fsync", path.lstat().st_ino) < shown, path
    last = len(calls.calls) - 1 - calls.calls[::-1].index(("fsync", run.parent.stat().st_ino))
    assert last > shown


def test_an_existing_run_is_marked_then_changed_then_unmarked(home, run, tree, monkeypatch):
    update = planned(tree)
    calls = Recorder(monkeypatch)
    assert tree.commit([update]) == []
    marked = calls.index("replace", RUN.encode())
    inflight = os.path.join(home.state, b"inflight")
    assert calls.calls[marked + 1] == ("fsync", os.stat(inflight).st_ino)
    unmarked = calls.index("unlink", os.path.join(inflight, RUN.encode()))
    steps = []
    for name in (b"a", b"z"):
        step, inode = calls.renamed(name)
        assert calls.index("fsync", inode) < step, name
        steps.append(step)
    steps.append(calls.renamed(b"l")[0])
    removals = [calls.index("unlink", b"y"), calls.index("rmdir", b"gone")]
    assert marked < min(steps)
    assert max(steps) < min(removals) < max(removals) < unmarked
    for directory in (run, run / "d", run / "n"):
        assert max(steps) < calls.index("fsync", directory.stat().st_ino) < unmarked, directory


@pytest.mark.parametrize("number", range(12))
def test_dying_at_any_step_leaves_old_or_new_paths_and_going_on_converges(home, run, tree, monkeypatch, number):
    update = planned(tree)
    old, new = snapshot(run), {**Content(NEW).manifest.by_path}
    count = iter(range(1000))
    real = publish._step

    def dies(*args):
        if next(count) == number:
            raise KeyboardInterrupt
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(publish, "_step", dies)
        try:
            tree.commit([update])
            assert number >= 6  # there are so many steps
        except KeyboardInterrupt:
            assert home.is_inflight(RUN)
    tree.close()
    for path, row in snapshot(run).items():
        is_old = path in old and row[:5] == old[path][:5]
        is_new = path in new and row[0] == new[path].kind and (new[path].digest, new[path].target) == row[3:5]
        assert is_old or is_new, path
    again = Tree(home)
    try:
        (scan,) = again.manifests({RUN: ()})
        assert scan.settled == (scan.aim is None) == (not home.is_inflight(RUN))
        assert again.commit([planned(again)]) == []
    finally:
        again.close()
    assert manifest_of(home).content == Content(NEW).manifest.content
    assert not home.is_inflight(RUN)


def test_dying_before_the_rename_shows_nothing(home, tree, monkeypatch):
    update = planned(tree)

    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publish.os, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            tree.commit([update])
    assert home.run_ids() == []
    tree.close()
    again = Tree(home)
    assert again.commit([planned(again)]) == []
    again.close()
    assert manifest_of(home) == Content(NEW).manifest


def test_a_link_in_place_of_a_directory_leads_nowhere(home, run, tree, tmp_path):
    """Also when it is swapped in after the check."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_bytes(b"precious")
    before = snapshot(outside)
    update = planned(tree, {**NEW, b"d/x": b"changed"})
    (run / "d").rename(tmp_path / "d")
    (run / "d").symlink_to(outside)
    assert {problem.reason for problem in tree.commit([update])} == {CHANGED}
    assert differences(snapshot(outside), before) == []


def test_a_link_swapped_in_after_the_check_leads_nowhere(home, run, tree, tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    outside.mkdir()
    update = planned(tree)
    begin = Home.begin

    def swap(self, *args):
        begin(self, *args)
        (run / "d").rename(tmp_path / "d")
        (run / "d").symlink_to(outside)

    monkeypatch.setattr(Home, "begin", swap)
    problems = tree.commit([update])
    assert [problem.run for problem in problems] == [RUN]
    assert list(outside.iterdir()) == []
    assert home.is_inflight(RUN)


# -- growth


def grown(tree: Tree, more: bytes = b" and more", **others: Kind) -> RawUpdate:
    return planned(tree, {**OLD, b"b": b"old b" + more, **{name.encode(): kind for name, kind in others.items()}})


def test_what_grew_is_appended_in_place(home, run, tree):
    inode = (run / "b").stat().st_ino
    with (run / "b").open("rb") as reader:
        assert reader.read() == b"old b"
        assert tree.commit([grown(tree)]) == []
        assert reader.read() == b" and more"
    assert (run / "b").stat().st_ino == inode
    assert manifest_of(home).content == Content({**OLD, b"b": b"old b and more"}).manifest.content
    assert (run / "b").stat().st_mtime_ns == Content({b"b": b""}).manifest.by_path[b"b"].mtime_ns


def test_only_growth_is_written_in_place(home, run, tree):
    def inode(name: str) -> int:
        return (run / name).stat().st_ino

    (run / "twin").write_bytes(b"one of two")
    os.link(run / "twin", home.text + "/elsewhere")
    (run / "env").mkdir()
    before = {name: inode(name) for name in ("a", "b", "d/x", "twin")}
    literal = {
        **OLD,
        b"a": b"not old but longer",
        b"b": File(b"old b and more", 0o600),
        b"d/x": b"",
        b"twin": b"one of two that grew",
        b"env": Directory(0o755),
    }
    assert tree.commit([planned(tree, literal)]) == []
    assert all(inode(name) != number for name, number in before.items())
    assert Path(home.text, "elsewhere").read_bytes() == b"one of two"
    assert manifest_of(home).content == Content(literal).manifest.content


def test_what_is_seen_redacted_is_not_appended_to(home, run, tree):
    """The bytes on disk are not those that the plan knows."""
    env = run / ".guild/attrs/env"
    env.write_bytes(b"PATH: /bin\nTOKEN: redactex\n")
    seen = b"PATH: /bin\nTOKEN: redacted\n"
    inode = env.stat().st_ino
    assert tree.commit([planned(tree, {**OLD, b".guild/attrs/env": seen + b"HOME: /root\n"})]) == []
    assert env.read_bytes() == seen + b"HOME: /root\n"
    assert env.stat().st_ino != inode


@pytest.mark.parametrize("size", [9, (1 << 20) + 5])
def test_an_append_that_breaks_off_leaves_a_prefix_and_is_continued(home, run, tree, monkeypatch, size):
    more = bytes(range(256)) * (size // 256 + 1)

    def half(fd: int, data: bytes, offset: int | None = None) -> None:
        os.pwrite(fd, data[: len(data) // 2], offset or 0)
        raise KeyboardInterrupt

    update = grown(tree, more)
    with monkeypatch.context() as patch:
        patch.setattr(staged, "write_all", half)
        with pytest.raises(KeyboardInterrupt):
            tree.commit([update])
    found = (run / "b").read_bytes()
    assert b"old b" < found < b"old b" + more
    assert (b"old b" + more).startswith(found)
    assert home.is_inflight(RUN)
    other = Tree(home)
    inode = (run / "b").stat().st_ino
    assert other.commit([grown(other, more)]) == []
    other.close()
    assert (run / "b").read_bytes() == b"old b" + more
    assert (run / "b").stat().st_ino == inode
    assert not home.is_inflight(RUN)
