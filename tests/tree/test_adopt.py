"""What an interrupted sync staged is gone on with, by one, and only as far as its bytes prove what its log says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guildsync.model.manifest import Manifest, Part, digest_of, file_entry
from guildsync.model.ports import RawUpdate, Want
from guildsync.model.run import RunId
from guildsync.tree import home as home_module
from guildsync.tree import publish, staged
from guildsync.tree import tree as tree_module
from guildsync.tree.home import Home
from guildsync.tree.staged import LOG, name_of
from guildsync.tree.tree import Tree
from tests.kit.replicas import Content, Directory, File, Link
from tests.kit.trees import EPOCH_NS, MIB, noise, run_ids

RUN, OTHER = map(RunId, run_ids(2))
ROOT = Path(__file__).parents[2]
DAY_NS = 86_400 * 1_000_000_000
BIG = Content({b"d/big": File(noise(1, 4 * MIB + 5), 0o440), b"small": b"small", b"l": Link(b"small"), b"e": b""})
SIZE = 4 * MIB + 10


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "home"))


def top(home: Home) -> Path:
    return Path(os.fsdecode(home.state)) / "staging"


def names(home: Home) -> list[str]:
    return sorted(os.listdir(top(home))) if top(home).exists() else []


def directory(home: Home) -> Path:
    """The only one there is."""
    (name,) = (name for name in names(home) if not name.endswith(".lock"))
    return top(home) / name


def interrupted(home: Home, content: Content = BIG, run: RunId = RUN, wants: Iterable[Want] | None = None) -> None:
    """Pieces are staged, and the Tree is closed before they are committed."""
    tree = Tree(home)
    tree.stage(content.pieces(content.wants(run) if wants is None else wants))
    tree.close()


def asked(tree: Tree, content: Content = BIG, run: RunId = RUN) -> set[str]:
    return set(tree.missing(content.wants(run)))


def finish(home: Home, content: Content = BIG, run: RunId = RUN, others: int | None = 0) -> int:
    """What a sync does; answers how many bytes it took over. The run has its bytes; what is left are `others`."""
    tree = Tree(home)
    scan = next(iter(tree.manifests({run: ()})), None)
    missing = asked(tree, content, run)
    tree.stage(content.pieces(want for want in content.wants(run) if want.digest in missing))
    have = scan.manifest if scan else None
    assert tree.commit([RawUpdate(run, have, content.manifest, {}, {})]) == []
    resumed = tree.resumed
    sizes = {want.digest: want.size for want in content.wants(run)}
    assert resumed <= sum(sizes.values())
    tree.close()
    assert others is None or len(names(home)) == 2 * others
    fresh = Tree(home)
    (found,) = fresh.manifests({run: ()})
    assert found.manifest == content.manifest
    for entry in content.manifest.entries:
        if entry.digest is not None:
            path = Path(home.text) / "runs" / run / os.fsdecode(entry.path)
            assert digest_of(path.read_bytes()) == entry.digest
    return resumed


def test_what_was_staged_is_taken_over_where_it_is(home):
    interrupted(home)
    before = directory(home)
    inode = (before / os.fsdecode(name_of(RUN, b"d/big"))).stat().st_ino
    tree = Tree(home)
    assert asked(tree) == set()
    assert tree.resumed == SIZE
    assert directory(home) == before
    tree.close()
    assert finish(home) == SIZE
    assert (Path(home.text) / "runs" / RUN / "d" / "big").stat().st_ino == inode


def test_what_was_not_staged_is_missing(home):
    interrupted(home, wants=BIG.wants(RUN)[1:3])
    tree = Tree(home)
    assert asked(tree) == BIG.objects.keys() - {want.digest for want in BIG.wants(RUN)[1:3]}
    assert tree.resumed == 2 * MIB
    tree.close()
    assert finish(home) == 2 * MIB


def test_nothing_is_made_by_asking(home):
    assert asked(Tree(home)) == BIG.objects.keys()
    assert not home.exists()
    home.prepare()
    tree = Tree(home)
    assert asked(tree) == BIG.objects.keys()
    tree.close()
    assert not top(home).exists()


# -- killed

STAGE = """
import sys
from guildsync.tree.home import Home
from guildsync.tree.tree import Tree
from tests.tree.test_adopt import BIG, RUN
tree = Tree(Home(sys.argv[1]))
def pieces():
    for number, piece in enumerate(BIG.pieces(BIG.wants(RUN))):
        if number == int(sys.argv[2]):
            print("staged", flush=True)
            sys.stdin.read()
        yield piece
