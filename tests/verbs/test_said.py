"""What people say of runs is not lost: said at the same time, or in a file that cannot be read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from guildsync import api
from guildsync.attributes import AttributedTree
from guildsync.errors import UNREADABLE
from guildsync.model import edits
from guildsync.model.run import Comment, Metadata
from guildsync.verbs import lifecycle
from guildsync.verbs.sync import Sync
from tests.kit.model import Person
from tests.kit.places import ALL, FEW, Place, kinds, new_place
from tests.kit.trees import put, run_ids, write_run

RUN, OTHER = run_ids(2)
BROKEN = (b"- [broken\n", b"precious words", b"{a: b}\n", b"caf\xe9\n", b"- 'ours'\n  - x: [\n")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for run in (RUN, OTHER):
        write_run(tmp_path / "guild", run, label="first")
    return tmp_path / "guild"


@pytest.fixture(params=FEW)
def place(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Place:
    return new_place(request.param, tmp_path, home, request)


@pytest.fixture
def person(home: Path, place: Place) -> Person:
    someone = Person(home, place.name, os.environ.get("GUILDSYNC_CONFIG"))
    assert place.kind == "local" or someone.push().problems == []
    return someone


def edited(person: Person, remote: str, *changes: edits.MetadataEdit) -> None:
    for change in changes:
        acted = person.context().edit(remote, api.Request(api.Choice((RUN,))), change)
        assert acted.problems == []


def said(word: str, time: int) -> tuple[edits.MetadataEdit, ...]:
    return edits.add_comment(Comment(word, time)), edits.change_tags([word])


def words(metadata: Metadata) -> tuple[set[str], list[str]]:
    return set(metadata.tags), [comment.body for comment in metadata.comments]


# -- at the same time


def meanwhile(monkeypatch: pytest.MonkeyPatch, where: type | object, name: str, act: Callable[[], None]) -> None:
    """`act` happens once, just before the next call of this name."""
    real, left = getattr(where, name), [act]

    def call(*args: object, **kwargs: object) -> object:
        if left:
            left.pop()()
        return real(*args, **kwargs)

    monkeypatch.setattr(where, name, call)


@pytest.mark.parametrize("verb", ["push", "pull"])
def test_what_is_said_at_the_target_during_a_sync_is_kept(
    person: Person, place: Place, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    source, target = (api.LOCAL, place.name) if verb == "push" else (place.name, api.LOCAL)
    edited(person, source, *said("source", 1))
    edited(person, source, edits.set_label("by the source"))
    meanwhile(monkeypatch, Sync, "_deliver", lambda: edited(person, target, *said("target", 2), edits.set_marked(True)))
    outcome = getattr(person, verb)()
    assert (outcome.problems, outcome.runs) == ([], 1)
    metadata = person.record(RUN, target).metadata
    assert words(metadata) == ({"source", "target"}, ["source", "target"])
    assert (metadata.label, metadata.marked) == ("by the source", True)


def test_with_files_to_send_as_well(person: Person, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    put(person.run(RUN), "new", b"x" * 100_000)
    edited(person, api.LOCAL, *said("ours", 1))
    meanwhile(monkeypatch, Sync, "_deliver", lambda: edited(person, place.name, *said("theirs", 2)))
    outcome = person.push()
    assert (outcome.problems, outcome.runs) == ([], 1)
    assert words(person.record(RUN, place.name).metadata) == ({"ours", "theirs"}, ["ours", "theirs"])
    with person.context().look(place.name, api.Choice((RUN,))) as files:
        assert b"new" in files.manifest.by_path
    assert person.pull().problems == []
    assert words(person.record(RUN).metadata) == ({"ours", "theirs"}, ["ours", "theirs"])


@pytest.mark.parametrize("place", ALL, indirect=True)
def test_two_who_say_something_at_the_same_time_are_both_heard(
    person: Person, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(person, place.name, *said("before", 1))
    for change in (*said("one", 3), edits.remove_comment(1)):
        real = lifecycle.Update
        meanwhile(monkeypatch, lifecycle, "Update", lambda: edited(person, place.name, *said("other", 2)))
        edited(person, place.name, change)
        monkeypatch.setattr(lifecycle, "Update", real)
    assert words(person.record(RUN, place.name).metadata) == ({"before", "one", "other"}, ["other", "one"])


@pytest.mark.parametrize("place", kinds("local", "disk", "ssh"), indirect=True)
def test_of_a_run_that_goes_away_meanwhile_nothing_is_said(
    person: Person, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act() -> None:
        (place.home / "runs" / RUN / ".guild/attrs/tags").write_bytes(b"- theirs\n")
        meanwhile(monkeypatch, AttributedTree, "runs", lambda: shutil.rmtree(place.home / "runs" / RUN))

    meanwhile(monkeypatch, AttributedTree, "commit", act)
    acted = person.context().edit(place.name, api.Request(api.Choice(())), edits.change_tags(["ours"]))
    assert [problem.run for problem in acted.problems] == [RUN]
    assert [record.run for record in acted.runs] == [OTHER]
    assert acted.exit_code == 7


@pytest.mark.parametrize("place", kinds("local", "disk", "ssh"), indirect=True)
def test_comments_stay_in_their_order(person: Person, place: Place) -> None:
    for word in "cabd":
        edited(person, place.name, edits.add_comment(Comment(word, 5)))
    edited(person, place.name, edits.set_label("x"), edits.remove_comment(2))
    assert words(person.record(RUN, place.name).metadata)[1] == ["c", "b", "d"]


@pytest.mark.parametrize("place", kinds("local", "disk", "ssh"), indirect=True)
def test_who_is_never_left_alone_is_told(person: Person, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody says something each time: nothing of theirs is lost, and it ends."""
    count = [0]
    real = lifecycle.Update

    def update(*args: object) -> object:
        count[0] += 1
        path = place.home / "runs" / RUN / ".guild/attrs/tags"
        path.write_bytes(b"- theirs %d\n" % count[0])
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(lifecycle, "Update", update)
    request = api.Request(api.Choice((RUN,)))
    acted = person.context().edit(place.name, request, edits.change_tags(["ours"]))
    assert [problem.reason for problem in acted.problems] == ["changed"]
    assert (acted.runs, acted.exit_code, count[0]) == ([], 7, lifecycle.ROUNDS)
    assert person.record(RUN, place.name).metadata.tags == {f"theirs {count[0]}"}


