"""What a collection removes, and when, and what it must never remove: with a clock that the test sets."""

from __future__ import annotations

import itertools
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest

from guildsync.errors import MOVED, Damaged, Unreachable
from guildsync.model.manifest import Digest, digest_of
from guildsync.model.ports import Cache, Collected, Piece, Update
from guildsync.model.run import NO_METADATA, RunId, Summary
from guildsync.store import checkpoint
from guildsync.store.checkpoint import table_path
from guildsync.store.gc import HISTORY, LEFT_OVER, prunable
from guildsync.store.journal import Claim, Commit, Facts, PackFact, Version, decode, encode
from guildsync.store.pack import Packer, pack_path
from guildsync.store.reading import GRACE_AT_LEAST, Journal
from guildsync.store.store import Store
from guildsync.store.view import View
from guildsync.verbs.lifecycle import verify
from tests.kit.bucket import Bucket
from tests.kit.counting import Kept
from tests.kit.model import Contents, Crash, contents_of
from tests.kit.replicas import Content, Literal
from tests.kit.trees import noise

DAY = 86_400.0
ONE, TWO, THREE, FOUR = (RunId(f"{number:032x}") for number in range(1, 5))
LARGE, SHARED = noise(1, 50_000), noise(2, 2000)


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


# -- what people do


@contextmanager
def opened(bucket: Bucket, cache: Cache | None = None) -> Iterator[Store]:
    store = Store(bucket, cache, grace=DAY)  # type: ignore[arg-type]
    try:
        yield store
    finally:
        store.close()


def update(store: Store, run: RunId, literal: Literal) -> Update:
    """The next version of a run; what it is made of is staged where it is missing."""
    content = Content(literal)
    wants = content.wants(run)
    missing = store.missing(wants)
    store.stage(content.pieces(want for want in wants if want.digest in missing))
    view = store._read().view
    heads = tuple(head.id for head in view.heads(run))
    return Update(run, None, content.manifest, Summary(), NO_METADATA, NO_METADATA, heads)


def push(bucket: Bucket, run: RunId, literal: Literal, cache: Cache | None = None) -> None:
    with opened(bucket, cache) as store:
        assert store.commit([update(store, run, literal)]) == []


def give_up(bucket: Bucket, *runs: RunId) -> None:
    with opened(bucket) as store:
        list(store.runs())
        assert store.hide(runs) == []
        assert store.purge(runs) == []


def collect(bucket: Bucket, grace: float | None = None, dry: bool = False, cache: Cache | None = None) -> Collected:
    with opened(bucket, cache) as store:
        return store.collect(grace, dry)


def say(bucket: Bucket, **facts: object) -> None:
    """Another client commits these facts."""
    store, sequence = view(bucket).store, 1 + int(bucket.names()[-1][:16])
    assert store is not None
    commit = Commit(store, sequence, str(uuid.uuid4()), Facts(**{k: frozenset(v) for k, v in facts.items()}))  # type: ignore[call-overload, arg-type]
    bucket.write(f"journal/{commit.name}", encode(commit))


def orphan(bucket: Bucket, data: bytes = b"nobody's") -> PackFact:
    """A pack that no journal entry names."""
    packer = Packer()
    packer.add(digest_of(data), data)
    sealed = packer.seal()
    bucket.write(pack_path(sealed.fact.name), sealed.data)
    return sealed.fact


# -- what is there


def view(bucket: Bucket) -> View:
    with opened(bucket) as store:
        return store._read().view


def packs(bucket: Bucket) -> set[str]:
    return {path.rpartition("/")[2] for path in bucket._files.list("packs", deep=True)}


def everything(bucket: Bucket) -> set[str]:
    return set(bucket._files.list("", deep=True))


def versions(bucket: Bucket) -> dict[str, Contents]:
    """What each living version holds, verified."""
    with opened(bucket) as store:
        assert verify(store, list, quick=True).problems == []
        return {version: contents_of(store, version) for version in store._read().view.living}


def held(bucket: Bucket) -> dict[str, list[Contents]]:
    """What each run's heads hold."""
    found = view(bucket)
    all_of_them = versions(bucket)
    return {run: [all_of_them[head.id] for head in found.heads(run)] for run in found.runs() if found.heads(run)}