tree.stage(pieces())
"""


def staging_process(home: Home, after: int) -> subprocess.Popen[bytes]:
    """Another process, which stages so many pieces and waits."""
    argv = [sys.executable, "-c", STAGE, home.text, str(after)]
    child = subprocess.Popen(
        argv, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"staged\n"
    return child


def test_a_killed_process_loses_little(home):
    with staging_process(home, 3) as child:
        tree = Tree(home)
        assert asked(tree) == BIG.objects.keys()  # its directory is its own as long as it lives
        tree.close()
        os.kill(child.pid, signal.SIGKILL)
    assert finish(home) == 3 * MIB


def test_a_line_is_logged_after_its_bytes(home, monkeypatch):
    wrote: list[tuple[int, bool]] = []
    real = staged.write_all

    def write_all(fd, data, offset=None):
        real(fd, data, offset)
        wrote.append((len(data), os.readlink(f"/proc/self/fd/{fd}").endswith("/log")))

    monkeypatch.setattr(staged, "write_all", write_all)
    interrupted(home, wants=BIG.wants(RUN)[:2])
    assert [is_log for _, is_log in wrote] == [False, True, False, True]
    many = {b"f%d" % n: noise(n, 1000) for n in range(3000)}
    wrote.clear()
    interrupted(home, Content(many), OTHER)
    assert sum(1 for _, is_log in wrote if is_log) <= 4


def test_all_that_may_be_lost_is_little():
    assert staged.UNLOGGED <= 4 * MIB


# -- a log that lies, or is damaged


def relogged(home: Home, change) -> None:
    path = directory(home) / os.fsdecode(LOG)
    path.write_bytes(change(path.read_bytes()))


BIG_NAME, SMALL_NAME = name_of(RUN, b"d/big"), name_of(RUN, b"small")
SMALL = digest_of(b"small").encode()
ROWS = [
    b"",
    b"\n",
    b"\0" * 4096,
    b"\xff" * 200 + b"\n",
    b"../../../../etc/passwd 0 5 %b\n" % SMALL,
    b"../%b 0 5 %b\n" % (BIG_NAME, SMALL),
    b"/%b 0 5 %b\n" % (BIG_NAME, SMALL),
    b"%b -1 5 %b\n" % (BIG_NAME, SMALL),
    b"%b 999999999999999999 5 %b\n" % (SMALL_NAME, SMALL),
    b"%b 99999999999999999999 5 %b\n" % (SMALL_NAME, SMALL),
    b"%b 0 999999999 %b\n" % (SMALL_NAME, SMALL),
    b"%b 0 0 %b\n" % (SMALL_NAME, SMALL),
    b"%b 1 5 %b\n" % (BIG_NAME, SMALL),
    b"%b 0 5 %b\n" % (BIG_NAME, SMALL),
    b"%b 0 5 %b\n" % (SMALL_NAME, BIG.wants(RUN)[0].digest.encode()),
    b"%b 0 5 %b" % (SMALL_NAME, SMALL),
    b"log 0 5 %b\n" % SMALL,
    b"%b 0 5 %b 7\n" % (SMALL_NAME, SMALL),
    b"%b \xd9\xa0 5 %b\n" % (SMALL_NAME, SMALL),
]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("where", ["instead", "before", "after"])
def test_no_line_of_a_log_breaks_anything(home, row, where):
    interrupted(home)
    relogged(home, {"instead": lambda _: row, "before": lambda log: row + log, "after": lambda log: log + row}[where])
    if where == "instead":
        resumed = finish(home, others=None)
        assert resumed in (0, 5)
    else:
        assert finish(home) >= SIZE - MIB  # one that comes later counts for the same place


@pytest.mark.parametrize("size", range(0, 700, 37))
def test_a_log_that_was_cut_off_is_good_for_what_it_says(home, size):
    interrupted(home)
    relogged(home, lambda log: log[:size])
    tree = Tree(home)
    missing = asked(tree)
    resumed = tree.resumed
    assert resumed + sum(len(BIG.objects[digest]) for digest in missing) == SIZE
    tree.stage(BIG.pieces(want for want in BIG.wants(RUN) if want.digest in missing))
    tree.close()
    assert finish(home, others=None) == SIZE  # the line that was cut off spoils none that follows


@pytest.mark.parametrize("at", [0, MIB - 1, MIB, 4 * MIB])
def test_bytes_that_are_not_what_the_log_says_are_dropped(home, at):
    interrupted(home)
    path = directory(home) / BIG_NAME.decode()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    bad = BIG.wants(RUN)[at // MIB]
    tree = Tree(home)
    assert asked(tree) == {bad.digest}
    assert tree.resumed == SIZE - bad.size
    tree.close()
    assert finish(home) == SIZE - bad.size


@pytest.mark.parametrize("size", [0, 1, MIB, 4 * MIB + 4, 9 * MIB])
def test_files_that_were_cut_off_or_grew(home, size):
    interrupted(home)
    os.truncate(directory(home) / BIG_NAME.decode(), size)
    whole = sum(want.size for want in BIG.wants(RUN)[:5] if want.offset + want.size <= size)
    assert finish(home) == whole + 5


@pytest.mark.parametrize("logged", [True, False])
@pytest.mark.parametrize("over", [0, 5, MIB])
def test_what_stood_in_a_file_shows_in_none(home, logged, over):
    """Also where a small file comes in its place that is trusted to be its one object."""
    interrupted(home, Content({b"small": noise(3, 5 + over), b"other": noise(4, MIB)}))
    if not logged:
        (directory(home) / SMALL_NAME.decode()).unlink()
        relogged(home, lambda log: b"".join(row for row in log.splitlines(True) if SMALL_NAME not in row))
        (directory(home) / SMALL_NAME.decode()).write_bytes(noise(5, 5 + over))
    content = Content({b"small": b"small", b"other": noise(4, MIB)})
    assert finish(home, content) == MIB


def hard_link(path: Path, outside: Path) -> None:
    os.link(path, outside)


def symbolic_link(path: Path, outside: Path) -> None:
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)


def pipe(path: Path, outside: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path, outside: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "f").write_bytes(b"x")


@pytest.mark.parametrize("plant", [hard_link, symbolic_link, pipe, folder])
@pytest.mark.parametrize("name", [BIG_NAME, LOG])
def test_only_files_of_ours_alone_are_gone_on_with(home, tmp_path, plant, name):
    interrupted(home)
    outside = tmp_path / "outside"
    plant(directory(home) / name.decode(), outside)
    before = outside.read_bytes() if outside.exists() else None
    if plant is hard_link and name == LOG:
        assert finish(home) == SIZE
    else:
        assert finish(home) == (5 if name == BIG_NAME else 0)
    assert (outside.read_bytes() if outside.exists() else None) == before


# -- whose directory it is


def test_a_link_in_place_of_the_directory_is_not_followed(home, tmp_path):
    interrupted(home)
    outside = tmp_path / "outside"
    there = directory(home)
    there.rename(outside)
    there.symlink_to(outside)
    before = sorted(outside.iterdir())
    tree = Tree(home)
    assert asked(tree) == BIG.objects.keys()
    tree.close()
    home.sweep()
    assert sorted(outside.iterdir()) == before
    assert names(home) == []
    assert finish(home) == 0


def test_a_link_in_place_of_all_staging_is_not_followed(home, tmp_path):
    interrupted(home)
    outside = tmp_path / "outside"
    top(home).rename(outside)
    top(home).symlink_to(outside)
    tree = Tree(home)
    assert asked(tree) == BIG.objects.keys()
    tree.close()


@pytest.mark.parametrize("mode", [0o701, 0o750, 0o777, 0o500])
def test_a_directory_that_others_can_reach_is_not_gone_on_with(home, mode):
    interrupted(home)
    directory(home).chmod(mode)
    assert finish(home) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory away")
def test_a_directory_of_another_user_is_not_gone_on_with(home):
    interrupted(home)
    os.chown(directory(home), 65534, -1)
    assert finish(home) == 0


# -- several


def test_one_of_many_gets_it(home):
    interrupted(home)
    trees = [Tree(Home(home.text)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(asked, trees))
    assert sorted(tree.resumed for tree in trees) == [0] * 7 + [SIZE]
    for tree in trees:
        tree.close()
    assert finish(home) == SIZE


RACE = """
import sys
from guildsync.tree.home import Home
from guildsync.tree.tree import Tree
from tests.tree.test_adopt import BIG, RUN
tree = Tree(Home(sys.argv[1]))
sys.stdin.read(1)
tree.missing(BIG.wants(RUN))
print(tree.resumed, flush=True)
sys.stdin.read(1)
tree.close()
"""


def test_one_of_many_processes_gets_it(home):
    interrupted(home)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, home.text],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    for child in children:
        child.stdin.write(b"x")
        child.stdin.flush()
    assert sorted(int(child.stdout.readline()) for child in children) == [0, 0, 0, SIZE]
    for child in children:
        child.communicate(b"x", timeout=30)
    assert finish(home) == SIZE


def test_a_lock_whose_name_is_gone_keeps_nobody_out_and_counts_for_nothing(home, monkeypatch):
    """Somebody was done with the directory, and another one made it again, between the look and the lock."""
    interrupted(home)
    real = home_module._try_lock

    def try_lock(fd):
        lock = top(home) / (directory(home).name + ".lock")
        lock.unlink()
        lock.touch()
        return real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(home_module, "_try_lock", try_lock)
        tree = Tree(home)
        assert asked(tree) == BIG.objects.keys()
        tree.close()
    assert finish(home) == SIZE


def test_a_look_does_not_touch_the_lock_of_what_is_left(home, monkeypatch):
    """It would keep away who goes on with it."""
    interrupted(home)
    monkeypatch.setattr(home_module, "_try_lock", None)
    home.sweep()


def test_of_several_the_newest_that_is_of_use(home):
    small = Content({b"x": b"x"})
    other = Content({b"x": noise(7, 2 * MIB)})
    interrupted(home, wants=BIG.wants(RUN)[:1])
    first = directory(home)
    interrupted(home, wants=BIG.wants(RUN)[:3])
    interrupted(home, other, OTHER)
    interrupted(home, small, OTHER)
    os.utime(first / "log", (1, time.time() - 3600))
    assert len(names(home)) == 8
    tree = Tree(home)
    asked(tree)
    assert tree.resumed == 3 * MIB
    tree.close()
    home.sweep()
    assert len(names(home)) == 8
    tree = Tree(home)
    asked(tree, other, OTHER)
    assert tree.resumed == 2 * MIB
    tree.close()


def test_what_nobody_asks_for_stays_for_who_does(home):
    both = Content({b"a": noise(1, MIB), b"b": noise(2, MIB)})
    interrupted(home, both)
    other = Content({b"b": noise(3, MIB)})
    interrupted(home, other, OTHER)  # a Tree of its own
    tree = Tree(home)
    only = [want for want in both.wants(RUN) if want.path == b"a"]
    assert tree.missing(only) == set()
    assert tree.resumed == MIB
    tree.close()
    assert finish(home, other, OTHER, others=1) == MIB
    assert finish(home, both) == 2 * MIB


# -- how long it stays


def aged(home: Home, days: float) -> None:
    log = directory(home) / "log"
    when = log.stat().st_mtime_ns - int(days * DAY_NS)
    os.utime(log, ns=(when, when))


@pytest.mark.parametrize(("days", "stays"), [(0, True), (6.9, True), (7.1, False), (-8, False)])
def test_a_week_later_it_goes(home, days, stays):
    interrupted(home)
    aged(home, days)
    home.sweep()
    assert bool(names(home)) == stays
    Tree(home)._staged().close()
    assert bool(names(home)) == stays
    assert list(Tree(home).manifests({})) == []
    assert finish(home) == (SIZE if stays else 0)


def test_what_is_too_old_is_not_gone_on_with(home, monkeypatch):
    interrupted(home)
    aged(home, 8)
    monkeypatch.setattr(home_module, "_sweep", lambda top: None)
    tree = Tree(home)
    assert asked(tree) == BIG.objects.keys()
    tree.close()


def test_no_clock_of_a_host_is_asked(home, monkeypatch):
    interrupted(home)

    def ask(*_):
        raise AssertionError

    for name in ("time", "time_ns"):
        monkeypatch.setattr(time, name, ask)
    home.sweep()
    tree = Tree(home)
    assert asked(tree) == set()
    tree.close()


def test_what_holds_nothing_goes_at_once(home):
    interrupted(home)
    for path in directory(home).iterdir():
        if path.name != "log":
            path.unlink()
    home.sweep()
    assert names(home) == []
    interrupted(home)
    (directory(home) / "log").unlink()
    home.sweep()
    assert names(home) == []


def test_nobody_goes_on_with_what_is_half_removed(home, monkeypatch):
    interrupted(home)
    tree = Tree(home)
    assert asked(tree) == set()
    tree._full = True

    def end(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(staged, "remove_tree", end)
        with pytest.raises(KeyboardInterrupt):
            tree.close()
    assert names(home) != []
    home.sweep()
    assert names(home) == []


def test_a_full_disk_is_not_kept_full(home, monkeypatch):
    tree = Tree(home)
    tree.stage(BIG.pieces(BIG.wants(RUN)[:2]))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(staged, "write_all", full)
        with pytest.raises(tree_module.GuildsyncError, match="space"):
            tree.stage(BIG.pieces(BIG.wants(RUN)[2:]))
    tree.close()
    assert names(home) == []


# -- interrupted while it was published


@pytest.mark.parametrize("content", [BIG, Content({b"a": Directory(0o500), b"a/b": File(noise(1, MIB), 0o400)})])
def test_a_run_that_was_put_together_and_did_not_appear_is_taken_apart(home, monkeypatch, content):
    def end(*_):
        raise KeyboardInterrupt

    tree = Tree(home)
    tree.stage(content.pieces(content.wants(RUN)))
    with monkeypatch.context() as patch:
        patch.setattr(tree_module, "appear", end)
        with pytest.raises(KeyboardInterrupt):
            tree.commit([RawUpdate(RUN, None, content.manifest, {"label": b"x"}, {"STAGED": b""})])
    tree.close()
    assert (directory(home) / RUN).is_dir()
    assert home.run_ids() == []
    assert finish(home, content) == sum(map(len, content.objects.values()))


@pytest.mark.parametrize("step", range(4))
def test_a_run_that_was_changed_halfway(home, monkeypatch, step):
    old = Content({b"a": noise(1, MIB + 3), b"b": noise(2, MIB), b"c": b"c", b"d": Directory()})
    new = Content({b"a": noise(3, MIB + 3), b"b": noise(4, MIB), b"c": Directory(), b"d": noise(5, 2 * MIB)})
    finish(home, old)
    tree = Tree(home)
    (scan,) = tree.manifests({RUN: ()})
    tree.stage(new.pieces(new.wants(RUN)))
    real, steps = publish._step, iter(range(9))

    def end(*args):
        if next(steps) == step:
            raise KeyboardInterrupt
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(publish, "_step", end)
        with pytest.raises(KeyboardInterrupt):
            tree.commit([RawUpdate(RUN, scan.manifest, new.manifest, {}, {})])
    tree.close()
    published = [MIB + 3, MIB, 0, 2 * MIB][:step]
    assert finish(home, new) == 4 * MIB + 3 - sum(published)


@pytest.mark.parametrize("did", ["fsync", "unlink"])
def test_what_was_appended_and_not_said_to_be_so(home, monkeypatch, did):
    """All of it is in the run already: it is not kept for anybody."""
    old, new = Content({b"f": noise(1, 3 * MIB)}), Content({b"f": noise(1, 3 * MIB) + noise(2, 2 * MIB)})
    finish(home, old)
    tree = Tree(home)
    (scan,) = tree.manifests({RUN: ()})
    tree.stage(new.pieces(new.wants(RUN)))
    path = f"{home.text}/runs/{RUN}/f"
    real = getattr(os, did)

    def end(what, **options):
        real(what, **options)
        if what == name_of(RUN, b"f") or (did == "fsync" and os.readlink(f"/proc/self/fd/{what}") == path):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(staged.os, did, end)
        with pytest.raises(KeyboardInterrupt):
            tree.commit([RawUpdate(RUN, scan.manifest, new.manifest, {}, {})])
    tree.close()
    assert finish(home, new) == 0


def test_another_version_of_a_file_is_made_of_what_is_left(home):
    """Its parts lie elsewhere in it: nothing of the old version may be written over that is still of use."""
    parts = [noise(n, MIB) for n in range(6)]
    interrupted(home, Content({b"f": b"".join(parts[:4])}))
    new = Content({b"f": b"".join([parts[5], *parts[:4]])})
    assert finish(home, new) == 0
    interrupted(home, Content({b"f": b"".join(parts[:4])}), OTHER)
    new = Content({b"f": b"".join([*parts[:2], parts[5], parts[3]])})
    assert finish(home, new, OTHER) == 3 * MIB


def test_nothing_is_relied_on_that_is_going_to_be_written_over(home):
    """A version whose parts have other borders: what of the old one lies across them comes anew."""
    first, kept, new = noise(1, MIB), noise(2, MIB), noise(3, MIB + MIB // 2)
    interrupted(home, Content({b"f": first + kept}))
    parts = [Part(digest_of(data), len(data)) for data in (new, kept)]
    content = Content({})
    content.objects.update({digest_of(data): data for data in (new, kept)})
    whole = new + kept
    content.manifest = Manifest([file_entry(b"f", 0o644, len(whole), digest_of(whole), EPOCH_NS, parts)])
    assert finish(home, content) == 0


def test_an_object_of_a_file_that_is_not_wanted_any_more_is_used(home):
    interrupted(home, Content({b"before": noise(1, 2 * MIB)}))
    tree = Tree(home)
    new = Content({b"after": noise(1, 2 * MIB)})
    assert asked(tree, new) == set()
    assert tree.commit([RawUpdate(RUN, None, new.manifest, {}, {})]) == []
    assert tree.resumed == 2 * MIB
    tree.close()
    (found,) = Tree(home).manifests({RUN: ()})
    assert found.manifest == new.manifest
