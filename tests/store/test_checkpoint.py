"""Checkpoints: whatever is summed up and deleted, by whom and in which order, a reading is the union of all facts."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guildsync import api
from guildsync.errors import Damaged, Unreachable
from guildsync.model.manifest import Digest, digest_of
from guildsync.model.ports import Cache, Update
from guildsync.model.run import RunId, Summary
from guildsync.store import checkpoint
from guildsync.store.cache import NoCache
from guildsync.store.checkpoint import (
    SOON,
    Checkpointer,
    decode_table,
    encode_table,
    hidden,
    summary,
    superseded,
    table_path,
    uncovered,
)
from guildsync.store.draft import good_packs
from guildsync.store.fs import Files, _modified, open_url
from guildsync.store.gc import repeated, stranded
from guildsync.store.journal import (
    LIVE,
    Claim,
    Commit,
    Facts,
    Mark,
    PackFact,
    Version,
    condensed,
    decode,
    encode,
    is_said,
    join,
)
from guildsync.store.mirrored import outdated
from guildsync.store.objects import Objects
from guildsync.store.pack import index_range, pack_path
from guildsync.store.reading import GRACE_AT_LEAST, Journal, Reading
from guildsync.store.store import Store
from guildsync.store.view import View
from tests.kit import facts as kit
from tests.kit.bucket import Bucket
from tests.kit.counting import CountingFiles, Counts, Kept
from tests.kit.model import Crash
from tests.kit.replicas import Content, Site, new_site
from tests.kit.trees import assert_same, put, write_run
from tests.store.test_restore_by_hand import FORMATS, restore

HOUR = 3600.0
DAY = 24 * HOUR
STORE = "5" * 32


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(4) as made:
        yield made


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> int:
    """Five entries that stand for themselves are enough for a checkpoint."""
    monkeypatch.setattr(checkpoint, "CHECKPOINT_AFTER", 5)
    return 5


@contextmanager
def opened(bucket: Any, cache: Cache | None = None, grace: float = DAY) -> Iterator[Store]:
    store = Store(bucket, cache, grace=grace)
    try:
        yield store
    finally:
        store.close()


def read(bucket: Any, pool: Executor, cache: Cache | None = None) -> Reading:
    """By a client that has just been started."""
    return Journal(bucket, cache or NoCache(), pool, lambda _: None).read()


def run_of(number: int) -> RunId:
    return RunId(f"{number:032x}")


def update(number: int, store: Store) -> Update:
    content = Content({b"file": b"%d" % number})
    run = run_of(number)
    missing = store.missing(content.wants(run))
    store.stage(content.pieces(want for want in content.wants(run) if want.digest in missing))
    return Update(run, None, content.manifest, Summary())


def push(bucket: Any, *numbers: int, cache: Cache | None = None, grace: float = DAY) -> None:
    """One run, one pack and one commit a number; by one client."""
    with opened(bucket, cache, grace) as store:
        for number in numbers:
            assert store.commit([update(number, store)]) == []


def said(number: int, sequence: int, commit: str | None = None) -> Commit:
    commit = commit or f"{number:08x}-0000-4000-8000-000000000000"
    return Commit(STORE, sequence, commit, Facts(marks=frozenset([Mark(run_of(number), LIVE, sequence, commit)])))


def many(bucket: Bucket, count: int) -> list[str]:
    commits = [said(number, number) for number in range(1, count + 1)]
    for commit in commits:
        bucket.write(f"journal/{commit.name}", encode(commit))
    return [commit.name for commit in commits]


def sum_up(bucket: Bucket, pool: Executor) -> Commit:
    made = summary(read(bucket, pool), str(uuid.uuid4()), ())
    bucket.write(f"journal/{made.name}", encode(made))
    return made


# The union


class World:
    """A journal, what was ever put into it, and readings that their makers have not used yet."""

    def __init__(self, pool: Executor) -> None:
        self.bucket, self.pool = Bucket(), pool
        self.ever: dict[str, bytes] = {}
        self.readings: list[Reading] = []
        self.commits = itertools.count(1)

    def put(self, commit: Commit) -> None:
        data = encode(commit)
        self.ever[commit.name] = data
        self.bucket.write(f"journal/{commit.name}", data)

    def commit(self, facts: Facts, sequence: int) -> None:
        """Also late: with a sequence that is not above all others."""
        id_ = f"{next(self.commits):08x}-0000-4000-8000-000000000000"
        self.put(Commit(STORE, sequence, id_, facts))

    def read(self) -> None:
        found = read(self.bucket, self.pool)
        if found.names:
            self.readings.append(found)

    def sum_up(self, which: int) -> None:
        """From a reading that may be old: others may have summed it up meanwhile, and deleted what it read."""
        if self.readings:
            self.put(summary(self.readings[which % len(self.readings)], str(uuid.uuid4()), ()))

    def delete(self, which: int, some: list[bool]) -> None:
        """A part of what one checkpoint sums up, in any order."""
        there = self.bucket.checkpoints()
        if there:
            for name, doomed in zip(there[which % len(there)].sums, itertools.cycle(some or [True]), strict=False):
                if doomed:
                    self.bucket._files.remove(f"journal/{name}")

    def reappear(self, which: int) -> None:
        """A put that was on its way for long."""
        gone = sorted(self.ever.keys() - set(self.bucket.names()))
        if gone:
            name = gone[which % len(gone)]
            self.bucket.write(f"journal/{name}", self.ever[name])

    def check(self) -> None:
        everything = join(decode(name, data).state for name, data in self.ever.items())
        found = read(self.bucket, self.pool)
        assert found.problems == ()
        assert condensed(found.view.facts) == condensed(everything)
        assert found.names == frozenset(self.bucket.names())
        if found.names:
            assert found.next_sequence > max(int(name[:16]) for name in found.names)


_numbers = st.integers(0, 5)
_steps = st.one_of(
    st.tuples(st.just("commit"), kit.facts, st.integers(1, 40)),
    st.tuples(st.just("read")),
    st.tuples(st.just("sum_up"), _numbers),
    st.tuples(st.just("delete"), _numbers, st.lists(st.booleans(), max_size=4)),
    st.tuples(st.just("reappear"), _numbers),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(_steps, max_size=25))
def test_every_reading_is_the_union_of_all_that_was_ever_said(steps: list[tuple[Any, ...]], pool: Executor) -> None:
    world = World(pool)
    for what, *values in steps:
        getattr(world, what)(*values)
        world.check()


@settings(max_examples=200, deadline=None)
@given(facts=kit.facts, late=kit.facts)
def test_nothing_depends_on_what_a_checkpoint_forgets(facts: Facts, late: Facts) -> None:
    """Neither now nor when more is said, nor where what was forgotten is read once more."""
    facts, late = _honest(facts, late)
    assert condensed(condensed(facts)) == condensed(facts)
    assert condensed(join([condensed(facts), late])) == condensed(join([facts, late]))
    for whole in (facts, join([facts, late])):
        more = join([late] if whole is not facts else [])
        for lean in (join([condensed(facts), more]), join([condensed(facts), facts, more])):
            assert _consequences(View(lean)) == _consequences(View(whole))


@settings(max_examples=200, deadline=None)
@given(facts=kit.facts, late=kit.facts)
def test_what_is_said_adds_nothing(facts: Facts, late: Facts) -> None:
    facts, late = _honest(facts, late)
    whole = condensed(join([facts, late]))
    assert is_said(facts, whole)
    assert is_said(condensed(facts), whole)
    assert is_said(late, condensed(facts)) == (whole == condensed(facts))


def test_what_a_version_that_was_given_up_replaced_stays_replaced() -> None:
    run, pack = kit.RUNS[0], kit.PACKS[0]
    ids = [f"{commit}/{run}" for commit in kit.COMMITS[:3]]
    versions = [
        Version(id_, run, kit.CONTENTS[0], digest_of(id_.encode()), "{}", before)
        for id_, before in zip(ids, ((), tuple(ids[:1]), tuple(ids[1:2])), strict=True)
    ]
    claims = frozenset(Claim(version, (pack,)) for version in ids)
    facts = Facts(versions=frozenset(versions), claims=claims, purged=frozenset(ids[1:2]))
    for view in (View(facts), View(condensed(facts))):
        assert [head.id for head in view.heads(run)] == ids[2:]
        assert [version.id for version in view.past(run)] == ids[:1]
        assert len(view.history(run)) == 3


def _honest(*some: Facts) -> list[Facts]:
    """Whatever names one version says the same of it."""
    found = {version.id: version for facts in some for version in facts.versions}
    return [replace(facts, versions=frozenset(found[version.id] for version in facts.versions)) for facts in some]


def _consequences(view: View) -> list[Any]:
    living = sorted(view.living)
    runs = [
        (run, *(ask(run) for ask in (view.status, view.heads, view.past, view.history, view.is_purged, view.fields)))
        for run in view.runs()
    ]
    claims = [(version, view.good_claim(version), view.claim(version), view.settled(version)) for version in living]
    old = [outdated(view, run, newer) for run in view.runs() for newer in (1, 2)]
    return [
        runs,
        old,
        living,
        claims,
        view.needed_packs(),
        good_packs(view),
        stranded(view),
        repeated(view, kit.PACKS[:1]),
    ]


def test_many_checkpointers_at_once_that_half_delete(pool: Executor) -> None:
    """The same, where the interesting steps are sure to happen."""
    world = World(pool)
    for sequence in (1, 2, 3):
        world.commit(said(sequence, sequence).facts, sequence)
    world.read()
    for step in range(12):
        world.sum_up(step)
        world.commit(said(10 + step, 1 + step % 3).facts, 1 + step % 3)  # late
        world.read()
        world.sum_up(step // 2)
        world.delete(step, [True, step % 2 == 0])
        world.check()
        world.reappear(step)
        world.check()
    assert len(world.bucket.names()) < len(world.ever)


def test_what_a_checkpoint_sums_up_is_exactly_what_it_read_and_it_forgets_nothing(
    bucket: Bucket, pool: Executor
) -> None:
    names = many(bucket, 12)
    before = read(bucket, pool)
    made = summary(before, str(uuid.uuid4()), ())
    late = said(99, 3)
    bucket.write(f"journal/{late.name}", encode(late))
    bucket.write(f"journal/{made.name}", encode(made))
    assert made.sums == tuple(names)
    assert made.name > max(names)
    assert made.facts == condensed(before.view.facts) == before.view.facts
    after = read(bucket, pool)
    assert after.view.facts == join([before.view.facts, late.facts])
    assert after.next_sequence == made.sequence + 1


def test_marks_keep_the_stamps_of_their_makers(bucket: Bucket, pool: Executor) -> None:
    """R8: a restore that a checkpointer did not see is not undone by the checkpoint's own, later name."""
    hide = replace(said(1, 1), facts=Facts(marks=frozenset([Mark(run_of(7), "hidden", 1, said(1, 1).id)])))
    reveal = Commit(STORE, 2, said(2, 2).id, Facts(marks=frozenset([Mark(run_of(7), LIVE, 2, said(2, 2).id)])))
    bucket.write(f"journal/{hide.name}", encode(hide))
    made = summary(read(bucket, pool), "ffffffff-0000-4000-8000-000000000000", ())
    bucket.write(f"journal/{reveal.name}", encode(reveal))
    bucket.write(f"journal/{made.name}", encode(made))
    found = read(bucket, pool)
    assert found.view._marks[run_of(7)].value == LIVE
    assert found.view.facts.marks == hide.facts.marks | reveal.facts.marks