def settle(bucket: Bucket) -> None:
    """Three collections that nobody disturbs leave exactly what is needed (I5)."""
    before = versions(bucket)
    for _ in range(3):
        collect(bucket, 0)
    assert packs(bucket) == view(bucket).needed_packs()
    assert versions(bucket) == before
    left = everything(bucket)
    assert collect(bucket, 0) == Collected(0, 0)
    assert everything(bucket) == left


# Orphans and the grace time


def test_an_orphan_is_condemned_when_it_is_old_and_dropped_a_grace_time_later(bucket: Bucket) -> None:
    push(bucket, ONE, {b"file": LARGE})
    fact = orphan(bucket)
    before = everything(bucket)
    bucket.now += DAY - 1
    assert collect(bucket) == Collected(0, 0, 1, fact.size)
    assert everything(bucket) == before
    bucket.now += 1
    assert collect(bucket) == Collected(0, 0, 1, fact.size)
    assert view(bucket).facts.condemned == {fact.name}
    before = everything(bucket)
    bucket.now += DAY - 1
    assert collect(bucket) == Collected(0, 0, 1, fact.size)
    assert everything(bucket) == before
    bucket.now += 1
    assert collect(bucket) == Collected(1, fact.size)
    assert view(bucket).facts.dropped == {fact.name}
    assert fact.name not in packs(bucket)
    assert collect(bucket) == Collected(0, 0)
    assert held(bucket) == {ONE: [{"file": LARGE}]}


def test_no_grace_does_all_in_one_call(bucket: Bucket) -> None:
    push(bucket, ONE, {b"file": LARGE})
    push(bucket, TWO, {b"file": SHARED})
    gone = packs(bucket) - {pack for claim in _claims(bucket, TWO) for pack in claim.packs}
    fact = orphan(bucket)
    give_up(bucket, ONE)
    size = fact.size + sum(bucket._files.list("packs", deep=True)[pack_path(pack)] for pack in gone)
    assert collect(bucket, 0) == Collected(2, size)
    assert packs(bucket) == view(bucket).needed_packs()
    assert held(bucket) == {TWO: [{"file": SHARED}]}
    assert view(bucket).is_purged(ONE)
    settle(bucket)


def _claims(bucket: Bucket, run: RunId) -> list[Claim]:
    found = view(bucket)
    return [claim for version in found.versions(run) for claim in found.claims(version.id)]


def test_the_grace_time_of_the_store_is_the_usual_one(bucket: Bucket) -> None:
    push(bucket, ONE, {b"file": b"1"})
    orphan(bucket)
    bucket.now += DAY - 1
    collect(bucket)
    assert view(bucket).facts.condemned == frozenset()
    collect(bucket, DAY - 1)
    assert len(view(bucket).facts.condemned) == 1


def test_a_store_that_tells_no_times_is_collected_by_no_grace_alone(bucket: Bucket) -> None:
    push(bucket, ONE, {b"file": b"1"})
    fact = orphan(bucket)
    bucket.tells_time = False
    bucket.now += 1000 * DAY
    before = everything(bucket)
    assert collect(bucket, 1) == Collected(0, 0, 1, fact.size)
    assert everything(bucket) == before
    assert collect(bucket, 0) == Collected(1, fact.size)


def test_where_nothing_is_nothing_is_collected(bucket: Bucket) -> None:
    assert collect(bucket) == Collected(0, 0)
    assert everything(bucket) == set()


def test_packs_without_a_journal_are_left_alone(bucket: Bucket) -> None:
    orphan(bucket)
    bucket.now += 9 * DAY
    assert collect(bucket, 0) == Collected(0, 0)
    assert len(packs(bucket)) == 1