# -- in a file that cannot be read


@pytest.mark.parametrize("name", ["tags", "comments"])
def test_what_cannot_be_read_here_is_not_removed_there(person: Person, place: Place, name: str) -> None:
    edited(person, api.LOCAL, *said("ours", 1))
    assert person.push().problems == []
    path = person.run(RUN) / ".guild/attrs" / name
    whole = path.read_bytes()
    edited(person, api.LOCAL, edits.set_label("new"))
    for data in BROKEN:
        path.write_bytes(data)
        outcome = person.push()
        assert [(problem.path, problem.reason) for problem in outcome.problems] == [
            (f".guild/attrs/{name}".encode(), UNREADABLE)
        ]
        assert outcome.exit_code == 7
        metadata = person.record(RUN, place.name).metadata
        assert (words(metadata), metadata.label) == (({"ours"}, ["ours"]), "new")
        assert path.read_bytes() == data
    path.write_bytes(whole)
    outcome = person.push()
    assert (outcome.problems, outcome.same) == ([], 2)


@pytest.mark.parametrize("name", ["tags", "comments"])
def test_what_cannot_be_read_is_not_written_over(person: Person, place: Place, name: str) -> None:
    """Neither by an edit nor by a pull, which brings all other runs."""
    path = person.run(RUN) / ".guild/attrs" / name
    change = edits.change_tags(["x"]) if name == "tags" else edits.add_comment(Comment("x", 1))
    edited(person, place.name, change)
    for run in (RUN, OTHER):
        request = api.Request(api.Choice((run,)))
        assert person.context().edit(place.name, request, edits.set_label("theirs")).problems == []
    for data in BROKEN:
        path.write_bytes(data)
        acted = person.context().edit(api.LOCAL, api.Request(api.Choice((RUN,))), change)
        assert [(p.run, p.reason) for p in acted.problems] == [(RUN, UNREADABLE)]
        assert (acted.runs, acted.exit_code) == ([], 7)
        outcome = person.pull()
        assert [(p.run, p.reason) for p in outcome.problems] == [(RUN, UNREADABLE)]
        assert path.read_bytes() == data
        assert person.record(OTHER).metadata.label == "theirs"
    path.unlink()
    assert person.pull().problems == []
    assert person.record(RUN).metadata.label == "theirs"
    assert words(person.record(RUN).metadata) in (({"x"}, []), (set(), ["x"]))
