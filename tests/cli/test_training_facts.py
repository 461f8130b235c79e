"""What is said of runs, and done to them, is by facts: who is lost, whose process it is, how it ended, and why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guildsync.compute.claim import started_in
from guildsync.procinfo import Started, identity, is_alive, processes
from tests.cli.conftest import Cli, configure, environment
from tests.kit.guild import Guild
from tests.kit.sshd import Client, Sshd
from tests.kit.training import Site, ended, status_of
from tests.kit.trees import run_ids, write_run
from tests.kit.waiting import until


def started(run: Path) -> Started:
    found = started_in(str(run))
    assert found is not None
    return found


def row(cli: Cli, site: Site) -> Any:
    (found,) = cli("runs", "--json", *site.words).json
    return found


def killed(run: Path) -> Started:
    """As a power cut does it: all at once, and nothing is written down."""
    found = started(run)
    os.kill(found.supervisor.pid, signal.SIGKILL)
    os.killpg(found.process.pid, signal.SIGKILL)
    until(lambda: not found.is_alive, "the end of the run's processes")
    return found


def rebooted(run: Path) -> None:
    found = killed(run)
    before = [replace(each, boot="another boot") for each in (found.supervisor, found.process)]
    (run / ".guild/sync/process").write_bytes(Started(*before).encode())


@contextmanager
def stranger() -> Iterator[int]:
    """The id of a process that is nobody's run; it must be alive at the end."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as child:
        try:
            me = identity(child.pid)
            assert me is not None
            yield child.pid
            assert child.poll() is None
            assert is_alive(me)
        finally:
            child.kill()


# -- lost


@pytest.mark.parametrize("cut", [killed, rebooted])
def test_a_run_whose_host_went_down_is_lost(cli: Cli, site: Site, cut: Any) -> None:
    cli("run", "waiting.py", "--no-wait", *site.words)
    run = site.began()
    assert row(cli, site)["status"] == "running"
    until(lambda: (run / ".guild/output").read_bytes() == b"begun\n", "its output")
    cut(run)
    found = row(cli, site)
    assert (found["status"], found["exit_status"]) == ("lost", None)
    said = cli("watch", *site.words)
    assert (said.code, said.out) == (1, "begun\n")
    assert "ended without a word" in said.err
    said = cli("stop", "-y", run.name, *site.words)
    assert (said.code, said.out.startswith("Nothing to stop")) == (0, True)
    assert cli("runs", "-Sr", "--json", *site.words).json == []
    assert cli("run", "--start", run.name, "--no-wait", *site.words).out.startswith(
        f"{run.name[:8]} was started before"
    )
    (run / "go").touch()
    said = cli("run", "--restart", run.name, *site.words)
    assert (said.code, said.out) == (0, "begun\ndone"), said.err
    assert row(cli, site)["status"] == "completed"


def test_a_lost_run_can_be_deleted_and_comes_home_as_lost(cli: Cli, elsewhere: Site, tmp_path: Path) -> None:
    cli("run", "waiting.py", "--no-wait", *elsewhere.words)
    rebooted(elsewhere.began())
    name = elsewhere.run.name
    assert cli("pull", elsewhere.words[1]).code == 0
    (here,) = cli("runs", "--json").json
    assert here["status"] in ("lost", "error")
    assert cli("delete", name, "-y", *elsewhere.words).code == 0
    assert not (elsewhere.home / "runs" / name).exists()


# -- whose process it is


def test_a_foreign_pid_in_the_lock_of_an_ended_run(cli: Cli, site: Site) -> None:
    assert cli("run", "train.py", *site.words).code == 0
    with stranger() as pid:
        (site.run / ".guild/LOCK").write_text(str(pid))
        assert row(cli, site)["status"] == "completed"
        said = cli("stop", "-y", site.run.name, *site.words)
        assert (said.code, said.out.startswith("Nothing to stop")) == (0, True)
        cli("delete", site.run.name, "-y", *site.words)


