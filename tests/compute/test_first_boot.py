"""What a machine is told for its first boot. moto boots nothing: the script is executed here below a root of its own,
its timer, its shutdown and what cloud-init makes of the rest are believed; the console is what the script writes."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from guildsync import procinfo
from guildsync.compute.firstboot import MOST_BYTES, SCRIPT, FirstBoot, console_keys, public_key, user_data
from guildsync.compute.firstboot import script as text_of
from guildsync.compute.pinning import new_key
from guildsync.errors import Usage
from tests.kit.machines import PUBLIC_KEY, booted, script
from tests.kit.waiting import until

AFTER = 600
PRIVATE, PUBLIC = new_key()
RUN = "0" * 32


def first(home: Path | str, after: float | None = AFTER) -> FirstBoot:
    return FirstBoot(PRIVATE, PUBLIC, PUBLIC_KEY, after, None, str(home))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "a home's"


@pytest.fixture
def root(tmp_path: Path, home: Path) -> Path:
    """A machine that has booted, whose `shutdown` leaves a file."""
    made = booted(tmp_path / "root", user_data(first(home)))
    shutdown = made / "bin" / "shutdown"
    shutdown.write_text('#!/bin/sh\necho "$@" >>"$GUILDSYNC_ROOT/was-shut-down"\n')
    shutdown.chmod(0o755)
    (made / "dev" / "pts").mkdir()
    return made


def says(root: Path, verb: str, given: bytes = b"", **more: str) -> str:
    done = script(root, verb, given, **more)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


# -- what cloud-init is told


def test_user_data_is_what_cloud_init_reads() -> None:
    text = user_data(first("~/.guild"))
    told = yaml.safe_load(text)
    assert text.startswith("#cloud-config\n")
    assert told["ssh_keys"] == {"ed25519_private": PRIVATE, "ed25519_public": PUBLIC}
    assert told["ssh_authorized_keys"] == [PUBLIC_KEY]
    assert told["ssh"] == {"emit_keys_to_console": False}
    assert ["systemctl", "enable", "--now", "guildsync-idle.timer"] in told["runcmd"]
    by_path = {file["path"]: file for file in told["write_files"]}
    assert by_path[SCRIPT]["permissions"] == "0755"
    assert f"ExecStart={SCRIPT} idle" in by_path["/etc/systemd/system/guildsync-idle.service"]["content"]
    assert len(text) < MOST_BYTES * 0.75


def test_a_machine_that_never_stops_itself() -> None:
    told = yaml.safe_load(user_data(first("~/.guild", after=None)))
    assert told["runcmd"] == []
    assert [file["path"] for file in told["write_files"]] == [SCRIPT]


def test_too_much_to_tell() -> None:
    with pytest.raises(Usage):
        user_data(FirstBoot(PRIVATE, PUBLIC, "ssh-rsa " + "A" * MOST_BYTES, None, None, "~/.guild"))


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "busybox"])
def test_the_script_is_one(shell: str, tmp_path: Path) -> None:
    (tmp_path / "script").write_text(text_of(first("/x'; touch /tmp/canary; '")))
    argv = [shell, "sh"] if shell == "busybox" else [shell]
    try:
        subprocess.run([*argv, "-n", str(tmp_path / "script")], check=True, timeout=10)
    except FileNotFoundError:
        pytest.skip(f"there is no {shell} here")


def test_words_it_does_not_know(root: Path) -> None:
    assert script(root, "nothing").returncode == 2


# -- its own key


def test_its_own_key_is_made_once_and_shown_when_it_is_told_to(root: Path) -> None:
    own = public_key(says(root, "key"))
    assert own is not None
    assert own != PUBLIC
    assert public_key(says(root, "key")) == own
    assert (root / "shown.pub").read_text().strip() == PUBLIC
    assert (root / "dev/console").read_text() == says(root, "show") == ""
    for _ in range(2):
        assert says(root, "switch") == ""
        assert public_key((root / "shown.pub").read_text()) == own
    key = root / "etc/ssh/ssh_host_ed25519_key"
    assert key.read_bytes() == (root / "var/lib/guildsync/host_key").read_bytes() != PRIVATE.encode()
    assert key.stat().st_mode & 0o777 == (root / "var/lib/guildsync/host_key").stat().st_mode & 0o777 == 0o600
    assert console_keys((root / "dev/console").read_text(), PUBLIC) == [own]
    assert public_key(says(root, "key")) == own


def test_it_shows_its_key_at_every_boot(root: Path) -> None:
    own = public_key(says(root, "key"))
    says(root, "switch")
    (root / "dev/console").write_text("")
    says(root, "show")
    assert console_keys((root / "dev/console").read_text(), PUBLIC) == [own]


def test_a_machine_without_a_console(root: Path) -> None:
    says(root, "key")
    (root / "dev/console").unlink()
    (root / "dev/console").mkdir()
    says(root, "switch")


def test_several_ask_for_its_key_at_once(root: Path) -> None:
    argv = ["sh", str(root / SCRIPT.lstrip("/")), "key"]
    environment = {**os.environ, "GUILDSYNC_ROOT": str(root)}
    asked = [subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) for _ in range(6)]
    assert len({child.communicate(timeout=30)[0] for child in asked}) == 1
    assert {child.returncode for child in asked} == {0}


def test_a_restart_that_was_interrupted_is_made_good(root: Path) -> None:
    own = public_key(says(root, "key"))
    working = (root / "bin/systemctl").read_text()
    (root / "bin/systemctl").write_text("#!/bin/sh\nexit 1\n")
    assert script(root, "switch").returncode != 0
    (root / "bin/systemctl").write_text(working)
    says(root, "switch")
    assert public_key((root / "shown.pub").read_text()) == own


# -- the console


BLOCK = "-----BEGIN SSH HOST KEY KEYS-----\r\n{0}\r\n-----END SSH HOST KEY KEYS-----\r\n"
_, OTHER = new_key()


@pytest.mark.parametrize(
    ("console", "keys"),
    [
        ("", []),
        (BLOCK.format(f"{OTHER} root@ip-10-0-0-1"), [OTHER]),
        (BLOCK.format(f"ecdsa-sha2-nistp256 AAAA x\r\n{OTHER}\r\nssh-rsa AAAA"), [OTHER]),
        (BLOCK.format(PUBLIC) + "booting\n" + BLOCK.format(OTHER), [OTHER]),
        (BLOCK.format(OTHER) + BLOCK.format(PUBLIC), [OTHER]),
        (BLOCK.format(PUBLIC), []),
        (BLOCK.format(OTHER)[:-20], []),
        (BLOCK.format(OTHER)[20:], []),
        (f"sshd: Invalid user {BLOCK.format(OTHER)!r}\n", []),
        ("[ 1.0] " + BLOCK.format(OTHER), []),
        (f"{OTHER}\n", []),
        (BLOCK.format("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI short"), []),
    ],
    ids=[str(n) for n in range(12)],  # each worker has made another key
)
def test_what_a_console_shows(console: str, keys: list[str]) -> None:
    assert console_keys(console, PUBLIC) == keys


# -- init


def test_init_runs_once_and_detached(root: Path) -> None:
    assert says(root, "state") == "waiting\n"
    lines = b"echo begun; pwd\nuntil [ -e go ]; do sleep 0.01; done\necho once >>count\n"
    for _ in range(2):
        says(root, "init", lines)
    until(lambda: says(root, "state").startswith("running"), "it runs")
    says(root, "init", b"echo other >>count\n")
    (root / "go").touch()
    until(lambda: says(root, "state").startswith("done"), "it ends")
    assert says(root, "state") == f"done\nbegun\n{root}\n"
    says(root, "init", lines)
    assert (root / "count").read_text() == "once\n"
    assert (root / "var/lib/guildsync/lines").stat().st_mode & 0o777 == 0o600


def test_several_begin_init_at_once(root: Path) -> None:
    argv = ["sh", str(root / SCRIPT.lstrip("/")), "init"]
    environment = {**os.environ, "GUILDSYNC_ROOT": str(root), "HOME": str(root)}
    asked = [subprocess.Popen(argv, stdin=subprocess.PIPE, env=environment) for _ in range(6)]
    for child in asked:
        child.communicate(b"echo once >>count\n", timeout=30)
    until(lambda: says(root, "state").startswith("done"), "it ends")
    assert (root / "count").read_text() == "once\n"


def test_init_that_fails(root: Path) -> None:
    says(root, "init", b"echo no space >&2; exit 3\n")
    until(lambda: says(root, "state") == "failed 3\nno space\n", "it failed")


def test_init_that_a_reboot_cut(root: Path) -> None:
    state = root / "var/lib/guildsync"
    state.mkdir(parents=True)
    (state / "worker").write_text(f"{os.getpid()} {procinfo.start_time(os.getpid())} another-boot\n")
    assert says(root, "state") == "failed cut\n"
    (state / "worker").write_text(f"{os.getpid()} {procinfo.start_time(os.getpid())} {procinfo.boot_id()}\n")
    assert says(root, "state") == "running\n"


def test_init_runs_as_whoever_logged_in(root: Path) -> None:
    sudo = root / "bin/sudo"
    sudo.write_text('#!/bin/sh\necho "$1 $2 $3 $4" >"$GUILDSYNC_ROOT/sudo-was-told"\nshift 4\nexec "$@"\n')
    sudo.chmod(0o755)
    (root / "bin/chown").write_text('#!/bin/sh\necho "$1" >"$GUILDSYNC_ROOT/owner"\n')
    (root / "bin/chown").chmod(0o755)
    says(root, "init", b"true\n", SUDO_USER="ubuntu")
    until(lambda: says(root, "state").startswith("done"), "it ends")
    assert (root / "sudo-was-told").read_text() == "-n -u ubuntu -H\n"
    assert (root / "owner").read_text() == "ubuntu\n"


# -- it stops itself


def idle(root: Path, seconds: float = AFTER + 60) -> bool:
    """Whether it stops where something was active so many seconds ago for the last time."""
    active = root / "run/guildsync/active"
    if not active.exists():
        says(root, "idle")
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    active.write_text(f"{int(uptime - seconds)}\n")
    says(root, "idle")
    shut = root / "was-shut-down"
    if not shut.exists():
        return False
    assert shut.read_text() == "-h now\n"
    shut.unlink()
    return True


def lock(home: Path, pid: int, run: str = RUN) -> Path:
    file = home / "runs" / run / ".guild" / "LOCK"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(str(pid))
    return file


def started(home: Path, supervisor: procinfo.Identity, process: procinfo.Identity) -> None:
    file = home / "runs" / RUN / ".guild" / "sync" / "process"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(procinfo.Started(supervisor, process).encode())


def this() -> procinfo.Identity:
    found = procinfo.identity(os.getpid())
    assert found is not None
    return found


def gone() -> procinfo.Identity:
    child = subprocess.Popen(["sleep", "60"])
    found = procinfo.identity(child.pid)
    child.kill()
    child.wait()
    assert found is not None
    return found


def test_a_machine_that_nobody_uses_stops_itself(root: Path) -> None:
    says(root, "idle")
    assert not (root / "was-shut-down").exists()
    assert not idle(root, AFTER - 60)
    assert idle(root)


def test_a_run_keeps_it(root: Path, home: Path) -> None:
    lock(home, os.getpid())
    started(home, this(), gone())
    assert not idle(root)
    assert not idle(root, 10)
    started(home, gone(), this())
    lock(home, gone().pid)
    assert not idle(root), "a training process that lost its supervisor goes on"


def test_what_was_a_run_does_not_keep_it(root: Path, home: Path) -> None:
    dead, here = gone(), this()
    for alike in (
        dead,
        procinfo.Identity(here.pid, here.start, "another boot"),
        procinfo.Identity(here.pid, "1", here.boot),
    ):
        lock(home, alike.pid)
        started(home, alike, dead)
        assert idle(root)


def test_a_zombie_does_not_keep_it(root: Path, home: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    found = procinfo.identity(child.pid)
    assert found is not None
    lock(home, child.pid)
    started(home, found, found)
    assert not idle(root)
    child.kill()
    until(lambda: not procinfo.is_alive(found), "it is a zombie")
    assert idle(root)
    child.wait()


def test_a_lock_of_guild_ai(root: Path, home: Path) -> None:
    """It keeps the machine while a process has that id which is no younger than the lock."""
    file = lock(home, os.getpid())
    assert not idle(root)
    os.utime(file, (1e9, 1e9))
    assert idle(root)
    lock(home, gone().pid)
    assert idle(root)


@pytest.mark.parametrize("content", [b"", b"x", b"-1", b"99999999999999999999999", b"$(touch canary)", b"\xff\0"])
def test_locks_that_hold_anything(root: Path, home: Path, content: bytes) -> None:
    lock(home, 0).write_bytes(content)
    (home / "runs" / RUN / ".guild" / "sync").mkdir()
    (home / "runs" / RUN / ".guild" / "sync" / "process").write_bytes(b"{pid:" + content + b",start:*}")
    done = script(root, "idle")
    assert done.returncode == 0
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    (root / "run/guildsync/active").write_text(f"{int(uptime - AFTER - 1)}\n")
    assert script(root, "idle").returncode == 0
    assert (root / "was-shut-down").exists()
    assert not list(root.rglob("canary"))


def test_a_lock_that_would_block_whoever_reads_it(root: Path, home: Path) -> None:
    file = lock(home, 0)
    file.unlink()
    os.mkfifo(file)
    assert idle(root)


def test_a_login_keeps_it_while_something_happens_there(root: Path) -> None:
    terminal = root / "dev/pts/0"
    terminal.touch()
    assert not idle(root)
    old = time.time() - AFTER - 120
    os.utime(terminal, (old, old))
    assert idle(root)
    os.utime(terminal, (time.time(), old))
    assert not idle(root), "somebody types"
    os.utime(terminal, (old, time.time()))
    assert not idle(root), "something is shown"
    terminal.unlink()
    (root / "dev/pts/ptmx").touch()
    assert idle(root)


def test_init_keeps_it(root: Path) -> None:
    says(root, "init", b"until [ -e go ]; do sleep 0.01; done\n")
    until(lambda: says(root, "state").startswith("running"), "it runs")
    assert not idle(root)
    (root / "go").touch()
    until(lambda: says(root, "state").startswith("done"), "it ends")
    assert idle(root)


def test_where_runs_lie_in_homes(tmp_path: Path) -> None:
    """Of everybody, where nobody says who logs in."""
    root = booted(tmp_path / "root", user_data(first("~/.guild")))
    (root / "bin/shutdown").write_text('#!/bin/sh\necho "$@" >>"$GUILDSYNC_ROOT/was-shut-down"\n')
    (root / "bin/shutdown").chmod(0o755)
    assert idle(root)
    lock(root / "home/somebody/.guild", os.getpid())
    assert not idle(root)


def test_json_is_told_on_one_line() -> None:
    head, _, rest = user_data(first("~")).partition("\n")
    assert head == "#cloud-config"
    assert json.loads(rest)
