"""What holds for every command: options, help, errors, streams, signals."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guildsync import errors
from guildsync.cli import options
from guildsync.version import VERSION
from tests.cli.conftest import Cli, environment
from tests.kit.trees import put, run_ids, write_run

COMMANDS = (
    ["push"],
    ["pull"],
    ["copy"],
    ["remote"],
    ["remote", "status"],
    ["runs"],
    ["runs", "list"],
    ["runs", "info"],
    ["info"],
    ["remotes"],
    ["check"],
    ["verify"],
    ["ls"],
    ["cat"],
    ["diff"],
    ["completion"],
    ["config"],
    ["config", "show"],
    ["config", "path"],
)


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_everywhere(cli: Cli, command: list[str], option: str) -> None:
    said = cli(*command, option)
    assert said.code == 0
    assert said.out.startswith("Usage: guildsync")
    assert "--remote" in said.out
    assert said.err == ""


def test_no_command_is_help(cli: Cli) -> None:
    assert cli().out == cli("--help").out


def test_version(shell: Cli) -> None:
    said = shell("--version")
    assert (said.code, said.out, said.err) == (0, f"guildsync {VERSION}\n", "")


@pytest.mark.parametrize(
    ("argv", "near"),
    [
        (["pusj"], "'push'"),
        (["push", "--dry-rum", "x"], "'--dry-run'"),
        (["runs", "--delted"], "'--deleted'"),
        (["--remot=x", "runs"], "'--remote'"),
    ],
)
def test_near_misses(cli: Cli, argv: list[str], near: str) -> None:
    said = cli(*argv)
    assert said.code == 2
    assert said.out == ""
    assert re.match(rf"error: there is no (command|option) .*; did you mean {near}\?\nhint: ", said.err)


@pytest.mark.parametrize(
    "argv",
    [
        ["push"],
        ["push", "x", "--frobnicate"],
        ["runs", "-n", "x"],
        ["runs", "-n"],
        ["push", "x", "-r", "y"],
        ["remotes", "-r", "y"],
        ["remotes", "extra"],
        ["-v"],
        ["--color", "sometimes", "remotes"],
        ["--config", "/no/such/file", "remotes"],
        ["-C", "/no/such/directory", "remotes"],
        ["push", "s3:"],
    ],
    ids=" ".join,
)
def test_usage_is_2(cli: Cli, argv: list[str]) -> None:
    said = cli(*argv)
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("error: ")


def test_an_unknown_remote_is_3_and_names_near_ones(cli: Cli, home: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text("remotes: {bucket: {type: s3, bucket: b}}")
    said = cli("push", "buckt", "--config", "c.yml")
    assert said.code == 3
    assert "did you mean 'bucket'?" in said.err


def test_global_options_before_and_after_the_command(cli: Cli, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_run(other, run_ids(9)[8], label="elsewhere")
    here = str(other)
    for argv in (
        ["-H", here, "runs", "--json"],
        ["--json", "runs", "-H", here],
        ["runs", "--home", here, "list", "--json"],
    ):
        assert [row["label"] for row in cli(*argv).json] == ["elsewhere"]
    assert "elsewhere" in cli("-C", str(tmp_path), "-H", "other", "runs").out
    assert "elsewhere" in cli("runs", "-C", str(tmp_path), "--home=other").out


def test_verbose_says_what_is_used(cli: Cli, home: Path) -> None:
    assert f"home: {home}" in cli("runs", "-v").err
    assert cli("runs").err == ""


@pytest.mark.parametrize(
    "error", [errors.Refused, errors.Unreachable, errors.SafetyStop, errors.Damaged, errors.GuildsyncError]
)
def test_each_error_owns_its_exit_code(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch, error: type[errors.GuildsyncError]
) -> None:
    def fail(*_: object) -> list[str]:
        raise error("it \x1b[31mfailed", "do\nthis")

    monkeypatch.setattr(options, "expanded", fail)
    for argv in (["runs"], ["runs", "--json"]):
        said = cli(*argv)
        assert said.code == error.exit_code
        assert (said.out, said.err) == ("", "error: it \\x1b[31mfailed\nhint: do\\nthis\n")


def test_what_nobody_foresaw_is_one_line_and_a_traceback_on_demand(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> list[str]:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(options, "expanded", fail)
    said = cli("runs")
    assert said.code == 1
    assert said.err.splitlines()[0] == r"error: RuntimeError: first\nsecond"
    assert "Traceback" not in said.err
    assert "Traceback" in cli("runs", "-vv").err
    assert "Traceback" in cli("-vv", "runs").err


def test_interrupted_is_130(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(options, "expanded", fail)
    said = cli("runs")
    assert said.code == 130
    assert "goes on where it stopped" in said.err


def test_ctrl_c_ends_a_process_with_130(home: Path, store: str) -> None:
    command = [sys.executable, "-m", "guildsync", "push", store, "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        deadline = time.monotonic() + 30
        while not _waits_for_stdin(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == b""
    assert b"interrupted" in err
    assert b"Traceback" not in err


def _waits_for_stdin(pid: int) -> bool:
    """Has it loaded all that it needs, and sleeps?"""
    with open(f"/proc/{pid}/stat") as file:
        state = file.read().rpartition(")")[2].split()[0]
    with open(f"/proc/{pid}/maps") as file:
        return state == "S" and "_hashlib" in file.read()


def test_a_reader_that_goes_away_is_no_trouble(home: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        [sys.executable, "-m", "guildsync", "runs", "--json"],
        stdout=write,
        stderr=subprocess.PIPE,
        env=environment(),
        timeout=60,
        check=False,
    )
    os.close(write)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_closed_streams_are_no_trouble(home: Path) -> None:
    command = f"{sys.executable} -m guildsync runs >&- 2>&- <&-"
    assert subprocess.run(["/bin/sh", "-c", command], env=environment(), timeout=60, check=False).returncode == 0


def test_a_locale_that_cannot_say_a_label(shell: Cli, home: Path) -> None:
    put(home / "runs" / run_ids(1)[0], ".guild/attrs/label", "größer 漢".encode())
    said = shell("runs", PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="POSIX", PYTHONCOERCECLOCALE="0")
    assert said.code == 0
    assert r"gr\xf6\xdfer \u6f22" in said.out


def on_a_terminal(*argv: str, **env: str) -> tuple[int, str]:
    """Exit code and all that stands on an 60 columns wide terminal afterwards."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "guildsync", *argv]
    variables = {**environment(), "COLUMNS": "60", "TERM": "xterm", **env}
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=variables)
    os.close(slave)
    seen = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
    os.close(master)
    return process.wait(60), seen.decode()