def test_a_reading_with_problems_cannot_be_summed_up(bucket: Bucket, pool: Executor) -> None:
    names = many(bucket, 3)
    bucket.damage(names[1])
    with pytest.raises(ValueError, match="read whole"):
        summary(read(bucket, pool), str(uuid.uuid4()), ())


# Who writes one, and when


def test_a_writer_writes_one_when_enough_stand_for_themselves(bucket: Bucket, pool: Executor, often: int) -> None:
    push(bucket, *range(often - 1))
    assert bucket.checkpoints() == []
    before = read(bucket, pool).view.facts
    push(bucket, often)
    (made,) = bucket.checkpoints()
    assert len(made.sums) == often
    assert made.facts.versions > before.versions
    assert bucket.done("remove") == []
    push(bucket, *range(often + 1, 2 * often))  # the checkpoint is the first of the next ones
    assert len(bucket.checkpoints()) == 2
    last = bucket.checkpoints()[-1]
    assert made.name in last.sums
    assert set(made.sums) < set(last.sums)


def test_an_ordinary_push_asks_for_nothing_more(bucket: Bucket, often: int) -> None:
    cache = Kept()
    push(bucket, 1, cache=cache)
    bucket.calls.clear()
    push(bucket, 2, cache=cache)
    asked = [(what, name.split("/")[0]) for what, name in bucket.calls]
    assert asked == [("list", "journal"), ("put", "packs"), ("put", "journal"), ("list", "journal")]


