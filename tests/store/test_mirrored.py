"""What a mirror leaves in a store: two versions of a run, what people pushed, and little of a journal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from guildsync.errors import TRASHED
from guildsync.model.manifest import Digest
from guildsync.model.ports import Cache, Update
from guildsync.model.run import COMPLETED, RUNNING, RunId, Summary
from guildsync.store import checkpoint
from guildsync.store.checkpoint import CHECKPOINT_AFTER
from guildsync.store.gc import HISTORY
from guildsync.store.journal import FORGOTTEN, Version
from guildsync.store.mirrored import KEPT, is_mirrored, outdated, summary_text
from guildsync.store.reading import GRACE_AT_LEAST
from tests.kit.bucket import Bucket
from tests.kit.counting import Kept
from tests.kit.trees import noise
from tests.store.test_gc import DAY, ONE, TWO, collect, held, opened, packs, push, say, settle, update, versions, view

SOURCE = {b"src/%d.py" % number: noise(number, 2000) for number in range(5)}


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


def mirror(bucket: Bucket, step: int, run: RunId = ONE, cache: Cache | None = None, status: str = RUNNING) -> None:
    """One commit of a mirror: a log grew."""
    with opened(bucket, cache) as store:
        log = b"".join(b"step %d\n" % number for number in range(step + 1))
        found = update(store, run, {**SOURCE, b"log": log})
        assert store.commit([replace(found, summary=Summary(status=status), mirrored=True)]) == []
    bucket.now += 30


def logs(bucket: Bucket, run: RunId = ONE) -> set[int]:
    """How far the log had come in each version of the run that lives."""
    return {contents["log"].count(b"\n") - 1 for version, contents in versions(bucket).items() if version[-32:] == run}


def test_a_mirror_keeps_its_newest_two(bucket: Bucket) -> None:
    for step in range(6):
        mirror(bucket, step)
        assert logs(bucket) == {step, step - 1} - {-1}
    assert len(view(bucket).versions(ONE)) == 6
    assert len(view(bucket).history(ONE)) == 6, "their contents are told, so whoever had one of them has a base"
    settle(bucket)
    assert logs(bucket) == {4, 5}


def test_each_run_has_its_own(bucket: Bucket) -> None:
    for step in range(4):
        mirror(bucket, step)
        mirror(bucket, 10 + step, TWO)
    assert (logs(bucket), logs(bucket, TWO)) == ({2, 3}, {12, 13})


def test_what_people_pushed_is_kept_for_a_month_from_when_a_mirror_replaced_it(bucket: Bucket) -> None:
    push(bucket, ONE, {b"log": b"\n" * 101})
    began = bucket.now = bucket.now + DAY
    for step in range(5):
        mirror(bucket, step)
    assert logs(bucket) == {100, 3, 4}
    push(bucket, ONE, {b"log": b"\n" * 201})
    bucket.now = began + HISTORY
    assert collect(bucket).versions == 0
    bucket.now += 1
    assert collect(bucket).versions == 1
    assert logs(bucket) == {3, 4, 200}
    bucket.now += DAY
    assert collect(bucket).versions == 2
    assert logs(bucket) == {200}
    settle(bucket)


def test_a_mirror_goes_on_after_a_push(bucket: Bucket) -> None:
    for step in range(3):
        mirror(bucket, step)
    push(bucket, ONE, {b"log": b"\n" * 101})
    mirror(bucket, 200)
    assert logs(bucket) == {2, 100, 200}
    mirror(bucket, 201)
    assert logs(bucket) == {100, 200, 201}


def test_a_status_alone_is_a_version_too(bucket: Bucket) -> None:
    for step in range(2):
        mirror(bucket, step)
    head = view(bucket).heads(ONE)[0]
    with opened(bucket) as store:
        said = Update(ONE, None, None, Summary(status=COMPLETED), heads=(head.id,), mirrored=True)
        assert store.commit([said]) == []
    assert logs(bucket) == {1}
    assert len(view(bucket).living) == KEPT
    assert all(map(is_mirrored, view(bucket).versions(ONE)))
    with opened(bucket) as store:
        (record,) = store.runs()
    assert record.summary == Summary(status=COMPLETED, size=None, files=None)


def test_nothing_is_given_up_while_a_head_is_not_settled(bucket: Bucket) -> None:
    """Rule H1: it may become void, and what it replaced shows again."""
    for step in range(3):
        mirror(bucket, step)
    head = view(bucket).heads(ONE)[0]
    claim = view(bucket).claim(head.id)
    assert claim is not None
    with opened(bucket) as store:
        prepared = replace(update(store, ONE, {**SOURCE, b"log": b"\n" * 9}), mirrored=True)
        say(bucket, condemned=claim.packs)
        store._read(anew=True)
        prepared = replace(update(store, ONE, {**SOURCE, b"log": b"\n" * 9}), heads=prepared.heads, mirrored=True)
        assert store.commit([prepared]) == []
    assert logs(bucket) == {1, 2, 8}
    mirror(bucket, 20)
    assert logs(bucket) == {8, 20}


def test_two_mirrors_that_did_not_see_each_other_lose_nothing(bucket: Bucket) -> None:
    for step in range(3):
        mirror(bucket, step)
    with opened(bucket) as late:
        prepared = replace(update(late, ONE, {b"log": b"\n" * 50}), mirrored=True)
        mirror(bucket, 3)
        assert [problem.reason for problem in late.commit([prepared])] == ["conflict"]
    assert logs(bucket) == {2, 3, 49}
    assert len(view(bucket).rivals(ONE)) == 1
    assert collect(bucket, 0).versions == 1  # beyond it go both
    assert logs(bucket) == {3, 49}


def test_what_lies_in_the_trash_is_mirrored_into_it(bucket: Bucket) -> None:
    for step in range(2):
        mirror(bucket, step)
    with opened(bucket) as store:
        assert store.hide([ONE]) == []
    with opened(bucket) as store:
        found = store.commit([replace(update(store, ONE, {**SOURCE, b"log": b"\n" * 9}), mirrored=True)])
    assert [problem.reason for problem in found] == [TRASHED]
    assert len(view(bucket).living) == KEPT


def test_a_collection_gives_up_what_a_mirror_could_not(bucket: Bucket) -> None:
    """It died, or another's damage was in its way; the collector needs no month for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guildsync.store.draft.outdated", lambda *_: frozenset())
        for step in range(5):
            mirror(bucket, step)
    assert logs(bucket) == {0, 1, 2, 3, 4}
    assert collect(bucket, dry=True).versions == 3
    assert collect(bucket).versions == 3
    assert logs(bucket) == {3, 4}
    assert collect(bucket).versions == 0