def test_rows_fit_a_terminal_and_are_whole_elsewhere(home: Path, shell: Cli) -> None:
    put(home / "runs" / run_ids(1)[0], ".guild/attrs/label", b"x" * 200)
    code, seen = on_a_terminal("runs")
    assert code == 0
    assert max(len(line) for line in seen.splitlines()) == 60
    assert "…" in seen
    assert "x" * 200 in shell("runs").out


def test_colours_are_for_terminals_that_want_them(home: Path, shell: Cli) -> None:
    plain = {"NO_COLOR": ""}
    assert "\x1b[" in on_a_terminal("push", "nowhere", **plain)[1]
    assert "\x1b[" not in on_a_terminal("push", "nowhere", NO_COLOR="1")[1]
    assert "\x1b[" not in on_a_terminal("push", "nowhere", TERM="dumb", **plain)[1]
    assert "\x1b[" not in on_a_terminal("push", "nowhere", "--color", "never", **plain)[1]
    assert "\x1b[" not in shell("push", "nowhere", **plain).err
    assert "\x1b[" in shell("push", "nowhere", "--color", "always").err


@pytest.mark.parametrize(("word", "code"), [("--version", 0), ("nonsense", 2)])
def test_main_ends_the_process_and_all_is_written(word: str, code: int) -> None:
    code_text = f"import threading; from guildsync.cli.main import main; print('first'); main(['{word}'])"
    done = subprocess.run([sys.executable, "-c", code_text], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert done.stdout == ("first\n" + f"guildsync {VERSION}\n" if code == 0 else "first\n")
    assert bool(done.stderr) == bool(code)
