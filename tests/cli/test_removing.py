"""Syncs by which something goes or comes back, at every type of place: --delete, --max-delete, --undelete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from guildsync.store.fs import Files
from tests.cli.conftest import Cli, Said
from tests.kit.places import FEW, Place, in_every_remote, kinds, new_place
from tests.kit.trees import assert_same, put, run_ids, snapshot, write_run

FIRST, SECOND, THIRD = run_ids(3)
MANY = {f"logs/{n:02d}": b"%d" % n for n in range(12)}
"""More files than a run has beside them would stop half of its files from going."""


@pytest.fixture(params=FEW)
def place(request: pytest.FixtureRequest, cli: Cli, home: Path, tmp_path: Path) -> Place:
    """Where the three runs of the home lie; the third has some logs."""
    for name, data in MANY.items():
        put(home / "runs" / THIRD, name, data)
    place = new_place(request.param, tmp_path, home, request)
    assert cli("push", place.name).code == 0
    return place


@pytest.fixture
def other(place: Place, cli: Cli, tmp_path: Path) -> Path:
    """Another home, which has pulled all."""
    other = tmp_path / "other"
    assert cli("pull", place.name, "-H", str(other)).code == 0
    return other


def paths(cli: Cli, place: Place, run: str = THIRD) -> set[str]:
    said = cli("ls", run, *place, "--json")
    assert (said.code, said.err) == (0, "")
    return {row["path"] for row in said.json}


def files(home: Path, run: str = THIRD) -> set[str]:
    return {os.fsdecode(path) for path in snapshot(home / "runs" / run)}


# -- --delete


@in_every_remote
def test_only_delete_removes_and_only_what_the_source_had(cli: Cli, home: Path, place: Place, other: Path) -> None:
    put(other / "runs" / THIRD, "theirs", b"x")
    assert cli("push", place.name, "-H", str(other)).code == 0
    (home / "runs" / THIRD / "logs/03").unlink()
    before = paths(cli, place)
    said = cli("push", place.name)
    assert (said.code, said.err, said.last) == (0, "", f"Nothing to push: 3 runs are already on {place.name}")
    assert paths(cli, place) == before
    state = place.state()
    said = cli("push", place.name, "--delete", "--dry-run", "--json")
    assert (said.code, said.err, said.json["runs"]) == (0, "", 1)
    assert place.state() == state
    said = cli("push", place.name, "--delete", "-y")
    assert (said.code, said.err) == (0, "")
    assert said.last.startswith("Pushed 1 run (0 files, 0 B; 1 removed) ")
    assert before - paths(cli, place) == {"logs/03"}
    assert "theirs" not in files(home)
    assert cli("pull", place.name).code == 0
    assert "theirs" in files(home)
    assert "logs/03" in files(other)
    said = cli("pull", place.name, "-H", str(other), "--delete", "-y")
    assert (said.code, said.err) == (0, "")
    assert said.last.startswith("Pulled 1 run (0 files, 0 B; 1 removed) from ")
    assert files(other) == files(home) == before - {"logs/03"}
    assert cli("verify", *place).code == 0


def test_what_the_target_changed_is_not_removed(cli: Cli, home: Path, place: Place, other: Path) -> None:
    put(other / "runs" / THIRD, "logs/03", b"edited there")
    assert cli("push", place.name, "-H", str(other)).code == 0
    (home / "runs" / THIRD / "logs/03").unlink()
    (home / "runs" / THIRD / "logs/04").unlink()
    said = cli("push", place.name, "--delete", "-y")
    assert said.code == 6
    assert f"conflict: run {THIRD[:8]}: logs/03: at the source removed, at the target 12 bytes" in said.err
    assert {"logs/03", "logs/04"} <= paths(cli, place)


def test_without_a_base_nothing_is_removed(cli: Cli, home: Path, place: Place, tmp_path: Path) -> None:
    """A home that never synced with the place, and lacks what that has."""
    stranger = tmp_path / "stranger"
    shutil.copytree(home / "runs", stranger / "runs", symlinks=True)
    for name in ("logs/03", "train.py"):
        (stranger / "runs" / THIRD / name).unlink()
    before = paths(cli, place)
    for verb in ("push", "pull"):
        assert cli(verb, place.name, "--delete", "-y", "-H", str(stranger)).code == 0
    assert paths(cli, place) == before


def test_without_a_terminal_removals_need_yes(cli: Cli, home: Path, place: Place) -> None:
    (home / "runs" / THIRD / "logs/03").unlink()
    put(home / "runs" / SECOND, "new", b"x")
    state = place.state()
    for argv in (["push", place.name], ["copy", "local", place.name]):
        said = cli(*argv, "--delete", stdin="y\n")
        assert (said.code, said.out) == (2, "")
        assert f"Remove 1 file (1 B) in 1 run on {place.name}?" in said.err
        assert "hint: --yes answers" in said.err
    assert place.state() == state
    assert cli("push", place.name).code == 0  # what removes nothing asks nothing
    assert cli("push", place.name, SECOND, "--delete").code == 0


@pytest.mark.parametrize("place", kinds("disk", "folder", "s3"), indirect=True)
@pytest.mark.parametrize("verb", ["push", "pull", "copy"])
def test_more_than_half_of_a_run_stops_everything(
    cli: Cli, home: Path, place: Place, other: Path, tmp_path: Path, verb: str
) -> None:
    third = f"file://{tmp_path}/third"
    assert verb != "copy" or cli("copy", place.name, third).code == 0
    for name in MANY:
        (home / "runs" / THIRD / name).unlink()
    for name in ("train.py", "checkpoints/model.pt", ".guild/output", ".guild/output.index"):
        (home / "runs" / THIRD / name).unlink()
    put(home / "runs" / SECOND, "new", b"x")
    if verb != "push":
        assert cli("push", place.name, "--delete", "--max-delete", "16", "-y").code == 0
    ends = {"push": [place.name], "pull": [place.name, "-H", str(other)], "copy": [place.name, third]}[verb]
    look = {"push": list(place), "pull": ["-H", str(other)], "copy": ["-r", third]}[verb]
    before = cli("ls", THIRD, *look, "--json").json
    for more, limit in (([], ""), (["--max-delete", "15"], "more than the 15 allowed"), (["--max-delete", "0"], "")):
        for flags in (["-y"], ["--dry-run"]):
            said = cli(verb, *ends, "--delete", *more, *flags)
            assert (said.code, said.out) == (6, "")
            assert "--max-delete 16" in said.err
            assert limit in said.err
    assert cli("ls", THIRD, *look, "--json").json == before
    assert "new" not in cli("ls", SECOND, *look).out
    said = cli(verb, *ends, "--delete", "--max-delete", "16")
    assert (said.code, said.out) == (2, "")
    said = cli(verb, *ends, "--delete", "--max-delete", "16", "-y")
    assert (said.code, said.err) == (0, "")
    assert "; 16 removed) " in said.last
    assert len(cli("ls", THIRD, *look, "--json").json) == len(before) - 16
    assert "new" in cli("ls", SECOND, *look).out


@pytest.mark.parametrize("place", ["folder", pytest.param("disk", marks=pytest.mark.soak)], indirect=True)
def test_more_than_a_thousand_files_stop_everything(cli: Cli, home: Path, place: Place) -> None:
    """Although they are few of each run's."""
    ids = [THIRD, *run_ids(5)[3:]]
    for run in ids:
        write_run(home, run, {f"many/{n:04d}": b"" for n in range(700)})
    assert cli("push", place.name).code == 0
    for run in ids:
        for n in range(334):
            (home / "runs" / run / f"many/{n:04d}").unlink()
    said = cli("push", place.name, "--delete", "-y")
    assert (said.code, said.out) == (6, "")
    assert "this would remove 1002 files" in said.err
    assert "--max-delete 1002" in said.err
    assert "; 668 removed) " in cli("push", place.name, *ids[:2], "--delete", "-y").last
    assert cli("push", place.name, "--delete", "-y", "--max-delete", "334").code == 0