def test_a_listing_that_lags_ends_it(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    push(bucket, ONE, {b"file": b"1"})
    fact = orphan(bucket)
    real = Bucket.list
    monkeypatch.setattr(Bucket, "list", lambda self, where, deep=False: real(self, where, deep) if where else {})
    before = everything(bucket)
    with pytest.raises(Unreachable, match="just written"):
        collect(bucket, 0)
    assert everything(bucket) == before
    assert fact.name in packs(bucket)


# What is needed


def test_what_lies_in_the_trash_is_needed(bucket: Bucket) -> None:
    push(bucket, ONE, {b"file": LARGE})
    with opened(bucket) as store:
        assert store.hide([ONE]) == []
    assert collect(bucket, 0) == Collected(0, 0)
    with opened(bucket) as store:
        assert store.reveal([ONE]) == []
    assert held(bucket) == {ONE: [{"file": LARGE}]}


def test_versions_that_were_replaced_and_versions_in_conflict_are_needed(bucket: Bucket) -> None:
    push(bucket, ONE, {b"file": b"1"})
    with opened(bucket) as late:
        prepared = update(late, ONE, {b"file": b"another"})
        push(bucket, ONE, {b"file": b"2"})
        late.commit([prepared])
    assert len(view(bucket).rivals(ONE)) == 1
    before = versions(bucket)
    assert len(before) == 3
    assert collect(bucket, 0) == Collected(0, 0)
    assert versions(bucket) == before


def test_a_version_whose_pack_was_condemned_is_rescued_at_once_and_the_pack_dropped_in_time(bucket: Bucket) -> None:
    """Whoever condemned it; its writer may be dead."""
    push(bucket, ONE, {b"file": LARGE})
    (old,) = packs(bucket)
    say(bucket, condemned=[Digest(old)])
    assert not view(bucket).settled(view(bucket).heads(ONE)[0].id)
    collect(bucket)
    assert view(bucket).settled(view(bucket).heads(ONE)[0].id)
    assert old in packs(bucket)
    bucket.now += DAY
    assert collect(bucket).files == 1
    assert packs(bucket) == view(bucket).needed_packs() != {old}
    assert held(bucket) == {ONE: [{"file": LARGE}]}


def test_a_void_version_is_not_needed(bucket: Bucket) -> None:
    push(bucket, ONE, {b"file": b"1"})
    first = packs(bucket)
    push(bucket, ONE, {b"file": b"2"})
    (second,) = packs(bucket) - first
    say(bucket, condemned=[Digest(second)], dropped=[Digest(second)])
    assert collect(bucket, 0).files == 1
    assert packs(bucket) == first
    assert held(bucket) == {ONE: [{"file": b"1"}]}


def test_a_dropped_pack_that_comes_late_is_deleted(bucket: Bucket) -> None:
    """Rule G5: a duplicate of its PUT was on its way."""
    push(bucket, ONE, {b"file": b"1"})
    fact = orphan(bucket)
    data = bucket._files.get(pack_path(fact.name))
    collect(bucket, 0)
    assert fact.name not in packs(bucket)
    bucket.write(pack_path(fact.name), data)
    names = bucket.names()
    assert collect(bucket) == Collected(1, fact.size)
    assert fact.name not in packs(bucket)
    assert bucket.names() == names


# Packs of which little is needed


def shared_then_purged(bucket: Bucket) -> str:
    """A pack of which the second run needs a small part, the first having been given up; answers its name."""
    before = packs(bucket)
    push(bucket, ONE, {b"large": LARGE, b"shared": SHARED})
    (pack,) = packs(bucket) - before
    push(bucket, TWO, {b"shared": SHARED, b"own": b"own"})
    give_up(bucket, ONE)
    return pack


def test_a_pack_that_is_mostly_dead_is_written_anew(bucket: Bucket) -> None:
    old = shared_then_purged(bucket)
    found = collect(bucket, 0)
    assert (found.files, found.bytes > len(LARGE)) == (1, True)
    assert old not in packs(bucket)
    assert sum(bucket._files.list("packs", deep=True).values()) < 2 * len(SHARED)
    assert held(bucket) == {TWO: [{"shared": SHARED, "own": b"own"}]}
    settle(bucket)


def test_a_pack_that_is_mostly_needed_stays(bucket: Bucket) -> None:
    push(bucket, ONE, {b"small": SHARED, b"large": LARGE})
    push(bucket, TWO, {b"large": LARGE})
    give_up(bucket, ONE)
    before = packs(bucket)
    assert collect(bucket, 0) == Collected(0, 0)
    assert packs(bucket) == before


@pytest.mark.parametrize("files", [0, 1, 300])
def test_a_pack_of_tiny_objects_that_are_all_needed_is_needed_whole(bucket: Bucket, files: int) -> None:
    """Their rows in the index are larger than themselves: that is no reason to write them anew each time."""
    for run in (ONE, TWO):
        push(bucket, run, {b"%d of %s" % (n, run.encode()): b"%s%d" % (run[-1:].encode(), n) for n in range(files)})
    before = everything(bucket)
    assert collect(bucket, 0) == Collected(0, 0)
    assert everything(bucket) == before


def test_who_has_read_the_journal_before_gets_its_objects(bucket: Bucket) -> None:
    """Rule V2, at any moment of a fetch."""
    content = Content({b"shared": SHARED, b"own": b"own"})
    for some in range(3):
        bucket = Bucket()
        shared_then_purged(bucket)
        with opened(bucket) as reader:
            assert [record.run for record in reader.runs()] == [TWO]
            answers = reader.fetch(content.wants(TWO))
            got = [next(answers) for _ in range(some)]
            assert collect(bucket, 0).files == 1
            got += answers
        assert all(isinstance(answer, Piece) for answer in got)
        assert {answer.data for answer in got if isinstance(answer, Piece)} == {SHARED, b"own"}


def test_who_has_listed_before_gets_the_manifest(bucket: Bucket) -> None:
    old = shared_then_purged(bucket)
    with opened(bucket) as reader:
        list(reader.runs())
        say(bucket, condemned=packs(bucket))
        collect(bucket, 0)
        assert old not in packs(bucket)
        (scan,) = reader.manifests({TWO: ()})
    assert (scan.problems, scan.manifest is not None) == ((), True)


# Others at the same time


def test_a_push_whose_packs_were_collected_before_its_commit_stores_them_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any grace: they were orphans, are dropped and deleted when the commit arrives that claims them."""
    push(bucket, ONE, {b"file": b"1"})
    real = Journal.put
    with opened(bucket) as store:
        prepared = update(store, TWO, {b"file": LARGE})
        with monkeypatch.context() as patch:

            def put(journal: Journal, commit: Commit) -> str:
                patch.setattr(Journal, "put", real)
                assert collect(bucket, 0).files == 1
                return real(journal, commit)

            patch.setattr(Journal, "put", put)
            (problem,) = store.commit([prepared])
        assert (problem.run, problem.reason) == (TWO, MOVED)
        assert TWO not in held(bucket)
        assert store.commit([update(store, TWO, {b"file": LARGE})]) == []
    assert held(bucket) == {ONE: [{"file": b"1"}], TWO: [{"file": LARGE}]}
    settle(bucket)


def test_a_push_stores_again_what_it_had_sent_itself_before_that_was_condemned(bucket: Bucket) -> None:
    """In a later round, for whatever reason there is one: not only what the reading after its commit says counts."""
    literal = {b"file": LARGE}
    with opened(bucket) as store:
        list(store.runs())
        assert store.commit([update(store, ONE, literal)]) == []
        say(bucket, condemned=packs(bucket))
        list(store.runs())
        assert store.commit([update(store, ONE, literal)]) == []
    assert view(bucket).settled(view(bucket).heads(ONE)[0].id)


def test_what_is_said_comes_in_the_order_of_the_rules(bucket: Bucket) -> None:
    """Condemned, then read; rescued and dropped by one commit, then removed."""
    old = shared_then_purged(bucket)
    before = set(bucket.names())
    bucket.calls.clear()
    collect(bucket, 0)
    calls = [(what, name.partition("/")[0]) for what, name in bucket.calls]
    condemn, drop = sorted(set(bucket.names()) - before)
    first, last = bucket.calls.index(("put", f"journal/{condemn}")), bucket.calls.index(("put", f"journal/{drop}"))
    assert ("list", "packs") in calls[:first]
    assert ("list", "journal") in calls[first:last]
    assert calls[:last].count(("put", "packs")) == 1
    assert bucket.calls.index(("remove", pack_path(old))) > last
    facts = decode(drop, bucket.data(drop)).facts
    assert facts.dropped == {old}
    assert len(facts.adds) == 1
    assert {claim.version[-32:] for claim in facts.claims} == {TWO}


# What cannot be read ends it


def refuses(bucket: Bucket, foretold: bool = True) -> None:
    """Nothing is removed, dropped or rescued: what it needs cannot be told. `foretold`: by a dry run, too."""
    bucket.now += 9 * DAY
    there = {name: bucket._files.get(name) for name in everything(bucket)}
    dropped = _dropped(bucket)
    for grace, dry in (*([(0, True)] if foretold else []), (DAY, False), (0, False), (0, False)):
        with pytest.raises(Damaged) as caught:
            collect(bucket, grace, dry)
        assert caught.value.exit_code == 8
        assert everything(bucket) >= there.keys()
        assert all(bucket._files.get(name) == data for name, data in there.items())
    assert _dropped(bucket) == dropped


def _dropped(bucket: Bucket) -> set[Digest]:
    with opened(bucket) as store:
        return set(store._read().view.facts.dropped)


@pytest.fixture
def garbage(bucket: Bucket) -> Bucket:
    """A store with something to do, and a run that must not suffer from it."""
    push(bucket, THREE, {b"file": noise(3, 5000)})
    shared_then_purged(bucket)
    orphan(bucket)
    return bucket


@pytest.mark.parametrize("which", [0, 1, -1])
def test_an_unreadable_entry_ends_it(garbage: Bucket, which: int) -> None:
    garbage.damage(garbage.names()[which])
    refuses(garbage)


def _pack_of(bucket: Bucket, run: RunId) -> str:
    found = view(bucket)
    claim = found.claim(found.heads(run)[0].id)
    assert claim is not None
    return pack_path(claim.packs[0])


def _flipped(bucket: Bucket, path: str, place: int) -> None:
    data = bytearray(bucket._files.get(path))
    data[place] ^= 1
    bucket._files.put(path, bytes(data))


def test_a_damaged_manifest_ends_it(garbage: Bucket) -> None:
    path = _pack_of(garbage, THREE)
    with opened(garbage) as store:
        found = store._read().view
        store._load(found.needed_packs())
        row = store._objects.index(path[-64:])[found.heads(THREE)[0].manifest]
    _flipped(garbage, path, row.offset + row.stored // 2)
    refuses(garbage)


def test_a_damaged_index_ends_it(garbage: Bucket) -> None:
    path = _pack_of(garbage, THREE)
    fact = next(fact for fact in view(garbage).facts.adds if path.endswith(fact.name))
    _flipped(garbage, path, fact.index_offset + 3)
    refuses(garbage)


def test_a_pack_that_is_not_there_ends_it(garbage: Bucket) -> None:
    garbage._files.remove(_pack_of(garbage, THREE))
    refuses(garbage)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_claim_that_lacks_an_object_ends_it(garbage: Bucket, hidden: bool) -> None:
    """A buggy writer claims too little; also of what lies in the trash."""
    head = view(garbage).heads(THREE)[0]
    version = Version(f"{uuid.uuid4()}/{FOUR}", FOUR, head.manifest, head.content, "{}", ())
    (other,) = (fact.name for fact in view(garbage).facts.adds if fact.size > len(LARGE))
    say(garbage, versions=[version], claims=[Claim(version.id, (other,))])
    if hidden:
        with opened(garbage) as store:
            assert store.hide([FOUR]) == []
    refuses(garbage)


def test_an_object_that_cannot_be_rescued_ends_it(garbage: Bucket) -> None:
    path = _pack_of(garbage, THREE)
    say(garbage, condemned=[Digest(path[-64:])])
    with opened(garbage) as store:
        store._load(view(garbage).needed_packs())
        row = store._objects.index(path[-64:])[digest_of(noise(3, 5000))]
    _flipped(garbage, path, row.offset)
    refuses(garbage, foretold=False)


def test_damage_that_it_need_not_read_is_left_to_verify(garbage: Bucket) -> None:
    path = _pack_of(garbage, THREE)
    with opened(garbage) as store:
        store._load(view(garbage).needed_packs())
        row = store._objects.index(path[-64:])[digest_of(noise(3, 5000))]
    _flipped(garbage, path, row.offset)
    assert collect(garbage, 0).files == 2
    assert path[-64:] in packs(garbage)


# History


def replaced(bucket: Bucket) -> None:
    for step in range(3):
        push(bucket, ONE, {b"file": b"%d" % step, b"large": noise(step, 5000)})
        bucket.now += DAY


def test_replaced_versions_are_kept_for_a_month(bucket: Bucket) -> None:
    """From when they were replaced."""
    replaced(bucket)  # the first of them two days ago, the second one day
    bucket.now += HISTORY - 2 * DAY
    assert collect(bucket).versions == 0
    assert len(versions(bucket)) == 3
    bucket.now += 1
    assert collect(bucket).versions == 1
    assert {contents["file"] for contents in versions(bucket).values()} == {b"1", b"2"}
    bucket.now += DAY
    found = collect(bucket, 0)
    assert (found.versions, found.files) == (1, 2)
    assert held(bucket) == {ONE: [{"file": b"2", "large": noise(2, 5000)}]}
    assert len(view(bucket).history(ONE)) == 3
    settle(bucket)
    bucket.now += 99 * DAY
    assert collect(bucket, 0) == Collected(0, 0)


def test_history_is_kept_while_a_head_is_not_settled(bucket: Bucket) -> None:
    """Rule H1, and what C2 is the counterexample of."""
    replaced(bucket)
    bucket.now += 9 * HISTORY
    (last,) = (claim.packs for claim in _claims(bucket, ONE) if claim.version == view(bucket).heads(ONE)[0].id)
    say(bucket, condemned=last)
    assert collect(bucket).versions == 0
    assert len(versions(bucket)) == 3
    assert collect(bucket).versions == 2  # the first one rescued it


def test_history_is_kept_while_one_of_several_heads_is_not_settled(bucket: Bucket) -> None:
    push(bucket, ONE, {b"file": b"1"})
    with opened(bucket) as late:
        prepared = update(late, ONE, {b"file": b"another"})
        push(bucket, ONE, {b"file": b"2"})
        late.commit([prepared])
    found = view(bucket)
    (first,) = found.past(ONE)
    stored = dict.fromkeys((version.id.partition("/")[0] for version in found.versions(ONE)), 0.0)
    assert prunable(found, stored, 100.0, 99.0) == {first.id}
    assert prunable(found, stored, 99.0, 99.0) == frozenset()
    assert prunable(found, {}, 1e9, 99.0) == frozenset()
    for head in found.heads(ONE):
        claim = found.good_claim(head.id)
        assert claim is not None
        bad = View(replace(found.facts, condemned=frozenset(claim.packs)))
        assert prunable(bad, stored, 100.0, 99.0) == frozenset()


def test_a_version_counts_as_replaced_since_it_was_first_replaced(bucket: Bucket) -> None:
    push(bucket, ONE, {b"file": b"1"})
    with opened(bucket) as late:
        prepared = update(late, ONE, {b"file": b"2"})
        push(bucket, ONE, {b"file": b"2"})
        bucket.now += HISTORY
        assert late.commit([prepared]) == []  # of one content: no conflict
    bucket.now += 1
    assert collect(bucket).versions == 1


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> int:
    """Five entries that stand for themselves are enough for a checkpoint."""
    monkeypatch.setattr(checkpoint, "CHECKPOINT_AFTER", 5)
    return 5


def test_checkpoints_keep_the_times_that_history_needs(bucket: Bucket, often: int) -> None:
    replaced(bucket)
    for run in (TWO, THREE, FOUR):
        push(bucket, run, {b"file": b"x"})
    (made,) = bucket.checkpoints()
    bucket.now += DAY + 1
    push(bucket, TWO, {b"file": b"y"})
    assert not set(made.sums) & set(bucket.names()), "only the checkpoint says when they came"
    for step in range(2 * often):  # and then only checkpoints that sum up checkpoints
        push(bucket, THREE, {b"file": b"%d" % step})
        bucket.now += DAY + 1
    assert len(bucket.checkpoints()[-1].times) > often
    with opened(bucket) as store:
        reading = store._read()
        (first,) = (v.id for v in reading.view.past(ONE) if contents_of(store, v.id)["file"] == b"0")
        (second,) = (v.id for v in reading.view.versions(ONE) if v.replaces == (first,))
    came = reading.stored[second.partition("/")[0]]
    assert came == 1_700_000_000.0 + DAY
    bucket.now = came + HISTORY
    collect(bucket)
    assert first in view(bucket).living
    bucket.now += 1
    collect(bucket)
    assert first not in view(bucket).living
    settle(bucket)


def test_a_collection_writes_a_checkpoint_that_is_due_and_removes_what_one_sums_up(bucket: Bucket, often: int) -> None:
    for step in range(often - 1):
        push(bucket, ONE, {b"file": b"%d" % step})
    orphan(bucket)
    collect(bucket, 0)
    (made,) = bucket.checkpoints()
    assert len(made.sums) == often + 1
    before = versions(bucket)
    bucket.now += 2 * DAY
    orphan(bucket, b"another")
    collect(bucket, 0)
    assert not set(made.sums) & set(bucket.names())
    assert versions(bucket) == before
    settle(bucket)


def test_what_a_checkpoint_says_is_condemned_waits_no_longer_for_that(bucket: Bucket, often: int) -> None:
    push(bucket, ONE, {b"file": b"1"})
    fact = orphan(bucket)
    bucket.now += DAY
    collect(bucket)
    bucket.now += DAY - 1
    for step in range(often):
        push(bucket, TWO, {b"file": b"%d" % step})
    assert bucket.checkpoints()
    bucket.now += 1
    assert collect(bucket) == Collected(1, fact.size)


# Only said


def test_a_dry_run_writes_nothing_and_says_what_a_real_one_does(bucket: Bucket) -> None:
    replaced(bucket)
    shared_then_purged(bucket)  # gives up the first run
    push(bucket, FOUR, {b"file": b"1"})
    push(bucket, FOUR, {b"file": b"2"})
    orphan(bucket)
    for grace, later in ((DAY, 0.0), (DAY, DAY), (DAY, DAY / 2), (DAY, DAY), (DAY, HISTORY), (DAY, DAY), (0, 0.0)):
        bucket.now += later
        there = {name: bucket._files.get(name) for name in everything(bucket)}
        foretold = collect(bucket, grace, dry=True)
        assert {name: bucket._files.get(name) for name in everything(bucket)} == there
        assert collect(bucket, grace) == foretold
    settle(bucket)


def test_a_dry_run_counts_what_only_the_versions_it_would_give_up_need(bucket: Bucket) -> None:
    replaced(bucket)
    bucket.now += 2 * HISTORY
    foretold = collect(bucket, 0, dry=True)
    assert (foretold.versions, foretold.files) == (2, 2)
    assert len(versions(bucket)) == 3
    assert collect(bucket, 0) == foretold


# Leftovers


def test_leftovers_are_removed_when_they_are_old(bucket: Bucket, often: int) -> None:
    for step in range(often):
        push(bucket, ONE, {b"file": b"%d" % step})
    (made,) = bucket.checkpoints()
    (named,) = made.tables
    unnamed = Digest("e" * 64)
    temporary = {f"{top}.{uuid.uuid4().hex}.tmp" for top in ("", "packs/ab/", "journal/", "index/")}
    left = {*temporary, f"probe-{uuid.uuid4()}"}
    foreign = {"notes.txt", "index/README", "packs/README", "packs/ab/desktop.ini", f"packs/00/{'e' * 64}"}
    stays = {"guildsync.json", table_path(named), *foreign}
    for path in (*left, *stays - everything(bucket), table_path(unnamed)):
        bucket.write(path, b"left")
    bucket.now += GRACE_AT_LEAST
    collect(bucket, 0)
    assert everything(bucket) >= {*left, *stays, table_path(unnamed)}
    bucket.now += 1
    collect(bucket, 0)
    assert table_path(unnamed) not in everything(bucket)
    bucket.now += LEFT_OVER - GRACE_AT_LEAST - 1
    collect(bucket, 0)
    assert everything(bucket) >= {*left, *stays}
    bucket.now += 1
    collect(bucket, 0)
    assert not everything(bucket) & left
    assert everything(bucket) >= stays


def test_an_unnamed_index_object_waits_for_the_grace_time(bucket: Bucket) -> None:
    """Its checkpoint may be on its way."""
    push(bucket, ONE, {b"file": b"1"})
    bucket.write(path := table_path("e" * 64), b"")
    bucket.now += DAY
    collect(bucket)
    assert path in everything(bucket)
    bucket.now += 1
    collect(bucket)
    assert path not in everything(bucket)


# Dying


def mixed(bucket: Bucket) -> None:
    """Everything that a collection has to do with, some of it begun by another one."""
    shared_then_purged(bucket)
    push(bucket, THREE, {b"file": b"1", b"more": noise(5, 3000)})
    push(bucket, THREE, {b"file": b"2", b"more": noise(5, 3000)})
    bucket.now += 2 * HISTORY
    push(bucket, FOUR, {b"file": b"4"})
    with opened(bucket) as store:
        store.hide([FOUR])
    say(bucket, condemned=[Digest(_pack_of(bucket, FOUR)[-64:])])
    orphan(bucket)


def test_two_collectors_the_first_of_which_dies_at_any_call(often: int) -> None:
    """The second goes on; whoever reads finds every head at every moment, and three more leave what is needed."""
    seen: set[str] = set()
    for at in itertools.count():
        for after in (False, True):
            what, ended = _two_collectors(at, after)
            seen.add(what)
            if not what.startswith(("put", "remove")):
                break  # after it is before the next
        if ended:
            break
    assert seen >= {"put probe", "list journal", "put journal", "put packs", "remove packs", "list packs", "put index"}


def _two_collectors(at: int, after: bool) -> tuple[str, bool]:
    """The call at which the first one died, and whether it had ended before."""
    bucket = Bucket()
    mixed(bucket)
    before = held(bucket)
    bucket.calls.clear()
    bucket.die = (at, after)
    try:
        collect(bucket, 0)
    except Crash:
        pass
    ended, bucket.die, bucket.dead = not bucket.dead, None, False
    what = "" if ended else next(iter(_kinds(bucket.calls[at : at + 1])))
    assert held(bucket) == before
    with opened(bucket) as store:
        assert [record.run for record in store.runs(deleted=True)] == [FOUR]
    collect(bucket, 0)
    assert held(bucket) == before
    settle(bucket)
    return what, ended


def test_no_entry_that_one_collector_wrote_stops_another(bucket: Bucket) -> None:
    """One reads, another does all of its work, and the first goes on with what it knew."""
    mixed(bucket)
    before = held(bucket)
    for at in itertools.count():
        bucket = Bucket()
        mixed(bucket)
        ran = _interrupted(bucket, at, lambda bucket=bucket: collect(bucket, 0))
        assert held(bucket) == before
        settle(bucket)
        if not ran:
            break
    assert at > 20


def _interrupted(bucket: Bucket, at: int, other: Callable[[], object], act: Callable[[], object] | None = None) -> bool:
    """A collection, or `act`, before whose `at`-th call another one runs; False where it made fewer."""
    first, ran = len(bucket.calls), False
    step = bucket._step

    def stop(what: str, name: str, act: Callable[[], object]) -> object:
        nonlocal ran
        if not ran and len(bucket.calls) == first + at:
            ran = True
            bucket._step = step  # type: ignore[method-assign]
            other()
        return step(what, name, act)

    bucket._step = stop  # type: ignore[method-assign]
    act() if act is not None else collect(bucket, 0)
    bucket._step = step  # type: ignore[method-assign]
    return ran


# Requests


def _kinds(calls: Sequence[tuple[str, str]]) -> list[str]:
    """Such as `put journal`."""
    return [f"{what} {name.partition('/')[0].partition('-')[0]}".strip() for what, name in calls]


def asked(bucket: Bucket) -> Mapping[str, int]:
    return Counter(_kinds(bucket.calls))


def test_a_collection_with_nothing_to_do_asks_for_little(bucket: Bucket) -> None:
    cache = Kept()
    push(bucket, ONE, {b"file": LARGE}, cache)
    push(bucket, TWO, {b"file": SHARED}, cache)
    collect(bucket, cache=cache)
    bucket.calls.clear()
    names = everything(bucket)
    assert collect(bucket, cache=cache) == Collected(0, 0)
    assert everything(bucket) == names
    assert asked(bucket) == {
        "list": 2,
        "list index": 1,
        "list journal": 5,
        "list packs": 2,
        "put probe": 1,
        "read packs": 2,  # a manifest each
        "remove probe": 1,
    }


def test_a_collection_that_condemns_drops_and_rescues_asks_for_a_little_more(bucket: Bucket) -> None:
    cache = Kept()
    shared_then_purged(bucket)
    collect(bucket, dry=True, cache=cache)
    bucket.calls.clear()
    assert collect(bucket, 0, cache=cache).files == 1
    found = asked(bucket)
    assert {what: found[what] for what in found if what.startswith(("put", "remove"))} == {
        "put journal": 2,
        "put packs": 1,
        "put probe": 1,
        "remove packs": 1,
        "remove probe": 1,
    }
    assert sum(found.values()) <= 24
