"""What a home keeps beside its runs: made once, locked, swept, and understood or passed over."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guildsync.errors import Damaged, NotFound, Refused, Unreachable, Usage
from guildsync.model.manifest import NOTHING
from guildsync.model.ports import Aim, Base
from guildsync.model.run import NO_METADATA, Metadata, RunId
from guildsync.tree import home as home_module
from guildsync.tree.home import Home
from guildsync.tree.kept import HomeBases, HomeCache
from tests.kit.replicas import Content
from tests.kit.trees import run_ids, write_run

RUN, OTHER = map(RunId, run_ids(2))
ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "home"))


def python(code: str, *args: str) -> subprocess.Popen[bytes]:
    """Another process that has guildsync."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, *args], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


# -- identity


def test_nothing_is_made_by_looking(home):
    assert not home.exists()
    assert home.run_ids() == home.run_ids(deleted=True) == home.inflight_runs() == []
    assert home.aim(RUN) is None
    assert not home.exists()


def test_what_was_there_and_is_not_any_more_is_not_made_anew(home, tmp_path):
    """As an unmounted disk leaves it; whoever comes later may."""
    home.prepare()
    os.rename(home.path, tmp_path / "away")
    for _ in range(2):
        with pytest.raises(Unreachable, match="not there any more"):
            home.prepare()
        os.makedirs(home.path, exist_ok=True)
    Home(os.fsdecode(home.path)).prepare()
    home.prepare()


def test_an_identity_is_kept_for_ever(home):
    first = home.identity
    assert len(first) == 32
    assert Home(home.text).identity == first
    assert Home(home.text + "2").identity != first
    assert stat.S_IMODE(os.stat(home.state).st_mode) == 0o700


def test_threads_that_race_make_one_identity(home):
    barrier = threading.Barrier(16)

    def make(_: int) -> str:
        barrier.wait()
        return Home(home.text).identity

    with ThreadPoolExecutor(16) as pool:
        found = set(pool.map(make, range(16)))
    assert found == {home.identity}
    assert os.listdir(home.state) == [b"identity"]


def test_processes_that_race_make_one_identity(home):
    code = "import sys; from guildsync.tree.home import Home; sys.stdin.read(1); print(Home(sys.argv[1]).identity)"
    makers = [python(code, home.text) for _ in range(4)]
    for maker in makers:
        maker.stdin.write(b"x")
        maker.stdin.flush()
    found = {maker.communicate(timeout=30)[0].decode().strip() for maker in makers}
    assert found == {home.identity}


def test_a_maker_that_comes_second_takes_the_first_ones(home, monkeypatch):
    """Both found none; the other one was quicker."""
    quicker = Home(home.text)
    assert home._read_identity() is None
    made = quicker.identity
    assert home._make_identity() == made


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", Damaged),
        (b"{", Damaged),
        (b"[]", Damaged),
        (b'{"format":1,"id":"x"}', Damaged),
        (b'{"format":1}', Damaged),
    ],
)
def test_an_identity_that_cannot_be_read_stops(home, data, error):
    home.prepare()
    Path(os.fsdecode(home.state), "identity").write_bytes(data)
    with pytest.raises(error):
        _ = home.identity


def test_a_newer_home_is_refused(home):
    home.prepare()
    Path(os.fsdecode(home.state), "identity").write_text(json.dumps({"format": 2, "id": "0" * 32}))
    with pytest.raises(Usage, match="another guildsync"):
        _ = home.identity


def test_a_home_of_somebody_else_is_only_read(home, monkeypatch):
    write_run(home.text, RUN)
    before = sorted(Path(home.text).rglob("*"))
    monkeypatch.setattr(home_module.os, "geteuid", lambda: os.stat(home.path).st_uid + 1)
    assert home.run_ids() == [RUN]
    for write in (home.prepare, home.staging, lambda: home.identity):
        with pytest.raises(Refused, match="another user"):
            write()
    assert sorted(Path(home.text).rglob("*")) == before