# -- deleted runs


@in_every_remote
def test_a_run_that_was_deleted_there_is_left_out(cli: Cli, home: Path, place: Place, other: Path) -> None:
    assert cli("delete", THIRD, "-y", *place).code == 0
    said = cli("push", place.name)
    assert said.code == 0
    assert f"note: 1 run was deleted there and left out: {THIRD[:8]}\n" in said.err
    assert "--undelete brings" in said.err
    assert said.last == f"Nothing to push: 2 runs are already on {place.name}"
    assert THIRD not in cli("runs", *place, "--json").out
    assert cli("pull", place.name, "-H", str(other)).last == "Nothing to pull: 2 runs are already here"
    assert (other / "runs" / THIRD).is_dir()
    assert cli("push", place.name, THIRD).last == "Nothing to push"
    assert THIRD in cli("runs", "-d", *place, "--json").out


@in_every_remote
def test_what_comes_back_comes_back_whole(cli: Cli, home: Path, place: Place) -> None:
    """Whether anything of it is to be removed is asked by the next push, which sees it."""
    before = paths(cli, place)
    assert cli("delete", THIRD, "-y", *place).code == 0
    (home / "runs" / THIRD / "logs/03").unlink()
    said = cli("push", place.name, "--undelete", "--delete")
    assert said.code == 0, said
    assert paths(cli, place) == before
    assert cli("push", place.name, "--delete").code == 2
    assert cli("push", place.name, "--delete", "-y").code == 0
    assert paths(cli, place) == before - {"logs/03"}