def test_a_journal_with_problems_gets_no_checkpoint(bucket: Bucket, often: int) -> None:
    push(bucket, *range(often - 1))
    with opened(bucket) as store:
        made = update(50, store)
        bucket.write(f"journal/{said(60, 60).name}", b"damaged")
        assert store.commit([made]) == []
    assert [name for name in bucket.done("put", "journal/") if "journal" in name][often:] == []


# What is deleted, and when


def aged(bucket: Bucket, often: int, cache: Cache | None = None) -> Commit:
    """A store with a checkpoint that nobody has acted upon, and an entry after it."""
    push(bucket, *range(often), cache=cache)
    (made,) = bucket.checkpoints()
    bucket.now += 60
    push(bucket, often, cache=cache)
    assert bucket.done("remove") == []
    return made


def test_deleted_is_exactly_what_an_old_checkpoint_sums_up(bucket: Bucket, pool: Executor, often: int) -> None:
    made = aged(bucket, often)
    before = read(bucket, pool).view.facts
    kept = set(bucket.names()) - set(made.sums)
    bucket.now += DAY
    push(bucket, 20)
    assert sorted(bucket.done("remove")) == [f"journal/{name}" for name in made.sums]
    assert kept < set(bucket.names())
    assert not set(made.sums) & set(bucket.names())
    assert join([before, read(bucket, pool).view.facts]) == read(bucket, pool).view.facts
    bucket.calls.clear()
    push(bucket, 21)
    assert bucket.done("remove") == []


