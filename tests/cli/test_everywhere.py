"""Every verb at every type of place: the same command lines, the same answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, Said
from tests.kit.places import Place, in_stores, in_trees
from tests.kit.trees import EPOCH_US, put, run_ids, snapshot, write_run

FIRST, SECOND, THIRD, LITTER = run_ids(4)
"""The third is the newest, and so number 1."""


def rows(cli: Cli, place: Place, *words: str) -> dict[str, Any]:
    """What `runs --json` says there, by id."""
    said = cli("runs", *words, *place, "--json")
    assert (said.code, said.err) == (0, "")
    return {row["id"]: row for row in said.json}


def quiet(said: Said) -> bool:
    """It went well, and said so in one line."""
    return said.code == 0 and said.err == "" and len(said.out.splitlines()) == 1


# -- looking


def test_runs_are_listed(cli: Cli, place: Place) -> None:
    said = cli("runs", *place)
    assert (said.code, said.err) == (0, "")
    assert [line.split()[:3] for line in said.out.splitlines()] == [
        ["1", THIRD[:8], "train.py"],
        ["2", SECOND[:8], "train.py"],
        ["3", FIRST[:8], "train.py"],
    ]
    assert said.out == cli(*place, "runs", "list").out
    row = rows(cli, place)[THIRD]
    here = cli("runs", "1", "--json").json[0]
    assert row == {**here, "remote": place.name}
    assert (row["label"], row["status"], row["deleted"]) == ("run 3", "completed", False)
    said = cli("runs", "-d", *place)
    assert (said.code, said.out, said.err) == (0, "", "there are no runs\n")


def test_deleted_runs_are_listed_with_numbers_of_their_own(cli: Cli, place: Place) -> None:
    before = rows(cli, place)
    assert cli("delete", "1", "3", "-y", *place).code == 0
    assert [line.split()[:2] for line in cli("runs", "-d", *place).out.splitlines()] == [
        ["1", THIRD[:8]],
        ["2", FIRST[:8]],
    ]
    assert cli("runs", "list", "--deleted", "2", *place).out.split()[:2] == ["2", FIRST[:8]]
    assert rows(cli, place, "-d") == {run: {**before[run], "deleted": True} for run in (THIRD, FIRST)}
    assert rows(cli, place) == {SECOND: before[SECOND]}
    for argv in (["info", THIRD], ["ls", THIRD], ["cat", THIRD, "train.py"], ["label", THIRD, "--set", "x"]):
        assert cli(*argv, *place).code == 3


def test_one_run_is_shown(cli: Cli, place: Place) -> None:
    for argv in (["info"], ["info", "1"], ["runs", "info", THIRD[:6]]):
        said = cli(*argv, *place)
        assert (said.code, said.err) == (0, "")
        lines = said.out.splitlines()
        assert lines[0] == f"id: {THIRD}"
        assert {"status: completed (exit 0)", "  lr: 0.1", "label: run 3", "files: 18"} <= set(lines)
        assert "  loss: 0.05000000074505806 (step 19)" in lines
    document = cli("info", "3", *place, "--json").json
    assert document["id"] == FIRST
    assert document["scalars"]["loss"]["last_step"] == 19
    assert cli("info", "9", *place).code == 3
    assert cli("info", ":2", *place).code == 2


def test_files_are_listed_and_read(cli: Cli, home: Path, place: Place) -> None:
    said = cli("ls", "2", *place, "--json")
    assert (said.code, said.err) == (0, "")
    there = {row["path"]: (row["kind"], row["size"], row["digest"]) for row in said.json}
    assert there == {path.decode(): (row[0], row[2], row[3]) for path, row in snapshot(home / "runs" / SECOND).items()}
    assert "file  644  40 kB  checkpoints/model.pt" in cli("ls", "2", *place).out.splitlines()
    assert [row["path"] for row in cli("ls", "2", "checkpoints", *place, "--json").json] == ["checkpoints/model.pt"]
    said = cli("cat", "2", "train.py", *place)
    assert (said.code, said.out, said.err) == (0, "print('hello')\n", "")
    said = cli("cat", "2", "trian.py", *place)
    assert (said.code, said.out) == (3, "")
    assert "did you mean 'train.py'?" in said.err


def test_everything_is_verified(cli: Cli, place: Place) -> None:
    said = cli("verify", *place)
    assert quiet(said)
    assert said.last.startswith("Verified 3 runs (")
    assert said.last.endswith("all bytes match their digests")
    assert cli("verify", "2", *place).last.startswith("Verified 1 run (")
    said = cli("verify", "--quick", *place)
    assert quiet(said)
    assert said.last == "Looked over 3 runs: nothing is missing"
    document = cli("verify", *place, "--json").json
    assert document["damaged"] == document["missing"] == document["problems"] == []
    assert (document["runs"], document["objects"] > 10, document["bytes"] > 120_000) == (3, True, True)


def test_a_place_is_checked(cli: Cli, place: Place) -> None:
    before = place.state()
    said = cli("check", *place)
    assert said.code == 0
    assert said.last == f"{place.name} can be used"
    assert all(line.startswith("ok ") for line in said.out.splitlines()[:-1])
    document = cli("check", *place, "--json").json
    assert (document["remote"], document["ok"]) == (place.name, True)
    assert {"reachable", "writable"} <= {step["name"] for step in document["steps"]}
    said = cli("remote", "status", place.name)
    assert (said.code, said.err, said.out.split()[-1]) == (0, "", "available")
    assert cli("remote", "status", place.name, "--json").json[0]["detail"].startswith("3 runs at ")
    assert place.state() == before


# -- what people write on runs


def test_labels(cli: Cli, home: Path, place: Place) -> None:
    files = cli("ls", "1", "checkpoints", *place).out
    for words, label in (
        (["--set", "best so far"], "best so far"),
        (["--append", "(lr 0.1)"], "best so far (lr 0.1)"),
        (["-p", "the"], "the best so far (lr 0.1)"),
        (["--remove", "so far"], "the best (lr 0.1)"),
        (["-rm", "not there"], "the best (lr 0.1)"),
        (["--clear"], None),
        (["--clear"], None),
        (["-a", "again"], "again"),
    ):
        said = cli("label", "1", *words, *place)
        assert quiet(said)
        before, label_before = said.last, rows(cli, place)[THIRD]["label"]
        assert label_before == label
        assert before in (f"Changed 1 run on {place.name}", f"Nothing to change on {place.name}")
    assert cli("label", *place).out == f"{THIRD[:8]}  again\n"
    assert cli("label", ":", "-Fl", "again", *place).code == 2
    assert [row["label"] for row in cli("label", "1:", *place, "--json").json] == ["again", "run 2", "run 1"]
    assert rows(cli, place)[FIRST]["label"] == "run 1"
    assert cli("ls", "1", "checkpoints", *place).out == files
    assert cli("label", *place, "--set", "x", "--clear").code == 2


def test_several_runs_are_labelled_at_once_and_others_not(cli: Cli, place: Place) -> None:
    said = cli("runs", "label", "2:", "--set", "old", *place, "--json")
    assert (said.code, said.err) == (0, "")
    assert said.json == {"runs": [SECOND, FIRST], "problems": [], "dry_run": False}
    assert {run: row["label"] for run, row in rows(cli, place).items()} == {THIRD: "run 3", SECOND: "old", FIRST: "old"}
    assert cli("label", "2:", "--set", "old", *place).last == f"Nothing to change on {place.name}"
    for words, code in ((["9"], 3), (["1", "ffffffff"], 3), (["x?"], 2), (["-Fl", "no such label"], 3)):
        said = cli("label", *words, "--set", "lost", *place)
        assert (said.code, said.out) == (code, "")
        assert said.err.startswith("error: ")
    assert "lost" not in cli("runs", *place).out


def test_tags(cli: Cli, place: Place) -> None:
    assert quiet(cli("tag", "-a", "good", "--add", "two words", *place))
    assert quiet(cli("runs", "tag", "1", "-a", "x", "-d", "good", *place))
    assert rows(cli, place)[THIRD]["tags"] == ["two words", "x"]
    assert rows(cli, place)[FIRST]["tags"] == []
    assert cli("tag", *place).out == f"{THIRD[:8]}  #two words #x\n"
    assert list(rows(cli, place, "-Ft", "x")) == [THIRD]
    assert cli("tag", "-d", "never there", *place).last == f"Nothing to change on {place.name}"
    assert quiet(cli("tag", "--clear", "-a", "new", *place))
    assert rows(cli, place)[THIRD]["tags"] == ["new"]
    assert cli("tag", "-a", " ", *place).code == 2
    assert quiet(cli("tag", "--clear", *place))
    assert rows(cli, place)[THIRD]["tags"] == []


def test_comments(cli: Cli, place: Place) -> None:
    for body in ("first", "second\nwith a line", "third"):
        assert quiet(cli("comment", "1", "--add", body, *place))
    comments = cli("info", *place, "--json").json["comments"]
    assert [comment["body"] for comment in comments] == ["first", "second\nwith a line", "third"]
    assert all(comment["host"] and comment["time"] for comment in comments)
    assert [line.partition(": ")[2] for line in cli("comment", *place).out.splitlines()] == [
        "first",
        r"second\nwith a line",
        "third",
    ]
    assert quiet(cli("runs", "comment", "-d", "2", *place))
    assert [c["body"] for c in cli("info", *place, "--json").json["comments"]] == ["first", "third"]
    said = cli("comment", "-d", "3", *place)
    assert (said.code, said.out) == (3, "")
    assert "there is no comment 3" in said.err
    assert cli("comment", "-a", "\n", *place).code == 2
    assert quiet(cli("comment", "--clear", *place))
    assert cli("info", *place, "--json").json["comments"] == []


def test_marks(cli: Cli, place: Place) -> None:
    assert quiet(cli("mark", "2", *place))
    assert list(rows(cli, place, "-Fm")) == [SECOND]
    assert cli("runs", "mark", "2", *place).last == f"Nothing to change on {place.name}"
    assert quiet(cli("mark", "2", "--clear", *place))
    assert rows(cli, place, "-Fm") == {}


def test_what_is_written_on_runs_travels_without_their_files(cli: Cli, home: Path, place: Place) -> None:
    """Files are as they were; of a store not even a pack is new."""
    runs = place.home / "runs" if place.is_tree else home / "runs"
    packs = place.packs()
    kept = {path: row for path, row in snapshot(runs / THIRD).items() if not path.startswith(b".guild/attrs")}
    for argv in (["label", "--set", "x"], ["tag", "-a", "x"], ["comment", "-a", "x"], ["mark"]):
        assert quiet(cli(*argv, *place))
    assert {p: row for p, row in snapshot(runs / THIRD).items() if not p.startswith(b".guild/attrs")} == kept
    assert place.packs() == packs


# -- away, back, and for good


def test_what_was_deleted_comes_back_as_it_was(cli: Cli, place: Place) -> None:
    before, listed = {run: cli("ls", run, *place, "--json").json for run in run_ids(3)}, rows(cli, place)
    state = place.state()
    said = cli("delete", ":2", "-y", *place)
    assert quiet(said)
    assert said.last == f"Deleted 2 runs on {place.name}"
    assert list(rows(cli, place)) == [FIRST]
    assert cli("verify", *place).last.startswith("Verified 1 run (")
    said = cli("restore", "--all", *place)
    assert quiet(said)
    assert said.last == f"Restored 2 runs on {place.name}"
    assert rows(cli, place) == listed
    assert rows(cli, place, "-d") == {}
    assert {run: cli("ls", run, *place, "--json").json for run in run_ids(3)} == before
    assert cli("verify", *place).last.startswith("Verified 3 runs (")
    if place.is_tree:
        files = {name: row for name, row in place.state().items() if name.startswith("runs/")}
        assert files == {name: row for name, row in state.items() if name.startswith("runs/")}


def test_what_was_purged_is_gone(cli: Cli, place: Place) -> None:
    assert quiet(cli("runs", "rm", "1", "2", "-y", *place))
    said = cli("purge", SECOND, "-y", *place, "--json")
    assert (said.code, said.err) == (0, "")
    assert said.json == {"runs": [SECOND], "problems": [], "dry_run": False}
    assert list(rows(cli, place, "-d")) == [THIRD]
    assert cli("restore", SECOND, *place).code == 3
    assert cli("restore", THIRD, *place).last == f"Restored 1 run on {place.name}"
    assert list(rows(cli, place)) == [THIRD, FIRST]
    said = cli("delete", "--all", "--permanent", "--yes", *place)
    assert quiet(said)
    assert said.last == f"Deleted for good 2 runs on {place.name}"
    assert rows(cli, place) == rows(cli, place, "-d") == {}
    for verb in ("delete", "restore", "purge"):
        said = cli(verb, "--all", *place)
        assert quiet(said)
        assert said.last == f"Nothing to {verb} on {place.name}"


def test_a_command_that_was_done_in_part_is_typed_again(cli: Cli, place: Place) -> None:
    both = (SECOND, THIRD)
    for verb, first, done in (
        ("delete", "delete", "Deleted"),
        ("restore", "restore", "Restored"),
        ("delete", "delete", "Deleted"),
        ("purge", "purge", "Purged"),
    ):
        assert cli(first, THIRD, "-y", *place).code == 0
        assert cli(verb, *both, "-y", *place).last == f"{done} 1 run on {place.name}"
        assert cli(verb, *both, "-y", *place).last == f"Nothing to {verb} on {place.name}"
    assert cli("delete", FIRST, THIRD, "--permanent", "-y", *place).last == f"Deleted for good 1 run on {place.name}"
    assert cli("restore", THIRD, *place).code == 3


def test_runs_must_be_chosen(cli: Cli, place: Place) -> None:
    assert cli("delete", "1", "-y", *place).code == 0
    before = place.state()
    choices = (([], 2), (["-Fl", "run"], 2), (["1", "--all"], 2), (["9"], 3), (["1", "ffffffff"], 3), (["-"], 3))
    for verb, (words, code) in product(("delete", "restore", "purge"), choices):
        said = cli(verb, *words, "-y", *place)
        assert (said.code, said.out) == (code, "")
        assert said.err.startswith("error: ")
    assert place.state() == before


def test_a_dry_run_changes_nothing(cli: Cli, place: Place) -> None:
    assert cli("delete", "3", "-y", *place).code == 0
    before = place.state()
    for argv in (["delete", "1"], ["delete", "1", "--permanent"], ["restore", "1"], ["purge", "1"], ["mark"]):
        said = cli(*argv, "--dry-run", *place)
        assert (said.code, said.err) == (0, "")
        assert said.last.startswith("Would ")
    for argv, count in (
        (["delete", ":2"], 2),
        (["purge", "--all"], 1),
        (["label", "--set", "x"], 1),
        (["tag", "-a", "x", "1:"], 2),
        (["comment", "-a", "x"], 1),
    ):
        said = cli(*argv, "--dry-run", *place, "--json")
        assert (said.code, said.err) == (0, "")
        assert (len(said.json["runs"]), said.json["dry_run"]) == (count, True)
    assert place.state() == before


def test_without_a_terminal_nothing_is_done_unasked(cli: Cli, place: Place) -> None:
    assert cli("delete", "3", "-y", *place).code == 0
    before = place.state()
    for argv in (["delete", "1"], ["rm", "--all", "-q"], ["delete", "1", "--permanent", "--json"], ["purge", "1"]):
        said = cli(*argv, *place, stdin="y\n")
        assert (said.code, said.out) == (2, "")
        assert "hint: --yes answers" in said.err
    assert place.state() == before
    assert quiet(cli("restore", "1", *place))


# -- what runs


@pytest.fixture
def process() -> Iterator[int]:
    """The id of one that sleeps; the hosts of these tests are this machine."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        yield child.pid
        child.kill()