def test_a_foreign_pid_in_the_lock_of_a_lost_run(cli: Cli, site: Site) -> None:
    """To Guild AI it runs: so nothing of it is touched, and the process least of all."""
    cli("run", "waiting.py", "--no-wait", *site.words)
    run = site.began()
    killed(run)
    with stranger() as pid:
        (run / ".guild/LOCK").write_text(str(pid))
        cli("stop", "-y", run.name, *site.words)
        cli("delete", run.name, "-y", *site.words)
        cli("delete", run.name, "-y", "--permanent", *site.words)
        cli("run", "--restart", run.name, "--no-wait", *site.words)
        assert (run / "pids").read_text().count("\n") == 1


def test_a_foreign_pid_in_the_lock_of_a_run_of_guilds(cli: Cli, site: Site) -> None:
    (name,) = run_ids(1)
    run = write_run(site.home, name)
    (run / ".guild/attrs/exit_status").unlink()
    with stranger() as pid:
        (run / ".guild/LOCK").write_text(str(pid))
        assert row(cli, site)["status"] == "running"
        said = cli("stop", "-y", name, *site.words)
        assert said.code == 7, said
        assert "not started by guildsync" in said.err
        assert cli("delete", name, "-y", *site.words).code in (6, 7)
        assert run.exists()


def test_a_run_that_goes_on_elsewhere(cli: Cli, elsewhere: Site, tmp_path: Path) -> None:
    """Of what was pulled of it, its output can be followed; it is stopped where it runs."""
    name = elsewhere.words[1]
    cli("run", "waiting.py", "--no-wait", *elsewhere.words)
    run = elsewhere.began()
    until(lambda: (run / ".guild/output").read_bytes() == b"begun\n", "its output")
    assert cli("pull", name).code == 0
    said = cli("stop", "-y", run.name)
    assert (said.code, f"it runs on {name}" in said.err) == (7, True), said
    command = [sys.executable, "-m", "guildsync", "watch", run.name]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        (run / "go").touch()
        assert cli("watch", *elsewhere.words).code == 0
        assert child.poll() is None
        assert cli("pull", name).code == 0
        out, _ = child.communicate(timeout=60)
        assert (child.returncode, out) == (0, b"done")


# -- stop

STUBBORN = """\
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("pids", "w").write(f"{os.getpid()}\\n")
while True:
    time.sleep(1)
"""
FAMILY = """\
import os, subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
grandchild = deaf + "; open('grand', 'w').close(); time.sleep(600)"
child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
subprocess.Popen([sys.executable, "-c", child])
while not os.path.exists("grand"):
    time.sleep(0.02)
open("pids", "w").write(f"{os.getpid()}\\n")
time.sleep(600)
"""


@pytest.mark.parametrize("program", [STUBBORN, FAMILY], ids=["deaf", "family"])
def test_stop_of_what_does_not_end_when_it_is_asked_to(cli: Cli, site: Site, project: Path, program: str) -> None:
    (project / "stubborn.py").write_text(program)
    cli("run", "stubborn.py", "--no-wait", *site.words)
    run = site.began()
    leader = started(run).process.pid
    said = cli("stop", "-y", "--patience", "0.3", *site.words)
    assert (said.code, said.out.startswith("Stopped 1 run")) == (0, True), said
    assert [each for each in processes() if leader in (each.group, each.session) and not each.zombie] == []
    until(lambda: row(cli, site)["status"] == "terminated", "the end, written down")
    said = cli("stop", "-y", run.name, *site.words)
    assert (said.code, said.out.startswith("Nothing to stop")) == (0, True)


