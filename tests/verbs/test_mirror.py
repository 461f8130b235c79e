"""push --watch, pull --watch: both sides are equal a moment after one moved, and never show what was never there."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guildsync import api
from guildsync.errors import CONFLICT, UNSETTLED, GuildsyncError, NotFound, SafetyStop, Unreachable
from guildsync.model.ports import NO_TRAFFIC
from guildsync.remotes import open_remote
from guildsync.store.mirrored import KEPT
from guildsync.store.store import Store
from guildsync.verbs import mirror as verb
from tests.kit.measured import children
from tests.kit.mirrors import HERE, Pair, append, interrupted, is_same, mirror, pair_of, until_same, watching
from tests.kit.places import THERE, Place, kinds, new_place
from tests.kit.sshd import Client, Sshd, sshd
from tests.kit.training import status_of
from tests.kit.trees import MIB, assert_same, make_flood, noise, run_ids, snapshot, write_run
from tests.kit.waiting import until
from tests.kit.wire import wire
from tests.kit.writers import Mapper, Pager, generation, stretches

RUN, OTHER, THIRD = run_ids(3)
soak = pytest.mark.soak


@pytest.fixture(params=kinds("disk", "ssh"))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return new_place(request.param, tmp_path, tmp_path / "home", request)


@pytest.fixture(params=["push", "pull"])
def pair(request: pytest.FixtureRequest, place: Place, tmp_path: Path) -> Pair:
    """One run is there, completed."""
    found = pair_of(place, request.param, tmp_path / "home")
    write_run(found.source, RUN)
    return found


@pytest.fixture
def near(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    """A push to a home on this machine."""
    place = new_place("disk", tmp_path, tmp_path / "home", request)
    found = pair_of(place, "push", tmp_path / "home")
    write_run(found.source, RUN)
    return found


def begin(run: Path) -> None:
    """It runs: in this process."""
    (run / ".guild/attrs/exit_status").unlink(missing_ok=True)
    (run / ".guild/attrs/stopped").unlink(missing_ok=True)
    (run / ".guild/LOCK").write_text(str(os.getpid()))


def end(run: Path, status: int = 0) -> None:
    (run / ".guild/attrs/exit_status").write_text(f"{status}\n")
    (run / ".guild/LOCK").unlink()


# -- what goes over


def test_what_changes_is_there_a_moment_later(pair: Pair) -> None:
    begin(pair.run())
    with pair.mirror() as running:
        pair.until_same()
        assert status_of(pair.there()) == "running"
        (pair.run() / "new").write_bytes(b"new")
        pair.until_same()
        (pair.run() / "train.py").write_bytes(b"rewritten\n")
        pair.until_same()
        (pair.run() / "deep/down").mkdir(parents=True)
        (pair.run() / "deep/down/file").write_bytes(b"deep")
        pair.until_same()
        (pair.run() / ".guild/attrs/label").write_text("a label\n")
        until((pair.there() / ".guild/attrs/label").exists, "the label")
        end(pair.run())
        until(lambda: status_of(pair.there()) == "completed", "the end of the run there")
        done = running.stop()
    assert (done.problems, done.exit_code, running.warnings) == ([], 0, [])
    pair.same_in_the_end()
    assert not (pair.there() / ".guild/LOCK.remote").exists()


def test_what_grows_is_appended_in_place(pair: Pair) -> None:
    """TensorBoard goes on reading. All that is ever seen there is how the file began."""
    begin(pair.run())
    names = [".guild/output", ".guild/events.out.tfevents.1700000000.host.1"]
    with pair.mirror() as running:
        pair.until_same()
        inodes = [(pair.there() / name).stat().st_ino for name in names]
        opened = (pair.there() / names[0]).open("rb")
        for number in range(10):
            for name in names:
                append(pair.run() / name, b"line %d\n" % number)
            pair.until_same()
        assert [(pair.there() / name).stat().st_ino for name in names] == inodes
        assert opened.read() == (pair.run() / names[0]).read_bytes()
        opened.close()
        assert running.stop().problems == []


def test_runs_that_start_and_end_are_picked_up_and_finished(pair: Pair) -> None:
    with pair.mirror() as running:
        pair.until_same()
        for run in (OTHER, THIRD):
            write_run(pair.source, run)
            begin(pair.run(run))
            until(lambda run=run: pair.there(run).exists() and status_of(pair.there(run)) == "running", "the run")
        for run, status in ((OTHER, 0), (THIRD, 1)):
            append(pair.run(run) / ".guild/output", b"the last words")
            end(pair.run(run), status)
            pair.until_same(run)
        until(lambda: status_of(pair.there(THIRD)) == "error", "the end of the third run")
        until(lambda: status_of(pair.there(OTHER)) == "completed", "the end of the second run")
        assert running.stop().problems == []
    pair.same_in_the_end(RUN, OTHER, THIRD)


def test_a_selector_limits_it_and_it_ends_by_itself(pair: Pair) -> None:
    write_run(pair.source, OTHER)
    begin(pair.run())
    with pair.mirror(api.Terms(ends=True, each=False), choose=api.Choice((RUN,))) as running:
        pair.until_same()
        write_run(pair.source, THIRD)
        append(pair.run(OTHER) / ".guild/output", b"more")
        append(pair.run() / ".guild/output", b"more")
        pair.until_same()
        assert running.is_alive
        end(pair.run())
        done = running.ended()
    assert (done.problems, done.runs) == ([], {RUN})
    assert status_of(pair.there()) == "completed"
    pair.same_in_the_end()
    assert sorted(os.listdir(pair.target / "runs")) == [RUN]


def test_what_is_written_after_the_end_goes_along_and_does_not_keep_it(
    near: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, real = iter(range(4)), verb.Sync.run

    def run(sync: verb.Sync) -> api.Outcome:
        if not (near.run() / ".guild/LOCK").exists() and next(looks, None) is not None:
            append(near.run() / ".guild/output", b"after the end\n")
        return real(sync)

    begin(near.run())
    with near.mirror(api.Terms(ends=True, each=False), choose=api.Choice((RUN,))) as running:
        near.until_same()
        monkeypatch.setattr(verb.Sync, "run", run)
        end(near.run())
        assert running.ended().problems == []
    near.same_in_the_end()


def test_what_has_ended_is_mirrored_once(pair: Pair) -> None:
    with pair.mirror(api.Terms(ends=True, each=False), choose=api.Choice((RUN,))) as running:
        assert running.ended().problems == []
    pair.same_in_the_end()


def test_a_filter_goes_on_for_a_run_that_it_chose_once(pair: Pair) -> None:
    begin(pair.run())
    write_run(pair.source, OTHER)
    choice = api.Choice(filters=api.Filters(statuses=("running",)))
    with pair.mirror(choose=choice) as running:
        pair.until_same()
        end(pair.run())
        append(pair.run() / ".guild/output", b"the last words")
        pair.until_same()
        until(lambda: status_of(pair.there()) == "completed", "the end of the run")
        running.stop()
    assert not pair.there(OTHER).exists()


def test_what_matches_nothing_is_an_error(near: Pair) -> None:
    with near.mirror(choose=api.Choice(("@running",))) as running, pytest.raises(NotFound):
        running.ended()


def test_it_ends_when_its_time_is_over(near: Pair) -> None:
    with near.mirror(api.Terms(lasts=0.5)) as running:
        done = running.ended()
    assert done.seconds >= 0.5
    near.same_in_the_end()


def test_what_is_there_for_a_moment_is_left_out(near: Pair) -> None:
    names = ["x.tmp", "a.db-journal", "a.db-wal", ".train.py.swp", "train.py~", ".#train.py", "#train.py#"]
    for name in names:
        (near.run() / name).write_bytes(b"passing")
    with near.mirror() as running:
        until((near.there() / "train.py").exists, "the run")
        running.stop()
    for name in names:
        assert not (near.there() / name).exists()
        (near.run() / name).unlink()
    near.same_in_the_end()


def test_both_changed_is_a_conflict_and_the_rest_goes_on(pair: Pair) -> None:
    write_run(pair.source, OTHER)
    with pair.mirror() as running:
        pair.until_same(RUN, OTHER)
        (pair.there() / "train.py").write_bytes(b"there\n")
        (pair.run() / "train.py").write_bytes(b"here\n")
        append(pair.run(OTHER) / ".guild/output", b"more")
        pair.until_same(OTHER)
        done = running.stop()
    assert {problem.reason for problem in done.problems} == {CONFLICT}
    assert done.exit_code == 7
    assert (pair.there() / "train.py").read_bytes() == b"there\n"


# -- what goes away


def test_what_is_removed_stays_there(pair: Pair) -> None:
    with pair.mirror() as running:
        pair.until_same()
        (pair.run() / "train.py").unlink()
        (pair.run() / "new").write_bytes(b"later")
        until((pair.there() / "new").exists, "what came later")
        running.stop()
    assert (pair.there() / "train.py").exists()


def test_with_delete_it_goes_there_too(pair: Pair) -> None:
    with pair.mirror(policy=api.Policy(delete=True)) as running:
        pair.until_same()
        (pair.run() / "train.py").unlink()
        pair.until_same()
        done = running.stop()
    assert done.removed == 1


def test_much_that_goes_at_once_stops_removing_and_nothing_else(near: Pair) -> None:
    """P6."""
    with near.mirror(policy=api.Policy(delete=True)) as running:
        near.until_same()
        before = len(snapshot(near.there()))
        for path in [path for path in near.run().rglob("*") if path.is_file() and ".guild" not in path.parts]:
            path.unlink()
        for path in (near.run() / ".guild/attrs").iterdir():
            path.unlink()
        (near.run() / "new").write_bytes(b"new")
        until((near.there() / "new").exists, "what is new")
        assert len(snapshot(near.there())) == before + 1
        assert any("nothing is removed" in warning for warning in running.warnings)
        with pytest.raises(SafetyStop):
            running.stop()
    assert len(snapshot(near.there())) == before + 1


def test_a_run_that_is_deleted_there_stays_deleted(pair: Pair) -> None:
    with pair.mirror(revives=lambda run: True) as running:
        pair.until_same()
        trash = pair.target / "trash/runs"
        trash.mkdir(parents=True, exist_ok=True)
        pair.there().rename(trash / RUN)
        write_run(pair.source, OTHER)
        append(pair.run() / ".guild/output", b"more")
        pair.until_same(OTHER)
        running.stop()
    assert not pair.there().exists()


# -- files that are rewritten


class Seen(threading.Thread):
    """Reads a file again and again; keeps the generations that stood in it, and when each came."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(daemon=True)
        self.path, self.size = path, size
        self.shown: dict[int, float] = {}
        self.mixed: list[list[int]] = []
        self.over = threading.Event()

    def run(self) -> None:
        before = None
        while not self.over.wait(0.02):
            info = self.path.stat()
            if (info.st_ino, info.st_mtime_ns) != before:
                before = (info.st_ino, info.st_mtime_ns)
                data = self.path.read_bytes()
                found = stretches(data)
                if len(data) != self.size or len(found) != 1:
                    self.mixed.append(found)
                else:
                    self.shown.setdefault(found[0], time.monotonic())