@in_trees
def test_a_run_that_runs_there_stays(cli: Cli, place: Place, process: int) -> None:
    lock = b"%d" % process
    put(place.home / "runs" / THIRD, ".guild/LOCK", lock)
    (place.home / "runs" / THIRD / ".guild/attrs/exit_status").unlink()
    assert rows(cli, place)[THIRD]["status"] == "running"
    for argv in (["delete", "1", "3"], ["delete", THIRD, "--permanent"], ["delete", "1"]):
        before = snapshot(place.home / "runs" / THIRD)
        said = cli(*argv, "-y", *place)
        assert said.code == 7
        assert f"alive: run {THIRD[:8]}: " in said.err
        assert snapshot(place.home / "runs" / THIRD) == before
    assert (place.home / "runs" / THIRD / ".guild/LOCK").read_bytes() == lock
    assert list(rows(cli, place)) == [THIRD, SECOND]
    assert list(rows(cli, place, "-d")) == [FIRST]
    assert quiet(cli("label", "1", "--set", "it runs", *place))
    assert rows(cli, place)[THIRD]["label"] == "it runs"


@in_trees
def test_a_run_in_the_trash_that_runs_there_is_not_purged(cli: Cli, place: Place, process: int) -> None:
    assert cli("delete", "1", "-y", *place).code == 0
    put(place.home / "trash/runs" / THIRD, ".guild/LOCK", b"%d" % process)
    before = snapshot(place.home / "trash/runs" / THIRD)
    said = cli("purge", "1", "-y", *place)
    assert said.code == 7
    assert f"alive: run {THIRD[:8]}: " in said.err
    assert snapshot(place.home / "trash/runs" / THIRD) == before
    assert quiet(cli("restore", "1", *place))