# -- failures: each gives one message, and a run that says `error`


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("train.py", "lr=0.1"), 1, "FileNotFoundError"),
        (("--", "./none"), 127, "cannot start ./none: there is no such program"),
        (("--", "./train.py"), 126, "cannot start ./train.py: Permission denied"),
    ],
    ids=["file", "program", "mode"],
)
def test_a_missing_file_or_program(
    cli: Cli, site: Site, project: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    (project / "train.py").write_text("lr = 1.0\nopen('none')\n")
    found = cli("run", *site.words, *words)
    assert found.code == code
    assert found.out.count(said) == 1, found
    assert (row(cli, site)["status"], row(cli, site)["exit_status"]) == ("error", code)


def test_a_missing_interpreter(cli: Cli, project: Path, tmp_path: Path, ssh_user: Client, ssh_host: Sshd) -> None:
    """Nothing can be asked of such a host: the message says what to set, and no run is left anywhere."""
    configure(tmp_path, python="/no/python3")
    said = cli("run", "train.py", "-r", "gpu")
    assert (said.code, said.out) == (3, "")
    assert said.err.count("there is no Python") == 1
    assert "`python`" in said.err
    assert not (tmp_path / "far/runs").exists()


def test_an_environment_without_an_interpreter(
    cli: Cli, project: Path, tmp_path: Path, ssh_user: Client, ssh_host: Sshd
) -> None:
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/activate").write_text(f"PATH={tmp_path}/venv/bin\n")
    configure(tmp_path, venv_path=f"{tmp_path}/venv")
    with ended(Site(("-r", "gpu"), tmp_path / "far")) as site:
        said = cli("run", "train.py", "-r", "gpu")
        assert said.code == 127
        assert "python" in said.out
        assert status_of(site.run) == "error"


CONDA = """\
#!/bin/sh
[ "$1" = shell.posix ] && [ "$2" = hook ] || exit 9
echo 'conda() { [ "$1" = activate ] && [ "$2" = "an env" ] || return 3; PATH="$CONDA_BIN:$PATH"; IN=$2; export IN; }'
"""


@pytest.mark.parametrize("name", ["an env", "another"])
def test_an_environment_of_conda(
    cli: Cli, project: Path, tmp_path: Path, ssh_user: Client, ssh_host: Sshd, name: str
) -> None:
    for directory in ("tools", "an env/bin"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "tools/conda").write_text(CONDA)
    (tmp_path / "tools/conda").chmod(0o755)
    (tmp_path / "an env/bin/python").symlink_to(sys.executable)
    variables = f"{{CONDA_BIN: '{tmp_path}/an env/bin'}}"
    configure(tmp_path, conda_env=f"'{name}'", init=f"'PATH={tmp_path}/tools:$PATH'", env=variables)
    (project / "where.py").write_text("import os, sys\nprint(os.environ['IN'], sys.executable)\n")
    with ended(Site(("-r", "gpu"), tmp_path / "far")) as site:
        said = cli("run", "where.py", "-r", "gpu")
        if name == "an env":
            assert (said.code, said.out) == (0, f"an env {tmp_path}/an env/bin/python\n"), said
        else:
            assert said.code > 0
            assert "guildsync: activate failed" in said.out
            assert status_of(site.run) == "error"


@pytest.fixture(params=["here", pytest.param("gpu", marks=pytest.mark.servers)])
def full(request: pytest.FixtureRequest, project: Path, tmp_path: Path, small_disk: Path) -> Iterator[Site]:
    """Its home lies on a small disk."""
    where = {"here": "guild", "gpu": "far"}[request.param]
    if request.param == "gpu":
        request.getfixturevalue("ssh_user")
        configure(tmp_path)
    (tmp_path / where).symlink_to(small_disk)
    with ended(Site(("-r", "gpu") if where == "far" else (), small_disk)) as site:
        yield site


@pytest.mark.parametrize("small_disk", [4096], indirect=True)
def test_a_disk_that_is_full_before_the_run_arrives(cli: Cli, full: Site, project: Path) -> None:
    (project / "data.bin").write_bytes(os.urandom(5 << 20))
    said = cli("run", "train.py", *full.words)
    assert (said.code, said.out) == (5, ""), said
    assert said.err.count("No space left on device") == 1, said
    assert "hint: make room there" in said.err
    assert [each for each in full.runs if not each.name.startswith(".")] == []
    (project / "data.bin").unlink()
    said = cli("run", "train.py", *full.words)
    assert said.out.startswith("lr: 0.5\n"), said


@pytest.mark.parametrize("small_disk", [4096], indirect=True)
def test_a_disk_that_gets_full_while_it_runs(cli: Cli, full: Site, project: Path) -> None:
    (project / "fill.py").write_text(
        "print('begun', flush=True)\nwith open('data', 'wb') as file:\n    file.write(bytes(5 << 20))\n"
    )
    said = cli("run", "fill.py", *full.words)
    assert said.code == 1
    assert said.out.startswith("begun\n")
    assert row(cli, full)["status"] == "error"
    assert row(cli, full)["exit_status"] == 1


# -- configured flags


def test_configured_flags_are_given_to_scripts_that_have_them(cli: Cli, site: Site, project: Path) -> None:
    (project / "guildsync.yml").write_text("flags: {lr: 0.25, epochs: 3, 'rest': [1]}\n")
    assert cli("run", "train.py", *site.words).out.startswith("lr: 0.25\n")
    assert row(cli, site)["flags"] == {"lr": 0.25, "name": "none"}
    assert cli("run", "train.py", "lr=2", *site.words).out.startswith("lr: 2.0\n")
    assert cli("run", "options.py", *site.words).out.startswith("lr is 0.25, rest is []")
    assert cli("run", "waiting.py", "--stage", *site.words).code == 0
    (project / "guildsync.yml").write_text("flags: {lr: {a: 1}}\n")
    said = cli("run", "train.py", *site.words)
    assert said.code == 2
    assert "'lr'" in said.err


# -- as Guild AI reads it

MARKED = {
    "completed": {"exit_status": "0"},
    "error": {"exit_status": "1"},
    "terminated": {"exit_status": "-15"},
    "no word": {},
    "pending": {"PENDING": ""},
    "staged": {"STAGED": ""},
    "staged and pending": {"STAGED": "", "PENDING": ""},
    "remote": {"LOCK.remote": "gpu"},
    "remote and ended": {"LOCK.remote": "gpu", "exit_status": "0"},
    "remote and staged": {"LOCK.remote": "gpu", "STAGED": ""},
    "pending and ended": {"PENDING": "", "exit_status": "0"},
    "staged and ended": {"STAGED": "", "exit_status": "1"},
    "alive": {"LOCK": str(os.getpid())},
    "alive and ended": {"LOCK": str(os.getpid()), "exit_status": "0"},
    "alive and staged": {"LOCK": str(os.getpid()), "STAGED": ""},
    "dead": {"LOCK": "4194305"},
    "dead and ended": {"LOCK": "4194305", "exit_status": "1"},
    "no pid": {"LOCK": "x"},
    "empty lock": {"LOCK": ""},
}
"""Attributes are lower case, markers are not."""


@pytest.mark.soak
def test_every_marker_says_to_guild_what_it_says_here(cli: Cli, site: Site, guild: Guild) -> None:
    names = dict(zip(MARKED, run_ids(len(MARKED)), strict=True))
    for name, files in MARKED.items():
        run = write_run(site.home, names[name])
        (run / ".guild/attrs/exit_status").unlink()
        for file, text in files.items():
            place = run / ".guild" / ("attrs" if file.islower() else "") / file
            place.write_text(text + "\n" if file.islower() else text)
    ours = {each["id"]: each["status"] for each in cli("runs", "-a", "--json", *site.words).json}
    theirs = {run: each["status"] for run, each in guild.rows(site.home).items()}
    assert {name: ours[run] for name, run in names.items()} == {name: theirs[run] for name, run in names.items()}
