"""Small packs are put together by a collection: which, how often, and whoever reads, writes or dies meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from guildsync.model.manifest import Digest, digest_of
from guildsync.model.ports import Collected, Piece
from guildsync.store.gc import FEW, mergeable
from guildsync.store.pack import EMPTY, pack_path
from guildsync.store.stage import SMALLEST
from tests.kit.bucket import Bucket
from tests.kit.model import Crash
from tests.kit.replicas import Content
from tests.kit.trees import noise
from tests.store.test_gc import (
    DAY,
    ONE,
    TWO,
    _interrupted,
    collect,
    held,
    opened,
    packs,
    push,
    settle,
    update,
    versions,
    view,
)

# Which: pure

Sizes = dict[Digest, int]


def sized(*sizes: int) -> Sizes:
    return {digest_of(b"%d" % number): size for number, size in enumerate(sizes)}


def chosen(*sizes: int) -> list[int]:
    of = sized(*sizes)
    return sorted(of[name] for name in mergeable(of))


def test_few_small_packs_stay_as_they_are() -> None:
    assert chosen() == chosen(*[1000] * (FEW - 1)) == []
    assert chosen(*[1000] * FEW) == [1000] * FEW


def test_large_packs_stay_as_they_are() -> None:
    assert chosen(*[SMALLEST] * 3 * FEW) == []
    assert chosen(*[SMALLEST - 1] * FEW, *[SMALLEST] * FEW) == [SMALLEST - 1] * FEW


def test_one_that_outweighs_the_others_stays_as_it_is() -> None:
    assert chosen(*[1000] * FEW, 1000 * FEW + 1) == [1000] * FEW
    assert chosen(*[1000] * FEW, 1000 * FEW) == [1000] * FEW + [1000 * FEW]
    assert chosen(*[1000] * (FEW - 1), 1000 * FEW) == []


@given(st.lists(st.integers(100, 2 * SMALLEST), max_size=100))
def test_what_is_copied_comes_into_a_pack_of_twice_the_size(sizes: list[int]) -> None:
    found = chosen(*sizes)
    assert not found or (len(found) >= FEW and 2 * found[-1] <= sum(found))


@given(st.lists(st.integers(100, 20_000), min_size=1, max_size=400))
def test_no_byte_is_copied_often(sizes: list[int]) -> None:
    """One pack after the other comes, and a collector after each. It ends by itself."""
    there: dict[Digest, int] = {}
    copies: dict[Digest, int] = {}
    for number, size in enumerate(sizes):
        there[digest_of(b"%d" % number)] = size
        copies[digest_of(b"%d" % number)] = 0
        for again in range(10):
            old = mergeable(there)
            if not old:
                break
            name = digest_of(b"%d after %d" % (again, number))
            copies[name] = 1 + max(copies[each] for each in old)
            there[name] = sum(there.pop(each) for each in old)
        else:
            raise AssertionError("it goes on for ever")
    assert max(copies.values()) <= (SMALLEST // 100).bit_length()
    assert sum(1 for size in there.values() if size < SMALLEST) < FEW * 16


# In a store


def pushed(bucket: Bucket, count: int = FEW) -> None:
    """A pack a version: of one run what a file gained, and another run."""
    for step in range(count - 1):
        push(bucket, ONE, {b"log": b"%d" % step, **{b"%d" % each: noise(each, 2000) for each in range(step + 1)}})
    push(bucket, TWO, {b"file": noise(99, 3000)})


def test_small_packs_become_one() -> None:
    bucket = Bucket()
    pushed(bucket)
    before, small = versions(bucket), packs(bucket)
    assert len(small) == FEW
    size = sum(bucket._files.list("packs", deep=True).values())
    found = collect(bucket, 0)
    assert (found.files, found.waiting, found.versions) == (FEW, 0, 0)
    assert len(packs(bucket)) == 1
    assert packs(bucket).isdisjoint(small)
    assert versions(bucket) == before
    now = sum(bucket._files.list("packs", deep=True).values())
    assert size - now == found.bytes - EMPTY
    assert collect(bucket, 0) == Collected(0, 0)
    settle(bucket)


def test_few_are_left_alone_and_so_are_young_ones() -> None:
    bucket = Bucket()
    pushed(bucket, FEW - 1)
    assert collect(bucket, 0) == Collected(0, 0)
    bucket.now += DAY
    push(bucket, TWO, {b"file": b"young"})
    names = packs(bucket)
    assert collect(bucket) == Collected(0, 0)
    assert packs(bucket) == names
    assert collect(bucket, 0).files == FEW


def test_the_old_packs_stay_for_the_grace_time() -> None:
    bucket = Bucket()
    pushed(bucket)
    before, small = versions(bucket), packs(bucket)
    bucket.now += DAY
    assert collect(bucket, dry=True) == Collected(0, 0)
    assert packs(bucket) == small
    found = collect(bucket)
    assert (found.files, found.versions) == (0, 0)
    assert packs(bucket) > small
    assert view(bucket).facts.condemned == small
    assert view(bucket).needed_packs() == packs(bucket) - small
    bucket.now += DAY - 1
    waits = collect(bucket)
    assert (waits.files, waits.waiting) == (0, FEW)
    bucket.now += 1
    assert collect(bucket, dry=True) == Collected(FEW, waits.waiting_bytes)
    assert collect(bucket) == Collected(FEW, waits.waiting_bytes)
    assert not packs(bucket) & small
    assert versions(bucket) == before
    settle(bucket)


def test_whoever_reads_meanwhile_finds_what_it_wants() -> None:
    """By a reading that is older than the collection, and after any of its objects (rule V2)."""
    for count in range(4):
        bucket = Bucket()
        pushed(bucket)
        content = Content({b"%d" % each: noise(each, 2000) for each in range(FEW - 1)})
        with opened(bucket) as store:
            store._read()
            pieces = store.fetch(content.wants(ONE)) if count else None
            got = list(itertools.islice(pieces, count)) if pieces else []
            collect(bucket, 0)
            got += pieces or store.fetch(content.wants(ONE))
        assert all(isinstance(piece, Piece) for piece in got)
        assert {piece.want.digest for piece in got} == content.objects.keys()


# Dying, and others at work


def test_a_collector_that_dies_at_any_call_leaves_every_version() -> None:
    seen: set[str] = set()
    for at in itertools.count():
        for after in (False, True):
            bucket = Bucket()
            pushed(bucket)
            before = versions(bucket)
            bucket.calls.clear()
            bucket.die = (at, after)
            try:
                collect(bucket, 0)
            except Crash:
                pass
            ended, bucket.die, bucket.dead = not bucket.dead, None, False
            if not ended:
                what, name = bucket.calls[at]
                seen.add(f"{what} {name.partition('/')[0].partition('-')[0]}")
            assert versions(bucket) == before
            settle(bucket)
            assert len(packs(bucket)) == 1
        if ended:
            break
    assert seen >= {"put packs", "put journal", "remove packs", "read packs", "list journal"}


def _between(act: Callable[[Bucket], object], other: Callable[[Bucket], object]) -> None:
    """`other` is done as a whole before the first, the second, … call of `act`; at last nothing is lost."""
    for at in itertools.count():
        bucket = Bucket()
        pushed(bucket)
        before, ran = held(bucket), _interrupted(bucket, at, lambda b=bucket: other(b), lambda b=bucket: act(b))
        now = held(bucket)
        assert now[TWO] == before[TWO]
        assert [len(heads) for heads in now.values()] == [1, 1]
        assert now[ONE] == before[ONE] or now[ONE][0]["log"] == b"more"
        assert (now == before) is not (_mirrored is act or (ran and _mirrored is other))
        settle(bucket)
        assert held(bucket) == now
        if not ran:
            break
    assert at >= 5


def _gathered(bucket: Bucket) -> None:
    collect(bucket, 0)


def _mirrored(bucket: Bucket) -> None:
    """It goes on until it is told that all is stored; nearly all of what it needs is there."""
    literal = {b"log": b"more", **{b"%d" % each: noise(each, 2000) for each in range(FEW - 1)}}
    with opened(bucket) as store:
        for _ in range(5):
            if store.commit([replace(update(store, ONE, literal), mirrored=True)]) == []:
                break
            store._read(anew=True)
        else:
            raise AssertionError("it is never stored")


def test_a_mirror_commits_at_any_moment_of_a_collection() -> None:
    _between(_gathered, _mirrored)


def test_a_collection_comes_at_any_moment_of_a_mirrors_commit() -> None:
    _between(_mirrored, _gathered)


def test_two_collections_at_once() -> None:
    _between(_gathered, _gathered)


def test_a_run_is_given_up_at_any_moment_of_a_collection() -> None:
    def give_up(bucket: Bucket) -> None:
        with opened(bucket) as store:
            list(store.runs())
            assert store.hide([ONE]) == []
        with opened(bucket) as store:
            assert store.reveal([ONE]) == []

    _between(_gathered, give_up)


def test_a_pack_that_was_put_together_is_read_like_any_other() -> None:
    bucket = Bucket()
    pushed(bucket)
    collect(bucket, 0)
    (name,) = packs(bucket)
    assert pack_path(name) in bucket._files.list("packs", deep=True)
    push(bucket, ONE, {b"log": b"later", b"0": noise(0, 2000)})
    assert held(bucket)[ONE] == [{"log": b"later", "0": noise(0, 2000)}]
