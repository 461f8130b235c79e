"""One supervisor, one training process: started once, its output whole, its end told, whoever dies meanwhile."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from guildsync.compute.claim import Claim
from guildsync.compute.local import Launched, launch, stop_run
from guildsync.compute.process import KILLED, TERMINATED, Stopped
from guildsync.compute.spec import Spec
from guildsync.errors import Damaged, GuildsyncError, NotFound, SafetyStop, Unreachable, Usage
from guildsync.procinfo import Identity, Started, identity, is_alive
from tests.kit.trained import Trained
from tests.kit.trees import noise
from tests.kit.waiting import until

ROOT = Path(__file__).parents[2]
NewRun = Callable[[], Trained]

COUNT = (
    "import os\nfd = os.open('count', os.O_WRONLY | os.O_CREAT | os.O_APPEND)\nos.write(fd, b'%d\\n' % os.getpid())\n"
)
FOREVER = "import time\nwhile True: time.sleep(60)\n"
READY = "open('ready', 'w').close()\n"


def began(run: Trained) -> int:
    """How many training processes of the run ever began."""
    count = run.path / "count"
    return len(count.read_text().split()) if count.exists() else 0


# -- from start to end


def test_a_run_from_start_to_end(run: Trained) -> None:
    for marker in ("STAGED", "PENDING"):
        (run.path / ".guild" / marker).touch()
    before = time.time_ns() // 1000
    program = READY + "import sys, time, os\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('bye')\n"
    launched = run.start(program)
    assert not launched.already
    run.wait_for("ready")
    assert (run.status, run.is_alive) == ("running", True)
    assert run.started == launched.started
    assert {path.name for path in (run.path / ".guild").iterdir()} == {
        *("attrs", "LOCK", "output", "output.index", "sync")
    }
    assert (run.path / ".guild/LOCK").read_text() == str(launched.started.supervisor.pid)
    assert before <= int(run.attr("started")) <= time.time_ns() // 1000
    (run.path / "go").touch()
    assert run.wait() == 0
    assert run.status == "completed"
    assert int(run.attr("started")) < int(run.attr("stopped")) <= time.time_ns() // 1000
    assert run.attr("exit_status") == "0\n"
    assert run.output == b"bye\n"
    assert not (run.path / ".guild/LOCK").exists()
    assert json.loads(run.sync("ended").read_bytes())["exit_status"] == 0
    assert {path.name for path in run.sync("").iterdir()} == {
        *("claim", "ended", "heartbeat", "process", "supervisor.log")
    }


@pytest.mark.parametrize(
    ("how", "expected", "status"),
    [
        ("sys.exit(0)", 0, "completed"),
        ("sys.exit(3)", 3, "error"),
        ("os.kill(os.getpid(), signal.SIGTERM)", -15, "terminated"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, "terminated"),
        ("os.abort()", -6, "terminated"),
    ],
)
def test_how_it_ended(run: Trained, how: str, expected: int, status: str) -> None:
    assert run.run(f"import os, signal, sys\n{how}\n") == expected
    assert run.status == status


def test_what_it_finds(run: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words as they are, a session of its own, nothing on stdin, no signal ignored, no descriptor of ours."""
    monkeypatch.setenv("INHERITED", "yes")
    program = (
        "import json, os, signal, sys\n"
        "said = {'argv': sys.argv[1:], 'cwd': os.getcwd(), 'pwd': os.environ['PWD'], 'stdin': sys.stdin.read(),\n"
        " 'leads': os.getsid(0) == os.getpgrp() == os.getpid(), 'env': os.environ['NAME'],\n"
        " 'inherited': os.environ['INHERITED'], 'unbuffered': os.environ['PYTHONUNBUFFERED'],\n"
        " 'fds': [fd for fd in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + fd)],\n"
        " 'ignored': open('/proc/self/status').read().partition('SigIgn:')[2].split()[0],\n"
        " 'blocked': open('/proc/self/status').read().partition('SigBlk:')[2].split()[0]}\n"
        "print(json.dumps(said))\n"
    )
    words = ("", "a b", "$(touch canary)", "'\"", "\n", "-x", "\udcff\u00e9")
    assert run.run(program, *words, env={"NAME": "\u00e9 $HOME"}) == 0
    said = json.loads(run.output)
    assert said["argv"] == list(words)
    assert said["cwd"] == said["pwd"] == str(run.path)
    assert (said["stdin"], said["leads"], said["env"], said["inherited"]) == ("", True, "\u00e9 $HOME", "yes")
    assert said["unbuffered"] == "1"
    assert said["fds"] == ["0", "1", "2"]
    assert (
        int(said["ignored"], 16) & ~(1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1) == 0
    )  # Python ignores these two
    assert int(said["blocked"], 16) == 0


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_modes_are_the_users_for_training_and_private_for_ours(run: Trained, mask: int) -> None:
    old = os.umask(0o077)
    try:
        run.run("open('made', 'w').close()\n", umask=mask)
    finally:
        os.umask(old)
    assert stat.S_IMODE((run.path / "made").stat().st_mode) == 0o666 & ~mask
    for path in (run.path / ".guild").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