def rewritten(pair: Pair, writer: Mapper, size: int, rest: Callable[[Seen, int], object]) -> Seen:
    """Generation after generation for a while, and then a rest, four times; and once more without one. Meanwhile the
    run goes on."""
    seen = Seen(pair.there() / "checkpoint", size)
    seen.start()
    number = 1
    for turn in range(5):
        stop = time.monotonic() + 1.5
        while time.monotonic() < stop:
            number += 1
            writer.store(number)
            append(pair.run() / ".guild/output", b"it runs\n")
        if turn < 4:
            rest(seen, number)
    seen.over.set()
    seen.join()
    return seen


@pytest.mark.parametrize("writer", [Pager, Mapper])
def test_what_is_shown_of_a_rewritten_checkpoint_is_of_one_generation(pair: Pair, writer: type[Mapper]) -> None:
    size = 24 * MIB
    path = pair.run() / "checkpoint"
    path.write_bytes(generation(1, size))
    begin(pair.run())
    with pair.mirror() as running:
        pair.until_same()
        with writer(path) as child:
            seen = rewritten(pair, child, size, lambda seen, number: until(lambda: number in seen.shown, "what rests"))
        assert seen.mixed == []
        end(pair.run())
        assert running.stop().problems == []
    pair.same_in_the_end()


@soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("writer", [Pager, Mapper])
def test_a_large_one_is_never_a_mixture(pair: Pair, writer: type[Mapper]) -> None:
    """200 MB; mirrored by a process of its own: who looks at it here is busy. Each pause is of three seconds, whoever
    has seen what. How soon after a pause began its version was there is printed, and not demanded: it depends on the
    machine."""
    size = 200 * MIB
    path = pair.run() / "checkpoint"
    path.write_bytes(generation(1, size))
    begin(pair.run())
    pauses: list[tuple[int, float]] = []

    def rest(_: Seen, number: int) -> None:
        pauses.append((number, time.monotonic()))
        threading.Event().wait(3.0)

    with watching(*pair.argv) as mirroring:
        pair.until_same()
        with writer(path) as child:
            seen = rewritten(pair, child, size, rest)
        assert seen.mixed == []
        print([round(seen.shown.get(number, float("inf")) - at, 2) for number, at in pauses])
        end(pair.run())
        pair.until_same()
        assert interrupted(mirroring)[0] == 130
    pair.same_in_the_end()


def test_a_file_that_never_rests_is_named_and_the_rest_goes_on(near: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "NEVER", 1.0)
    path = near.run() / "checkpoint"
    path.write_bytes(generation(1, 3 * MIB))
    begin(near.run())
    over = threading.Event()

    def write() -> None:
        number = 2
        while not over.wait(0.005):
            with path.open("r+b") as file:
                file.write(generation(number, 3 * MIB))
            number += 1

    with near.mirror() as running:
        near.until_same()
        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        until(lambda: any("checkpoint has been rewritten" in text for text in running.warnings), "a warning")
        append(near.run() / ".guild/output", b"more")
        until(lambda: (near.there() / ".guild/output").read_bytes().endswith(b"more"), "what grew")
        done = running.stop()
        over.set()
        writer.join()
    assert [(problem.path, problem.reason) for problem in done.problems] == [(b"checkpoint", UNSETTLED)]
    assert done.exit_code == 7
    assert stretches((near.there() / "checkpoint").read_bytes()) == [1]