@pytest.mark.parametrize(("grace", "older"), [(DAY, DAY), (HOUR, HOUR), (0.0, GRACE_AT_LEAST), (1e9, 2 * DAY)])
def test_nothing_is_deleted_before_the_checkpoint_is_older_than_grace(
    bucket: Bucket, often: int, grace: float, older: float
) -> None:
    aged(bucket, often)
    (made,) = bucket.checkpoints()
    bucket.now = bucket.since[f"journal/{made.name}"] + older
    push(bucket, 20, grace=grace)
    assert bucket.done("remove") == []
    bucket.now += 1
    push(bucket, 21, grace=grace)
    assert bool(bucket.done("remove")) is (grace < 1e9)


def test_a_checkpoint_that_is_not_confirmed_deletes_nothing(
    bucket: Bucket, often: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its put failed, or is still on its way: only what a LIST shows counts."""
    real = Bucket.put

    def put(self: Bucket, name: str, data: bytes) -> None:
        if name.startswith("journal/") and decode(name[8:], data).sums:
            raise Unreachable("no answer")
        real(self, name, data)

    monkeypatch.setattr(Bucket, "put", put)
    for number in range(3 * often):
        push(bucket, number)
        bucket.now += DAY
    assert bucket.done("remove") == []
    assert len(bucket.names()) == 3 * often


def test_checkpoints_that_hide_each_other_do_not_keep_what_they_sum_up_for_ever(
    bucket: Bucket, pool: Executor, often: int
) -> None:
    """Who commits reads only the newest one, which is never as old as it must be."""
    for number in range(12 * often):
        push(bucket, number)
        bucket.now += DAY / often / 2  # a checkpoint every half a day, or a little later
        assert len(bucket.names()) <= 5 * often
    everything = {version.run for version in read(bucket, pool).view.facts.versions}
    assert everything == {run_of(number) for number in range(12 * often)}
    young = [made for made in bucket.checkpoints() if bucket.now - bucket.since[f"journal/{made.name}"] <= DAY]
    assert len(young) > 1
    reading = read(bucket, pool)
    assert hidden(reading, max(reading.names), 0.0)[-1] == bucket.checkpoints()[0].name
    assert hidden(reading, said(9, 9).name, 0.0) == []


def test_index_objects_do_not_become_more_and_more(
    bucket: Bucket, pool: Executor, often: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "MOST_TABLES", 3)
    for number in range(10 * often):
        push(bucket, number)
        bucket.now += DAY
        assert all(len(made.tables) <= 3 for made in bucket.checkpoints())
    with opened(bucket) as store:
        store.collect(None)
    last = bucket.checkpoints()[-1]
    assert set(bucket.names("index")) == set(read(bucket, pool).tables) == set(last.tables)
    tabled = [decode_table(name, bucket._files.get(table_path(name))).keys() for name in last.tables]
    assert frozenset().union(*tabled) == {fact.name for fact in last.facts.adds}


def test_under_a_mirror_an_hour_is_enough(bucket: Bucket, often: int) -> None:
    made = aged(bucket, often)
    bucket.now = bucket.since[f"journal/{made.name}"] + SOON
    for grace in (DAY, SOON / 2):
        with opened(bucket, grace=grace) as store:
            assert store.commit([replace(update(20 + int(grace), store), mirrored=True)]) == []
        assert bool(bucket.done("remove")) is (grace < SOON)
    bucket = Bucket()
    made = aged(bucket, often)
    bucket.now = bucket.since[f"journal/{made.name}"] + SOON + 1
    with opened(bucket) as store:
        assert store.commit([replace(update(20, store), mirrored=True)]) == []
    assert sorted(bucket.done("remove")) == [f"journal/{name}" for name in made.sums]


def test_without_times_nothing_is_deleted(bucket: Bucket, often: int) -> None:
    aged(bucket, often)
    bucket.tells_time = False
    bucket.now += 9 * DAY
    push(bucket, 20)
    assert bucket.done("remove") == []


def test_no_cache_vouches_for_a_checkpoint(bucket: Bucket, pool: Executor, often: int) -> None:
    """It may be damaged in the store since: what it sums up is then all that others have."""
    cache = Kept()
    made = aged(bucket, often, cache)
    before = read(bucket, pool).view.facts
    bucket.damage(made.name)
    bucket.now += 2 * DAY
    push(bucket, 20, cache=cache)
    assert bucket.done("remove") == []
    assert before.versions < read(bucket, pool).view.facts.versions


def test_one_commit_deletes_so_much_and_the_next_the_rest(
    bucket: Bucket, often: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = aged(bucket, often)
    monkeypatch.setattr(checkpoint, "MOST_DELETED", 3)
    bucket.now += 2 * DAY
    push(bucket, 20)
    assert sorted(bucket.done("remove")) == [f"journal/{name}" for name in made.sums[:3]]
    push(bucket, 21)
    assert sorted(bucket.done("remove")) == [f"journal/{name}" for name in made.sums]


def test_the_newest_that_is_old_enough_is_taken() -> None:
    names = [said(number, number).name for number in range(1, 6)]
    first, second = Commit(STORE, 3, said(3, 3).id, Facts(), tuple(names[:2])), None
    second = Commit(STORE, 4, said(4, 4).id, Facts(), tuple(names[:3]))
    times = {names[2]: 0.0, names[3]: 50_000.0, names[4]: 200_000.0}
    made = Reading(None, frozenset(names[1:]), (), (first, second), times)  # type: ignore[arg-type]
    assert superseded(made, names[4], DAY) == {second.name: names[1:3], first.name: [names[1]]}
    assert list(superseded(made, names[4], DAY)) == [second.name, first.name]
    assert list(superseded(replace(made, modified={**times, names[4]: 100_000.0}), names[4], DAY)) == [first.name]
    assert superseded(made, said(9, 9).name, DAY) == {}


@pytest.mark.parametrize("what", ["put", "remove", "get"])
def test_a_tidying_that_fails_fails_no_push(
    bucket: Bucket, pool: Executor, often: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Kept()
    aged(bucket, often, cache)
    bucket.now += 2 * DAY
    push(bucket, *range(20, 22), cache=cache, grace=1e9)  # the next one has both to do
    real, own = getattr(Bucket, what), len(bucket.done("put", "journal/")) + 1

    def refuse(self: Bucket, name: str, *more: Any) -> Any:
        if what != "put" or name.startswith("index/") or len(self.done("put", "journal/")) >= own:
            raise Unreachable("no answer")
        return real(self, name, *more)

    monkeypatch.setattr(Bucket, what, refuse)
    push(bucket, 30, cache=cache)
    monkeypatch.undo()
    assert run_of(30) in read(bucket, pool).view.runs()


# Dying


def test_dying_at_any_call_of_a_tidying_loses_nothing(
    often: int, pool: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One push that writes a checkpoint and deletes what an older one sums up, killed at each of its calls."""
    seen, reached = set(), 0
    for at, after in ((at, after) for at in itertools.count() for after in (False, True)):
        bucket = Bucket()
        made = aged(bucket, often)
        bucket.now += 2 * DAY
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "CHECKPOINT_AFTER", 100)
            push(bucket, *range(20, 22), grace=1e9)
        before = read(bucket, pool).view.facts
        bucket.calls.clear()
        bucket.die = (at, after)
        try:
            with opened(bucket) as store:
                store.commit([update(30, store)])
        except Crash:
            seen.add(bucket.calls[at][0] + "/" + bucket.calls[at][1].partition("/")[0])
        ended, bucket.die, bucket.dead = not bucket.dead, None, False
        found = read(bucket, pool)
        assert found.problems == ()
        assert join([before, found.view.facts]) == found.view.facts
        if ended:
            reached = at
            break
        bucket.now += 2 * DAY
        push(bucket, 31)  # goes on
        push(bucket, 32)
        found = read(bucket, pool)
        assert join([before, found.view.facts]) == found.view.facts
        assert not set(made.sums) & set(bucket.names())
    assert {"put/index", "put/journal", "remove/journal", "list/journal", "get/journal"} <= seen
    assert reached > 10


