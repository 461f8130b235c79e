"""push and pull between homes and a store: what is sent, what is left alone, what is reported (promises P3, P4, P8)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from guildsync import api
from guildsync.errors import (
    ALIVE,
    CONFLICT,
    DAMAGED,
    INCOMPLETE,
    MISSING,
    TORN,
    Damaged,
    GuildsyncError,
    NotFound,
)
from guildsync.model.manifest import Digest, digest_of
from guildsync.model.ports import Lost, Piece, Want
from guildsync.model.run import INCOMPLETE as CUT_SHORT
from guildsync.store.fs import Files
from guildsync.store.journal import Commit, Facts, encode
from guildsync.store.pack import pack_path
from guildsync.tree import staged
from guildsync.tree.dirs import write_all
from guildsync.tree.tree import Tree
from tests.kit.model import Person, conflict_code, contents_of, heads, opened_store, packs, reasons
from tests.kit.trees import MIB, assert_same, noise, run_ids, write_run

RUN, OTHER, THIRD = run_ids(3)


@pytest.fixture(params=["memory", "folder"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return f"file://{tmp_path}/store"
    store: str = request.getfixturevalue("memory_store")
    return store


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


def people(tmp_path: Path, remote: str, names: str = "ab") -> list[Person]:
    return [Person(tmp_path / name, remote) for name in names]


def shared(tmp_path: Path, remote: str, names: str = "ab", runs: Iterable[str] = (RUN,)) -> list[Person]:
    """Homes that all have the same runs, by way of the store."""
    found = people(tmp_path, remote, names)
    for run in runs:
        write_run(found[0].home, run)
    assert found[0].push().exit_code == 0
    for each in found[1:]:
        assert each.pull().exit_code == 0
    return found


def done(outcome: api.Outcome, runs: int, files: int | None = None) -> None:
    assert outcome.problems == []
    assert outcome.exit_code == 0
    assert outcome.runs == runs
    if files is not None:
        assert outcome.files == files


def in_conflict(outcome: api.Outcome, run: str, path: str | None) -> None:
    assert outcome.exit_code == conflict_code(outcome) != 0
    named = None if path is None else path.encode()
    assert [(p.run, p.path, p.reason) for p in outcome.problems] == [(run, named, CONFLICT)]


def agree(*homes: Person) -> None:
    """Every further push and pull is a no-op, and all homes hold the same runs."""
    for _ in range(2):
        for each in homes:
            done(each.push(), 0)
        for each in homes:
            done(each.pull(), 0)
    for each in homes[1:]:
        assert each.runs() == homes[0].runs()
        for run in each.runs():
            assert_same(homes[0].run(run), each.run(run))


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of everything that is put into, or removed from, any store."""
    seen: list[str] = []

    def counted(original: Callable[..., None]) -> Callable[..., None]:
        def call(self: Files, name: str, *rest: bytes) -> None:
            seen.append(name)
            original(self, name, *rest)

        return call

    monkeypatch.setattr(Files, "put", counted(Files.put))
    monkeypatch.setattr(Files, "remove", counted(Files.remove))
    return seen


# -- what is sent


