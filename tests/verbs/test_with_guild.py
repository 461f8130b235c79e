"""Homes that Guild AI itself wrote, and that it reads: runs, what people say of them, and the trash, both ways."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guildsync import api
from guildsync.model import edits
from guildsync.model.run import Comment
from tests.kit.guild import Guild
from tests.kit.model import Person
from tests.kit.places import Place, kinds, new_place
from tests.kit.trees import differences, snapshot
from tests.verbs.test_fidelity import redact_here

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

MARKERS = ("LOCK", "LOCK.remote", "PENDING", "STAGED")
ODD = (
    *(
        "yes",
        "1e-5",
        "- a",
        ": x",
        "'",
        '"',
        "a\nb\n",
        "a\u2028b",
        "\x1b[31m",
        "\u202eab",
        "#x",
        "caf\u00e9",
        "e\u0301",
    ),
    "word " * 2000 + "end",
)


@pytest.fixture(scope="session")
def written(guild: Guild, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A home that Guild wrote by really running things, and its runs by what was done to them. Only to be copied."""
    home = tmp_path_factory.mktemp("written") / "guild"
    runs = {
        "plain": guild.run(home, "train.py", "lr=0.01"),
        "labelled": guild.run(home, "train.py", "lr=0.2", "epochs=5", "--label", "the second: 'lr=0.2'"),
        "tagged": guild.run(home, "train.py", "--tag", "x", "--tag", "two words"),
        "failed": guild.run(home, "fail.py"),
        "staged": guild.run(home, "train.py", "lr=0.3", "--stage"),
        "said": guild.run(home, "train.py", "lr=1e-5"),
        "deleted": guild.run(home, "train.py", "lr=0.4"),
        "restored": guild.run(home, "train.py", "lr=0.5"),
    }
    before = guild.rows(home).keys()
    guild(home, "run", "train.py", "lr=[0.1,0.2]", "--keep-batch", "-y")
    batch = guild.rows(home).keys() - before
    assert len(batch) == 3
    runs |= {f"batch {number}": run for number, run in enumerate(sorted(batch))}
    guild(home, "label", "--set", "best: so far", runs["said"], "-y")
    guild(home, "tag", "--add", "good", "--add", "#1", runs["said"], "-y")
    guild(home, "mark", runs["said"], "-y")
    for body in ("it diverged", "second: 'quoted'\nand a line"):
        guild(home, "comment", "--add", body, runs["said"], "-y")
    guild(home, "runs", "delete", runs["deleted"], runs["restored"], "-y")
    guild(home, "runs", "restore", runs["restored"], "-y")
    return home, runs


@pytest.fixture
def home(written: tuple[Path, dict[str, str]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written[0], tmp_path / "home", symlinks=True))


@pytest.fixture
def runs(written: tuple[Path, dict[str, str]]) -> dict[str, str]:
    return written[1]