# Reading


def test_a_cold_reading_of_many_commits_and_a_checkpoint_needs_few_requests(bucket: Bucket, pool: Executor) -> None:
    names = many(bucket, 500)
    before = read(bucket, pool)
    made = sum_up(bucket, pool)
    later = [said(number, number) for number in range(502, 512)]
    for commit in later:
        bucket.write(f"journal/{commit.name}", encode(commit))
    for deleted in (False, True):
        if deleted:
            for name in names:
                bucket._files.remove(f"journal/{name}")
        counts = Counts()
        found = read(CountingFiles(bucket, counts), pool)  # type: ignore[arg-type]
        assert found.view.facts == join([before.view.facts, *(commit.facts for commit in later)])
        assert counts["list"] == 1
        assert counts["get"] <= 24 + 1  # and guildsync.json
        assert f"journal/{made.name}" in counts.names("get")


def test_a_warm_reading_is_one_list(bucket: Bucket, pool: Executor, often: int) -> None:
    cache = Kept()
    aged(bucket, often, cache)
    bucket.now += 2 * DAY
    push(bucket, 20, cache=cache)
    counts = Counts()
    read(CountingFiles(bucket, counts), pool, cache)  # type: ignore[arg-type]
    assert counts.summary() == {"list": 1}


def test_a_client_that_knew_the_store_before_reads_the_checkpoint_alone(
    bucket: Bucket, pool: Executor, often: int
) -> None:
    cache = Kept()
    push(bucket, *range(often - 1), cache=cache)
    read(bucket, pool, cache)
    push(bucket, 10)
    counts = Counts()
    found = read(CountingFiles(bucket, counts), pool, cache)  # type: ignore[arg-type]
    assert found.problems == ()
    assert counts["get"] <= 2