@pytest.mark.parametrize("purged", [False, True])
@in_every_remote
def test_undelete_brings_it_back(cli: Cli, home: Path, place: Place, tmp_path: Path, purged: bool) -> None:
    before = cli("ls", THIRD, *place, "--json").json
    assert cli("delete", ":2", "-y", *(["--permanent"] if purged else []), *place).code == 0
    assert cli("push", place.name).last == f"Nothing to push: 1 run is already on {place.name}"
    state = place.state()
    assert cli("push", place.name, THIRD, "--undelete", "--dry-run").code == 0
    assert place.state() == state
    said = cli("push", place.name, THIRD, "--undelete")
    assert said.code == 0
    assert f"note: 1 run was brought back there: {THIRD[:8]}\n" in said.err
    assert [row["id"] for row in cli("runs", *place, "--json").json] == [THIRD, FIRST]
    assert [row["id"] for row in cli("runs", "-d", *place, "--json").json] == ([] if purged else [SECOND])
    assert cli("ls", THIRD, *place, "--json").json == before
    assert cli("verify", *place).code == 0
    assert cli("push", place.name).last == f"Nothing to push: 2 runs are already on {place.name}"
    fresh = tmp_path / "fresh"
    assert cli("pull", place.name, "-H", str(fresh)).code == 0
    assert_same(fresh / "runs" / THIRD, home / "runs" / THIRD)
    assert not (fresh / "runs" / SECOND).exists()


@pytest.mark.parametrize("purged", [False, True])
def test_a_pull_by_id_brings_back_what_was_deleted_here(cli: Cli, home: Path, place: Place, purged: bool) -> None:
    before = snapshot(home / "runs" / THIRD)
    assert cli("delete", ":2", "-y", *(["--permanent"] if purged else [])).code == 0
    for words in ([], ["1"], ["@latest:2"], ["-Fl", "run"]):
        said = cli("pull", place.name, *words)
        assert said.code == 0
        assert " left out: " in said.err
        assert "name a run by its id to bring it back" in said.err
    assert not (home / "runs" / THIRD).exists()
    said = cli("pull", place.name, THIRD[:10])
    assert said.code == 0
    assert f"note: 1 run was brought back there: {THIRD[:8]}\n" in said.err
    assert snapshot(home / "runs" / THIRD) == before
    assert not (home / "runs" / SECOND).exists()
    assert not (home / "trash/runs" / THIRD).exists()
    assert cli("pull", place.name, "--undelete").code == 0
    assert {path.name for path in (home / "runs").iterdir() if not path.name.startswith(".")} == {FIRST, SECOND, THIRD}
    assert list((home / "trash/runs").iterdir()) == []


@pytest.mark.parametrize("purged", [False, True])
def test_a_copy_brings_back_what_it_is_told_to(
    cli: Cli, home: Path, place: Place, tmp_path: Path, purged: bool
) -> None:
    """And a copy to this home says how, too."""
    third = f"file://{tmp_path}/third"
    assert cli("copy", place.name, third).code == 0
    for look in (["-r", third], []):
        assert cli("delete", THIRD, "-y", *(["--permanent"] if purged else []), *look).code == 0
    for end in (third, "local"):
        said = cli("copy", place.name, end)
        assert said.code == 0
        assert "hint: --undelete brings them back" in said.err
        assert cli("copy", place.name, end, THIRD).code == 0
        assert THIRD not in cli("runs", "-r", end, "--json").out
        assert cli("copy", place.name, end, "--undelete").code == 0
        assert THIRD in cli("runs", "-r", end, "--json").out
        assert cli("runs", "-d", "-r", end, "--json").json == []


def test_an_edit_of_a_deleted_run_is_not_lost(cli: Cli, home: Path, place: Place, other: Path) -> None:
    """Deleted here while somebody else wrote to it there: what they wrote comes with it when it comes back."""
    assert cli("delete", THIRD, "-y").code == 0
    put(other / "runs" / THIRD, "theirs", b"x")
    assert cli("push", place.name, "-H", str(other)).code == 0
    assert cli("pull", place.name).last == "Nothing to pull: 2 runs are already here"
    assert cli("restore", THIRD).code == 0
    assert "theirs" not in files(home)
    assert cli("pull", place.name).code == 0
    assert files(home) == files(other)


# -- nothing is removed from ignorance (promise P6)

Listing = Callable[..., Any]