# -- much at once


@pytest.mark.parametrize("files", [2_000, pytest.param(60_000, marks=[soak, pytest.mark.timeout(1800)])])
def test_a_flood(pair: Pair, files: int) -> None:
    with pair.mirror() as running:
        pair.until_same()
        make_flood(pair.run(), files)
        until_same(pair.run(), pair.there(), 600)
        descriptors = len(os.listdir("/proc/self/fd"))
        assert descriptors < 200
        assert running.stop().problems == []
    pair.same_in_the_end()


def test_a_storm_of_renames_and_directories_that_come_and_go(pair: Pair, tmp_path: Path) -> None:
    """With --delete, so that both sides can be equal."""
    rng = random.Random(7)
    top = pair.run() / "storm"
    for number in range(200):
        path = top / f"d{number % 10}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number)
    outside = tmp_path / "outside"
    outside.mkdir()
    with pair.mirror(policy=api.Policy(delete=True), max_delete=100_000) as running:
        pair.until_same()
        for turn in range(300):
            inside = sorted(path for path in top.iterdir())
            path = rng.choice(inside)
            act = rng.randrange(3)
            if act == 0:
                path.rename(top / f"r{turn}")
            elif act == 1 and len(inside) > 3:
                path.rename(outside / f"o{turn}")
            elif away := sorted(outside.iterdir()):
                back = rng.choice(away)
                back.rename(top / f"b{turn}")
        pair.until_same()
        assert running.stop().problems == []
    pair.same_in_the_end()


# -- what breaks