# -- started once


def test_twenty_at_once_start_one(run: Trained) -> None:
    spec = run.spec(COUNT + FOREVER)
    answers: list[Launched] = []
    threads = [threading.Thread(target=lambda: answers.append(launch(spec, 120.0))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.already for answer in answers].count(False) == 1
    assert {answer.started for answer in answers} == {run.started}
    until(lambda: began(run), "its beginning")
    assert began(run) == 1
    assert stop_run(str(run.path)) == Stopped(TERMINATED)
    assert launch(spec) == Launched(answers[0].started, True)
    assert began(run) == 1
    assert run.status == "terminated"


LAUNCHER = """
import sys
sys.path.insert(0, sys.argv[1])
from guildsync.compute import local
from guildsync.compute.spec import Spec
spec = Spec.decode(sys.stdin.buffer.read())
sys.stdout.write("begin\\n")
sys.stdout.flush()
local.launch(spec)
sys.stdout.write("done\\n")
sys.stdout.flush()
"""


@pytest.mark.parametrize("when", [*range(20), "done"])
def test_whoever_launches_may_die_at_any_time(run: Trained, when: int | str) -> None:
    """It starts all the same, or can be started; once."""
    spec = run.spec(COUNT + READY + FOREVER)
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(ROOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(spec.encode())
        process.stdin.close()
        assert process.stdout.readline() == b"begin\n"
        if isinstance(when, int):
            time.sleep(random.Random(when).uniform(0, 0.12))
        else:
            assert process.stdout.readline() == b"done\n"
        process.kill()
    launch(spec)
    run.wait_for("ready")
    assert run.status == "running"
    assert began(run) == 1
    assert launch(spec).already
    assert stop_run(str(run.path), 30.0) == Stopped(TERMINATED)
    assert began(run) == 1


@pytest.mark.parametrize("cut", [0, 1, 0.5, -1])
def test_half_a_spec_starts_nothing(run: Trained, cut: float) -> None:
    data = run.spec(COUNT).encode()
    given = data[: int(len(data) * cut)] if cut == 0.5 else data[: int(cut)]
    program = "import sys;sys.path.insert(0,sys.argv[1]);from guildsync.compute.supervisor import main;main()"
    ran = subprocess.run(
        [sys.executable, "-c", program, str(ROOT)], input=given, stdout=subprocess.PIPE, timeout=60, check=True
    )
    assert json.loads(ran.stdout)["error"] == "Usage"
    assert not run.sync("").exists()
    assert not launch(run.spec(COUNT)).already


DYING = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from guildsync.compute import supervisor
from guildsync.compute.spec import Spec
calls, at, me = 0, int(sys.argv[2]), os.getpid()
def counted(real):
    def call(*args, **more):
        global calls
        if os.getpid() == me:
            calls += 1
            if calls == at:
                os.kill(me, signal.SIGKILL)
        return real(*args, **more)
    return call
names = "open write fsync replace unlink mkdir utime fork pipe close read pwrite ftruncate dup2"
for name in names.split():
    setattr(os, name, counted(getattr(os, name)))
spec = Spec.decode(sys.stdin.buffer.read())
supervisor.supervise(spec, 0o22)
print("not reached" if calls < at else "", end="", file=sys.stderr)
"""


def dies(spec: Spec, at: int) -> bool:
    """At its call number `at`; False where it makes fewer, and lives."""
    ran = subprocess.run(
        [sys.executable, "-S", "-c", DYING, str(ROOT), str(at)],
        input=spec.encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode in (0, -signal.SIGKILL), ran.stderr
    assert ran.returncode != 0 or ran.stderr == b""
    return ran.returncode != 0


def test_the_supervisor_may_die_at_any_call(new_run: NewRun) -> None:
    """Before its process was let go, another one may start the run, or it is lost; never are there two, nor a run that
    is said to run and does not."""
    seen = set()
    for at in range(1, 200):
        run = new_run()
        (run.path / ".guild/STAGED").touch()
        spec = run.spec(COUNT)
        if not dies(spec, at):
            break
        until(lambda run=run: not run.is_alive, "the end of what it left")  # type: ignore[misc]
        before = run.status
        assert before in ("staged", "lost", "completed"), at
        answer = launch(spec)
        run_again = not answer.already
        assert run_again == (before == "staged"), (at, before)
        until(lambda run=run: not run.is_alive, "its end")  # type: ignore[misc]
        assert began(run) <= 1, at
        assert run.status == ("completed" if run_again else before), at
        seen.add(before)
    else:
        raise AssertionError("it makes more calls than expected")
    assert seen == {"staged", "lost", "completed"}


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.soak), 5])
def test_the_supervisor_of_a_restart_may_die_at_any_call(new_run: NewRun, step: int) -> None:
    """It is started once more for each time that this is asked, or said to be lost."""
    seen = set()
    for at in range(1, 250, step):
        run = new_run()
        assert run.run(COUNT) == 0
        spec = run.spec(COUNT, after=int(run.attr("started")))
        if not dies(spec, at):
            break
        until(lambda run=run: not run.is_alive, "the end of what it left")  # type: ignore[misc]
        before, began_before = run.status, began(run)
        assert before in ("lost", "completed"), at
        run_again = not launch(spec).already
        until(lambda run=run: not run.is_alive, "its end")  # type: ignore[misc]
        assert began(run) == began_before + run_again, at
        assert began(run) <= 2, (at, before)
        assert run.status == ("completed" if run_again else before), at
        seen.add((before, run_again))
    else:
        raise AssertionError("it makes more calls than expected")
    assert seen >= {("completed", True), ("completed", False)}
    assert step > 1 or ("lost", False) in seen


def test_a_claim_without_a_process_is_no_start(run: Trained) -> None:
    run.sync("").mkdir()
    run.sync("claim").touch()
    run.sync("process.new").write_bytes(b"half")
    assert run.run(COUNT) == 0
    assert began(run) == 1


def test_who_comes_while_another_start_hangs_is_told(run: Trained) -> None:
    first, second = Claim(str(run.path)), Claim(str(run.path))
    assert first.take() is None
    with pytest.raises(Unreachable, match="another start"):
        second.take(0.2)
    first.close()
    assert second.take(0.2) is None
    second.close()


def test_what_was_started_otherwise_is_not_started(new_run: NewRun) -> None:
    run = new_run()
    (run.path / ".guild/LOCK").write_text(str(os.getpid()))
    with pytest.raises(SafetyStop, match=f"process {os.getpid()} says"):
        run.start(COUNT)
    run = new_run()
    (run.path / ".guild/attrs").mkdir()
    (run.path / ".guild/attrs/exit_status").write_text("0\n")
    with pytest.raises(SafetyStop, match="has ended"):
        run.start(COUNT)
    run = new_run()
    run.sync("").mkdir()
    run.sync("process").write_text("{}")
    with pytest.raises(Damaged, match="cannot be read"):
        run.start(COUNT)
    with pytest.raises(NotFound, match="no run in"):
        launch(replace(run.spec(COUNT), run=str(run.path / "not")))
    assert began(run) == 0


def test_a_link_in_the_way_is_not_followed(run: Trained, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    run.sync("").symlink_to(outside)
    with pytest.raises(NotFound):
        run.start(COUNT)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"argv": ()},
        {"argv": ("",)},
        {"argv": ("a\0b",)},
        {"argv": ("\ud800",)},
        {"run": "relative"},
        {"env": {"a=b": "c"}},
        {"env": {"": "c"}},
        {"secrets": {"A": "s3cret\0"}},
        {"shell": "fish"},
        {"umask": -1},
    ],
)
def test_what_cannot_be_run_is_refused_without_saying_what_it_is(run: Trained, bad: dict[str, object]) -> None:
    with pytest.raises(Usage, match="malformed") as caught:
        launch(replace(run.spec(COUNT), **bad))  # type: ignore[arg-type]
    assert "s3cret" not in str(caught.value)
    assert not run.sync("").exists()


# -- output


def test_ten_megabytes_of_anything_arrive_as_they_were(run: Trained) -> None:
    data = noise(1, 10 << 20).rstrip(b"\n")
    (run.path / "data").write_bytes(data)
    assert run.run("import shutil, sys\nshutil.copyfileobj(open('data', 'rb'), sys.stdout.buffer)\n") == 0
    assert run.output == data
    assert len(run.index) == data.count(b"\n") + 1


def test_output_is_there_before_its_line_ends(run: Trained) -> None:
    run.start("import sys\nsys.stdout.write('half a line')\nsys.stdout.flush()\n" + FOREVER)
    until(lambda: run.output == b"half a line", "half a line")
    assert run.index == []
    stop_run(str(run.path))
    assert run.output == b"half a line"
    assert [stream for _, stream in run.index] == [0]


def test_every_line_has_its_time_and_its_stream(run: Trained) -> None:
    program = (
        "import os, time\n"
        "said = (1, b'one\\n'), (2, b'two\\nthree\\n'), (1, b'fo'), (2, b'ur\\n'), (1, b'\\r50%\\r'), (2, b'five')\n"
        "for fd, text in said:\n"
        "    os.write(fd, text)\n"
        "    time.sleep(0.15)\n"
    )
    before = time.time_ns() // 1_000_000
    assert run.run(program) == 0
    assert run.output == b"one\ntwo\nthree\nfour\n\r50%\rfive"
    assert [stream for _, stream in run.index] == [0, 1, 1, 1, 1]
    times = [at for at, _ in run.index]
    assert times == sorted(times)
    assert before <= times[0] < times[1] == times[2] < times[3] < times[4] <= time.time_ns() // 1_000_000


def test_what_holds_the_output_after_the_end_is_not_waited_for(run: Trained) -> None:
    """Its words of the first seconds are kept; it is nobody of ours to end."""
    program = (
        "import subprocess, sys\n"
        "inner = 'import os, time; print(os.getpid(), flush=True); time.sleep(0.5); '\n"
        "inner += 'print(\"later\", flush=True); time.sleep(600)'\n"
        "subprocess.Popen([sys.executable, '-c', inner])\n"
        "import time, os\n"
        "while not os.path.exists('.guild/output') or not os.path.getsize('.guild/output'): time.sleep(0.01)\n"
    )
    assert run.run(program) == 0
    pid, said = run.output.split()
    assert said == b"later"
    assert "still hold its output" in run.log
    grandchild = identity(int(pid))
    assert grandchild is not None
    os.kill(grandchild.pid, signal.SIGKILL)


def test_a_stop_ends_what_it_left_as_well(run: Trained) -> None:
    program = (
        "import subprocess, sys\n"
        'inner = \'import os, time; open("pid", "w").write(str(os.getpid())); \'\n'
        'inner += \'os.rename("pid", "ready"); time.sleep(600)\'\n'
        "subprocess.Popen([sys.executable, '-c', inner])\n"
    )
    run.start(program + FOREVER)
    run.wait_for("ready")
    grandchild = identity(int((run.path / "ready").read_text()))
    assert grandchild is not None
    assert stop_run(str(run.path), 30.0) == Stopped(TERMINATED)
    assert not is_alive(grandchild)
    assert (run.status, run.attr("exit_status")) == ("terminated", "-15\n")


def test_a_stop_of_one_that_ignores_it(run: Trained) -> None:
    run.start("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + FOREVER)
    run.wait_for("ready")
    assert stop_run(str(run.path), 0.2) == Stopped(KILLED)
    assert (run.status, run.attr("exit_status")) == ("terminated", "-9\n")


def test_a_stop_of_one_that_has_ended_or_is_not_ours(new_run: NewRun) -> None:
    run = new_run()
    run.run("")
    assert stop_run(str(run.path)).outcome == "gone"
    assert run.attr("exit_status") == "0\n"
    run = new_run()
    with pytest.raises(NotFound):
        stop_run(str(run.path))
    with subprocess.Popen(["sleep", "600"]) as foreign:
        (run.path / ".guild/LOCK").write_text(str(foreign.pid))
        with pytest.raises(SafetyStop, match="not started by guildsync"):
            stop_run(str(run.path))
        assert foreign.poll() is None
        foreign.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_supervisor_passes_signals_on(run: Trained, number: signal.Signals) -> None:
    """As `guild stop` sends them, which knows LOCK alone."""
    program = f"import signal, sys\nsignal.signal(signal.{number.name}, lambda *_: sys.exit(5))\n"
    run.start(program + READY + FOREVER)
    run.wait_for("ready")
    os.kill(int((run.path / ".guild/LOCK").read_text()), number)
    assert run.wait() == 5


def test_a_training_that_lost_its_supervisor_runs_and_can_be_stopped(run: Trained) -> None:
    started = run.start(READY + FOREVER).started
    run.wait_for("ready")
    os.kill(started.supervisor.pid, signal.SIGKILL)
    until(lambda: not is_alive(started.supervisor), "its end")
    assert (run.status, run.is_alive) == ("running", True)
    assert launch(run.spec(COUNT)).already
    assert stop_run(str(run.path), 30.0) == Stopped(TERMINATED)
    assert run.status == "lost"


def test_the_heart_beats_whatever_the_training_does(run: Trained) -> None:
    program = (
        "import sys\nsys.path.insert(0, sys.argv[1])\nfrom guildsync.compute import supervisor\n"
        "supervisor.BEAT = 0.05\n"
        "supervisor.supervise(supervisor.Spec.decode(sys.stdin.buffer.read()), 0o22)\n"
    )
    spec = run.spec(READY + FOREVER)
    with subprocess.Popen([sys.executable, "-c", program, str(ROOT)], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(spec.encode())
        process.stdin.close()
        run.wait_for("ready")
        os.utime(run.sync("heartbeat"), (1, 1))
        until(lambda: run.sync("heartbeat").stat().st_mtime > 1, "a heartbeat")
        stop_run(str(run.path))


# -- what cannot be started


def test_a_program_that_is_not_there(new_run: NewRun) -> None:
    run = new_run()
    assert run.execute("no-such-python", "train.py") == 127
    assert run.output == b"guildsync: cannot start no-such-python: there is no such program on the PATH\n"
    assert (run.status, [stream for _, stream in run.index]) == ("error", [1])
    run = new_run()
    assert run.execute("/no/such/python") == 127
    assert run.output == b"guildsync: cannot start /no/such/python: there is no such program\n"


def test_a_script_that_cannot_be_executed(new_run: NewRun) -> None:
    run = new_run()
    (run.path / "tool").write_text("#!/no/such/interpreter\n")
    assert run.execute("./tool") == 126
    assert run.output == b"guildsync: cannot start ./tool: Permission denied\n"
    run = new_run()
    (run.path / "tool").write_text("#!/no/such/interpreter\n")
    (run.path / "tool").chmod(0o755)
    assert run.execute("./tool") == 127
    assert run.output == b"guildsync: cannot start ./tool: the interpreter that its first line names is not there\n"


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_init_and_activate_prepare_what_the_program_finds(run: Trained, shell: str) -> None:
    (run.path / "activate").write_text("false\nexport B='b b'\n")
    program = "import os, sys\nprint(os.environ['A'], os.environ['B'], sys.argv[1:], os.getpid() == os.getsid(0))\n"
    spec = run.spec(program, "$A", "it's", "", init="A=a\nexport A\n", activate=". ./activate", shell=shell)
    launch(spec)
    assert run.wait() == 0
    assert run.output == b"a b b ['$A', \"it's\", ''] True\n"


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize(
    ("init", "activate", "step"),
    [
        ("false\necho not reached", None, "init"),
        ("no-such-command", None, "init"),
        ("exit 0", None, "init"),
        ("echo 'open", None, "init"),
        ("if true; then", None, "init"),
        (": ; }", None, "init"),
        (None, ". ./no-such-activate", "activate"),
        (None, "no-such-conda activate x", "activate"),
        (None, "exit 0", "activate"),
        ("true", 'echo "open', "activate"),
    ],
)
def test_a_broken_preparation_is_an_error(
    run: Trained, shell: str, init: str | None, activate: str | None, step: str
) -> None:
    spec = run.spec(COUNT, init=init, activate=activate, shell=shell)
    launch(spec)
    assert run.wait() > 0
    last = run.output.decode().splitlines()[-1]
    assert last.startswith(f"guildsync: {step} failed (exit status ")
    assert last.endswith("so nothing was started")
    assert b"not reached" not in run.output
    assert (run.status, began(run)) == ("error", 0)


def test_a_program_that_is_not_there_behind_an_init(run: Trained) -> None:
    assert run.execute("no-such-python", init="true") == 127
    assert b"no-such-python: not found" in run.output
    assert run.status == "error"


# -- secrets


def test_secrets_are_in_the_process_and_nowhere_else(run: Trained, tmp_path: Path) -> None:
    secret = "s3cret-canary-" + "x" * 20
    program = READY + "import os, sys, time\nassert os.environ['TOKEN'].startswith('s3cret')\n"
    program += "while not os.path.exists('go'): time.sleep(0.01)\n"
    spec = run.spec(program, secrets={"TOKEN": secret}, init="true")
    assert secret not in repr(spec)
    done = threading.Event()
    hits: list[str] = []

    def look() -> None:
        while not done.is_set():
            for line in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    if secret.encode() in line.read_bytes():
                        hits.append(str(line))
                except OSError:
                    continue
            done.wait(0.01)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        started = launch(spec).started
        run.wait_for("ready")
        environ = Path(f"/proc/{started.process.pid}/environ").read_bytes()
        assert secret.encode() in environ
        assert secret.encode() not in Path(f"/proc/{started.supervisor.pid}/environ").read_bytes()
        (run.path / "go").touch()
        assert run.wait() == 0
    finally:
        done.set()
        watcher.join()
    assert hits == []
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


# -- what a listing says


def test_a_run_of_another_boot_is_lost(run: Trained) -> None:
    started = run.start(READY + FOREVER).started
    run.wait_for("ready")
    before = [Identity(each.pid, each.start, "another boot") for each in (started.supervisor, started.process)]
    real = run.sync("process").read_bytes()
    run.sync("process").write_bytes(Started(*before).encode())
    assert (run.status, run.is_alive) == ("lost", False)
    assert stop_run(str(run.path)).outcome == "gone"
    run.sync("process").write_bytes(real)
    assert (run.status, run.is_alive) == ("running", True)


def test_who_got_the_id_of_a_supervisor_is_not_it(run: Trained) -> None:
    run.sync("").mkdir()
    me = identity(os.getpid())
    assert me is not None
    dead = replace(me, start="1")
    run.sync("process").write_bytes(Started(dead, replace(dead, pid=dead.pid + 1)).encode())
    (run.path / ".guild/LOCK").write_text(str(me.pid))
    assert (run.status, run.is_alive) == ("lost", False)


def test_a_lock_of_somebody_else_is_guilds(run: Trained) -> None:
    """As when Guild AI restarts a run that was ours: its files must be left alone."""
    run.run("")
    (run.path / ".guild/attrs/exit_status").unlink()
    assert run.status == "lost"
    (run.path / ".guild/LOCK").write_text(str(os.getpid()))
    assert (run.status, run.is_alive) == ("running", True)


def test_a_lost_run_that_had_waited_is_lost(run: Trained) -> None:
    run.run("")
    (run.path / ".guild/attrs/exit_status").unlink()
    (run.path / ".guild/STAGED").touch()
    assert run.status == "lost"
    (run.path / ".guild/LOCK.remote").write_text("gpu")
    assert run.status == "running"


# -- a disk that is full


def test_a_full_disk_does_not_hold_the_training_up(small_disk: Path) -> None:
    run = Trained(small_disk / "run")
    assert run.run("import os\nfor _ in range(64): os.write(1, b'x' * 65535 + b'\\n')\nraise SystemExit(4)\n") == 4
    assert run.status == "error"
    assert "output is lost: No space left on device" in run.log
    assert 0 < len(run.output) < 256 << 10


def test_what_was_lost_is_said_when_there_is_room_again(small_disk: Path) -> None:
    run = Trained(small_disk / "run")
    (run.path / "ballast").write_bytes(bytes(120 << 10))
    program = (
        "import os, time\n"
        "os.write(1, b'a' * 200_000 + b'\\n')\n"
        "os.unlink('ballast')\n"
        "time.sleep(0.5)\n"
        "os.write(1, b'loss: 0.5\\n')\n"
    )
    assert run.run(program) == 0
    lines = run.output.splitlines()
    (said,) = [line for line in lines if line.startswith(b"guildsync: ")]
    assert said.endswith(b" bytes of output are lost: they could not be written")
    kept = sum(len(line) for line in lines if line.startswith(b"a"))
    assert kept + int(said.split()[1]) in (200_000, 200_001)
    assert lines[-1] == b"loss: 0.5"
    assert len(run.index) == len(lines)


def test_a_disk_without_any_room_starts_nothing(small_disk: Path) -> None:
    run = Trained(small_disk / "run")
    spec = run.spec(COUNT)
    ballast = run.path / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while os.statvfs(small_disk).f_bavail:
            file.write(bytes(4096))
    (run.path / ".guild/STAGED").touch()
    with pytest.raises(GuildsyncError, match="No space left"):
        launch(spec)
    assert run.status == "staged"
    ballast.unlink()
    assert not launch(spec).already
    assert run.wait() == 0