def test_a_checkpoint_that_a_list_does_not_show_sums_up_nothing(bucket: Bucket, pool: Executor) -> None:
    """The client knows it, and left out what it sums up; now the store went back to before it was there."""
    many(bucket, 100)
    everything = read(bucket, pool).view.facts
    made = sum_up(bucket, pool)
    journal = Journal(bucket, NoCache(), pool, lambda _: None)  # type: ignore[arg-type]
    assert journal.read().view.facts == everything
    bucket._files.remove(f"journal/{made.name}")
    found = journal.read()
    assert (found.view.facts, found.checkpoints) == (everything, ())


def test_a_list_that_took_too_long_is_made_again(bucket: Bucket, pool: Executor) -> None:
    """K4, on either clock: the first may be set back, the second may sleep."""
    many(bucket, 3)
    for slow in ((GRACE_AT_LEAST / 2 + 1, 0.0), (-5.0, GRACE_AT_LEAST / 2 + 1)):
        times = iter([(0.0, 0.0), slow, (5.0, 5.0), (5.0 + GRACE_AT_LEAST / 2, 6.0)])
        bucket.calls.clear()
        journal = Journal(bucket, NoCache(), pool, lambda _: None, lambda times=times: next(times))  # type: ignore[arg-type]
        assert len(journal.read().names) == 3
        assert len(bucket.done("list")) == 2
    ticks = itertools.count(step=1000)
    journal = Journal(bucket, NoCache(), pool, lambda _: None, lambda: (float(next(ticks)), 0.0))  # type: ignore[arg-type]
    with pytest.raises(Unreachable, match="too long"):
        journal.read()


# Damage (V3)


def test_a_checkpoint_heals_what_a_cache_has(bucket: Bucket, often: int) -> None:
    cache = Kept()
    push(bucket, *range(often - 1), cache=cache)
    bucket.damage(bucket.names()[1])
    with opened(bucket) as fresh:
        assert len(fresh.problems) == 1
        with pytest.raises(Damaged, match="nothing is written"):
            fresh.stage([])
    push(bucket, 10, cache=cache)
    (made,) = bucket.checkpoints()
    with opened(bucket) as fresh:
        assert fresh.problems == ()
    push(bucket, 11)
    bucket.now += 2 * DAY
    push(bucket, 12)
    assert not set(made.sums) & set(bucket.names())
    push(bucket, 13)
    with opened(bucket) as fresh:
        assert {record.run for record in fresh.runs()} == set(map(run_of, [*range(often - 1), *range(10, 14)]))


def test_damage_that_no_checkpoint_sums_up_stays_one(bucket: Bucket, pool: Executor, often: int) -> None:
    aged(bucket, often)
    bucket.damage(bucket.names()[-1])
    assert len(read(bucket, pool).problems) == 1


def test_a_damaged_checkpoint_is_a_problem_and_what_it_sums_up_is_read(
    bucket: Bucket, pool: Executor, often: int
) -> None:
    made = aged(bucket, often)
    before = read(bucket, pool).view.facts
    bucket.damage(made.name)
    found = read(bucket, pool)
    assert [problem.path for problem in found.problems] == [f"journal/{made.name}".encode()]
    assert found.view.facts == before


# Index objects


