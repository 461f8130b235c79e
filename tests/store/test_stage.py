"""Packs on their way: their sizes follow the link, what is unconfirmed is bounded, and what failed is not relied on."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from guildsync.errors import Unreachable
from guildsync.model.manifest import Digest, digest_of
from guildsync.store.fs import Absent
from guildsync.store.journal import Facts
from guildsync.store.objects import Objects
from guildsync.store.pack import LARGEST_PACK, pack_path
from guildsync.store.stage import CACHED, FIRST, QUICK, SLOW, SMALLEST, UNCONFIRMED, Pace, Stage
from tests.kit.counting import Kept

JOBS = 4
MIB = 1 << 20
WAIT = 30
"""Seconds after which an event that must come never will."""


# The pace


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def uploads(*seconds: float, most: int = JOBS) -> Pace:
    """The pace after uploads, one after the other, that took so long."""
    clock = Clock()
    pace = Pace(most, clock)
    for each in seconds:
        with pace.lane():
            clock.now += each
    return pace


def test_a_first_pack_is_small_and_alone() -> None:
    assert (uploads().target, uploads().lanes) == (FIRST, 1)


def test_quick_uploads_make_more_and_larger_packs() -> None:
    seen = [(pace.target, pace.lanes) for pace in (uploads(*[QUICK / 2] * count) for count in range(6))]
    assert seen == [(min(LARGEST_PACK, FIRST << n), min(JOBS, 1 + n)) for n in range(6)]


def test_slow_uploads_make_fewer_and_smaller_packs() -> None:
    quick = [QUICK / 2] * 10
    seen = [(pace.target, pace.lanes) for pace in (uploads(*quick, *[SLOW * 2] * count) for count in range(8))]
    assert seen == [(max(SMALLEST, LARGEST_PACK >> n), max(1, JOBS - n)) for n in range(8)]


@pytest.mark.parametrize("seconds", [QUICK + 0.1, (QUICK + SLOW) / 2, SLOW - 0.1])
def test_uploads_of_the_time_that_is_wanted_change_nothing(seconds: float) -> None:
    pace = uploads(0.1, *[seconds] * 5)
    assert (pace.target, pace.lanes) == (2 * FIRST, 2)


def test_an_upload_that_failed_counts_as_one_that_took_its_time() -> None:
    """And gives its lane back."""
    clock = Clock()
    pace = Pace(1, clock)

    def fail() -> None:
        with pace.lane():
            clock.now += 2 * SLOW
            raise Unreachable("gone")

    for _ in range(2):
        with pytest.raises(Unreachable):
            fail()
    assert (pace.target, pace.lanes) == (SMALLEST, 1)


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_are_under_way_than_there_are_lanes(most: int) -> None:
    """Not while they are still becoming more either."""
    pace, lock, busy, seen = Pace(most, Clock()), threading.Lock(), 0, list[tuple[int, int]]()
    too_many = threading.Event()

    def one() -> None:
        nonlocal busy
        with pace.lane():
            with lock:
                busy += 1
                seen.append((busy, pace.lanes))
                if busy > pace.lanes:
                    too_many.set()
            too_many.wait(0.005)  # so long may another one come
            with lock:
                busy -= 1

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(one) for _ in range(60)]:
            done.result(WAIT)
    assert len(seen) == 60
    assert all(busy <= lanes <= most for busy, lanes in seen)


# The stage


class Uploads:
    """The files of a store, which hold packs back until they are let go."""

    where = "somewhere"

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.unconfirmed = self.most = self.at_once = self.most_at_once = 0
        self.fail: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self._change = threading.Condition()

    def put(self, name: str, data: bytes) -> None:
        with self._change:
            self.puts.append(name)
            self.unconfirmed += len(data)
            self.at_once += 1
            self.most, self.most_at_once = max(self.most, self.unconfirmed), max(self.most_at_once, self.at_once)
            self._change.notify_all()
        assert self.gate.wait(WAIT)
        with self._change:
            self.unconfirmed -= len(data)
            self.at_once -= 1
            if self.fail is not None:
                raise self.fail
            self.stored[name] = data

    def read(self, name: str, start: int, stop: int) -> bytes:
        if name not in self.stored:
            raise Absent(name)
        return self.stored[name][start:stop]

    def wait_for(self, puts: int) -> None:
        with self._change:
            assert self._change.wait_for(lambda: len(self.puts) >= puts, WAIT)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def files() -> Uploads:
    return Uploads()


@pytest.fixture
def notes() -> Kept:
    return Kept()


def new_stage(files: Uploads, notes: Kept, pool: ThreadPoolExecutor, jobs: int = JOBS) -> Stage:
    return Stage(files, Objects(files, notes, pool, jobs), notes, pool, jobs)  # type: ignore[arg-type]


def add(into: Stage, size: int) -> Digest:
    data = os.urandom(size)
    into.add(digest_of(data), data)
    return digest_of(data)


@pytest.mark.parametrize("piece", [100_000, MIB, 40 * MIB])
def test_what_is_unconfirmed_is_bounded(files: Uploads, notes: Kept, pool: ThreadPoolExecutor, piece: int) -> None:
    """Of what was sent, an interruption can cost that and no more; nor is more of it in memory, but for the pack that
    is being made."""
    into = new_stage(files, notes, pool, jobs=8)
    for _ in range(300 * MIB // piece):
        add(into, piece)
    into.flush()
    assert files.most <= max(UNCONFIRMED, piece + MIB)
    assert files.most_at_once <= 8


class Watched(ThreadPoolExecutor):
    """Tells when somebody begins to wait for what it does."""

    def __init__(self) -> None:
        super().__init__(8)
        self.waited = threading.Event()

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(*args, **kwargs)
        result = future.result

        def watched(timeout: float | None = None) -> Any:
            self.waited.set()
            return result(timeout)

        future.result = watched  # type: ignore[method-assign]
        return future


def test_who_adds_waits_while_nothing_is_confirmed(files: Uploads, notes: Kept) -> None:
    added: list[Digest] = []
    with Watched() as pool:
        into = new_stage(files, notes, pool)

        def fill() -> None:
            added.extend(add(into, MIB) for _ in range(200))

        files.gate.clear()
        thread = threading.Thread(target=fill, daemon=True)
        thread.start()
        try:
            assert pool.waited.wait(WAIT)
            assert len(added) * MIB <= UNCONFIRMED + LARGEST_PACK
        finally:
            files.gate.set()
        thread.join(WAIT)
        into.flush()
    assert len(added) == 200
    assert sorted(files.stored) == sorted(files.puts)


def test_what_is_staged_twice_is_sent_once(files: Uploads, notes: Kept, pool: ThreadPoolExecutor) -> None:
    into, data = new_stage(files, notes, pool), os.urandom(MIB)
    for _ in range(20):
        into.add(digest_of(data), data)
    assert digest_of(data) in into
    first = into.flush()
    into.add(digest_of(data), data)
    assert into.flush() == first
    into.forget(Facts(adds=frozenset(first.values())))
    into.add(digest_of(data), data)
    assert into.flush() == {}
    assert sum(map(len, files.stored.values())) < MIB + 500


def test_what_lies_in_a_condemned_pack_is_sent_again(files: Uploads, notes: Kept, pool: ThreadPoolExecutor) -> None:
    into, data = new_stage(files, notes, pool), os.urandom(MIB)
    into.add(digest_of(data), data)
    into.flush()
    into.forget(Facts(condemned=frozenset(Digest(name) for name in notes.names(CACHED))))
    assert digest_of(data) not in into
    into.add(digest_of(data), data)
    assert len(into.flush()) == 1
    assert len(files.puts) == 2


def test_a_failed_upload_is_raised_and_nothing_relies_on_it(
    files: Uploads, notes: Kept, pool: ThreadPoolExecutor
) -> None:
    into = new_stage(files, notes, pool)
    good = add(into, MIB)
    confirmed = into.flush()
    assert [Digest(name) for name in notes.names(CACHED)] == list(confirmed)
    files.fail = Unreachable("no answer")
    bad = add(into, MIB)
    with pytest.raises(Unreachable):
        into.flush()
    assert notes.names(CACHED) == list(confirmed)
    assert set(files.stored) == {pack_path(name) for name in confirmed}
    files.fail = None
    again = new_stage(files, notes, pool)
    again.take_over({good, bad}, Facts())
    assert (good in again, bad in again) == (True, False)
    assert again.taken_over == MIB
    assert again.flush() == confirmed


def test_a_failed_upload_is_raised_while_more_is_added(files: Uploads, notes: Kept, pool: ThreadPoolExecutor) -> None:
    """Nobody sends a terabyte into the void first."""
    into = new_stage(files, notes, pool)
    files.fail = Unreachable("no answer")

    def fill() -> None:
        for _ in range(2 * (UNCONFIRMED + LARGEST_PACK) // MIB):
            add(into, MIB)

    with pytest.raises(Unreachable):
        fill()
    assert notes.names(CACHED) == []


def test_notes_that_are_no_notes_are_passed_over(files: Uploads, notes: Kept, pool: ThreadPoolExecutor) -> None:
    first = new_stage(files, notes, pool)
    good = add(first, MIB)
    (name,) = first.flush()
    sound = notes.kept[CACHED, name]
    for wrong in (b"", b"{}", b"[1]", b"null", sound[:-1], sound.replace(name.encode(), b"0" * 64)):
        notes.keep(CACHED, name, wrong)
        again = new_stage(files, notes, pool)
        again.take_over({good}, Facts())
        assert (good in again, again.taken_over) == (False, 0), wrong
        assert notes.names(CACHED) == []
