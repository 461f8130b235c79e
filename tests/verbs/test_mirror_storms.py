"""push --watch, pull --watch in bad weather: servers that fail and restart, processes that stand still, memory."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from guildsync import api
from guildsync.store import fs
from guildsync.store.fs import PATIENCE, Patience
from tests.conftest import new_bucket
from tests.kit.measured import children, descriptors, measured, resident
from tests.kit.mirrors import (
    HERE,
    Pair,
    Running,
    append,
    interrupted,
    mirror,
    pair_of,
    until_same,
    watching,
)
from tests.kit.places import THERE, kinds, new_place
from tests.kit.proxy import BROKEN, BUSY, IN, OUT, proxied, storm
from tests.kit.servers import S3Server, bucket_file, seaweed
from tests.kit.trees import assert_same, make_flood, run_ids, write_run
from tests.kit.waiting import until
from tests.kit.writers import generation

RUN, OTHER, THIRD = run_ids(3)
BUCKET = "bucket"
KIB = 1 << 10
RSS, DESCRIPTORS = 400, 64
"""What an ordinary sync of 100,000 files may take (P11)."""
soak = pytest.mark.soak


@pytest.fixture(params=kinds("disk", "ssh"))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path, kind: str, way: str) -> Pair:
    """One run is there, completed."""
    place = new_place(kind, tmp_path, tmp_path / "home", request)
    found = pair_of(place, way, tmp_path / "home")
    write_run(found.source, RUN)
    return found


@pytest.fixture(params=["push", "pull"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def training(run: Path) -> Iterator[None]:
    """It writes all the time: a log that grows, files that are new or rewritten, a checkpoint renamed into place."""
    over = threading.Event()
    (run / "steps").mkdir()

    def write() -> None:
        for step in itertools.count(1):
            append(run / ".guild/output", b"step %d\n" % step)
            (run / f"steps/{step % 100}").write_bytes(b"%d" % step)
            (run / "checkpoint.tmp").write_bytes(generation(step, 256 * KIB))
            (run / "checkpoint.tmp").rename(run / "checkpoint")
            if over.wait(0.02):
                return

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# -- stores


class Relay:
    """A home is mirrored to a bucket, and that to another home, both with --delete. One more run lies in the bucket
    alone, and yet another in the other home."""

    def __init__(self, directory: Path, server: S3Server, patch: pytest.MonkeyPatch) -> None:
        self._directory, self._bucket = directory, new_bucket(server)
        patch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        patch.setenv("GUILDSYNC_CONFIG", str(directory / "guildsync.yml"))
        self._goes_by(server.endpoint)
        for name, run in (("third", OTHER), ("other", THIRD), ("home", RUN)):
            write_run(directory / name, run)
        self.context("third").push(BUCKET)

    def _goes_by(self, endpoint: str, engine: str = "auto") -> None:
        bucket_file(self._directory, endpoint, self._bucket, engine, poll="500ms")

    def context(self, name: str) -> api.Context:
        return api.open_context(str(self._directory / name))

    def run(self, name: str, run: str = RUN) -> Path:
        return self._directory / name / "runs" / run

    @contextmanager
    def both(self, endpoint: str, engine: str = "auto") -> Iterator[tuple[Running, Running]]:
        """Both have begun, and the run is written to from now on. Ends with nothing lost, and all sides equal."""
        self._goes_by(endpoint, engine)
        options = {"policy": api.Policy(delete=True)}
        with (
            mirror(self.context("home"), (HERE, BUCKET), **options) as fed,
            mirror(self.context("other"), (BUCKET, HERE), **options) as feeds,
        ):
            until_same(self.run("home"), self.run("other"))
            with training(self.run("home")):
                yield fed, feeds
            for running in (fed, feeds):
                done = running.stop()
                assert (done.problems, done.removed) == ([], 0)
        self._same_in_the_end()

    def _same_in_the_end(self) -> None:
        assert self.context("fresh").pull(BUCKET).problems == []
        for name in ("other", "fresh"):
            assert_same(self.run("home"), self.run(name))
            assert_same(self.run("third", OTHER), self.run(name, OTHER))
        assert self.run("other", THIRD).exists()


def goes_on(running: Running, looks: int = 1) -> None:
    """It delivers so often from now on."""
    count = len(running.outcomes) + looks
    until(lambda: len(running.outcomes) >= count, "further deliveries", 300)


def tries_again(running: Running) -> None:
    until(lambda: any("trying again" in text for text in running.warnings), "a word about it", 300)


@pytest.mark.servers
@pytest.mark.parametrize(
    ("engine", "looks"),
    [
        ("obstore", 4),
        pytest.param("obstore", 30, marks=[soak, pytest.mark.timeout(1800)]),
        pytest.param("s3fs", 30, marks=[soak, pytest.mark.timeout(1800)]),
    ],
)
def test_a_store_of_which_three_requests_in_ten_fail(
    seaweed: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, looks: int
) -> None:
    relay = Relay(tmp_path, seaweed, monkeypatch)
    with proxied(seaweed.endpoint) as proxy:
        with relay.both(proxy.endpoint, engine) as (fed, feeds):
            proxy.forget()
            proxy.fails = storm(0.3, seed=1)
            goes_on(fed, looks)
            goes_on(feeds, looks)
            asked = len(proxy.requests)
            proxy.fails = lambda _: None
        print(f"{asked} requests, {dict(proxy.failures)}; {fed.warnings} {feeds.warnings}")
    assert proxy.failures.keys() == {BUSY, BROKEN, OUT, IN}
    assert proxy.failures.total() >= asked // 5


@pytest.mark.servers
@pytest.mark.parametrize(
    ("patience", "times"), [(Patience(1, 1, 2), 1), pytest.param(PATIENCE, 4, marks=[soak, pytest.mark.timeout(1800)])]
)
def test_a_store_whose_server_is_killed_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: Patience, times: int
) -> None:
    monkeypatch.setattr(fs, "open_s3", partial(fs.open_s3, patience=patience))
    with seaweed() as site:
        relay = Relay(tmp_path, site.server, monkeypatch)
        with relay.both(site.server.endpoint) as both:
            for _ in range(times):
                site.kill()
                for running in both:
                    tries_again(running)
                site.start()
                for running in both:
                    goes_on(running)


# -- who stands still


@pytest.mark.parametrize(
    ("files", "seconds"), [(100, 0.0), pytest.param(20_000, 60.0, marks=[soak, pytest.mark.timeout(900)])]
)
def test_a_mirror_that_stands_still_for_a_while(pair: Pair, files: int, seconds: float) -> None:
    """Longer, and in more of a flood, than the system keeps events for it."""
    with watching(*pair.argv) as child:
        pair.until_same()
        child.send_signal(signal.SIGSTOP)
        end = time.monotonic() + seconds
        make_flood(pair.run(), files)
        append(pair.run() / ".guild/output", b"more\n")
        until(lambda: time.monotonic() >= end, "the end of a pause", seconds + 1)
        assert not (pair.there() / "flood").exists()
        child.send_signal(signal.SIGCONT)
        until_same(pair.run(), pair.there(), 600)
        code, _, _ = interrupted(child)
    assert code == 130
    pair.same_in_the_end()


# -- what it takes


@pytest.mark.parametrize(
    ("files", "turns", "rss"),
    [(1_000, 2, RSS // 4), pytest.param(60_000, 6, RSS, marks=[soak, pytest.mark.timeout(3600)])],
)
def test_a_flood_takes_little_and_what_comes_after_it_no_more(
    request: pytest.FixtureRequest, pair: Pair, kind: str, files: int, turns: int, rss: int
) -> None:
    """Here and at the far side. Of two homes on this machine one process has both: it may take a quarter more."""
    most = rss if kind == "ssh" else rss * 5 / 4
    far = request.getfixturevalue("ssh_host").pid if kind == "ssh" else None
    took: list[float] = []
    with watching(*pair.argv) as child, descriptors(child.pid) as opened:
        pair.until_same()
        make_flood(pair.run(), files)
        for turn in range(turns):
            until_same(pair.run(), pair.there(), 900)
            processes = [child.pid, *(children(far) if far is not None else ())]
            took.append(max(resident(pid, most=True) for pid in processes))
            for number in range(0, files, 4):
                (pair.run() / f"flood/{number % 50}/{number}").write_bytes(b"%d in turn %d" % (number, turn))
        until_same(pair.run(), pair.there(), 900)
        print(f"{[round(size) for size in took]} MiB; {opened.most} descriptors")
        code, _, _ = interrupted(child)
    assert code == 130
    assert max(took) <= most
    assert 3 <= opened.most <= DESCRIPTORS


FLOODS = [
    pytest.param("folder", 1_000, "2s", RSS // 4),
    pytest.param("folder", 60_000, "30s", RSS, marks=[soak, pytest.mark.timeout(1800)]),
    pytest.param("s3", 60_000, "30s", RSS, marks=[soak, pytest.mark.servers, pytest.mark.timeout(1800)]),
]


@pytest.mark.parametrize(("kind", "files", "lasts", "rss"), FLOODS)
def test_a_flood_into_a_store_takes_little(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, files: int, lasts: str, rss: int
) -> None:
    """It has time to end by itself, with all that came meanwhile."""
    place, run = new_place(kind, tmp_path, tmp_path / "home", request), write_run(tmp_path / "home", RUN)
    argv = ["push", "--home", str(tmp_path / "home"), "--watch", "--for", lasts, THERE]
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(measured, argv, os.environ)
        until(place.state, "the first delivery")
        make_flood(run, files)
        done = ended.result()
    print(f"{done.rss:.0f} MiB; {done.descriptors} descriptors; {done.seconds:.0f} s; {done.said}")
    assert done.code == 0, done.said
    assert done.rss <= rss
    assert done.descriptors <= DESCRIPTORS
    assert api.open_context(str(tmp_path / "other")).pull(THERE).problems == []
    assert_same(run, tmp_path / "other/runs" / RUN)