def test_a_new_run_arrives_whole(tmp_path: Path, remote: str) -> None:
    a, b = people(tmp_path, remote)
    write_run(a.home, RUN, {"big": noise(7, 5 * MIB // 2)}, label="first", tags=["x"])
    pushed = a.push()
    done(pushed, 1)
    assert pushed.bytes_sent == pushed.bytes_total > 0
    done(b.pull(), 1, pushed.files)
    assert_same(a.run(RUN), b.run(RUN))
    assert b.record(RUN).metadata == a.record(RUN).metadata
    agree(a, b)
    assert a.verify().exit_code == 0


def test_nothing_to_do_writes_nothing(tmp_path: Path, remote: str, puts: list[str]) -> None:
    a, b = shared(tmp_path, remote, runs=(RUN, OTHER))
    puts.clear()
    for sync in (a.push, b.pull, b.push, a.pull):
        outcome = sync()
        assert (outcome.exit_code, outcome.same, outcome.runs, outcome.bytes_sent) == (0, 2, 0, 0)
    assert puts == []


def test_only_what_changed_is_sent(tmp_path: Path, remote: str, puts: list[str]) -> None:
    a, b = shared(tmp_path, remote, runs=(RUN, OTHER))
    a.write(RUN, "train.py", b"changed")
    a.write(RUN, "new/file", b"added")
    puts.clear()
    pushed = a.push()
    done(pushed, 1, 2)
    assert pushed.same == 1
    assert pushed.bytes_sent == len(b"changedadded")
    assert sorted(name.partition("/")[0] for name in puts) == ["journal", "packs"]
    done(b.pull(), 1, 2)
    agree(a, b)


def test_a_mode_alone_is_a_change(tmp_path: Path, remote: str) -> None:
    a, b = shared(tmp_path, remote)
    (a.run(RUN) / "train.py").chmod(0o755)
    pushed = a.push()
    done(pushed, 1, 1)
    assert pushed.bytes_sent == 0
    done(b.pull(), 1, 1)
    agree(a, b)


def test_what_is_gone_at_the_source_stays_at_the_target(tmp_path: Path, remote: str) -> None:
    a, b = shared(tmp_path, remote)
    a.remove(RUN, "train.py")
    done(a.push(), 0)
    done(b.pull(), 0)
    done(a.pull(), 0)  # nor does it come back
    assert a.read(RUN, "train.py") is None
    assert b.read(RUN, "train.py") is not None


def test_what_is_gone_at_the_source_goes_with_delete(tmp_path: Path, remote: str) -> None:
    a, b = shared(tmp_path, remote)
    a.remove(RUN, "train.py")
    assert a.push(delete=True).removed == 1
    assert b.read(RUN, "train.py") is not None
    assert b.pull(delete=True).removed == 1
    agree(a, b)


def test_what_only_the_target_changed_is_left_alone(tmp_path: Path, remote: str) -> None:
    a, b = shared(tmp_path, remote)
    b.write(RUN, "train.py", b"mine")
    b.write(RUN, "notes", b"mine too")
    assert b.pull().same == 1
    done(a.push(), 0)
    assert (b.read(RUN, "train.py"), b.read(RUN, "notes")) == (b"mine", b"mine too")
    done(b.push(), 1, 2)
    done(a.push(), 0)
    done(a.pull(), 1, 2)
    agree(a, b)


def test_disjoint_paths_merge(tmp_path: Path, remote: str) -> None:
    a, b, c = shared(tmp_path, remote, "abc")
    a.write(RUN, "of a", b"1")
    a.write(RUN, "train.py", b"by a")
    b.write(RUN, "of b", b"2")
    b.write(RUN, "checkpoints/model.pt", b"by b")
    done(a.push(), 1, 2)
    done(b.push(), 1, 2)
    done(c.pull(), 1, 4)
    done(a.pull(), 1, 2)
    done(b.pull(), 1, 2)
    agree(a, b, c)
    assert (c.read(RUN, "of a"), c.read(RUN, "train.py")) == (b"1", b"by a")
    assert (c.read(RUN, "of b"), c.read(RUN, "checkpoints/model.pt")) == (b"2", b"by b")


def test_an_edit_after_two_homes_pushed_the_same_run_is_no_conflict(
    tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = people(tmp_path, remote)
    write_run(a.home, RUN)
    write_run(b.home, RUN)
    put = Files.put

    def b_is_quicker(self: Files, name: str, data: bytes) -> None:
        if name.startswith("journal/"):
            monkeypatch.setattr(Files, "put", put)
            done(b.push(), 1)
        put(self, name, data)

    monkeypatch.setattr(Files, "put", b_is_quicker)
    done(a.push(), 1)
    assert [len(found) for found in heads(remote).values()] == [2]
    a.write(RUN, "train.py", b"changed")
    done(a.push(), 1, 1)
    done(b.pull(), 1, 1)
    agree(a, b)


# -- conflicts


def quarrel(tmp_path: Path, remote: str, names: str = "ab") -> list[Person]:
    """A and B changed the same path of a run, and other paths besides; A has pushed."""
    found = a, b, *_ = shared(tmp_path, remote, names)
    a.write(RUN, "train.py", b"what a wants")
    b.write(RUN, "train.py", b"b wants this")
    a.write(RUN, "only a", b"a")
    b.write(RUN, "only b", b"b")
    done(a.push(), 1, 2)
    return list(found)


def test_two_edits_of_one_path_are_a_conflict(tmp_path: Path, remote: str) -> None:
    _, b = quarrel(tmp_path, remote)
    write_run(b.home, OTHER)
    there = heads(remote)[RUN]
    outcome = b.push()
    in_conflict(outcome, RUN, "train.py")
    detail = outcome.problems[0].detail
    for version in (b"what a wants", b"b wants this"):
        assert f"12 bytes {digest_of(version)[:12]} mode 644" in detail
    assert (outcome.exit_code, outcome.runs) == (7, 1)  # the other run was delivered
    found = heads(remote)
    assert found[RUN] == there
    assert found[OTHER] == [b.contents(OTHER)]
    again = b.pull()
    in_conflict(again, RUN, "train.py")
    assert (again.exit_code, again.runs) == (6, 0)  # nothing else was to be done
    assert (b.read(RUN, "train.py"), b.read(RUN, "only a")) == (b"b wants this", None)
    assert b.read(RUN, "only b") == b"b"


@pytest.mark.parametrize("verb", ["push", "pull"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_conflict_ends_by_taking_a_side(tmp_path: Path, remote: str, verb: str, side: str) -> None:
    a, b = quarrel(tmp_path, remote)
    outcome = getattr(b, verb)(side)
    assert outcome.problems == []
    mine_wins = (verb == "push") == (side == "source")
    winner = b"b wants this" if mine_wins else b"what a wants"
    for _ in range(2):
        for sync in (b.push, b.pull, a.push, a.pull):
            found = sync()
            assert found.problems == []
    agree(a, b)
    for home in (a, b):
        assert home.read(RUN, "train.py") == winner
        assert (home.read(RUN, "only a"), home.read(RUN, "only b")) == (b"a", b"b")
    # what was once in the store stays there
    assert b"what a wants" in versions_of(remote, RUN, "train.py")


def test_taking_the_targets_side_brings_nothing_back(tmp_path: Path, remote: str) -> None:
    _, b = quarrel(tmp_path, remote)
    b.remove(RUN, "checkpoints/model.pt")
    done(b.push("target"), 1)
    assert b.pull().problems == []
    assert b.read(RUN, "train.py") == b"what a wants"
    assert b.read(RUN, "checkpoints/model.pt") is None


def test_taking_a_side_of_nothing_changes_nothing(tmp_path: Path, remote: str) -> None:
    a, b = shared(tmp_path, remote)
    a.write(RUN, "train.py", b"newer")
    a.remove(RUN, "checkpoints/model.pt")
    b.write(RUN, "notes", b"b")
    done(a.push("target"), 1, 1)
    assert b.pull("target").problems == []
    done(b.push("target"), 1, 1)
    assert a.pull("target").problems == []
    assert (a.read(RUN, "train.py"), a.read(RUN, "notes")) == (b"newer", b"b")
    assert (b.read(RUN, "train.py"), b.read(RUN, "notes")) == (b"newer", b"b")
    assert a.read(RUN, "checkpoints/model.pt") is None


def test_writers_that_did_not_see_each_other_are_both_kept(
    tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = shared(tmp_path, remote)
    a.write(RUN, "train.py", b"by a")
    b.write(RUN, "train.py", b"by b")
    put = Files.put

    def b_is_quicker(self: Files, name: str, data: bytes) -> None:
        if name.startswith("journal/"):
            monkeypatch.setattr(Files, "put", put)
            done(b.push(), 1)
        put(self, name, data)

    monkeypatch.setattr(Files, "put", b_is_quicker)
    in_conflict(a.push(), RUN, None)
    assert sorted(found["train.py"] for found in heads(remote)[RUN]) == [b"by a", b"by b"]
    for sync in (a.push, b.push):
        in_conflict(sync(), RUN, None)
    done(a.push("source"), 1)
    assert [found["train.py"] for found in heads(remote)[RUN]] == [b"by a"]
    done(b.pull(), 1)
    agree(a, b)
    assert versions_of(remote, RUN, "train.py") >= {b"by a", b"by b"}


def versions_of(remote: str, run: str, name: str) -> set[bytes | None]:
    """What a path ever was in the store, as far as it can still be read."""
    with opened_store(remote) as store:
        view = store._read().view
        found = [view.version(version) for version in view.living]
        return {contents_of(store, version.id).get(name) for version in found if version and version.run == run}


@pytest.mark.parametrize("size", [10, MIB, MIB + 1, 3 * MIB - 5], ids=str)
def test_of_two_lengths_of_one_log_the_longer_is_newer(tmp_path: Path, remote: str, size: int) -> None:
    a, b, c = people(tmp_path, remote, "abc")
    log = noise(1, size)
    for home, more in ((a, b""), (b, b"and more\n" * 9), (c, b"another way")):
        write_run(home.home, RUN, {"log": log + more})
    done(a.push(), 1)
    done(a.push(), 0)
    pulled = b.pull()  # no base: the target's is longer
    done(pulled, 0)
    assert b.read(RUN, "log") == log + b"and more\n" * 9
    done(b.push(), 1, 1)  # no base: the source's is longer
    done(a.pull(), 1, 1)
    assert a.read(RUN, "log") == b.read(RUN, "log")
    agree(a, b)
    in_conflict(c.push(), RUN, "log")
    in_conflict(c.pull(), RUN, "log")
    assert c.read(RUN, "log") == log + b"another way"


def test_no_longer_log_is_newer_if_its_beginning_differs(tmp_path: Path, remote: str) -> None:
    a, b = people(tmp_path, remote)
    write_run(a.home, RUN, {"log": b"x" * MIB + b"1" * 100})
    write_run(b.home, RUN, {"log": b"y" + b"x" * (MIB - 1) + b"1" * 200})
    done(a.push(), 1)
    in_conflict(b.push(), RUN, "log")
    in_conflict(b.pull(), RUN, "log")


# -- metadata


def test_what_people_say_merges_three_ways(tmp_path: Path, remote: str) -> None:
    a, b = people(tmp_path, remote)
    remark = {"body": "start", "time": 1, "user": "u", "host": "h"}
    write_run(a.home, RUN, label="old", tags=["x", "y"], comments=[remark], marked=True)
    done(a.push(), 1)
    done(b.pull(), 1)
    a.say(RUN, "label", "from a")
    a.say(RUN, "tags", ["x", "y", "a"])
    a.say(RUN, "comments", [remark, {**remark, "body": "of a", "time": 2}])
    b.say(RUN, "tags", ["y", "b"])
    b.say(RUN, "comments", [remark, {**remark, "body": "of b", "time": 3}])
    b.say(RUN, "marked", None)
    for sync in (a.push, b.push, b.pull, a.pull):
        outcome = sync()
        assert (outcome.problems, outcome.files, outcome.notes) == ([], 0, [])
    said = a.record(RUN).metadata
    assert said == b.record(RUN).metadata == a.record(RUN, remote).metadata
    assert (said.label, said.tags, said.marked) == ("from a", {"y", "a", "b"}, False)
    assert [comment.body for comment in said.comments] == ["start", "of a", "of b"]
    agree(a, b)


def test_where_both_said_something_else_the_source_wins_and_tells(tmp_path: Path, remote: str) -> None:
    a, b = shared(tmp_path, remote)
    a.say(RUN, "label", "of a")
    b.say(RUN, "label", "of b")
    done(a.push(), 1, 0)
    outcome = b.push()
    done(outcome, 1, 0)
    assert outcome.notes == [f"run {RUN[:8]}: the label there was replaced"]
    assert a.record(RUN, remote).metadata.label == "of b"
    done(a.pull(), 1, 0)
    assert a.record(RUN).metadata.label == "of b"
    agree(a, b)


def test_a_pull_too_takes_the_sources_word(tmp_path: Path, remote: str) -> None:
    a, b = shared(tmp_path, remote)
    a.say(RUN, "label", "of a")
    b.say(RUN, "label", "of b")
    done(a.push(), 1, 0)
    outcome = b.pull()
    assert outcome.notes == [f"run {RUN[:8]}: the label there was replaced"]
    assert b.record(RUN).metadata.label == "of a"
    agree(a, b)


# -- what runs


@pytest.fixture
def alive() -> Iterator[int]:
    """The id of a process that lives as long as the test."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        yield child.pid
    finally:
        child.kill()
        child.communicate()


def starts(home: Person, run: str, pid: int) -> None:
    for name in ("exit_status", "stopped"):
        home.say(run, name, None)
    (home.run(run) / ".guild" / "LOCK").write_text(str(pid))


def ends(home: Person, run: str) -> None:
    (home.run(run) / ".guild" / "LOCK").unlink()
    home.say(run, "exit_status", 0)
    home.say(run, "stopped", 5)


def test_a_run_that_runs_elsewhere_says_so_until_it_ends(tmp_path: Path, remote: str, alive: int) -> None:
    a, b = people(tmp_path, remote)
    write_run(a.home, RUN)
    starts(a, RUN, alive)
    done(a.push(), 1)
    assert a.record(RUN, remote).summary.status == "running"
    done(b.pull(), 1)
    marker = b.run(RUN) / ".guild" / "LOCK.remote"
    assert marker.read_text() == remote
    assert b.record(RUN).summary.status == "running"
    done(b.push(), 0)
    a.write(RUN, ".guild/output", (a.read(RUN, ".guild/output") or b"") + b"more\n")
    done(a.push(), 1, 1)
    done(b.pull(), 1, 1)
    assert marker.exists()
    ends(a, RUN)
    done(a.push(), 1)
    done(b.pull(), 1)
    assert not marker.exists()
    assert b.record(RUN).summary.status == a.record(RUN, remote).summary.status == "completed"
    agree(a, b)


def test_a_run_that_dies_without_a_word_is_not_running_any_more(tmp_path: Path, remote: str, alive: int) -> None:
    a, b = people(tmp_path, remote)
    write_run(a.home, RUN)
    starts(a, RUN, alive)
    done(a.push(), 1)
    done(b.pull(), 1)
    (a.run(RUN) / ".guild" / "LOCK").unlink()  # nothing else changes
    done(a.push(), 1, 0)
    done(b.pull(), 1, 0)
    assert not (b.run(RUN) / ".guild" / "LOCK.remote").exists()
    assert b.record(RUN).summary.status == "error"
    agree(a, b)


def test_a_run_that_is_alive_at_the_target_keeps_its_files(tmp_path: Path, remote: str, alive: int) -> None:
    a, b = shared(tmp_path, remote)
    starts(b, RUN, alive)
    before = b.contents(RUN)
    a.write(RUN, "train.py", b"changed")
    a.say(RUN, "label", "good")
    done(a.push(), 1, 1)
    outcome = b.pull()
    assert (outcome.exit_code, reasons(outcome)) == (7, {ALIVE})
    assert b.contents(RUN) == before
    assert b.record(RUN).metadata.label == "good"
    assert not (b.run(RUN) / ".guild" / "LOCK.remote").exists()
    assert reasons(b.pull()) == {ALIVE}
    ends(b, RUN)
    done(b.pull(), 1, 1)
    assert b.read(RUN, "train.py") == b"changed"


# -- what is left out


def test_runs_in_the_trash_are_left_out_with_a_note(tmp_path: Path, remote: str) -> None:
    a, b = shared(tmp_path, remote, runs=(RUN, OTHER))
    (b.home / "trash" / "runs").mkdir(parents=True, exist_ok=True)
    b.run(RUN).rename(b.home / "trash" / "runs" / RUN)
    a.write(RUN, "train.py", b"changed")
    done(a.push(), 1)
    outcome = b.pull()
    assert (outcome.exit_code, outcome.same, outcome.runs) == (0, 1, 0)
    assert outcome.notes == [f"1 run was deleted there and left out: {RUN[:8]}"]
    assert b.runs() == [OTHER]
    assert (b.home / "trash" / "runs" / RUN / "train.py").read_bytes() != b"changed"
    done(b.push(), 0)
    assert heads(remote)[RUN][0]["train.py"] == b"changed"


def test_an_incomplete_run_is_never_a_source(tmp_path: Path, folder: str) -> None:
    a, b = shared(tmp_path, folder)
    a.write(RUN, "train.py", b"changed")
    a.write(RUN, "new", noise(3, 9000))
    done(a.push(), 1, 2)
    with damaged(tmp_path, folder, a.read(RUN, "new") or b""):
        assert b.pull().exit_code == 8
        assert b.record(RUN).summary.status == "incomplete"
        c = Person(b.home, f"file://{tmp_path}/elsewhere")
        outcome = c.push()
        assert (outcome.exit_code, reasons(outcome), outcome.runs) == (7, {INCOMPLETE}, 0)
    done(b.pull(), 1)
    done(c.push(), 1)
    agree(a, b)


# -- what is left out


def only(*includes: bytes, excludes: Iterable[bytes] = (), **allowed: Any) -> api.Options:
    return api.Options(policy=api.Policy(paths=api.Paths(includes, tuple(excludes)), **allowed))


def push(person: Person, options: api.Options) -> api.Outcome:
    return person.context().push(person.remote, options)


def pull(person: Person, options: api.Options) -> api.Outcome:
    return person.context().pull(person.remote, options)


ALWAYS = {".guild/opref", *(f".guild/attrs/{name}" for name in ("id", "flags", "exit_status"))}


def test_what_a_push_left_out_the_next_one_sends(tmp_path: Path, remote: str, puts: list[str]) -> None:
    a, b = people(tmp_path, remote)
    write_run(a.home, RUN, {"best.pt": noise(1, 5000), "deep/er/best.pt": b"deep", "logs/x": b"x"}, label="first")
    (a.run(RUN) / "empty").mkdir()
    done(push(a, only(b"best.pt")), 1)
    puts.clear()
    again = push(a, only(b"best.pt"))
    assert (again.exit_code, again.same, again.runs, puts) == (0, 1, 0, [])
    done(b.pull(), 1)
    there = b.contents(RUN)
    assert {name for name in there if not name.startswith(".guild/")} == {"best.pt", "deep/er/best.pt"}
    assert there.keys() >= ALWAYS
    assert ".guild/output" not in there
    assert not (b.run(RUN) / "empty").exists()
    assert b.record(RUN).metadata.label == "first"
    whole = a.push()
    done(whole, 1, len(a.contents(RUN)) - len(there))
    assert whole.bytes_total == sum(map(len, a.contents(RUN).values())) - sum(map(len, there.values()))
    done(b.pull(), 1)
    agree(a, b)
    assert a.verify().exit_code == 0


def test_a_pull_of_one_file_then_of_the_rest(tmp_path: Path, remote: str) -> None:
    a, b = people(tmp_path, remote)
    write_run(a.home, RUN, {"best.pt": b"best", "sub/best.pt": b"other"})
    write_run(a.home, OTHER)
    done(a.push(), 2)
    done(pull(b, only(b"/best.pt")), 2)
    assert {name for name in b.contents(RUN) if not name.startswith(".guild/")} == {"best.pt"}
    assert b.contents(OTHER).keys() >= ALWAYS
    assert pull(b, only(b"/best.pt")).same == 2
    done(b.push(), 0)
    done(b.pull(), 2)
    agree(a, b)


@pytest.mark.parametrize("verb", [push, pull])
def test_a_left_out_file_that_both_edited_is_no_conflict(
    tmp_path: Path, remote: str, verb: Callable[[Person, api.Options], api.Outcome], puts: list[str]
) -> None:
    a, b = shared(tmp_path, remote)
    a.write(RUN, "train.py", b"what a wants")
    a.write(RUN, "of a", b"a")
    done(a.push(), 1, 2)
    b.write(RUN, "train.py", b"b wants this")
    b.write(RUN, "of b", b"b")
    done(verb(b, only(excludes=[b"train.py"])), 1, 1)
    assert b.read(RUN, "train.py") == b"b wants this"
    assert [found["train.py"] for found in heads(remote)[RUN]] == [b"what a wants"]
    puts.clear()
    again = verb(b, only(excludes=[b"train.py"]))
    assert (again.exit_code, again.same, again.runs, puts) == (0, 1, 0, [])
    for whole in (b.push, b.pull):
        in_conflict(whole(), RUN, "train.py")
    done(b.push("source"), 1)
    done(b.pull(), int(verb is push))
    done(a.pull(), 1)
    agree(a, b)


@pytest.mark.parametrize("verb", [push, pull])
def test_an_edit_of_one_side_that_was_left_out_goes_later(
    tmp_path: Path, remote: str, verb: Callable[[Person, api.Options], api.Outcome]
) -> None:
    a, b = shared(tmp_path, remote)
    a.write(RUN, "train.py", b"newer")
    b.write(RUN, "checkpoints/model.pt", b"mine")
    for _ in range(2):
        assert verb(a, only(b"nothing.like.it")).same == 1
        assert verb(b, only(b"*.csv", b"nothing.like.it")).same == 1
    for home in (a, b):
        done(home.push(), 1, 1)
        done(home.pull(), int(home is b), int(home is b))
    done(a.pull(), 1, 1)
    agree(a, b)
    assert (b.read(RUN, "train.py"), a.read(RUN, "checkpoints/model.pt")) == (b"newer", b"mine")


@pytest.mark.parametrize("verb", [push, pull])
def test_delete_removes_nothing_that_is_left_out(
    tmp_path: Path, remote: str, verb: Callable[[Person, api.Options], api.Outcome]
) -> None:
    a, b = people(tmp_path, remote)
    write_run(a.home, RUN, {"old/x.pt": b"x", "old/x.log": b"log", "logs/y": b"y"})
    done(a.push(), 1)
    done(b.pull(), 1)
    for gone in ("old", "logs"):
        shutil.rmtree(a.run(RUN) / gone)
    mine = a
    if verb is pull:
        assert a.push(delete=True).removed == 5
        mine = b
    outcome = verb(mine, only(excludes=[b"*.log", b"logs/"], delete=True))
    done(outcome, 1)
    assert outcome.removed == 1
    there = heads(remote)[RUN][0] if verb is push else b.contents(RUN)
    left = {"train.py", "checkpoints/model.pt", "old/x.log", "logs/y"}
    assert {name for name in there if not name.startswith(".guild/")} == left
    assert verb(mine, only(excludes=[b"*.log", b"logs/"], delete=True)).same == 1
    done(a.push(delete=True) if verb is push else b.pull(delete=True), 1)
    done(b.pull(delete=True), int(verb is push))
    agree(a, b)


def test_what_is_below_a_directory_that_differs_is_known_all_the_same(tmp_path: Path, remote: str) -> None:
    a, b = people(tmp_path, remote)
    for person, mode in ((a, 0o755), (b, 0o700)):
        write_run(person.home, RUN, {"d/x.pt": b"same"})
        (person.run(RUN) / "d").chmod(mode)
    done(a.push(), 1)
    assert push(b, only(b"*.pt")).same == 1
    b.write(RUN, "d/x.pt", b"newer")
    done(push(b, only(b"*.pt")), 1, 1)
    in_conflict(b.push(), RUN, "d")


def test_writers_that_did_not_see_each_other_are_settled_as_wholes(tmp_path: Path, folder: str) -> None:
    a, b = shared(tmp_path, folder)
    shutil.copytree(tmp_path / "store", tmp_path / "aside")
    a.write(RUN, "train.py", b"of a")
    b.write(RUN, "checkpoints/model.pt", b"of b")
    done(a.push(), 1)
    done(Person(b.home, f"file://{tmp_path}/aside").push(), 1)
    shutil.copytree(tmp_path / "aside", tmp_path / "store", dirs_exist_ok=True)
    there = heads(folder)
    assert len(there[RUN]) == 2
    in_conflict(push(a, only(b"*.py", resolve="source")), RUN, None)
    assert heads(folder) == there
    done(a.push("source"), 1)


def test_a_store_puts_down_anew_what_it_has_of_what_is_left_out(tmp_path: Path, folder: str) -> None:
    a, b = shared(tmp_path, folder)
    old = a.read(RUN, "checkpoints/model.pt")
    for name in ("train.py", "checkpoints/model.pt"):
        a.write(RUN, name, b"newer")
    going = [Digest(Path(name).name) for name in packs(folder)]
    collected(tmp_path / "store", condemned=going)
    done(push(a, only(b"*.py")), 1, 1)
    assert push(a, only(b"*.py")).same == 1
    collected(tmp_path / "store", condemned=going, dropped=going)
    for pack in going:
        (tmp_path / "store" / pack_path(pack)).unlink()
    assert a.verify().problems == []
    done(b.pull(), 1, 1)
    assert (b.read(RUN, "train.py"), b.read(RUN, "checkpoints/model.pt")) == (b"newer", old)
    done(a.push(), 1, 1)
    done(b.pull(), 1, 1)
    agree(a, b)


def collected(store: Path, **facts: Iterable[Digest]) -> None:
    """A collector says this of packs."""
    last = max(path.name for path in (store / "journal").iterdir())
    stated = Facts(**{kind: frozenset(names) for kind, names in facts.items()})
    commit = Commit("f" * 32, 1 + int(last[:16]), str(uuid.uuid4()), stated)
    (store / "journal" / commit.name).write_bytes(encode(commit))


def test_a_pull_that_did_not_end_goes_on_without_what_is_left_out(tmp_path: Path, folder: str) -> None:
    a, b = shared(tmp_path, folder)
    a.write(RUN, "train.py", b"changed")
    a.write(RUN, "new", noise(3, 9000))
    a.write(RUN, "checkpoints/model.pt", noise(4, 9000))
    done(a.push(), 1, 3)
    with damaged(tmp_path, folder, a.read(RUN, "new") or b""):
        assert b.pull().exit_code == 8
    outcome = pull(b, only(b"*.py"))
    assert outcome.problems == []
    assert b.read(RUN, "new") is None
    assert pull(b, only(b"*.py")).same == 1
    assert b.pull().problems == []
    agree(a, b)


# -- what changes while it is read


class Meddler:
    """Does something between the first scans and the fetch, `times` times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None], times: int = 1) -> None:
        self.left, self.act = times, act
        fetch = Tree.fetch

        def meddled(tree: Tree, wanted: Iterable[Want]) -> Iterator[Piece | Lost]:
            wanted = list(wanted)
            if wanted and self.left:
                self.left -= 1
                self.act(self.left)
            yield from fetch(tree, wanted)

        monkeypatch.setattr(Tree, "fetch", meddled)


def test_a_small_file_rewritten_while_it_is_pushed_is_taken_as_it_was_scanned(
    tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = people(tmp_path, remote, "a")
    write_run(a.home, RUN, {"one": b"0", "other": b"0"})
    scanned = a.contents(RUN)

    def rewrite(_: int) -> None:
        a.write(RUN, "one", b"1")
        a.write(RUN, "other", b"1")

    Meddler(monkeypatch, rewrite)
    done(a.push(), 1)
    assert heads(remote) == {RUN: [scanned]}
    done(a.push(), 1, 2)
    assert heads(remote) == {RUN: [a.contents(RUN)]}


def test_a_file_rewritten_while_it_is_pushed_is_read_again(
    tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = people(tmp_path, remote, "a")
    write_run(a.home, RUN, {"model": noise(0, 3 * MIB), "small": b"0"})

    def rewrite(left: int) -> None:
        a.write(RUN, "model", noise(left + 1, 3 * MIB))
        a.write(RUN, "small", b"%d" % (left + 1))

    Meddler(monkeypatch, rewrite, 2)
    done(a.push(), 1)
    assert heads(remote) == {RUN: [a.contents(RUN)]}
    assert a.verify().exit_code == 0


def test_a_file_that_changes_each_time_is_reported_and_never_mixed(
    tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = people(tmp_path, remote, "a")
    write_run(a.home, RUN, {"model": noise(0, 3 * MIB)})
    write_run(a.home, OTHER)
    Meddler(monkeypatch, lambda left: a.write(RUN, "model", noise(left + 1, 3 * MIB)), 1000)
    outcome = a.push()
    assert (outcome.exit_code, reasons(outcome), outcome.runs) == (7, {TORN}, 1)
    assert {(p.run, p.path) for p in outcome.problems} == {(RUN, b"model")}
    assert heads(remote) == {OTHER: [a.contents(OTHER)]}


def test_a_log_that_grows_while_it_is_pushed_is_taken_as_it_was(
    tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = people(tmp_path, remote)
    log = noise(0, 2 * MIB + 17)
    write_run(a.home, RUN, {"log": log})
    Meddler(monkeypatch, lambda left: a.write(RUN, "log", log + b"more"))
    done(a.push(), 1)
    assert heads(remote)[RUN][0]["log"] == log
    done(a.push(), 1, 1)
    done(b.pull(), 1)
    agree(a, b)


def test_a_run_that_goes_away_while_it_is_pushed_is_reported(
    tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = people(tmp_path, remote, "a")
    write_run(a.home, RUN, {"model": noise(0, 3 * MIB)})
    write_run(a.home, OTHER)
    Meddler(monkeypatch, lambda left: shutil.rmtree(a.run(RUN)))
    outcome = a.push()
    assert outcome.exit_code in (0, 7)
    assert heads(remote) == {OTHER: [a.contents(OTHER)]}


def test_an_edit_at_the_target_after_the_plan_was_made_is_kept(
    tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = shared(tmp_path, remote)
    a.write(RUN, "train.py", b"changed by a")
    a.write(RUN, "new", b"n")
    done(a.push(), 1, 2)
    commit = Tree.commit

    def late(tree: Tree, updates: list[object]) -> object:
        monkeypatch.setattr(Tree, "commit", commit)
        b.write(RUN, "train.py", b"just now")
        return commit(tree, updates)  # type: ignore[arg-type]

    monkeypatch.setattr(Tree, "commit", late)
    in_conflict(b.pull(), RUN, "train.py")
    assert (b.read(RUN, "train.py"), b.read(RUN, "new")) == (b"just now", None)


def test_what_was_to_be_copied_from_another_run_may_change_meanwhile(
    tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = people(tmp_path, remote)
    write_run(a.home, RUN)
    write_run(b.home, OTHER)
    done(a.push(), 1)
    done(b.push(), 1)
    done(a.pull(), 1)
    same = noise(5, 7000)
    a.write(RUN, "new", same)
    a.write(OTHER, "train.py", b"x")  # so that B looks at its own OTHER
    done(a.push(), 2)
    assert b.pull(choose=api.Choice((RUN,))).exit_code == 0
    b.remove(RUN, "new")
    b.write(OTHER, "copy", same)
    c = people(tmp_path, remote, "c")[0]
    write_run(c.home, THIRD, {"new": same})
    done(c.push(), 1)
    commit = Tree.commit

    def late(tree: Tree, updates: list[object]) -> object:
        monkeypatch.setattr(Tree, "commit", commit)
        b.write(OTHER, "copy", b"gone")
        return commit(tree, updates)  # type: ignore[arg-type]

    monkeypatch.setattr(Tree, "commit", late)
    done(b.pull(), 2)
    assert_same(c.run(THIRD), b.run(THIRD))
    assert b.read(OTHER, "copy") == b"gone"


# -- damage


class damaged:  # noqa: N801 (used like a function)
    """While it lasts, the stored bytes of one object are not what they were."""

    def __init__(self, tmp_path: Path, remote: str, data: bytes) -> None:
        with opened_store(remote) as store:
            store._load([fact.name for fact in store._read().view.facts.adds])
            names = [Path(path).name for path in packs(remote)]
            name, row = store._objects.find([digest_of(data)], names)[digest_of(data)]
        self.path = tmp_path / "store" / "packs" / name[:2] / name
        self.offset = row.offset + row.stored // 2

    def __enter__(self) -> None:
        self.before = self.path.read_bytes()
        flip(self.path, self.offset)

    def __exit__(self, *_: object) -> None:
        self.path.write_bytes(self.before)


def flip(path: Path, offset: int, bit: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def test_a_damaged_object_costs_its_files_only(tmp_path: Path, folder: str) -> None:
    a, b = people(tmp_path, folder)
    write_run(a.home, RUN, {"victim": noise(3, 9000), "twin": noise(3, 9000)})
    write_run(a.home, OTHER)
    done(a.push(), 2)
    with damaged(tmp_path, folder, noise(3, 9000)):
        outcome = b.pull()
        assert outcome.exit_code == 8
        assert {(p.run, p.path, p.reason) for p in outcome.problems} == {
            (RUN, b"twin", DAMAGED),
            (RUN, b"victim", DAMAGED),
        }
        assert_same(a.run(OTHER), b.run(OTHER))
        expected = {name: data for name, data in a.contents(RUN).items() if name not in ("victim", "twin")}
        assert b.contents(RUN) == expected
        assert b.record(RUN).summary.status == "incomplete"
        assert b.record(OTHER).summary.status == "completed"
        assert b.pull().exit_code == 8
        assert a.verify().exit_code == 8
    done(b.pull(), 1, 2)
    assert b.record(RUN).summary.status == "completed"
    assert a.verify().exit_code == 0
    agree(a, b)


def test_a_damaged_object_of_a_change_leaves_the_old_file(tmp_path: Path, folder: str) -> None:
    a, b = shared(tmp_path, folder)
    a.write(RUN, "checkpoints/model.pt", noise(9, 50_000))
    a.write(RUN, "new", b"n")
    old = b.read(RUN, "checkpoints/model.pt")
    done(a.push(), 1, 2)
    with damaged(tmp_path, folder, noise(9, 50_000)):
        outcome = b.pull()
        assert (outcome.exit_code, reasons(outcome)) == (8, {DAMAGED})
        assert (b.read(RUN, "checkpoints/model.pt"), b.read(RUN, "new")) == (old, b"n")
        assert b.record(RUN).summary.status == "incomplete"
    done(b.pull(), 1, 1)
    agree(a, b)


def test_a_missing_pack_is_named_and_nothing_is_removed(tmp_path: Path, folder: str) -> None:
    a, b = shared(tmp_path, folder, runs=(RUN,))
    write_run(a.home, OTHER, {"more": noise(11, 3000)})
    first = set(packs(folder))
    done(a.push(), 1)
    (second,) = set(packs(folder)) - first
    (tmp_path / "store" / second).unlink()
    c = people(tmp_path, folder, "c")[0]
    for home in (b, c):
        outcome = home.pull()
        assert (outcome.exit_code, reasons(outcome)) == (8, {MISSING})
        assert home.runs() == [RUN]
        assert_same(a.run(RUN), home.run(RUN))
    assert a.verify().exit_code == 8


def test_a_damaged_manifest_costs_its_run_only(tmp_path: Path, folder: str) -> None:
    a, b = people(tmp_path, folder)
    write_run(a.home, RUN)
    write_run(a.home, OTHER)
    done(a.push(), 2)
    with opened_store(folder) as store:
        record = next(record for record in store.runs() if record.run == RUN)
        assert record.manifest is not None
        (found,) = store.fetch([Want(record.manifest, 0, record.run, b"", 0)])
        assert isinstance(found, Piece)
    with damaged(tmp_path, folder, found.data):
        for home in (b, a):
            outcome = home.pull()
            assert outcome.exit_code == (8 if home is b else 0)  # A has it as its base
        assert [(p.run, p.path, p.reason) for p in b.pull().problems] == [(RUN, None, DAMAGED)]
        assert b.runs() == [OTHER]
        assert_same(a.run(OTHER), b.run(OTHER))
        assert a.verify().exit_code == 8
    done(b.pull(), 1)
    assert a.verify().exit_code == 0  # else its next push would store anew what it found damaged
    agree(a, b)


def test_readers_go_on_without_a_damaged_journal_entry_and_writers_stop(tmp_path: Path, folder: str) -> None:
    a, b, c = people(tmp_path, folder, "abc")
    write_run(a.home, RUN)
    done(a.push(), 1)
    before = set(os.listdir(tmp_path / "store" / "journal"))
    write_run(a.home, OTHER)
    done(a.push(), 1)
    (entry,) = set(os.listdir(tmp_path / "store" / "journal")) - before
    flip(tmp_path / "store" / "journal" / entry, 200)
    outcome = b.pull()
    assert outcome.exit_code == 8
    assert [(p.path, p.reason) for p in outcome.problems] == [(f"journal/{entry}".encode(), DAMAGED)]
    assert b.runs() == [RUN]
    write_run(c.home, THIRD)
    stored = {str(path) for path in (tmp_path / "store").rglob("*")}
    with pytest.raises(Damaged) as stopped:
        c.push()
    assert stopped.value.exit_code == 8
    assert entry in stopped.value.message
    assert {str(path) for path in (tmp_path / "store").rglob("*")} == stored
    assert a.verify().exit_code == 8
    flip(tmp_path / "store" / "journal" / entry, 200)
    done(c.push(), 1)
    done(b.pull(), 2)


def test_a_damaged_journal_entry_takes_nothing_back(tmp_path: Path, folder: str) -> None:
    """What B has is newer than what is left of the store, which proves nothing."""
    a, b = shared(tmp_path, folder)
    before = set(os.listdir(tmp_path / "store" / "journal"))
    a.write(RUN, "train.py", b"newer")
    a.write(RUN, "new", b"n")
    done(a.push(), 1, 2)
    done(b.pull(), 1, 2)
    (entry,) = set(os.listdir(tmp_path / "store" / "journal")) - before
    flip(tmp_path / "store" / "journal" / entry, 200)
    shutil.rmtree(b.home / ".guildsync" / "remotes")  # so that it must read the entry again
    for options in ({}, {"delete": True}):
        assert b.pull(**options).exit_code == 8
        assert (b.read(RUN, "train.py"), b.read(RUN, "new")) == (b"newer", b"n")


def test_no_flipped_bit_ever_arrives(tmp_path: Path, folder: str) -> None:
    (a,) = people(tmp_path, folder, "a")
    small = {"label": "x", "cmd": None, "host": None, "user": None, "op": None, "run_params": None}
    files = {"checkpoints/model.pt": noise(1, 600), ".guild/output.index": b"", ".guild/manifest": b""}
    write_run(a.home, RUN, {**files, "text": b"all work and no play\n" * 40}, **small)
    done(a.push(), 1)
    a.write(RUN, "text", b"changed")
    done(a.push(), 1)
    whole = a.contents(RUN)
    top = tmp_path / "store"
    found = sorted(path for kind in ("packs", "journal") for path in (top / kind).rglob("*") if path.is_file())
    assert len(found) == 4
    failed = 0
    for path in found:
        good = path.read_bytes()
        for offset in range(0, len(good), 97):
            flip(path, offset, offset % 8)
            b = Person(tmp_path / "b", folder)
            try:
                outcome = b.pull()
                code = outcome.exit_code
                assert all(problem.reason in (DAMAGED, MISSING) for problem in outcome.problems)
            except NotFound:
                code = 3
            here = b.contents(RUN) if b.runs() else {}
            where = f"byte {offset} of {path.parent.name}/{path.name}"
            if path.parent.name == "journal":
                assert code == 8, where  # the last entry that is left may tell of an older version
            else:
                assert here.items() <= whole.items(), where
                assert code == (0 if here == whole else 8), where
            if code:
                failed += 1
                assert a.verify().exit_code == 8, where
            shutil.rmtree(b.home)
            path.write_bytes(good)
    assert failed > 10
    assert a.verify().exit_code == 0


# -- stores that are not there


def test_a_store_that_never_was_is_not_found(tmp_path: Path, remote: str) -> None:
    (a,) = people(tmp_path, remote, "a")
    write_run(a.home, RUN)
    before = a.contents(RUN)
    for sync in (a.pull, a.verify):
        with pytest.raises(NotFound) as stopped:
            sync()
        assert stopped.value.exit_code == 3
    assert a.contents(RUN) == before


def test_a_store_that_vanished_removes_nothing(tmp_path: Path, folder: str) -> None:
    a, b = shared(tmp_path, folder)
    before = a.contents(RUN)
    shutil.rmtree(tmp_path / "store")
    for home in (a, b):
        with pytest.raises(NotFound):
            home.pull(delete=True)
        assert home.contents(RUN) == before
    done(b.push(), 1)  # into a new one
    done(a.pull(), 0)
    agree(a, b)


# -- stores that are not what they were


def test_a_store_that_went_back_in_time_undoes_nothing(tmp_path: Path, folder: str) -> None:
    a, b = shared(tmp_path, folder)
    older = tmp_path / "older"
    shutil.copytree(tmp_path / "store", older)
    (a.run(RUN) / "train.py").write_bytes(b"newer\n")
    done(a.push(), 1)
    done(b.pull(), 1)
    shutil.rmtree(tmp_path / "store")
    older.rename(tmp_path / "store")
    in_conflict(b.pull(), RUN, "train.py")
    assert (b.run(RUN) / "train.py").read_bytes() == b"newer\n"
    in_conflict(a.push(), RUN, "train.py")
    done(a.push("source"), 1)
    agree(a, b)


@pytest.mark.parametrize("attempt", range(6))  # chance decides whose version is the current one
def test_a_home_whose_version_is_in_conflict_keeps_it(tmp_path: Path, folder: str, attempt: int) -> None:
    a, b = shared(tmp_path, folder)
    shutil.copytree(tmp_path / "store", tmp_path / "aside")
    (a.run(RUN) / "train.py").write_bytes(b"of a\n")
    (b.run(RUN) / "train.py").write_bytes(b"of b\n")
    done(a.push(), 1)
    unaware = Person(b.home, f"file://{tmp_path}/aside")
    done(unaware.push(), 1)
    shutil.copytree(tmp_path / "aside", tmp_path / "store", dirs_exist_ok=True)  # the two did not see each other
    for each, mine in ((a, b"of a\n"), (b, b"of b\n")):
        in_conflict(each.pull(), RUN, None)
        assert (each.run(RUN) / "train.py").read_bytes() == mine
        in_conflict(each.push(), RUN, None)
    done(b.push("source"), 1)
    done(a.pull(), 1)
    agree(a, b)
    assert (a.run(RUN) / "train.py").read_bytes() == b"of b\n"


def test_a_store_of_another_format_is_refused(tmp_path: Path, folder: str) -> None:
    shared(tmp_path, folder, "a")
    (tmp_path / "store" / "guildsync.json").write_text('{"format":2}')
    (newcomer,) = people(tmp_path, folder, "n")
    with pytest.raises(GuildsyncError, match="format 2"):
        newcomer.pull()


@pytest.mark.parametrize("more", [1000, 2 * MIB], ids=["a little", "parts"])
@pytest.mark.parametrize("size", [100, MIB - 10, 3 * MIB], ids=["small", "nearly parts", "parts"])
def test_a_pull_that_broke_off_while_a_log_was_appended_to_goes_on(
    tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch, size: int, more: int
) -> None:
    a, b = people(tmp_path, remote)
    log = noise(0, size)
    write_run(a.home, RUN, {"log": log})
    done(a.push(), 1)
    done(b.pull(), 1)
    a.write(RUN, "log", log + noise(1, more))
    done(a.push(), 1)
    inode = (b.run(RUN) / "log").stat().st_ino

    def half(fd: int, data: bytes, offset: int | None = None) -> None:
        if offset and os.fstat(fd).st_ino == inode:
            os.pwrite(fd, data[: len(data) // 2], offset)
            raise KeyboardInterrupt
        write_all(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(staged, "write_all", half)
        with pytest.raises(KeyboardInterrupt):
            b.pull()
    assert b.record(RUN).summary.status == CUT_SHORT
    done(b.pull(), 1)
    agree(a, b)
    assert (b.run(RUN) / "log").stat().st_ino == inode
