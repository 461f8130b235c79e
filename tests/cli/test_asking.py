"""Prompts: what a person at a terminal is told before anything goes, and what each answer does."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from guildsync.store import gc
from tests.cli.conftest import Cli, environment
from tests.kit.places import REMOTE, Place
from tests.kit.trees import put, run_ids, write_run

FIRST, SECOND, THIRD = run_ids(3)


def answered(answer: bytes, *argv: str) -> tuple[int, list[str]]:
    """Exit code and the lines on a terminal, where `answer` is typed as soon as something is asked."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "guildsync", "--color", "never", *argv]
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env={**environment(), "TERM": "xterm"}, start_new_session=True
    )
    os.close(slave)
    seen, is_asked = b"", False
    while chunk := _read(master):
        seen += chunk
        if not is_asked and seen.endswith(b"[y/N] "):
            is_asked = True
            os.write(master, answer)
    os.close(master)
    return process.wait(60), [line.rpartition("\r\x1b[K")[2] for line in seen.decode().split("\r\n")][:-1]


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:
        return b""  # nobody has it open any more


def ids(cli: Cli, place: Place, *words: str) -> list[str]:
    said = cli("runs", *words, *place, "--json")
    assert said.code == 0
    return [row["id"] for row in said.json]


LINES = [f"{run[:8]}  train.py  2023-11-14 22:13:2{n}  completed  run {n + 1}" for n, run in enumerate(run_ids(3))]


@pytest.fixture(autouse=True)
def _zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")


def test_no_is_no_and_yes_is_yes(cli: Cli, place: Place) -> None:
    question = f"Move 2 runs (36 files, 83 kB) to the trash of {place.name}? [y/N] "
    shown = [LINES[2], LINES[1]]
    code, lines = answered(b"n\n", "delete", ":2", *place)
    assert (code, lines) == (1, [*shown, f"{question}n", "error: nothing was done"])
    assert ids(cli, place) == [THIRD, SECOND, FIRST]
    code, lines = answered(b"y\n", "delete", ":2", *place)
    assert (code, lines) == (0, [*shown, f"{question}y", f"Deleted 2 runs on {place.name}"])
    assert ids(cli, place) == [FIRST]


@pytest.mark.parametrize("place", ["local"], indirect=True)
@pytest.mark.parametrize("answer", [b"\n", b"N\n", b"yep\n", b"\x04", b" no\n"])
def test_whatever_is_not_yes_is_no(cli: Cli, place: Place, answer: bytes) -> None:
    code, lines = answered(answer, "delete", "1", *place)
    assert (code, lines[-1]) == (1, "error: nothing was done")
    assert ids(cli, place) == [THIRD, SECOND, FIRST]


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_yes_may_be_said_in_words(cli: Cli, place: Place) -> None:
    assert answered(b" YES \n", "delete", "1", *place)[0] == 0
    assert ids(cli, place) == [SECOND, FIRST]


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_ctrl_c_at_a_prompt_does_nothing(cli: Cli, place: Place) -> None:
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", f"{program}; from guildsync.cli.main import main; main(['delete', '1'])"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment(),
    ) as process:
        os.close(slave)
        seen = b""
        while not seen.endswith(b"[y/N] "):
            seen += _read(master)
        process.send_signal(2)
        assert process.wait(20) == 130
    os.close(master)
    assert ids(cli, place) == [THIRD, SECOND, FIRST]


@pytest.mark.parametrize("place", ["local", "folder"], indirect=True)
def test_what_goes_for_good_is_asked_as_such(cli: Cli, place: Place) -> None:
    code, lines = answered(b"n\n", "delete", "1", "--permanent", *place)
    assert code == 1
    assert lines[-2] == f"Delete 1 run (18 files, 42 kB) on {place.name} for good? Nothing brings them back. [y/N] n"
    assert cli("delete", "1", "-y", *place).code == 0
    code, lines = answered(b"n\n", "purge", "--all", *place)
    assert code == 1
    assert lines == [
        LINES[2],
        f"Delete 1 run (18 files, 42 kB) from the trash of {place.name} for good? Nothing brings them back. [y/N] n",
        "error: nothing was done",
    ]
    assert answered(b"y\n", "purge", "--all", *place)[0] == 0
    assert ids(cli, place, "-d") == []


