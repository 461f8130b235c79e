"""What was done to a run, from what a journal says: in which order, when, and what of it holds."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable

from guildsync.model.manifest import canonical, digest_of
from guildsync.model.ports import Moment
from guildsync.model.run import COMPLETED, RUNNING, RunId, Summary
from guildsync.store.history import history
from guildsync.store.journal import HIDDEN, LIVE, Claim, Commit, Edit, Facts, Mark, PackFact, Version, join
from guildsync.store.reading import Reading
from guildsync.store.view import View
from tests.kit.trees import run_ids

RUN, OTHER = map(RunId, run_ids(2))
PACK = PackFact(digest_of(b"pack"), 1000, 900, digest_of(b"index"))


def commit_id(number: int) -> str:
    return str(uuid.UUID(int=number))


def commit(number: int, sequence: int | None = None, sums: Iterable[str] = (), **facts: Iterable[object]) -> Commit:
    made = Facts(**{kind: frozenset(found) for kind, found in facts.items()})  # type: ignore[arg-type]
    return Commit("ab" * 16, number if sequence is None else sequence, commit_id(number), made, tuple(sums))


def version(number: int, *replaces: int, run: RunId = RUN, status: str = COMPLETED) -> Version:
    content = digest_of(b"%d" % number)
    summary = canonical(Summary(status=status, size=number, files=1).to_json()).decode()
    before = tuple(sorted(f"{commit_id(n)}/{run}" for n in replaces))
    return Version(f"{commit_id(number)}/{run}", run, digest_of(b"m%d" % number), content, summary, before)


def claim(found: Version) -> Claim:
    return Claim(found.id, (PACK.name,))


def edit(number: int, field: str, value: object, *replaces: int, sequence: int | None = None) -> Edit:
    before = tuple(sorted(f"{commit_id(n)}/0" for n in replaces))
    at = number if sequence is None else sequence
    return Edit(f"{commit_id(number)}/0", RUN, field, canonical(value).decode(), before, at, commit_id(number))


def mark(number: int, value: str) -> Mark:
    return Mark(RUN, value, number, commit_id(number))


def reading(commits: Iterable[Commit], stored: Iterable[int] = (), unread: Iterable[Commit] = ()) -> Reading:
    """Of entries that are there; those `stored` came at the second of their number."""
    listed = {each.name: each for each in commits}
    facts = join([each.state for each in (*listed.values(), *unread)])
    modified = {each.name: float(int(uuid.UUID(each.id))) for each in listed.values()}
    times = {name: since for name, since in modified.items() if int(since) in stored}
    checkpoints = tuple(each for each in listed.values() if each.sums)
    return Reading(View(facts), frozenset(listed), (), checkpoints, times, listed)


def said(moments: Iterable[Moment]) -> list[tuple[float | None, str, object, bool]]:
    """A version as its size."""
    return [
        (each.stored, each.what, each.value["size"] if each.what == "version" else each.value, each.current)
        for each in moments
    ]


def test_versions_edits_and_marks_the_newest_last() -> None:
    first, second = version(1), version(3, 1)
    commits = [
        commit(1, adds=[PACK], versions=[first], claims=[claim(first)], edits=[edit(1, "label", "one")]),
        commit(2, edits=[edit(2, "label", "two", 1)]),
        commit(3, versions=[second], claims=[claim(second)]),
        commit(4, marks=[mark(4, HIDDEN)]),
        commit(5, marks=[mark(5, LIVE)]),
        commit(6, edits=[edit(6, "tag:good", True)]),
        commit(7, edits=[edit(7, "tag:good", None, 6)]),
    ]
    assert said(history(reading(commits, {1, 2, 3, 5, 6, 7}), RUN)) == [
        (1.0, "version", 1, False),
        (1.0, "label", "one", False),
        (2.0, "label", "two", True),
        (3.0, "version", 3, True),
        (None, "delete", None, False),
        (5.0, "restore", None, True),
        (6.0, "tag:good", True, False),
        (7.0, "tag:good", None, True),
    ]
    assert history(reading(commits), OTHER) == ()


def test_what_a_version_says() -> None:
    first = version(1, status=RUNNING)
    (moment,) = history(reading([commit(1, adds=[PACK], versions=[first], claims=[claim(first)])]), RUN)
    assert moment.value == {
        "id": first.id,
        "content": first.content,
        "manifest": first.manifest,
        "status": RUNNING,
        "size": 1,
        "files": 1,
        "kept": True,
    }
    json.dumps(moment.value)


def test_of_edits_that_did_not_see_each_other_the_later_holds_and_the_other_stays() -> None:
    commits = [commit(n, sequence=4, edits=[edit(n, "label", word, sequence=4)]) for n, word in ((2, "a"), (3, "b"))]
    assert said(history(reading(commits, {2, 3}), RUN)) == [
        (2.0, "label", "a", False),
        (3.0, "label", "b", True),
    ]
    both = [commit(2, edits=[edit(2, "tag:x", True)]), commit(3, edits=[edit(3, "tag:x", None)])]
    assert [each.current for each in history(reading(both), RUN)] == [True, False]
    rest = [commit(2, edits=[edit(2, "marked", True)]), commit(3, edits=[edit(3, "marked", False, 2)])]
    assert [(each.value, each.current) for each in history(reading(rest), RUN)] == [(True, False), (None, True)]


def test_sequences_count_more_than_clocks() -> None:
    first, second = version(9), version(2, 9)
    commits = [
        commit(9, sequence=1, adds=[PACK], versions=[first], claims=[claim(first)]),
        commit(2, sequence=2, versions=[second], claims=[claim(second)]),
    ]
    assert [each.stored for each in history(reading(commits, {2, 9}), RUN)] == [9.0, 2.0]


def test_two_heads_are_both_current() -> None:
    one, other = version(1), version(2)
    commits = [commit(1, adds=[PACK], versions=[one, other], claims=[claim(one), claim(other)])]
    assert [each.current for each in history(reading(commits), RUN)] == [True, True]


def test_a_purge_is_told_with_its_time_while_its_entry_is_there() -> None:
    first = version(1)
    commits = [
        commit(1, adds=[PACK], versions=[first], claims=[claim(first)]),
        commit(2, marks=[mark(2, HIDDEN)]),
        commit(3, purged=[first.id]),
    ]
    assert said(history(reading(commits, {1, 2, 3}), RUN)) == [
        (1.0, "version", 1, False),
        (2.0, "delete", None, True),
        (3.0, "purge", [first.id], True),
    ]
    again = version(4)
    commits += [commit(4, versions=[again], claims=[claim(again)], marks=[mark(4, LIVE)])]
    moments = history(reading(commits, {1, 2, 3, 4}), RUN)
    assert [(each.what, each.current) for each in moments] == [
        ("version", False),
        ("delete", False),
        ("purge", False),
        ("version", True),
        ("restore", True),
    ]
    assert [each.value["kept"] for each in moments if each.what == "version"] == [False, True]


def test_what_a_checkpoint_still_says() -> None:
    """The entries themselves are gone: it has their names, the times of their writers, and all facts."""
    first, second, third = version(5), version(4, 5), version(8, 4)
    gone = [
        commit(5, sequence=1, adds=[PACK], versions=[first], claims=[claim(first)]),
        commit(4, sequence=2, versions=[second], claims=[claim(second)]),
        commit(7, sequence=3, marks=[Mark(RUN, HIDDEN, 3, commit_id(7))]),
        commit(6, sequence=4, purged=[first.id]),
    ]
    facts = join(each.facts for each in gone)
    checkpoint = Commit(
        "ab" * 16,
        5,
        commit_id(20),
        facts,
        tuple(sorted(each.name for each in gone)),
        times=tuple(sorted((each.id, 100 + each.sequence) for each in gone[:3])),
    )
    last = commit(8, sequence=6, versions=[third], claims=[claim(third)])
    found = reading([checkpoint, last], {8})
    assert said(history(found, RUN)) == [
        (101.0, "version", 5, False),
        (None, "purge", [first.id], False),
        (102.0, "version", 4, False),
        (103.0, "delete", None, True),
        (8.0, "version", 8, True),
    ]


def test_what_no_entry_names_any_more_has_its_place_by_the_clock_and_by_what_replaced_what() -> None:
    """Two checkpoints later, even the names of the oldest entries are forgotten; some have no times either."""
    first, second, third = version(5), version(4, 5), version(3, 4)
    forgotten = [
        commit(5, adds=[PACK], versions=[first], claims=[claim(first)]),
        commit(4, versions=[second], claims=[claim(second)]),
        commit(3, versions=[third], claims=[claim(third)]),
    ]
    labelled = commit(9, sequence=2, edits=[edit(9, "label", "x", sequence=2)])
    later = commit(10, sequence=7, edits=[edit(10, "label", "y", 9, sequence=7)])
    checkpoint = Commit(
        "ab" * 16,
        9,
        commit_id(20),
        join([*(each.facts for each in forgotten), labelled.facts, later.facts]),
        (later.name,),
        times=tuple(sorted([(commit_id(3), 150), (commit_id(9), 100), (commit_id(10), 200)])),
    )
    assert said(history(reading([checkpoint]), RUN)) == [
        (None, "version", 5, False),
        (None, "version", 4, False),
        (100.0, "label", "x", False),
        (150.0, "version", 3, True),
        (200.0, "label", "y", True),
    ]
