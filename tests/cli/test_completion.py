"""completion: the scripts, what the real bash makes of them, and that nobody but the home is asked."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, environment
from tests.kit.trees import EPOCH_US, put, run_ids, write_run
from tests.test_house import HEAVY

FIRST, SECOND, THIRD = run_ids(3)
NEWEST_FIRST = [THIRD, SECOND, FIRST]

Complete = Callable[..., list[str]]


@pytest.fixture
def config(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Remotes that nobody could ask: a bucket without keys, a host that is not there; and one that is a folder."""
    file = tmp_path / "c.yml"
    file.write_text(
        "remotes:\n"
        "  bucket: {type: s3, bucket: b}\n"
        "  gpu: {type: ssh, host: 192.0.2.1}\n"
        f"  disk: {{type: local, path: {tmp_path}/disk}}\n"
    )
    monkeypatch.setenv("GUILDSYNC_CONFIG", str(file))
    return file


def ask(shell: str, **variables: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from guildsync.cli.main import main; main([])"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**environment(), "_GUILDSYNC_COMPLETE": f"{shell}_complete", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def bash_says(line: str) -> list[str]:
    """The values for the last word of the line, which may be empty."""
    words = line.split(" ")
    said = ask("bash", COMP_WORDS="\n".join(words), COMP_CWORD=str(len(words) - 1))
    assert said.stderr == ""
    return [row.partition(",")[2] for row in said.stdout.splitlines()]


# -- what may stand where


def test_commands_and_options(cli: Cli, home: Path) -> None:
    assert {"push", "pull", "runs", "diff", "completion"} <= set(bash_says("guildsync "))
    assert bash_says("guildsync pu") == ["pull", "purge", "push"]
    assert {"show", "path"} <= set(bash_says("guildsync config "))
    options = bash_says("guildsync push --")
    assert {"--dry-run", "--include", "--resolve", "--label", "--home", "--json"} <= set(options)
    assert bash_says("guildsync push --dry") == ["--dry-run"]
    assert bash_says("guildsync nonsense ") == []
    assert bash_says("guildsync --version pu") == ["pull", "purge", "push"]


def test_runs_lists_and_has_commands_of_its_own(home: Path) -> None:
    found = bash_says("guildsync runs ")
    assert {"list", "info", "delete", *NEWEST_FIRST} <= set(found)
    assert bash_says("guildsync runs in") == ["info"]
    assert "--format" in bash_says("guildsync runs --")
    assert len(bash_says("guildsync runs --rem")) == 1
    assert bash_says("guildsync runs -a ") == NEWEST_FIRST


@pytest.mark.parametrize(
    "line",
    [
        *("guildsync info ", "guildsync runs info ", "guildsync ls ", "guildsync cat ", "guildsync diff "),
        *("guildsync label ", "guildsync verify ", "guildsync delete ", "guildsync push bucket "),
        *("guildsync -q info ", "guildsync info -r local "),
    ],
)
def test_runs_of_this_home(config: Path, line: str) -> None:
    assert bash_says(line) == NEWEST_FIRST
    assert bash_says(line + THIRD[:3]) == [THIRD]


def test_runs_that_are_named_already_are_not_offered_again(home: Path) -> None:
    assert bash_says(f"guildsync push bucket {THIRD} ") == [SECOND, FIRST]
    assert bash_says(f"guildsync diff {THIRD} ") == NEWEST_FIRST


def test_runs_in_the_trash(cli: Cli, home: Path) -> None:
    assert cli("runs", "delete", SECOND, "-y").code == 0
    assert bash_says("guildsync restore ") == [SECOND]
    assert bash_says("guildsync runs purge ") == [SECOND]
    assert bash_says("guildsync info ") == [THIRD, FIRST]


def test_remotes(config: Path) -> None:
    names = ["bucket", "disk", "gpu", "local"]
    assert sorted(bash_says("guildsync push ")) == names
    assert sorted(bash_says("guildsync copy bucket ")) == names
    assert sorted(bash_says("guildsync remote status ")) == names
    assert sorted(bash_says("guildsync check -r ")) == sorted([*names, "all"])
    assert bash_says("guildsync runs --remote gp") == ["gpu"]
    assert bash_says("guildsync runs --remote = gp") == ["gpu"]  # so bash takes --remote=gp apart
    assert bash_says("guildsync -r bu") == ["bucket"]
    assert sorted(bash_says(f"guildsync --config {config} pull ")) == names


def test_runs_of_a_remote_are_those_that_were_last_listed(cli: Cli, config: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "disk", "ab" * 16, label="there", started=EPOCH_US)
    for line in ("guildsync pull disk ", "guildsync copy disk bucket ", "guildsync info -r disk "):
        assert bash_says(line) == []
    assert cli("runs", "-r", "disk").code == 0
    shutil.rmtree(tmp_path / "disk")
    for line in ("guildsync pull disk ", "guildsync copy disk bucket ", "guildsync info -r disk "):
        assert bash_says(line) == ["ab" * 16]
    assert bash_says("guildsync runs -r disk -Fl t") == ["there"]
    assert bash_says("guildsync pull bucket ") == bash_says("guildsync info -r gpu ") == []
    assert set(bash_says("guildsync runs list -r all ")) == {*NEWEST_FIRST, "ab" * 16}


def test_values_of_options(home: Path) -> None:
    put(home / "runs" / FIRST, ".guild/attrs/label", b"lr=0.1\n")
    put(home / "runs" / FIRST, ".guild/attrs/tags", b"- good\n- g2\n")
    assert bash_says("guildsync runs -Fl ") == ["lr=0.1"]  # the others are not one word
    assert sorted(bash_says("guildsync runs -Ft g")) == ["g2", "good"]
    assert bash_says("guildsync runs -Fo t") == ["train.py"]
    assert bash_says("guildsync runs --format ") == ["table", "ids", "csv", "md"]
    assert bash_says("guildsync push bucket --resolve s") == ["source"]
    assert bash_says("guildsync --color a") == ["auto", "always"]
    assert bash_says("guildsync completion ") == ["bash", "zsh", "fish"]


@pytest.mark.parametrize(("option", "kind"), [("-H", "dir"), ("-C", "dir"), ("--config", "file")])
def test_paths_are_left_to_the_shell(home: Path, option: str, kind: str) -> None:
    said = ask("bash", COMP_WORDS=f"guildsync runs {option} x", COMP_CWORD="3")
    assert said.stdout == f"{kind},x\n"


def test_what_a_shell_would_execute_is_not_offered(home: Path, config: Path) -> None:
    hostile = ["$(reboot)", "`x`", "a;b", "a b", "*", "-rf", "~", "a\nplain,b", "x|y", "a'b", 'a"b', "\u202e", ""]
    for n, label in enumerate(hostile):
        write_run(home, f"{n:032x}", label=label, tags=[label])
    names = ("a;b", "$x", "fine")
    config.write_text("remotes:\n" + "".join(f"  '{name}': {{type: s3, bucket: b}}\n" for name in names))
    assert bash_says("guildsync runs -Fl ") == []
    assert bash_says("guildsync runs -Ft ") == []
    assert sorted(bash_says("guildsync push ")) == ["fine", "local"]


@pytest.mark.parametrize("text", ["remotes: [", "remotes: {x: {type: nothing}}"])
def test_what_cannot_be_told_is_no_error(config: Path, tmp_path: Path, text: str) -> None:
    config.write_text(text)
    for line in ("guildsync push ", "guildsync info "):
        assert bash_says(line) == []
    assert bash_says("guildsync -H /nowhere info ") == []
    said = ask("bash", COMP_WORDS="guildsync x")
    assert (said.returncode, said.stdout, said.stderr) == (1, "", "")
    assert ask("powershell", COMP_WORDS="guildsync x", COMP_CWORD="1").returncode == 1


# -- what it costs


@pytest.mark.parametrize("line", ["guildsync ", "guildsync runs -", "guildsync push -r ", "guildsync info "])
def test_nothing_heavy_is_loaded(home: Path, line: str) -> None:
    program = (
        "import os, sys\n"
        "from guildsync.cli import main\n"
        "code = main.run([])\n"
        "print('\\n'.join(['loaded:', *sys.modules]))\n"
    )
    words = line.split(" ")
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **environment(),
            "_GUILDSYNC_COMPLETE": "bash_complete",
            "COMP_WORDS": "\n".join(words),
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    offered, _, loaded = ran.stdout.partition("loaded:\n")
    assert offered
    assert not set(loaded.split()) & HEAVY
    assert ("guildsync.api" in loaded.split()) == (line in ("guildsync push -r ", "guildsync info "))


def test_no_program_is_started_and_nobody_is_asked(config: Path, tmp_path: Path) -> None:
    """With remotes configured that would take their time to answer."""
    program = (
        "import sys\n"
        "from guildsync.cli import main\n"
        "def told(event, args):\n"
        "    if event.startswith(('socket.', 'subprocess.', 'os.exec', 'os.fork', 'os.posix_spawn', 'os.system')):\n"
        "        print('did', event, args)\n"
        "sys.addaudithook(told)\n"
        "main.run([])\n"
    )
    for line in ("guildsync pull bucket ", "guildsync info -r gpu ", "guildsync check -r ", "guildsync runs -r all "):
        words = line.split(" ")
        ran = subprocess.run(
            [sys.executable, "-c", program],
            env={
                **environment(),
                "_GUILDSYNC_COMPLETE": "bash_complete",
                "COMP_WORDS": "\n".join(words),
                "COMP_CWORD": str(len(words) - 1),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert "did" not in ran.stdout.split(), ran.stdout


# -- the scripts


def test_the_scripts(cli: Cli, home: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        said = cli("completion", shell)
        assert (said.code, said.err) == (0, "")
        assert f"_GUILDSYNC_COMPLETE={shell}_complete" in said.out
        assert cli("completion", shell, "--json").json == {"shell": shell, "script": said.out.rstrip("\n")}
    assert cli("completion", "tcsh").code == 2
    assert cli("completion").code == 2
    assert cli("completion", "bash", "-r", "local").code == 2


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A directory with `guildsync` in it."""
    directory = tmp_path / "bin"
    directory.mkdir()
    script = directory / "guildsync"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m guildsync "$@"\n')
    script.chmod(0o755)
    return directory


def in_bash(program: Path, line: str, *, word: str | None = None) -> str:
    """What bash itself has in COMPREPLY for a line, words separated as bash does it."""
    words = line.split(" ")
    script = "\n".join(
        [
            'eval "$(guildsync completion bash)"',
            "complete -p guildsync",
            f"COMP_WORDS=({' '.join(json.dumps(each) for each in words)})",
            f"COMP_CWORD={len(words) - 1}",
            f'_guildsync_completion {word or "guildsync"} "" ""',
            'printf "<%s>\\n" "${COMPREPLY[@]}"',
        ]
    )
    ran = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**environment(), "PATH": f"{program}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stderr == ""
    assert "-F _guildsync_completion guildsync" in ran.stdout
    return ran.stdout.partition("\n")[2]


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@needs_bash
def test_bash_offers_commands_runs_and_remotes(config: Path, program: Path) -> None:
    assert in_bash(program, "guildsync pus") == "<push>\n"
    assert in_bash(program, "guildsync info ") == "".join(f"<{run}>\n" for run in NEWEST_FIRST)
    assert in_bash(program, "guildsync push gp") == "<gpu>\n"
    assert in_bash(program, "guildsync runs --remote = bu") == "<bucket>\n"
    assert in_bash(program, "guildsync nonsense ") == "<>\n"
    assert in_bash(program, "guildsync pus", word=str(program / "guildsync")) == "<push>\n"


@needs_bash
def test_bash_at_a_terminal(config: Path, program: Path, tmp_path: Path) -> None:
    """A person types, and presses Tab."""
    pid, fd = pty.fork()
    if pid == 0:
        env = {**environment(), "PATH": f"{program}{os.pathsep}{os.environ['PATH']}", "PS1": "$ ", "TERM": "dumb"}
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], env)
    out = b""

    def until(words: bytes) -> None:
        nonlocal out
        end = time.monotonic() + 30
        while words not in out:
            assert time.monotonic() < end, out
            if select.select([fd], [], [], 0.1)[0]:
                out += os.read(fd, 4096)

    try:
        os.write(fd, b'eval "$(guildsync completion bash)"; echo rea""dy\n')
        until(b"ready")
        os.write(fd, b"echo : guildsync; guildsync conf\t")
        until(b"guildsync config")
        os.write(fd, b"pa\t")
        until(b"guildsync config path")
        os.write(fd, b"\n")
        until(str(config).encode())
    finally:
        os.close(fd)
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_what_zsh_and_fish_are_told(config: Path, home: Path) -> None:
    """Three lines an item for zsh, with colons of values escaped where a word goes along; one for fish, with a tab."""
    put(home / "runs" / THIRD, ".guild/attrs/label", json.dumps("a\tb\nc:d").encode() + b"\n")
    said = ask("zsh", COMP_WORDS="guildsync info ", COMP_CWORD="2")
    assert said.stdout.splitlines() == [
        *("plain", THIRD, r"a\tb\nc:d"),
        *("plain", SECOND, "run 2"),
        *("plain", FIRST, "run 1"),
    ]
    said = ask("zsh", COMP_WORDS="guildsync runs --format t", COMP_CWORD="3")
    assert said.stdout.splitlines() == ["plain", "table", "_"]
    said = ask("fish", COMP_WORDS="guildsync info ", COMP_CWORD="")
    assert said.stdout.splitlines() == [
        rf"plain,{THIRD}" + "\t" + r"a\tb\nc:d",
        f"plain,{SECOND}\trun 2",
        f"plain,{FIRST}\trun 1",
    ]
    said = ask("fish", COMP_WORDS=f"guildsync info {SECOND[:4]}", COMP_CWORD=SECOND[:4])
    assert said.stdout.splitlines() == [f"plain,{SECOND}\trun 2"]
    put(home / "runs" / SECOND, ".guild/attrs/label", b"'a:b'\n")
    said = ask("zsh", COMP_WORDS="guildsync runs -Fl a", COMP_CWORD="3")
    assert said.stdout.splitlines() == ["plain", "a:b", "_"]
    said = ask("zsh", COMP_WORDS="guildsync runs --remote=bu", COMP_CWORD="2")
    assert said.stdout.splitlines() == ["plain", "--remote=bucket", "s3"]
    said = ask("fish", COMP_WORDS="guildsync runs --remote=bu", COMP_CWORD="--remote=bu")
    assert said.stdout.splitlines() == ["plain,--remote=bucket\ts3"]
    said = ask("fish", COMP_WORDS="guildsync pus", COMP_CWORD="pus")
    assert said.stdout.startswith("plain,push\t")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_takes_the_script(program: Path) -> None:
    script = 'autoload -U compinit; compinit -u; eval "$(guildsync completion zsh)"; print ${_comps[guildsync]}'
    env = {**environment(), "PATH": f"{program}{os.pathsep}{os.environ['PATH']}"}
    ran = subprocess.run(["zsh", "-f", "-c", script], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "_guildsync_completion"


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_fish_offers_commands(config: Path, program: Path) -> None:
    script = "guildsync completion fish | source; complete -C 'guildsync pus'"
    env = {**environment(), "PATH": f"{program}{os.pathsep}{os.environ['PATH']}"}
    ran = subprocess.run(["fish", "-N", "-c", script], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.split("\t")[0] == "push"