def test_a_source_that_is_unmounted_and_comes_back(near: Pair, tmp_path: Path) -> None:
    """By moving it away, as an unmount leaves nothing; nothing is deleted there."""
    with near.mirror(policy=api.Policy(delete=True)) as running:
        near.until_same()
        before = snapshot(near.there())
        (near.source / "runs").rename(tmp_path / "away")
        until(lambda: running.warnings, "a word about it")
        append(tmp_path / "away" / RUN / ".guild/output", b"more")
        assert snapshot(near.there()) == before
        (tmp_path / "away").rename(near.source / "runs")
        near.until_same()
        assert running.stop().problems == []


def test_a_mounted_source_that_is_unmounted_and_comes_back(near: Pair, tmp_path: Path) -> None:
    image, runs = tmp_path / "image", near.source / "runs"
    shutil.rmtree(runs)
    runs.mkdir()
    image.write_bytes(bytes(16 * MIB))
    made = subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], capture_output=True, check=False, timeout=60)
    if os.geteuid() != 0 or made.returncode:
        pytest.skip("a file system of its own needs root, and mkfs.ext4")

    def mount() -> bool:
        argv = ["mount", "-o", "loop", str(image), str(runs)]
        return subprocess.run(argv, capture_output=True, check=False, timeout=60).returncode == 0

    if not mount():
        pytest.skip("a file system of its own cannot be mounted here")
    try:
        write_run(near.source, RUN)
        with near.mirror(policy=api.Policy(delete=True)) as running:
            near.until_same()
            before = snapshot(near.there())
            subprocess.run(["umount", "-l", str(runs)], check=True, timeout=60)
            assert os.listdir(runs) == []
            until(mount, "the file system again")
            append(near.run() / ".guild/output", b"more")
            near.until_same()
            assert snapshot(near.there()).keys() == before.keys()
            assert running.stop().problems == []
    finally:
        subprocess.run(["umount", "-l", str(runs)], check=False, timeout=60)


def test_a_target_that_goes_away_is_not_made_anew(near: Pair, tmp_path: Path) -> None:
    with near.mirror() as running:
        near.until_same()
        until(lambda: running.outcomes, "the end of the first look")
        near.target.rename(tmp_path / "away")
        append(near.run() / ".guild/output", b"more")
        until(lambda: running.warnings, "a word about it")
        assert not near.target.exists()
        (tmp_path / "away").rename(near.target)
        near.until_same()
        assert running.stop().problems == []


@pytest.mark.parametrize("small_disk", [1024], indirect=True)
def test_a_disk_that_is_full_is_said_and_filled_on_once_there_is_room(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yml").write_text(f"remotes:\n  {THERE}: {{type: local, path: {small_disk}/home}}\n")
    monkeypatch.setenv("GUILDSYNC_CONFIG", str(tmp_path / "c.yml"))
    pair = pair_of(Place("disk", small_disk / "home"), "push", tmp_path / "home")
    write_run(pair.source, RUN)
    with pair.mirror() as running:
        pair.until_same()
        (small_disk / "ballast").write_bytes(bytes(600 << 10))
        (pair.run() / "checkpoint").write_bytes(os.urandom(500 << 10))
        until(lambda: any("No space" in warning for warning in running.warnings), "a word about it")
        (small_disk / "ballast").unlink()
        pair.until_same()
        assert running.stop().problems == []


@pytest.fixture
def ownsite(
    tmp_path: Path, ssh_user: Client, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Callable[[str], Pair], Sshd]]:
    """A host of this test alone, which may be stopped."""
    with sshd() as server:
        ssh_user.add("own", server)
        (tmp_path / "c.yml").write_text(f"remotes:\n  {THERE}: {{type: ssh, host: own, guild-home: {tmp_path}/far}}\n")
        monkeypatch.setenv("GUILDSYNC_CONFIG", str(tmp_path / "c.yml"))
        yield lambda way: pair_of(Place("ssh", tmp_path / "far"), way, tmp_path / "home"), server