# -- space


def litter(cli: Cli, home: Path, place: Place) -> None:
    """Something that nothing refers to: of a tree what a dead process staged, of a store the pack of a purged run."""
    if place.is_tree:
        staged(place).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged(place).mkdir(mode=0o700)
        (staged(place) / "left").write_bytes(bytes(50_000))
        staged(place).with_suffix(".lock").touch()
    else:
        write_run(home, LITTER)
        assert cli("push", place.name, LITTER).code == 0
        assert cli("delete", LITTER, "--permanent", "-y", *place).code == 0


def staged(place: Place) -> Path:
    return place.home / ".guildsync/staging" / ("a" * 32)


def lies_there(place: Place) -> int:
    """How many files that are ours, those of runs among them."""
    return len(place.state()) + (staged(place).exists() if place.is_tree else 0)


def test_space_is_freed(cli: Cli, home: Path, place: Place) -> None:
    said = cli("gc", *place)
    assert quiet(said)
    assert said.last == f"Nothing to free on {place.name}"
    litter(cli, home, place)
    runs, before = rows(cli, place), lies_there(place)
    for more in ([], ["--json"]):
        said = cli("gc", "--grace", "0", "--dry-run", *place, *more)
        assert (said.code, said.err) == (0, "")
    assert said.json == {
        "files": 1,
        "bytes": said.json["bytes"],
        "waiting": 0,
        "waiting_bytes": 0,
        "versions": 0,
        "dry_run": True,
    }
    assert said.json["bytes"] > 40_000
    assert cli("gc", "--grace", "0", "--dry-run", *place).last.endswith(f" in 1 file would be freed on {place.name}")
    said = cli("gc", "--grace", "0", *place)
    assert (said.code, said.out) == (2, "")
    assert "1 file will be freed on" in said.err
    assert "hint: --yes answers" in said.err
    assert lies_there(place) == before
    said = cli("gc", "--grace", "0", "-y", *place)
    assert quiet(said)
    assert said.last.endswith(f" in 1 file was freed on {place.name}")
    assert not staged(place).exists() if place.is_tree else len(place.packs()) == 1
    assert cli("gc", "--grace", "0", "-y", *place).last == f"Nothing to free on {place.name}"
    assert rows(cli, place) == runs
    assert cli("verify", *place).last.endswith("all bytes match their digests")
    assert cli("gc", "--grace", "soon", *place).code == 2


