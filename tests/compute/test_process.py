"""Signals reach the process that was meant, all it left, and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from guildsync import procinfo
from guildsync.compute.process import GONE, KILLED, TERMINATED, Stopped, signal_group, stop
from guildsync.procinfo import Identity, Started, decode_started, identity, is_alive, is_there
from tests.kit.waiting import until

Leader = Callable[[str], tuple["subprocess.Popen[bytes]", Identity]]

IGNORES = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
READY = "print('ready', flush=True)\n"
FOREVER = "import time\nwhile True: time.sleep(60)\n"


@pytest.fixture
def leader() -> Iterator[Leader]:
    """Starts a program that leads a session of its own and has said that it is ready."""
    made: list[subprocess.Popen[bytes]] = []

    def start(program: str) -> tuple[subprocess.Popen[bytes], Identity]:
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
        made.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        found = identity(child.pid)
        assert found is not None
        return child, found

    yield start
    for child in made:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.communicate()


def born(path: Path) -> int:
    """The process id that a program writes to `path`."""
    until(lambda: path.exists() and path.read_text().endswith("\n"), f"{path}")
    return int(path.read_text())


def parent(path: Path, child: str, how: str = "") -> str:
    """A program that starts another one, which writes its id to `path`."""
    said = f"open({str(path)!r}, 'w').write(str(os.getpid()) + chr(10))\n"
    inner = "import os\n" + child + said + FOREVER
    return f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {inner!r}]{how})\n"


# -- who is who


def test_this_process_is_itself() -> None:
    me = identity(os.getpid())
    assert me is not None
    assert me == Identity.from_json(me.to_json())
    assert is_alive(me)
    assert not is_alive(replace(me, start="1"))
    assert not is_alive(replace(me, boot="another"))
    assert not is_there(replace(me, boot="another"))
    assert procinfo.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.mark.parametrize("name", [b"python", b"a) R 1 1 (", b"(((", b") ) )", b"\xff\n"])
def test_the_start_stands_behind_the_last_parenthesis_whatever_the_name(name: bytes) -> None:
    line = b"42 (" + name + b") S 1 7 8 0 -1 4194304 1 0 0 0 2 1 0 0 20 0 1 0 987654 100 1 18446744073709551615"
    assert procinfo.parsed_stat(line) == procinfo.Stat(42, False, 7, 8, "987654")
    assert procinfo.parsed_stat(line.replace(b") S ", b") Z ")).zombie  # type: ignore[union-attr]


@pytest.mark.parametrize("data", [b"", b"42", b"42 (x) S", b"x (x) " + b"S " * 30])
def test_what_is_no_stat_is_none(data: bytes) -> None:
    assert procinfo.parsed_stat(data) is None


def test_a_zombie_has_ended_and_keeps_its_id(leader: Leader) -> None:
    child, who = leader(READY + FOREVER)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert (is_alive(who), is_there(who)) == (False, True)
    child.wait()
    assert (is_alive(who), is_there(who)) == (False, False)


def test_who_was_started_is_written_and_read() -> None:
    started = Started(Identity(10, "5", "b"), Identity(11, "6", "b"))
    assert decode_started(started.encode()) == started
    for bad in (b"", b"{}", b"[]", b"null", b"[" * 100_000, started.encode().replace(b'"version": 1', b'"version": 2')):
        assert decode_started(bad) is None
    for pid in (b"-1", b"0", b"1", b"true", b'"7"', b"1e3", b"4294967296"):
        assert decode_started(started.encode().replace(b"11", pid)) is None


# -- signals


def test_only_a_proven_process_is_signalled(leader: Leader) -> None:
    child, who = leader(READY + FOREVER)
    for other in (replace(who, start="1"), replace(who, boot="another")):
        assert not signal_group(other, signal.SIGKILL)
        assert stop(other, 0.0) == Stopped(GONE)
    assert child.poll() is None
    assert signal_group(who, signal.SIGTERM)
    assert child.wait(30) == -signal.SIGTERM
    assert not signal_group(who, signal.SIGTERM)


def test_one_that_listens_is_not_killed(leader: Leader) -> None:
    program = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n" + READY + FOREVER
    child, who = leader(program)
    assert stop(who, 30.0) == Stopped(TERMINATED)
    assert child.wait(30) == 7
    assert stop(who, 30.0) == Stopped(GONE)


def test_one_that_does_not_is(leader: Leader) -> None:
    child, who = leader(IGNORES + READY + FOREVER)
    assert stop(who, 0.2) == Stopped(KILLED)
    assert child.wait(30) == -signal.SIGKILL


def test_one_that_is_suspended_hears_it_too(leader: Leader) -> None:
    child, who = leader(READY + FOREVER)
    child.send_signal(signal.SIGSTOP)
    assert stop(who, 30.0) == Stopped(TERMINATED)
    assert child.wait(30) == -signal.SIGTERM


@pytest.mark.parametrize("how", ["", ", preexec_fn=__import__('os').setpgrp"], ids=["group", "session"])
@pytest.mark.parametrize("deaf", [False, True])
def test_what_it_started_goes_with_it(leader: Leader, tmp_path: Path, deaf: bool, how: str) -> None:
    """Also where the leader ends at once and a grandchild ignores TERM."""
    place = tmp_path / "pid"
    _, who = leader(parent(place, IGNORES if deaf else "", how) + READY + FOREVER)
    grandchild = identity(born(place))
    assert grandchild is not None
    assert stop(who, 0.5 if deaf else 30.0) == Stopped(KILLED if deaf else TERMINATED)
    assert not is_alive(grandchild)


def test_what_its_dead_leader_left_is_found_while_its_id_is_kept(leader: Leader, tmp_path: Path) -> None:
    place = tmp_path / "pid"
    child, who = leader(parent(place, "") + READY + "import sys\nsys.stdin.read()\n" + FOREVER)
    grandchild = identity(born(place))
    assert grandchild is not None
    os.kill(child.pid, signal.SIGKILL)
    until(lambda: not is_alive(who), "its end")
    assert stop(who, 30.0) == Stopped(TERMINATED)
    assert not is_alive(grandchild)


def test_once_its_id_is_free_nothing_proves_who_was_its(leader: Leader, tmp_path: Path) -> None:
    place = tmp_path / "pid"
    child, who = leader(parent(place, "") + READY + FOREVER)
    grandchild = identity(born(place))
    assert grandchild is not None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert stop(who, 0.1) == Stopped(GONE)
    assert is_alive(grandchild)