@pytest.fixture(params=kinds("folder", "disk", "ssh", "s3"))
def place(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Place:
    return new_place(request.param, tmp_path, home, request)


def somebody(home: Path, remote: str) -> Person:
    return Person(home, remote, os.environ.get("GUILDSYNC_CONFIG"))


def here(home: Path) -> Person:
    return somebody(home, api.LOCAL)


def edited(person: Person, run: str, *changes: edits.MetadataEdit) -> None:
    for change in changes:
        acted = person.context().edit(person.remote, api.Request(api.Choice((run,))), change)
        assert acted.problems == []


def there_and_back(home: Path, place: Place, reader: Path) -> None:
    assert somebody(home, place.name).push().problems == []
    assert somebody(reader, place.name).pull().problems == []


def test_what_guild_wrote_comes_back_as_it_was(guild: Guild, home: Path, runs: dict[str, str], place: Place) -> None:
    """But for captured environments, which are redacted, and the marker of what waits for its start."""
    before = {path: snapshot(path) for path in (home / "runs").iterdir()}
    rows = guild.rows(home)
    reader = home.with_name("reader")
    there_and_back(home, place, reader)
    assert {path: snapshot(path) for path in before} == before
    assert guild.rows(home) == rows
    redact_here(home / "runs")
    assert {path.name for path in (reader / "runs").iterdir()} == {path.name for path in before}
    assert runs["deleted"] not in rows
    for path in before:
        assert differences(snapshot(path), snapshot(reader / "runs" / path.name)) == []
        marks = [[(top / ".guild" / name).exists() for name in MARKERS] for top in (path, reader / "runs" / path.name)]
        assert marks[0] == marks[1]
    assert guild.rows(reader) == rows
    assert {row["status"] for row in rows.values()} == {"completed", "error", "staged"}
    for run in rows if place.kind == "folder" else ():
        one, other = (guild(at, "runs", "info", run).replace(str(at), "HOME").splitlines() for at in (home, reader))
        assert sorted(one) == sorted(other)
    assert somebody(home, place.name).verify().problems == []
    for person in (somebody(home, place.name), somebody(reader, place.name)):
        for outcome in (person.push(), person.pull()):
            assert (outcome.problems, outcome.runs, outcome.same, outcome.notes) == ([], 0, len(rows), [])
    if place.is_tree:
        assert guild.rows(place.home) == rows


def test_guildsync_says_of_them_what_guild_does(guild: Guild, home: Path, runs: dict[str, str]) -> None:
    rows = guild.rows(home)
    records = {record.run: record for record in here(home).context().runs(sizes=True)}
    assert records.keys() == rows.keys()
    for run, row in rows.items():
        summary, metadata = records[run].summary, records[run].metadata
        assert (summary.status, summary.exit_status) == (row["status"], row["exit_status"])
        assert (summary.started, summary.stopped) == (row["started"], row["stopped"])
        assert list(summary.command) == row["cmd"]
        assert (metadata.label or None) == row["label"]
        assert sorted(metadata.tags) == row["tags"]
        assert metadata.marked == bool(row["marked"])
        assert [comment.body for comment in metadata.comments] == [each["body"] for each in row["comments"] or []]
    assert records[runs["said"]].metadata.tags == {"good", "#1"}
    assert len(records[runs["said"]].metadata.comments) == 2
    assert records[runs["plain"]].summary.flags == {"lr": 0.01, "epochs": 3}
    loss = records[runs["labelled"]].summary.scalars["loss"]
    assert (loss["last"], loss["last_step"]) == (pytest.approx(0.04), 4)
    trashed = here(home).context().runs(deleted=True)
    assert [record.run for record in trashed] == [runs["deleted"]]


def test_what_guildsync_writes_on_runs_guild_reads(guild: Guild, home: Path, runs: dict[str, str]) -> None:
    run, person = runs["tagged"], here(home)
    said = [Comment("first: 'x'\n", 1_700_000_000_000_000, "me", "node1"), Comment("second", 1_700_000_001_000_000)]
    changes = [edits.add_comment(comment) for comment in said]
    edited(
        person, run, edits.set_label("a label: #1"), edits.change_tags(["new"], ["x"]), edits.set_marked(True), *changes
    )
    row = guild.rows(home)[run]
    assert (row["label"], row["marked"]) == ("a label: #1", True)
    assert row["tags"] == ["new", "two words"]
    assert [comment["body"] for comment in row["comments"]] == ["first: 'x'\n", "second"]
    listing = guild(home, "comment", "--list", run)
    assert "first: 'x'" in listing
    assert "me@node1" in listing
    assert "second" in guild(home, "runs", "info", run, "--comments")
    assert list(guild.rows(home, "-Ft", "new")) == [run]
    assert run in guild.rows(home, "-Fm")
    guild(home, "comment", "--add", "third", run, "-y")
    guild(home, "tag", "--delete", "new", run, "-y")
    guild(home, "mark", "--clear", run, "-y")
    guild(home, "label", "--clear", run, "-y")
    metadata = person.record(run).metadata
    assert [comment.body for comment in metadata.comments] == ["first: 'x'\n", "second", "third"]
    assert (metadata.label, metadata.tags, metadata.marked) == (None, {"two words"}, False)
    assert metadata.comments[:1] == tuple(said[:1])
    edited(person, run, edits.clear_comments, edits.change_tags(clear=True))
    row = guild.rows(home)[run]
    assert not row["comments"]
    assert not row["tags"]


def test_guild_reads_labels_of_any_text(guild: Guild, home: Path, runs: dict[str, str]) -> None:
    person = here(home)
    for word in ODD:
        edited(person, runs["plain"], edits.set_label(word))
        assert guild.rows(home)[runs["plain"]]["label"] == word
        guild(home, "runs")
    edited(person, runs["plain"], edits.change_tags(ODD), *(edits.add_comment(Comment(word, 5)) for word in ODD))
    row = guild.rows(home)[runs["plain"]]
    assert row["tags"] == sorted(ODD)
    assert [comment["body"] for comment in row["comments"]] == list(ODD)
    guild(home, "runs", "info", runs["plain"], "--comments")


def test_the_trash_is_one(guild: Guild, home: Path, runs: dict[str, str]) -> None:
    """What one deletes the other sees, restores and purges."""
    person, one, other = here(home), runs["plain"], runs["labelled"]
    before = {run: snapshot(home / "runs" / run) for run in (one, other)}
    steps: list[tuple[Callable[[], Any], set[str]]] = [
        (lambda: person.delete([one]), {one}),
        (lambda: guild(home, "runs", "delete", other, "-y"), {one, other}),
        (lambda: guild(home, "runs", "restore", one, "-y"), {other}),
        (lambda: person.restore([other]), set()),
        (lambda: person.delete([one, other]), {one, other}),
        (lambda: guild(home, "runs", "restore", one, other, "-y"), set()),
    ]
    others = {run for run in runs.values() if run not in (one, other, runs["deleted"])}
    for step, trashed in steps:
        step()
        trashed = {*trashed, runs["deleted"]}
        alive = {*others, *({one, other} - trashed)}
        assert guild.rows(home, "--deleted").keys() == trashed
        assert {record.run for record in person.context().runs(deleted=True)} == trashed
        assert guild.rows(home).keys() == alive
        assert {record.run for record in person.context().runs()} == alive
    assert {run: snapshot(home / "runs" / run) for run in (one, other)} == before
    person.purge([runs["deleted"]])
    assert guild.rows(home, "--deleted") == {}
    guild(home, "runs", "delete", one, "-y")
    guild(home, "runs", "purge", one, "-y")
    assert person.context().runs(deleted=True) == []
    person.delete([other], permanent=True)
    assert guild.rows(home).keys() == others
    assert guild.rows(home, "--deleted") == {}


def test_what_guild_deletes_does_not_come_back_by_itself(
    guild: Guild, home: Path, runs: dict[str, str], place: Place
) -> None:
    person, run = somebody(home, place.name), runs["plain"]
    assert person.push().problems == []
    guild(home, "runs", "delete", run, "-y")
    outcome = person.pull()
    assert (outcome.problems, outcome.skipped) == ([], 1)
    assert run not in guild.rows(home)
    guild(home, "runs", "restore", run, "-y")
    assert person.pull().skipped == 0
    assert person.delete([run]).problems == []
    assert person.push().skipped == 1
    guild(home, "runs", "delete", run, "-y")
    assert person.revive("pull", [runs["tagged"]]).problems == []
    assert run not in guild.rows(home)
    assert person.restore([run]).problems == []
    assert person.revive("pull", [run]).problems == []
    assert run in guild.rows(home)
    assert guild.rows(home, "--deleted").keys() == {runs["deleted"]}


def test_what_is_said_there_reaches_guild_here(guild: Guild, home: Path, runs: dict[str, str], place: Place) -> None:
    """And the reverse: Guild's words reach whoever looks there."""
    person, run = somebody(home, place.name), runs["said"]
    assert person.push().problems == []
    comment = Comment("from there", 1_900_000_000_000_000, "me")
    edited(person, run, edits.set_label("set there"), edits.change_tags(["there"], ["#1"]), edits.add_comment(comment))
    edited(person, run, edits.set_marked(False))
    assert person.pull().problems == []
    row = guild.rows(home)[run]
    assert (row["label"], row["tags"], bool(row["marked"])) == ("set there", ["good", "there"], False)
    assert [each["body"] for each in row["comments"]][-1] == "from there"
    guild(home, "label", "--set", "set by guild", run, "-y")
    guild(home, "tag", "--add", "guild's", run, "-y")
    assert person.push().problems == []
    metadata = person.record(run, place.name).metadata
    assert (metadata.label, metadata.tags) == ("set by guild", {"good", "there", "guild's"})
    if place.is_tree:
        assert guild.rows(place.home)[run]["label"] == "set by guild"


@pytest.mark.parametrize("place", kinds("disk", "ssh"), indirect=True)
def test_the_trash_of_a_home_there_is_guilds_too(guild: Guild, home: Path, runs: dict[str, str], place: Place) -> None:
    person, run = somebody(home, place.name), runs["plain"]
    assert person.push().problems == []
    assert person.delete([run]).problems == []
    assert guild.rows(place.home, "--deleted").keys() == {run}
    guild(place.home, "runs", "restore", run, "-y")
    assert person.push().skipped == 0
    guild(place.home, "runs", "delete", run, "-y")
    assert person.push().skipped == 1
    assert person.restore([run]).problems == []
    assert run in guild.rows(place.home)
    redact_here(home / "runs")
    assert differences(snapshot(home / "runs" / run), snapshot(place.home / "runs" / run)) == []
