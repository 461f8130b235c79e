"""run, watch and stop: here, in another home, and on a host behind a real sshd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guildsync.compute.executor import LocalExecutor
from guildsync.model.ports import Order
from guildsync.model.run import RunId
from tests.cli.conftest import Cli, configure, environment
from tests.kit.guild import Guild
from tests.kit.sshd import Client, Sshd
from tests.kit.training import Site, ended, status_of
from tests.kit.trees import assert_same, run_ids, write_run
from tests.kit.waiting import until


def test_a_script_with_globals(cli: Cli, site: Site, project: Path) -> None:
    words = ["run", "train.py", "lr=0.1", "-l", "the label", "-t", "one", "-t", "two", *site.words]
    said = cli(*words)
    assert (said.code, said.out) == (0, "lr: 0.1\nloss: 0.25\n"), said.err
    assert said.err == f"run {site.run.name} on {site.words[1] if site.words else 'local'}\n"
    (row,) = cli("runs", "--json", *site.words, "-F", "loss = 0.25").json
    assert row["id"] == site.run.name
    assert row["operation"] == "train.py"
    assert (row["status"], row["exit_status"], row["label"]) == ("completed", 0, "the label")
    assert row["tags"] == ["one", "two"]
    assert row["flags"] == {"lr": 0.1, "name": "none"}
    assert (site.run / "model.pt").stat().st_size == 5120
    assert (site.run / "train.py").read_bytes() == (project / "train.py").read_bytes()
    assert (site.run / "package/part.py").exists()
    assert not (site.run / "debug.log").exists()
    assert not (site.run / ".git").exists()
    assert (site.run / ".guild/attrs/vcs_commit").read_text().strip().endswith("*")


def test_arguments_modules_and_commands(cli: Cli, site: Site) -> None:
    assert cli("run", "options.py", "lr=0.1", *site.words, "--", "a", "b").out == "lr is 0.1, rest is ['a', 'b']\n"
    assert cli("run", "-m", "package.part", "lr=2", *site.words).out == "part: 2.0\n"
    said = cli("run", *site.words, "--", "sh", "-c", 'printf "%s|" "$@"', "x", "a b", "*", "--", "$HOME")
    assert said.out == "a b|*|--|$HOME|"
    rows = cli("runs", "--json", *site.words).json
    assert [row["operation"] for row in rows] == ["sh", "package.part", "options.py"]


@pytest.mark.parametrize(
    ("program", "code", "status"),
    [
        ("exit 3", 3, "error"),
        ("exit 0", 0, "completed"),
        ("kill -TERM $$", 143, "terminated"),
        ("kill -9 $$", 137, "terminated"),
    ],
)
def test_the_exit_code_is_the_runs(cli: Cli, site: Site, program: str, code: int, status: str) -> None:
    said = cli("run", *site.words, "--", "sh", "-c", f"echo out; echo err >&2; {program}")
    assert said.code == code
    assert sorted(said.out.split()) == ["err", "out"]
    assert status_of(site.run) == status
    assert cli("watch", *site.words).code == code


def test_staged_and_started(cli: Cli, site: Site) -> None:
    said = cli("run", "train.py", "lr=0.1", "--stage", *site.words)
    assert said.code == 0
    run = site.run.name
    assert said.out.startswith(f"Staged {run[:8]} on ")
    assert f"guildsync run --start {run[:8]}" in said.out
    assert status_of(site.run) == "staged"
    assert cli("runs", "--json", *site.words).json[0]["status"] == "staged"
    assert cli("runs", "-Ss", "--json", *site.words).json != []
    said = cli("run", "--start", run[:6], *site.words)
    assert (said.code, said.out) == (0, "lr: 0.1\nloss: 0.25\n")
    assert status_of(site.run) == "completed"
    said = cli("run", "--start", run[:6], *site.words)  # it is never started twice
    assert (said.code, said.out) == (0, "lr: 0.1\nloss: 0.25\n")
    assert len(site.runs) == 1
    said = cli("run", "--start", run[:6], "--no-wait", *site.words)
    assert said.out.startswith(f"{run[:8]} was started before; `guildsync watch {run[:8]}")
    said = cli("run", "--start", "f0f0f0f0", *site.words)
    assert said.code == 3


TWICE = """\
import os
print(len(os.listdir()))
open(str(os.getpid()), "w").close()
exit(os.path.exists("fixed") - 1)
"""


def test_restarted(cli: Cli, site: Site, project: Path) -> None:
    """In its directory, which has what it wrote; once, however often that is asked."""
    (project / "twice.py").write_text(TWICE)
    said = cli("run", "twice.py", *site.words)
    assert said.code == 255
    run = site.run
    assert cli("run", "--start", run.name, *site.words).code == 255
    (run / "fixed").touch()
    before = cli("runs", "--json", *site.words).json[0]
    said = cli("run", "--restart", run.name[:8], *site.words)
    assert (said.code, said.out) == (0, f"{len(os.listdir(run)) - 1}\n"), said.err
    (row,) = cli("runs", "--json", *site.words).json
    assert (row["status"], row["exit_status"]) == ("completed", 0)
    assert row["started"] > before["started"]
    assert len((run / ".guild/output").read_text().splitlines()) == 2
    assert (run / ".guild/output.index").stat().st_size == 18
    said = cli("run", "--restart", run.name, "train.py", *site.words)
    assert said.code == 2


def test_what_runs_is_not_restarted(cli: Cli, site: Site) -> None:
    cli("run", "waiting.py", "--no-wait", *site.words)
    run = site.began()
    said = cli("run", "--restart", run.name, *site.words)
    assert (said.code, said.out) == (6, "")
    assert "stop it first" in said.err
    assert cli("stop", "-y", *site.words).code == 0
    (run / "go").touch()
    said = cli("run", "--restart", run.name, *site.words)
    assert (said.code, said.out) == (0, "begun\ndone")
    assert (run / "pids").read_text().count("\n") == 2


def test_a_restart_that_is_asked_for_many_times_is_one(cli: Cli, site: Site) -> None:
    if site.words[1:] == ("gpu",):
        pytest.skip("the executor is the same")
    cli("run", "waiting.py", "--stage", *site.words)
    run = site.run
    (run / "go").touch()
    assert cli("run", "--start", run.name, *site.words).code == 0
    (run / "go").unlink()
    after = int((run / ".guild/attrs/started").read_text())
    executor = LocalExecutor(os.fsencode(site.home / "runs"))
    order = Order((sys.executable, "waiting.py"), after=after)
    with ThreadPoolExecutor(8) as pool:
        asked = list(pool.map(lambda _: attempt(executor, run.name, order), range(8)))
    assert asked.count(True) == 1
    assert asked.count(False) == 7
    (run / "go").touch()
    assert cli("watch", *site.words).code == 0
    assert (run / "pids").read_text().count("\n") == 2
    assert attempt(executor, run.name, order) is False  # also when it has ended


def attempt(executor: LocalExecutor, run: str, order: Order) -> bool:
    return executor.start(RunId(run), order)


def test_detached_watched_and_stopped(cli: Cli, site: Site) -> None:
    said = cli("run", "waiting.py", "--no-wait", *site.words)
    assert said.code == 0
    run = site.began()
    assert f"guildsync watch {run.name[:8]}" in said.out
    assert cli("runs", "-Sr", "--json", *site.words).json[0]["id"] == run.name
    refused = cli("delete", run.name, "-y", *site.words)
    assert refused.code in (6, 7)
    assert run.exists()
    (run / "go").touch()
    said = cli("watch", *site.words)
    assert (said.code, said.out) == (0, "begun\ndone")
    assert cli("watch", run.name[:8], "--tail", "1", *site.words).out == "done"
    assert cli("watch", run.name[:8], "--tail", "2", *site.words).out == "begun\ndone"
    assert cli("watch", run.name[:8], "--tail", "0", *site.words).out == ""
    assert cli("watch", run.name[:8], "--tail", "99", *site.words).out == "begun\ndone"
    assert (run / "pids").read_text().count("\n") == 1


def test_stop(cli: Cli, site: Site) -> None:
    cli("run", "waiting.py", "--stage", *site.words)
    said = cli("stop", "-y", *site.words)
    assert (said.code, said.out.startswith("Nothing to stop")) == (0, True)
    cli("run", "--start", site.run.name, "--no-wait", *site.words)
    run = site.began()
    said = cli("stop", *site.words)
    assert said.code == 2
    assert "--yes answers" in said.err
    assert status_of(run) == "running"
    said = cli("stop", "--dry-run", *site.words)
    assert (said.code, said.out.startswith("Would stop 1 run on ")) == (0, True)
    said = cli("stop", "-y", *site.words)
    assert (said.code, said.out.startswith("Stopped 1 run on ")) == (0, True)
    assert status_of(run) == "terminated"
    assert cli("watch", *site.words).code == 143
    assert cli("runs", "stop", run.name[:8], "-y", *site.words).out.startswith("Nothing to stop")
    assert cli("stop", "-y", "ffffffff", *site.words).code == 3


def test_json(cli: Cli, site: Site) -> None:
    said = cli("run", "waiting.py", "--stage", "--json", *site.words)
    run = site.run.name
    assert said.json == {"id": run, "remote": site.words[1] if site.words else "local", "status": "staged"}
    assert cli("run", "--start", run, "--no-wait", "--json", *site.words).json["status"] == "running"
    site.began()
    assert cli("stop", "-y", "--json", *site.words).json["runs"] == [run]
    assert cli("run", "waiting.py", "--json", *site.words).code == 2
    assert len(site.runs) == 1


def test_variables_and_gpus(cli: Cli, site: Site) -> None:
    program = 'printf "%s|" "$A" "$CUDA_VISIBLE_DEVICES" "$PYTHONUNBUFFERED"'
    said = cli("run", "--env", "A=x=y z", "--gpus", "0,1", *site.words, "--", "sh", "-c", program)
    assert said.out == "x=y z|0,1|1|", said.err
    for bad in (["--env", "A"], ["--env", "1=2"], ["--secret", "NOT_THERE"], ["--gpus", "0", "--stage"]):
        said = cli("run", "train.py", *bad, *site.words)
        assert (said.code, said.out) == (2, "")
    assert len(site.runs) == 1


LEAK = """\
import os, time
print(len(os.environ["MY_TOKEN"]), flush=True)
while not os.path.exists("go"):
    time.sleep(0.02)