@in_stores
def test_what_is_young_is_kept_by_a_store(cli: Cli, home: Path, place: Place) -> None:
    litter(cli, home, place)
    packs = place.packs()
    for grace in ([], ["--grace", "1h"]):
        said = cli("gc", "-y", *grace, *place)
        assert quiet(said)
        assert "freed when the grace time is over" in said.last
    assert place.packs() == packs


def test_commands_on_one_remote_take_no_second(cli: Cli, home: Path, place: Place) -> None:
    for argv in (["delete", "1"], ["restore", "1"], ["purge", "1"], ["label", "--set", "x"], ["gc"]):
        assert cli(*argv, "-y", *place, "-r", "other").code == (2 if place.kind != "local" else 3)
        assert cli(*argv, "-y", "-r", "all").code == 2


@in_trees
def test_an_older_run_of_one_id_is_not_overwritten_in_the_trash(cli: Cli, place: Place) -> None:
    """Two runs with one id never become one, and never are two in one listing."""
    assert cli("delete", THIRD, "-y", *place).code == 0
    write_run(place.home, THIRD, {"other": b"x"}, label="a namesake", started=EPOCH_US + 9_000_000)
    for argv in (["delete", THIRD, "-y"], ["restore", THIRD]):
        said = cli(*argv, *place)
        assert said.code == 7
        assert "changed: run " in said.err
    assert rows(cli, place)[THIRD]["label"] == "a namesake"
    assert rows(cli, place, "-d")[THIRD]["label"] == "run 3"
    assert quiet(cli("purge", THIRD, "-y", *place))
    assert rows(cli, place)[THIRD]["label"] == "a namesake"