@pytest.mark.servers
@pytest.mark.parametrize("way", ["push", "pull"])
def test_connections_that_break_are_made_again(ownsite: tuple[Callable[[str], Pair], Sshd], way: str) -> None:
    pair, server = ownsite[0](way), ownsite[1]
    write_run(pair.source, RUN)
    with pair.mirror() as running:
        pair.until_same()
        for number in range(3):
            for pid in children(server.pid):
                os.kill(pid, signal.SIGKILL)
            append(pair.run() / ".guild/output", b"more %d\n" % number)
            pair.until_same()
        assert running.stop().problems == []
    assert any("trying again" in warning for warning in running.warnings)
    pair.same_in_the_end()


@pytest.mark.servers
@pytest.mark.parametrize("way", ["push", "pull"])
@pytest.mark.parametrize("seconds", [0.0, pytest.param(60.0, marks=[soak, pytest.mark.timeout(900)])])
def test_a_host_that_stands_still_for_a_while(
    ownsite: tuple[Callable[[str], Pair], Sshd], way: str, seconds: float
) -> None:
    """All of it, also who takes connections."""
    pair, server = ownsite[0](way), ownsite[1]
    write_run(pair.source, RUN)
    with pair.mirror() as running:
        pair.until_same()
        stopped = [server.pid, *children(server.pid)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        end = time.monotonic() + seconds
        append(pair.run() / ".guild/output", b"more\n")
        until(lambda: append(pair.run() / "log", b"line\n") or time.monotonic() >= end, "the end", seconds + 60)
        assert not is_same(pair.run(), pair.there())
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        pair.until_same()
        assert running.stop().problems == []
    pair.same_in_the_end()


@pytest.mark.servers
def test_connections_that_break_at_any_byte(
    tmp_path: Path, ssh_host: Sshd, ssh_user: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is being sent when they do is sent again; nothing there is ever something else."""
    rng = random.Random(3)
    with wire(ssh_host.port) as line:
        ssh_user.add("gpu", ssh_host, Port=str(line.port), HostKeyAlias=f"[127.0.0.1]:{ssh_host.port}")
        (tmp_path / "c.yml").write_text(f"remotes:\n  {THERE}: {{type: ssh, host: gpu, guild-home: {tmp_path}/far}}\n")
        monkeypatch.setenv("GUILDSYNC_CONFIG", str(tmp_path / "c.yml"))
        pair = pair_of(Place("ssh", tmp_path / "far"), "push", tmp_path / "home")
        write_run(pair.source, RUN)
        with pair.mirror() as running:
            pair.until_same()
            for number in range(8):
                line.reset(cut_after=rng.randrange(20_000))
                append(pair.run() / "log", os.urandom(10_000))
                (pair.run() / f"file {number}").write_bytes(os.urandom(5_000))
                pair.until_same()
            assert running.stop().problems == []
    pair.same_in_the_end()


def test_what_cannot_be_reached_at_first_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.yml").write_text(f"remotes:\n  {THERE}: {{type: local, path: {tmp_path}/nowhere}}\n")
    monkeypatch.setenv("GUILDSYNC_CONFIG", str(tmp_path / "c.yml"))
    write_run(tmp_path / "home", RUN)
    with mirror(api.open_context(str(tmp_path / "home")), (THERE, HERE)) as running, pytest.raises(NotFound):
        running.ended()


def test_what_is_gone_at_the_end_is_an_error(near: Pair, tmp_path: Path) -> None:
    with near.mirror() as running:
        near.until_same()
        until(lambda: running.outcomes, "the end of the first look")
        near.target.rename(tmp_path / "away")
        append(near.run() / ".guild/output", b"more")
        until(lambda: running.warnings, "a word about it")
        with pytest.raises(Unreachable):
            running.stop()


def test_one_mirror_of_a_home_and_a_remote(near: Pair) -> None:
    with near.mirror() as running:
        near.until_same()
        for ends in (near.ends, near.ends[::-1]):
            with mirror(near.context, ends) as second, pytest.raises(GuildsyncError, match=r"mirrors .* already"):
                second.ended()
        running.stop()
    with near.mirror() as running:
        running.stop()


# -- stores


@pytest.fixture(params=kinds("folder", "s3"))
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> api.Context:
    new_place(request.param, tmp_path, tmp_path / "home", request)
    write_run(tmp_path / "home", RUN)
    return api.open_context(str(tmp_path / "home"))


def test_a_store_is_fed_and_feeds(stored: api.Context, tmp_path: Path) -> None:
    """Here -> store -> another home, both live."""
    run, there = tmp_path / "home/runs" / RUN, tmp_path / "other/runs" / RUN
    begin(run)
    other = api.open_context(str(tmp_path / "other"))
    with mirror(stored, (HERE, THERE)) as fed:
        until(lambda: fed.outcomes, "the first delivery")
        with mirror(other, (THERE, HERE)) as feeds:
            until_same(run, there)
            assert status_of(there) == "running"
            (run / "checkpoint 2").write_bytes(b"settled")
            until_same(run, there)
            end(run)
            until(lambda: status_of(there) == "completed", "the end of the run")
            assert feeds.stop().problems == []
        assert fed.stop().problems == []
    assert_same(run, there)


def test_what_only_grows_is_put_off_and_goes_along_at_the_end(stored: api.Context, tmp_path: Path) -> None:
    run = tmp_path / "home/runs" / RUN
    begin(run)
    with mirror(stored, (HERE, THERE)) as running:
        until(lambda: running.outcomes, "the first delivery")
        for number in range(20):
            append(run / ".guild/output", b"line %d\n" % number)
        (run / "checkpoint 2").write_bytes(b"new")
        until(lambda: len(running.outcomes) > 1, "the checkpoint")
        append(run / ".guild/output", b"the end\n")
        done = running.stop()
    assert done.problems == []
    assert done.deliveries <= 3
    other = api.open_context(str(tmp_path / "other"))
    assert other.pull(THERE).problems == []
    assert_same(run, tmp_path / "other/runs" / RUN)


def test_what_a_mirror_costs(stored: api.Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What crossed in all, and what an hour costs from the first look on."""
    monkeypatch.setattr(verb, "TELLING", 0.0)
    run = tmp_path / "home/runs" / RUN
    with mirror(stored, (HERE, THERE)) as running:
        until(lambda: running.outcomes, "the first delivery")
        (run / "checkpoint").write_bytes(os.urandom(200_000))
        until(lambda: len(running.outcomes) > 1, "the checkpoint")
        done = running.stop()
    assert done.traffic.sent > 200_000
    assert done.traffic.requests > 4
    assert done.hourly is not None
    assert done.hourly.sent * done.seconds / 3600 > 200_000 > done.traffic.sent - 200_000
    assert done.to_json()["traffic"]["requests"] == done.traffic.requests


@pytest.mark.servers
@pytest.mark.parametrize("place", ["ssh"], indirect=True)
def test_of_what_grows_only_what_was_appended_crosses(pair: Pair) -> None:
    begin(pair.run())
    log = pair.run() / ".guild/output"
    log.write_bytes(noise(1, 900_000))
    with pair.mirror() as running:
        pair.until_same()
        for number in range(20):
            append(log, b"line %d\n" % number)
            pair.until_same()
        done = running.stop()
    assert done.deliveries > 10
    assert done.traffic.sent + done.traffic.received < 3_000_000
    pair.same_in_the_end()


def test_what_crosses_no_network_costs_nothing(near: Pair) -> None:
    with near.mirror() as running:
        near.until_same()
        done = running.stop()
    assert (done.traffic, done.hourly) == (NO_TRAFFIC, None)


def test_a_store_keeps_little_of_what_a_mirror_committed(stored: api.Context, tmp_path: Path) -> None:
    run = tmp_path / "home/runs" / RUN
    begin(run)
    with mirror(stored, (HERE, THERE)) as running:
        for number in range(6):
            (run / f"checkpoint {number}").write_bytes(b"%d" % number)
            until(lambda number=number: len(running.outcomes) > number, f"checkpoint {number}")  # type: ignore[misc]
        assert running.stop().problems == []
    remote = open_remote(stored.config.remote(THERE), stored.home)
    with remote.opened(stored.home, fresh=True) as store:
        assert isinstance(store, Store)
        view = store._read().view
        assert len(view.versions(RUN)) > KEPT + 1
        assert len([version for version in view.living if version.endswith(RUN)]) <= KEPT + 1