def test_a_home_below_a_file_is_not_found(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((NotFound, Refused, Unreachable)):
        Home(str(tmp_path / "file" / "home")).prepare()


def test_runs_and_trash_may_be_links_and_are_resolved_once(tmp_path):
    real, home = tmp_path / "real", tmp_path / "home"
    write_run(real, RUN)
    home.mkdir()
    (home / "runs").symlink_to(real / "runs")
    assert Home(str(home)).run_ids() == [RUN]
    assert Home(str(home)).runs == os.fsencode(real / "runs")


def test_only_run_ids_are_runs_and_links_are_not_opened(home, tmp_path):
    write_run(home.text, RUN)
    for name in ("x", RUN.upper(), RUN + "0", "..."):
        (Path(home.text) / "runs" / name).mkdir()
    (Path(home.text) / "runs" / OTHER).symlink_to(RUN)
    assert set(home.run_ids()) == {RUN, OTHER}
    with pytest.raises(OSError, match=r"Not a directory|Too many"):
        home.open_run(OTHER)
    with pytest.raises(Damaged):
        home.open_run(RunId("../" + RUN))


def test_runs_that_cannot_be_listed_prove_nothing(home, monkeypatch):
    write_run(home.text, RUN)

    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(home_module.os, "listdir", denied)
    with pytest.raises(Refused):
        home.run_ids()


# -- the lock

HOLD = """
import sys, time
from guildsync.tree.home import Home
with Home(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_keeps_another_process_out_until_it_ends(home, monkeypatch):
    home.prepare()
    monkeypatch.setattr(home_module, "_LOCK_DEADLINE", 0.1)
    with python(HOLD, home.text) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Unreachable, match="another guildsync"), home.lock():
            pass
        holder.kill()
        holder.wait()
        with home.lock():
            pass


def test_the_lock_keeps_threads_apart(home):
    home.prepare()
    inside: list[int] = []

    def work(_: int) -> None:
        with Home(home.text).lock():
            inside.append(1)
            assert len(inside) == 1
            time.sleep(0.002)
            inside.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))


def test_an_error_inside_frees_the_lock(home, monkeypatch):
    home.prepare()
    monkeypatch.setattr(home_module, "_LOCK_DEADLINE", 0.1)
    with pytest.raises(ZeroDivisionError), home.lock():
        _ = 1 / 0
    with home.lock():
        pass


# -- staging

STAGE = """
import sys
from guildsync.tree.home import Home
staging = Home(sys.argv[1]).staging()
open(staging.path + b"/leftover", "w").close()
print(staging.path.decode(), flush=True)
sys.stdin.read()
"""


def test_staging_of_a_living_process_stays_and_of_a_dead_one_goes(home):
    with python(STAGE, home.text) as other:
        path = Path(other.stdout.readline().decode().strip())
        mine = home.staging()
        assert (path / "leftover").exists()
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        other.kill()
        other.wait()
        assert (path / "leftover").exists()
        home.staging().close()
        assert not path.exists()
    assert sorted(os.listdir(os.path.dirname(mine.path))) == sorted(
        [os.path.basename(mine.path), os.path.basename(mine.path) + b".lock"]
    )
    mine.close()
    mine.close()
    assert os.listdir(os.path.dirname(mine.path)) == []


def test_a_process_that_died_between_name_and_lock_is_swept(home):
    home.staging().close()
    top = Path(os.fsdecode(home.state)) / "staging"
    (top / "dead.lock.new").touch()
    (top / "dead2.lock").touch()
    home.staging().close()
    assert list(top.iterdir()) == []


def test_many_stagings_at_once_never_sweep_each_other(home):
    def work(number: int) -> None:
        for _ in range(10):
            staging = Home(home.text).staging()
            with open(staging.path + b"/f", "wb") as file:
                file.write(b"%d" % number)
            with open(staging.path + b"/f", "rb") as file:
                assert file.read() == b"%d" % number
            staging.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


# -- inflight


def test_inflight_says_what_it_was_and_what_it_was_to_be(home):
    one, other = Content({b"a": b"1"}).manifest, Content({b"b\n": b"2"}).manifest
    home.prepare()
    home.end(RUN)
    home.begin(RUN, one, other)
    assert home.is_inflight(RUN)
    assert home.inflight_runs() == [RUN]
    assert Home(home.text).aim(RUN) == Aim(one, other)
    home.end(RUN)
    home.end(RUN)
    assert not home.is_inflight(RUN)
    assert home.aim(RUN) is None


@pytest.mark.parametrize("data", [b"", b"x\ny", b"[1,[]]", b"\n"])
def test_an_unreadable_note_still_says_that_one_did_not_end(home, data):
    home.prepare()
    home.begin(RUN, NOTHING, NOTHING)
    Path(os.fsdecode(home.state), "inflight", RUN).write_bytes(data)
    assert home.is_inflight(RUN)
    assert home.aim(RUN) == Aim(NOTHING, NOTHING)


# -- bases

ONE, TWO = Content({b"a": b"1"}).manifest, Content({b"a": b"2"}).manifest
HERE, THERE, LATER = "0" * 32, "1" * 32, "2" * 32
BASE = Base.of(ONE, Metadata("label", frozenset(["ü"])), "completed")
NEXT = Base.of(TWO, NO_METADATA, "running")


def test_a_base_is_what_was_saved(home):
    bases = HomeBases(home, [HERE], [THERE])
    assert bases.load(RUN, None) is None
    bases.save(RUN, BASE)
    assert bases.load(RUN, None) == bases.load(RUN, TWO.content) == BASE
    assert bases.load(OTHER, None) is None
    assert HomeBases(home, [THERE], [HERE]).load(RUN, None) == BASE  # pairs have no direction
    assert HomeBases(home, [HERE], [LATER]).load(RUN, None) is None


def test_an_intended_base_counts_where_the_target_proves_it(home):
    bases = HomeBases(home, [HERE], [THERE])
    bases.save(RUN, BASE)
    bases.intend(RUN, TWO.content, NEXT)
    assert bases.load(RUN, ONE.content) == BASE
    assert bases.load(RUN, None) == BASE
    assert bases.load(RUN, TWO.content) == NEXT
    bases.save(RUN, NEXT)
    assert bases.load(RUN, ONE.content) == NEXT
    bases.intend(RUN, ONE.content, BASE)
    bases.intend(RUN, TWO.content, NEXT)  # the last intention counts
    assert bases.load(RUN, ONE.content) == NEXT


def test_an_id_the_store_had_before_counts(home):
    HomeBases(home, [HERE], [LATER]).save(RUN, BASE)
    assert HomeBases(home, [HERE], [THERE, LATER]).load(RUN, None) == BASE


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"\xff\n[1,[]]", b'{"content":1,"metadata":{},"status":""}\n[1,[]]'])
def test_a_base_that_cannot_be_read_is_none(home, damage):
    bases = HomeBases(home, [HERE], [THERE])
    bases.save(RUN, BASE)
    path = Path(os.fsdecode(home.state), "bases", f"{HERE}+{THERE}", RUN)
    path.write_bytes(damage)
    assert bases.load(RUN, None) is None
    path.with_name(RUN + ".intended").write_bytes(damage)
    assert bases.load(RUN, ONE.content) is None


def test_names_from_outside_make_no_paths(home):
    with pytest.raises(Damaged):
        HomeBases(home, [HERE], ["../" + "0" * 29])
    with pytest.raises(Damaged):
        HomeBases(home, [HERE], [THERE]).load(RunId("../x"), None)


# -- the cache


def test_a_cache_keeps_by_place_kind_and_name(home):
    home.prepare()
    cache = HomeCache(home, "s3:one")
    assert cache.load("journal", "x") is None
    cache.keep("journal", "x", b"data")
    cache.keep("journal", "x", b"newer")
    assert HomeCache(home, "s3:one").load("journal", "x") == b"newer"
    assert cache.load("index", "x") is None
    assert HomeCache(home, "s3:other").load("journal", "x") is None


def test_a_cache_that_cannot_be_written_keeps_nothing_and_works(home, tmp_path):
    home.prepare()
    (Path(os.fsdecode(home.state)) / "remotes").write_bytes(b"in the way")
    cache = HomeCache(home, "s3:one")
    cache.keep("journal", "x", b"data")
    assert cache.load("journal", "x") is None