def test_only_the_word_itself_makes_a_version_a_mirrors() -> None:
    def version(summary: str) -> Version:
        return Version("", ONE, Digest(""), Digest(""), summary, ())

    assert is_mirrored(version(summary_text(Summary(), mirrored=True)))
    for other in (
        summary_text(Summary(flags={"mirrored": True}), mirrored=False),
        "{",
        "[]",
        '{"mirrored":1}',
        "[" * 9999,
    ):
        assert not is_mirrored(version(other))
    assert Summary.from_json({"mirrored": True}) == Summary()


def test_the_heads_are_never_given_up(bucket: Bucket) -> None:
    for step in range(3):
        mirror(bucket, step)
    found = view(bucket)
    for newer in (0, 1, 2):
        assert not outdated(found, ONE, newer) & {head.id for head in found.heads(ONE)}
    assert outdated(found, ONE, 1) == {version.id for version in found.past(ONE)}


@pytest.mark.parametrize("commits", [300, pytest.param(1000, marks=pytest.mark.soak)])
def test_many_commits_leave_little_of_a_journal(bucket: Bucket, commits: int) -> None:
    """Half a minute after each other; a collector comes by now and then."""
    cache = Kept()
    for step in range(commits):
        mirror(bucket, step, cache=cache)
        assert len(bucket.names()) <= 4 * CHECKPOINT_AFTER + 8
        if step % 100 == 99:
            collect(bucket, 0, cache=cache)
    newest = bucket.checkpoints()[-1]
    known = newest.facts.versions
    print(f"{len(bucket.data(newest.name)) / len(known):.0f} bytes a version")
    assert len(known) > commits - 2 * CHECKPOINT_AFTER
    assert len([version for version in known if version.manifest == FORGOTTEN]) == len(known) - KEPT
    assert len(newest.facts.adds) < 150
    settle(bucket)
    assert held(bucket)[ONE][0]["log"].count(b"\n") == commits


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints come, and take the place of others, after few commits."""
    monkeypatch.setattr(checkpoint, "CHECKPOINT_AFTER", 8)
    monkeypatch.setattr(checkpoint, "SOON", GRACE_AT_LEAST)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("stays", [True, False], ids=["who mirrors", "who comes back"])
def test_nobody_keeps_what_a_store_has_no_more(bucket: Bucket, stays: bool) -> None:
    """Neither entries that were deleted, nor indices of packs that were dropped."""
    cache = Kept()
    for step in range(100):
        mirror(bucket, step, cache=cache if stays or step < 30 else None)
        if step % 10 == 9:
            collect(bucket, 0)
    assert len(bucket.names()) < 50
    with opened(bucket, cache) as store:
        assert len(list(store.runs())) == 1
    assert set(cache.names("journal")) <= set(bucket.names())
    assert set(cache.names("index")) <= set(packs(bucket))


@pytest.mark.usefixtures("hasty")
def test_one_who_goes_on_forgets_what_the_store_has_no_more(bucket: Bucket) -> None:
    mirror(bucket, 0)
    with opened(bucket) as store:
        for step in range(1, 100):
            mirror(bucket, step)
            if step % 10 == 9:
                collect(bucket, 0)
            assert len(list(store.runs())) == 1
            assert [scan.run for scan in store.manifests({ONE: ()})] == [ONE]
        assert store._journal._commits.keys() <= set(bucket.names())
        assert store._objects._indices.keys() <= set(packs(bucket))


def test_the_last_copy_of_an_entry_that_nobody_summed_up_is_kept(bucket: Bucket) -> None:
    cache = Kept()
    for step in range(3):
        mirror(bucket, step, cache=cache)
    lost = bucket.names()[1]
    bucket.remove(f"journal/{lost}")
    with opened(bucket, cache) as store:
        assert len(list(store.runs())) == 1
    assert lost in cache.names("journal")