def failing(listing: Listing, at: int, how: str) -> tuple[Listing, list[int]]:
    """`listing`, whose call number `at` fails, or answers nothing, or only a part; and the count of its calls."""
    count = [0]

    def call(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] - 1 != at:
            return listing(*args, **kwargs)
        if how == "fails":
            raise OSError(5, "Input/output error")
        found = dict(sorted(listing(*args, **kwargs).items()))
        half = len(found) // 2
        some = {"is empty": slice(0, 0), "begins": slice(0, half), "ends": slice(half, None)}[how]
        return dict(list(found.items())[some])

    return call, count


@pytest.mark.parametrize("place", kinds("folder", "s3"), indirect=True)
@pytest.mark.parametrize("how", ["fails", "is empty", "begins", "ends"])
def test_a_store_that_lists_too_little_removes_nothing(
    cli: Cli, home: Path, place: Place, other: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What a listing leaves out was not deleted: it is an older state, or none."""
    put(other / "runs" / THIRD, "a", b"a")
    assert cli("push", place.name, "-H", str(other)).code == 0
    put(other / "runs" / THIRD, "b", b"b")
    put(other / "runs" / SECOND, "c", b"c")
    assert cli("push", place.name, "-H", str(other)).code == 0
    before = {run: snapshot(other / "runs" / run) for run in run_ids(3)}
    real = Files.list
    for at in range(100):
        with monkeypatch.context() as patch:
            call, count = failing(real, at, how)
            patch.setattr(Files, "list", lambda *args, call=call, **kwargs: call(*args, **kwargs))
            said = cli("pull", place.name, "--delete", "--max-delete", "1000", "-y", "-H", str(other))
        assert {run: snapshot(other / "runs" / run) for run in run_ids(3)} == before
        assert "removed" not in said.out
        if count[0] <= at:
            break
    assert at > 0
    assert cli("pull", place.name, "--delete", "-y", "-H", str(other)).code == 0
    assert {run: snapshot(other / "runs" / run) for run in run_ids(3)} == before


@pytest.fixture
def scandir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[int]]]:
    """Makes one call of `os.scandir` or `os.listdir` fail, counted from now; answers the count of calls."""
    real = {name: getattr(os, name) for name in ("scandir", "listdir")}

    def install(at: int) -> list[int]:
        count = [0]

        def failing(name: str) -> Listing:
            def call(*args: Any, **kwargs: Any) -> Any:
                count[0] += 1
                if count[0] - 1 == at:
                    raise PermissionError(13, "Permission denied")
                return real[name](*args, **kwargs)

            return call

        for name in real:
            monkeypatch.setattr(os, name, failing(name))
        return count

    yield install
    monkeypatch.undo()


@pytest.mark.parametrize("place", ["folder", pytest.param("disk", marks=pytest.mark.soak)], indirect=True)
def test_a_home_that_is_partly_unreadable_removes_nothing(
    cli: Cli, home: Path, place: Place, scandir: Callable[[int], list[int]]
) -> None:
    """Each listing of a directory fails in turn. Only what is known to be gone is removed, once all can be read."""
    (home / "runs" / THIRD / "logs/03").unlink()
    before = {run: paths(cli, place, run) for run in run_ids(3)}
    done: Said | None = None
    for at in range(300):
        count = scandir(at)
        said = cli("push", place.name, "--delete", "--max-delete", "1000", "-y")
        scandir(-1)
        now = {run: paths(cli, place, run) for run in run_ids(3)}
        removed = {run: before[run] - now[run] for run in before if before[run] != now[run]}
        assert removed in ({}, {THIRD: {"logs/03"}})
        if removed:
            done = said
            put(home / "runs" / THIRD, "logs/03", MANY["logs/03"])
            assert cli("push", place.name).code == 0
            (home / "runs" / THIRD / "logs/03").unlink()
        if count[0] <= at:
            break
    assert done is not None
    assert count[0] <= at


@in_every_remote
def test_a_source_that_vanished_removes_nothing(cli: Cli, home: Path, place: Place) -> None:
    """As when a disk is not mounted."""
    before = {run: paths(cli, place, run) for run in run_ids(3)}
    for gone, left, code in (
        (home, None, 3),
        (home / "runs", None, 3),
        (home / "runs", Path.mkdir, 0),
        (home / "runs", Path.touch, 3),
        (home / "runs" / THIRD, None, 0),
        (home / "runs" / THIRD, Path.mkdir, 6),
        (home / "runs" / THIRD, Path.touch, 0),
    ):
        gone.rename(home.with_name("aside"))
        if left is not None:
            left(gone)
        said = cli("push", place.name, "--delete", "-y")
        assert (said.code, "removed" in said.out) == (code, False)
        assert {run: paths(cli, place, run) for run in run_ids(3)} == before
        shutil.rmtree(gone, ignore_errors=True)
        gone.unlink(missing_ok=True)
        home.with_name("aside").rename(gone)