@pytest.mark.parametrize("place", ["folder"], indirect=True)
def test_of_many_runs_some_are_shown_and_all_are_counted(cli: Cli, home: Path, place: Place) -> None:
    for run in run_ids(14)[3:]:
        write_run(home, run)
    assert place.kind == "local" or cli("push", place.name).code == 0
    code, lines = answered(b"n\n", "delete", "--all", *place)
    assert code == 1
    assert len(lines) == 13
    assert lines[10] == "and 4 more"
    assert lines[11].startswith("Move 14 runs (252 files, ")


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_nothing_is_asked_that_is_answered_or_moot(cli: Cli, place: Place) -> None:
    for argv in (
        ["delete", "1", "-y"],
        ["restore", "1"],
        ["purge", "--all"],
        ["label", "--set", "x"],
        ["gc"],
        ["delete", "1", "--dry-run"],
    ):
        code, lines = answered(b"n\n", *argv, *place)
        assert code == 0
        assert not any("[y/N]" in line for line in lines)


@pytest.mark.parametrize("place", ["folder"], indirect=True)
def test_space_is_asked_for_with_how_much_it_is(cli: Cli, home: Path, place: Place) -> None:
    assert cli("delete", "--all", "--permanent", "-y", *place).code == 0
    code, lines = answered(b"n\n", "gc", "--grace", "0", *place)
    assert code == 1
    assert lines[0].endswith(f" in 1 file will be freed on {place.name}")
    assert lines[1:] == ["Go on? [y/N] n", "error: nothing was done"]
    assert len(place.packs()) == 1
    assert answered(b"y\n", "gc", "--grace", "0", *place)[0] == 0
    assert place.packs() == []


@pytest.mark.parametrize("place", ["folder"], indirect=True)
def test_versions_are_not_given_up_unasked(cli: Cli, home: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where that frees nothing yet."""
    monkeypatch.setattr(gc, "HISTORY", -1.0)
    put(home / "runs" / THIRD, "train.py", b"another\n")
    assert cli("push", place.name).code == 0
    before = place.state()
    document = cli("gc", "--dry-run", "--json", *place).json
    assert (document["versions"], document["files"]) == (1, 0)
    said = cli("gc", *place)
    assert (said.code, said.out) == (2, "")
    assert "1 replaced version will be given up" in said.err
    assert place.state() == before
    assert "1 replaced version was given up" in cli("gc", "-y", *place).last
    assert cli("gc", "--dry-run", "--json", *place).json["versions"] == 0
    assert cli("verify", *place).code == 0


@pytest.mark.parametrize("place", ["folder"], indirect=True)
def test_a_run_that_ran_when_last_seen_is_said_to(cli: Cli, home: Path, place: Place) -> None:
    (home / "runs" / THIRD / ".guild/attrs/exit_status").unlink()
    put(home / "runs" / THIRD, ".guild/LOCK", b"%d" % os.getpid())
    assert cli("push", place.name).code == 0
    code, lines = answered(b"n\n", "delete", ":2", *place)
    assert code == 1
    assert "Move 2 runs (36 files, 83 kB), 1 of which ran when last seen, to the trash" in lines[-2]


@pytest.mark.parametrize("place", REMOTE, indirect=True)
def test_a_push_that_removes_asks_first(cli: Cli, home: Path, place: Place) -> None:
    (home / "runs" / THIRD / "checkpoints/model.pt").unlink()
    (home / "runs" / SECOND / "train.py").unlink()
    question = f"Remove 2 files (40 kB) in 2 runs on {place.name}? [y/N] "
    code, lines = answered(b"n\n", "push", place.name, "--delete")
    assert (code, lines[-2:]) == (1, [f"{question}n", "error: nothing was done"])
    code, lines = answered(b"y\n", "push", place.name, "--delete")
    assert (code, f"{question}y" in lines) == (0, True)
    assert lines[-1].startswith("Pushed 2 runs (0 files, 0 B; 2 removed) ")
    assert cli("push", place.name, "--delete").last == f"Nothing to push: 3 runs are already on {place.name}"


@pytest.mark.parametrize("place", ["folder"], indirect=True)
def test_a_pull_that_removes_asks_first(cli: Cli, home: Path, place: Place, tmp_path: Path) -> None:
    other = ("-H", str(tmp_path / "other"))
    assert cli("pull", place.name, *other).code == 0
    (home / "runs" / THIRD / "train.py").unlink()
    assert cli("push", place.name, "--delete", "-y").code == 0
    code, lines = answered(b"n\n", "pull", place.name, "--delete", *other)
    assert (code, lines[-2]) == (1, "Remove 1 file (15 B) in 1 run here? [y/N] n")
    assert (tmp_path / "other/runs" / THIRD / "train.py").exists()
    assert answered(b"y\n", "pull", place.name, "--delete", *other)[0] == 0
    assert not (tmp_path / "other/runs" / THIRD / "train.py").exists()