def test_an_index_object_is_read_as_it_was_written() -> None:
    indices = {Digest("a" * 64): b"one", Digest("b" * 64): b"", Digest("0" * 64): bytes(1000)}
    data = encode_table(indices)
    assert data.startswith(b"guildsync-index 1\n")
    assert decode_table(digest_of(data), data) == indices
    assert decode_table(digest_of(encode_table({})), encode_table({})) == {}


def test_what_is_no_index_object_is_refused() -> None:
    import zstandard

    data = encode_table({Digest("a" * 64): b"one"})
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(Damaged):
            decode_table(digest_of(data), changed)
    magic = b"guildsync-index 1\n"
    for body in (b"x" * 35, b"x" * 32 + b"\0\0\0\2y", b"x"):
        bad = magic + zstandard.compress(body)
        with pytest.raises(Damaged):
            decode_table(digest_of(bad), bad)
    undeclared = magic + zstandard.ZstdCompressor(write_content_size=False).compress(b"")
    for bad in (b"", magic, magic + b"junk", data + b"x", data.replace(b"1\n", b"2\n", 1), undeclared):
        with pytest.raises(Damaged):
            decode_table(digest_of(bad), bad)


PACKS = 30


@pytest.fixture
def packed(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A store of PACKS packs, a checkpoint, and two packs more."""
    monkeypatch.setattr(checkpoint, "CHECKPOINT_AFTER", PACKS)
    push(bucket, *range(PACKS))
    assert len(bucket.checkpoints()) == 1
    push(bucket, PACKS, PACKS + 1)
    bucket.calls.clear()
    return bucket


def test_a_cold_pusher_reads_index_objects(packed: Bucket) -> None:
    cache = Kept()
    push(packed, 100, cache=cache)
    assert len(packed.done("get", "index/")) == 1
    assert len(packed.done("read", "packs/")) == 2
    assert len(packed.done("get")) == 8 + 1 + 1  # and guildsync.json
    packed.calls.clear()
    push(packed, 101, cache=cache)
    assert (packed.done("get"), packed.done("read")) == ([], [])


def test_for_a_few_indices_no_index_object_is_read(packed: Bucket) -> None:
    cache = Kept()
    push(packed, 100, cache=cache)
    for key in [key for key in cache.kept if key[0] == "index"][:8]:
        del cache.kept[key]
    packed.calls.clear()
    push(packed, 101, cache=cache)
    assert (len(packed.done("get", "index/")), len(packed.done("read", "packs/"))) == (0, 8)


@pytest.mark.parametrize("how", ["gone", "damaged", "of other packs", "lying"])
def test_an_index_object_that_cannot_be_had_is_no_error(packed: Bucket, how: str) -> None:
    (name,) = packed.names("index")
    real = packed._files.get(table_path(name))
    if how == "gone":
        packed._files.remove(table_path(name))
    elif how == "damaged":
        packed.write(table_path(name), real[:-1])
    else:
        held = decode_table(name, real)
        held = {} if how == "of other packs" else dict(zip(held, reversed(held.values()), strict=True))
        data = encode_table(held)
        (made,) = packed.checkpoints()
        packed.write(table_path(digest_of(data)), data)
        packed.write(f"journal/{made.name}", encode(replace(made, tables=(digest_of(data),))))
    with opened(packed) as store:
        content = Content({b"file": b"%d" % 3})
        assert store.missing(content.wants(run_of(3))) == set()
        assert len(packed.done("read", "packs/")) == PACKS + 2
        store.missing(content.wants(run_of(3)))
    assert len(packed.done("get", "index/")) == 1


def test_a_new_checkpoint_carries_index_objects_over_and_adds_one(packed: Bucket, pool: Executor) -> None:
    (first,) = packed.checkpoints()
    (one,) = first.tables
    assert len(decode_table(one, packed._files.get(table_path(one)))) == PACKS
    push(packed, *range(200, 200 + PACKS))
    second = packed.checkpoints()[-1]
    assert len(second.tables) == 2
    assert one in second.tables
    (other,) = set(second.tables) - {one}
    new = decode_table(other, packed._files.get(table_path(other)))
    added = second.facts.adds - first.facts.adds
    assert new.keys() == {fact.name for fact in added}
    for fact in added:
        start, stop = index_range(fact)
        assert packed._files.read(pack_path(fact.name), start, stop) == new[fact.name]
    puts = packed.done("put")
    assert puts.index(table_path(other)) < puts.index(f"journal/{second.name}")


def test_packs_that_nobody_may_rely_on_and_those_that_are_gone_are_left_out(
    bucket: Bucket, pool: Executor, often: int
) -> None:
    push(bucket, *range(often - 1))
    facts = sorted(read(bucket, pool).view.facts.adds)
    bad = Facts(condemned=frozenset([facts[0].name]), dropped=frozenset([facts[1].name]))
    gone = PackFact(Digest("e" * 64), 1000, 100, Digest("e" * 64))
    journal = Journal(bucket, NoCache(), pool, lambda _: None)  # type: ignore[arg-type]
    for number, more in enumerate((bad, Facts(adds=frozenset([gone])))):
        journal.put(Commit(STORE, 50 + number, said(50 + number, 1).id, more))
    found = read(bucket, pool)
    assert [fact.name for fact in uncovered(found)] == sorted({fact.name for fact in facts[2:]} | {gone.name})
    own = max(bucket.names())
    Checkpointer(bucket, journal, Objects(bucket, NoCache(), pool, 4)).tidy(found, own)  # type: ignore[arg-type]
    (made,) = bucket.checkpoints()
    (table,) = made.tables
    assert decode_table(table, bucket._files.get(table_path(table))).keys() == {fact.name for fact in facts[2:]}
    assert uncovered(read(bucket, pool)) == []


def test_a_checkpoint_without_index_objects_covers_no_pack(bucket: Bucket, pool: Executor) -> None:
    push(bucket, 1, 2)
    sum_up(bucket, pool)
    assert len(uncovered(read(bucket, pool))) == 2


def test_an_index_object_that_does_not_help_is_read_once(packed: Bucket) -> None:
    (table,) = packed.names("index")
    packed._files.remove(table_path(table))
    for path in packed._files.list("packs", deep=True):
        packed._files.remove(path)
    with opened(packed) as store:
        for _ in range(2):
            assert store.missing(Content({b"file": b"3"}).wants(run_of(3)))
    assert len(packed.done("get", "index/")) == 1


def test_verify_asks_the_packs_themselves(packed: Bucket) -> None:
    (made,) = packed.checkpoints()
    fact = min(made.facts.adds)
    path = pack_path(fact.name)
    data = bytearray(packed._files.get(path))
    data[fact.index_offset] ^= 1
    packed.write(path, bytes(data))
    with opened(packed) as store:
        assert [problem.path for problem in store.audit()] == [path.encode()]
    with opened(packed) as store:
        assert all(scan.problems == () for scan in store.manifests({run_of(n): () for n in range(PACKS)}))


# Times


SERVED = [pytest.param(kind, marks=pytest.mark.servers) for kind in ("s3", "obstore")]


@pytest.mark.parametrize("kind", ["folder", "memory", *SERVED])
def test_a_listing_says_since_when_files_are_there(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    site: Site = new_site(kind, tmp_path, request)
    assert site.files is not None
    files: Files = site.files()
    files.put("journal/x", b"data")
    for deep in (False, True):
        (size,) = files.list("journal", deep=deep).values()
        assert size == 4
        assert size.modified is not None
        assert abs(size.modified - time.time()) < 60


def test_the_latest_of_all_times_counts_and_one_without_a_zone_does_not() -> None:
    from datetime import datetime, timezone

    zoned = datetime.fromtimestamp(70, tz=timezone.utc)
    assert _modified({"mtime": 5, "created": 9.5}) == 9.5
    assert _modified({"LastModified": zoned, "created": None}) == 70
    assert _modified({"mtime": datetime(2020, 1, 1), "updated": "2020-01-01"}) is None
    assert _modified({}) is None


# By hand


def test_a_store_whose_old_entries_are_gone_is_restored_by_hand(
    tmp_path: Path, often: int, pool: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    run = run_of(1)
    write_run(tmp_path / "home", run)
    where = (tmp_path / "store").as_uri()
    context = api.open_context(str(tmp_path / "home"), environ={}, cwd=str(tmp_path))
    for number in range(often):
        put(tmp_path / "home/runs" / run, ".guild/output", b"more\n" * (1 + number))
        assert context.push(where).problems == []
    (made,) = read(open_url(where), pool).checkpoints
    assert made.tables
    for name in made.sums:
        (tmp_path / "store/journal" / name).unlink()
    (script,) = re.findall(r"^```python\n(.*?)^```$", FORMATS.read_text(), re.M | re.S)
    assert restore(script, tmp_path / "store", run, tmp_path / "out").returncode == 0
    assert_same(tmp_path / "home/runs" / run, tmp_path / "out")
    pulled = api.open_context(str(tmp_path / "pulled"), environ={}, cwd=str(tmp_path))
    assert pulled.pull(where).problems == []
    assert_same(tmp_path / "pulled/runs" / run, tmp_path / "out")