"""


def test_a_secret_is_nowhere_but_in_the_process(
    cli: Cli, site: Site, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "canary-8f2e9c" * 3
    (project / "leak.py").write_text(LEAK)
    monkeypatch.setenv("MY_TOKEN", secret)
    command = [sys.executable, "-m", "guildsync", "run", "leak.py", "--secret", "MY_TOKEN", *site.words]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"%d\n" % len(secret)
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            assert secret.encode() not in words
        assert_nowhere(tmp_path, secret)
        (site.run / "go").touch()
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0
        assert secret.encode() not in out + err
    assert_nowhere(tmp_path, secret)


def assert_nowhere(directory: Path, secret: str) -> None:
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert secret.encode() not in path.read_bytes(), path


def test_what_cannot_be_run(cli: Cli, site: Site, project: Path) -> None:
    for words, code, text in (
        (["none.py"], 3, "there is no none.py"),
        (["train.py", "rate=1"], 2, "no global 'rate'"),
        (["train.py", "lr=abc"], 2, "does not fit"),
        (["train.py", "word"], 2, "is no flag"),
        (["debug.log"], 2, "ignored"),
        (["-m", "a-b"], 2, "cannot be the name of a module"),
        ([], 2, "nothing to run"),
        (["train.py", "--stage", "--no-wait"], 2, "--stage"),
        (["train.py", "--start", "1"], 2, "--start"),
        (["--start", "1", "--stage"], 2, "--start"),
        (["--start", "1", "-l", "x"], 2, "--start"),
    ):
        said = cli("run", *words, *site.words)
        assert said.code == code, (words, said)
        assert text in said.err
    assert site.runs == []
    (project / "broken.py").write_text("x = (\n")
    said = cli("run", "broken.py", *site.words)
    assert (said.code, site.runs) == (2, [])
    said = cli("run", *site.words, "--", "./no-such-program")
    assert (said.code, status_of(site.run)) == (127, "error")
    assert "cannot start ./no-such-program: there is no such program" in said.out


def test_a_home_that_is_a_store_starts_nothing(cli: Cli, project: Path, tmp_path: Path) -> None:
    for argv in (["run", "train.py"], ["watch"], ["stop"], ["run", "--start", "1"]):
        said = cli(*argv, "-r", "bucket")
        assert (said.code, said.out) == (2, ""), said
        assert "nothing can be started at" in said.err
        assert "run " not in said.err.splitlines()[0]
    assert not list((tmp_path / "bucket").glob("*"))
    assert cli("run", "train.py", "-r", "nothing").code == 3


def test_pulled_at_the_end(cli: Cli, elsewhere: Site, tmp_path: Path) -> None:
    said = cli("run", "train.py", "lr=0.1", "--pull", "-l", "x", *elsewhere.words)
    assert (said.code, said.out) == (0, "lr: 0.1\nloss: 0.25\n")
    here = tmp_path / "guild/runs" / elsewhere.run.name
    assert_same(elsewhere.run, here)
    (row,) = cli("runs", "--json", "-F", "loss = 0.25").json
    assert (row["status"], row["label"]) == ("completed", "x")
    assert cli("run", "--pull", *elsewhere.words, "--", "false").code == 1
    assert cli("run", "train.py", "--pull").code == 2


def test_pulled_while_it_runs(cli: Cli, elsewhere: Site, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "guildsync", "run", "waiting.py", "--pull", *elsewhere.words]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        run = elsewhere.began()
        here = tmp_path / "guild/runs" / run.name
        until(lambda: (here / ".guild/output").exists() and (here / ".guild/output").read_bytes(), "the output here")
        assert status_of(here) == "running"
        (run / "go").touch()
        out, err = child.communicate(timeout=60)
        assert (child.returncode, out) == (0, b"begun\ndone"), err
    assert_same(run, here)
    assert status_of(here) == "completed"


def test_pull_and_push_leave_what_runs_there_alone(cli: Cli, elsewhere: Site, tmp_path: Path) -> None:
    """P3."""
    cli("run", "waiting.py", "--no-wait", *elsewhere.words)
    run, name = elsewhere.began(), elsewhere.words[1]
    assert cli("pull", name).code == 0
    here = tmp_path / "guild/runs" / run.name
    assert status_of(here) == "running"
    (here / "waiting.py").write_text("changed here\n")
    with (run / "log").open("w") as file:
        file.write("it writes on\n")
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(run.rglob("*")) if path.is_file()}
    cli("push", name)
    before.pop(run / ".guild/sync/heartbeat")
    for path, was in before.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == was, path
    (run / "go").touch()
    said = cli("watch", *elsewhere.words)
    assert (said.code, said.out) == (0, "begun\ndone")
    assert status_of(run) == "completed"


@pytest.mark.parametrize("pulls", [False, True])
def test_ctrl_c_detaches(cli: Cli, elsewhere: Site, pulls: bool) -> None:
    more = ["--pull"] if pulls else []
    command = [sys.executable, "-m", "guildsync", "run", "waiting.py", *more, *elsewhere.words]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        run = elsewhere.run
        os.killpg(child.pid, signal.SIGINT)
        out, err = child.communicate(timeout=10)
    assert (child.returncode, out) == (130, b""), err
    last = f"note: the run goes on; `guildsync watch {run.name[:8]} {' '.join(elsewhere.words)}` follows it again"
    assert err.decode().splitlines()[1:] == [last]
    assert status_of(run) == "running"
    (run / "go").touch()
    assert cli("watch", run.name[:8], *elsewhere.words).out == "begun\ndone"


def test_nobody_reads_what_it_prints(cli: Cli, site: Site) -> None:
    """As with `| head -1`: following ends, and the run does not."""
    program = "import time\nfor n in range(200): print(n, flush=True); time.sleep(0.02)"
    command = [sys.executable, "-m", "guildsync", "run", *site.words, "--", sys.executable, "-c", program]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"0\n"
        child.stdout.close()
        assert child.stderr is not None
        err = child.stderr.read().decode()
        child.wait(60)
    assert "Traceback" not in err
    assert cli("watch", *site.words).out.splitlines() == [str(n) for n in range(200)]


def test_watch_names_one_run_that_was_started(cli: Cli, site: Site) -> None:
    assert cli("watch", *site.words).code == 3
    cli("run", "train.py", "--stage", *site.words)
    said = cli("watch", *site.words)
    assert (said.code, said.out) == (2, "")
    assert f"guildsync run --start {site.run.name[:8]}" in said.err
    cli("run", "train.py", "--stage", *site.words)
    assert cli("watch", "1:2", *site.words).code == 2


def test_watch_of_a_run_of_guilds(cli: Cli, site: Site) -> None:
    (run,) = run_ids(1)
    output = b"".join(b"%d\n" % n for n in range(1000))
    write_run(site.home, run, {".guild/output": output})
    assert cli("watch", *site.words).out.encode() == output
    assert cli("watch", "--tail", "3", *site.words).out == "997\n998\n999\n"


# -- the environment of a host


def test_a_virtual_environment_init_and_variables(cli: Cli, project: Path, tmp_path: Path, ssh_user: Client) -> None:
    venv = tmp_path / "a venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=120)
    configure(tmp_path, venv_path=f"'{venv}'", init="'export GREETING=\"hello $WHO\"'", env="{WHO: world}")
    (project / "where.py").write_text("import os, sys\nprint(sys.prefix, os.environ['GREETING'], os.environ['WHO'])\n")
    with ended(Site(("-r", "gpu"), tmp_path / "far")):
        said = cli("run", "where.py", "-r", "gpu")
        assert (said.code, said.out) == (0, f"{venv} hello world world\n"), said.err
        assert cli("run", "where.py", "--env", "WHO=you", "-r", "gpu").out == f"{venv} hello you you\n"


@pytest.mark.parametrize("keys", [{"venv_path": "/nothing/here"}, {"init": "'false'"}])
def test_an_environment_that_is_not_there(
    cli: Cli, project: Path, tmp_path: Path, ssh_user: Client, keys: dict[str, str]
) -> None:
    configure(tmp_path, **keys)
    with ended(Site(("-r", "gpu"), tmp_path / "far")) as site:
        said = cli("run", "train.py", "-r", "gpu")
        assert said.code > 0
        step = "activate" if "venv_path" in keys else "init"
        assert f"guildsync: {step} failed" in said.out
        assert "lr:" not in said.out
        assert status_of(site.run) == "error"


def test_a_host_that_cannot_be_reached(
    cli: Cli, project: Path, tmp_path: Path, ssh_user: Client, ssh_host: Sshd
) -> None:
    configure(tmp_path)
    ssh_user.blocks.clear()
    ssh_user.add("far", ssh_host, Port="1")
    for argv in (["run", "train.py"], ["watch"], ["stop"], ["run", "--start", "1"]):
        said = cli(*argv, "-r", "gpu")
        assert (said.code, said.out) == (5, ""), said
    assert not (tmp_path / "far/runs").exists()


@pytest.mark.soak
def test_guild_lists_what_was_run(cli: Cli, elsewhere: Site, guild: Guild, tmp_path: Path) -> None:
    """On both ends."""
    words = elsewhere.words
    assert cli("run", "train.py", "lr=0.1", "-l", "the label", "-t", "one", "--pull", *words).code == 0
    assert cli("run", "--pull", *words, "--", "sh", "-c", "exit 3").code == 3
    assert cli("run", "--pull", *words, "--", "sh", "-c", "kill $$").code == 143
    assert cli("run", "train.py", "--stage", *words).code == 0
    assert cli("run", "waiting.py", "--no-wait", *words).code == 0
    until(lambda: [run for run in elsewhere.runs if (run / "pids").exists()], "the start")
    assert cli("pull", words[1]).code == 0
    for home, where in ((elsewhere.home, words), (tmp_path / "guild", ())):
        ours = {row["id"]: row for row in cli("runs", "-a", "--json", *where).json}
        theirs = guild.rows(home)
        assert sorted(row["status"] for row in theirs.values()) == sorted(
            ("completed", "error", "running", "staged", "terminated")
        )
        assert theirs.keys() == ours.keys()
        for run, row in theirs.items():
            assert row["status"] == ours[run]["status"]
            assert row["label"] == ours[run]["label"]
            assert row["tags"] == sorted(ours[run]["tags"])
            assert (row["started"] is None) == (row["status"] == "staged")
        (run,) = (run for run, row in theirs.items() if row["status"] == "completed")
        said = guild(home, "runs", "info", run)
        for line in ("operation: train.py", "lr: 0.1", "loss: 0.250000", "exit_status: 0", "label: the label"):
            assert line in said, said
