"""Processes on the machine where this runs, and what it is: its Python, its GPUs, whether it ends what people start."""

from __future__ import annotations

import configparser
import getpass
import glob
import json
import os
import platform
import select
import subprocess
import sys
import time
from typing import Any, Iterator, List, NamedTuple, Optional, Tuple

from guildsync import errors
from guildsync.compute.claim import started_in
from guildsync.compute.process import GONE, PATIENCE, Stopped, stop
from guildsync.compute.spec import Spec
from guildsync.errors import GuildsyncError, NotFound, SafetyStop, Unreachable
from guildsync.model.ports import Step
from guildsync.procinfo import Started, is_alive

_LOGIND = ("/etc/systemd/logind.conf", "/etc/systemd/logind.conf.d/*.conf", "/usr/lib/systemd/logind.conf.d/*.conf")
_LINGER = "/var/lib/systemd/linger"
_DEADLINE = 10.0
_LAST_WORDS = 10.0  # seconds that a supervisor may take to write down how its process ended
_POLL = 0.05
_SUPERVISOR = "import sys;sys.path.insert(0,sys.argv[1]);from guildsync.compute.supervisor import main;main()"


class Launched(NamedTuple):
    """Who runs a run. `already`: this was so before, or it has run; nothing was started."""

    started: Started
    already: bool


def launch(spec: Spec, deadline: float = 30.0) -> Launched:
    """Starts a supervisor of its own session for a run. However often and from wherever this is called, a run's
    training process is started once at most: who does not know whether it was, asks again.

    Raises Unreachable where no answer comes within `deadline` seconds (the run may start all the same), and whatever
    the supervisor answers.
    """
    place = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    argv = [sys.executable or "python3", "-I", "-S", "-c", _SUPERVISOR, place]
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as exc:
        raise NotFound(f"cannot start {argv[0]}: {exc.strerror}") from exc
    with process:  # it ends when it has read: what goes on is its child
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(spec.encode())
            process.stdin.close()
        except BrokenPipeError:
            pass  # it says why
        try:
            said = _first_line(process.stdout.fileno(), deadline)
        except Unreachable:
            process.kill()  # where it has not begun, it never will
            raise
    return _launched(said)


def stop_run(run: str, patience: float = PATIENCE) -> Stopped:
    """Ends what runs in a run directory, if a supervisor of ours started it, and waits for its exit status to be
    written down. Raises NotFound where nothing was started, SafetyStop where something else did."""
    started = started_in(run)
    if started is None:
        if os.path.lexists(os.path.join(run, ".guild", "LOCK")):
            raise SafetyStop(
                "it was not started by guildsync: no process is proven to be its", "stop it as it was started"
            )
        raise NotFound("nothing was started in this run")
    found = stop(started.process, patience)
    deadline = time.monotonic() + _LAST_WORDS
    while found.outcome != GONE and is_alive(started.supervisor) and time.monotonic() < deadline:
        time.sleep(_POLL)
    return found


def _first_line(fd: int, deadline: float) -> bytes:
    """All that is said up to a line that is JSON, or to the end."""
    end, said = time.monotonic() + deadline, b""
    while not said.rpartition(b"\n")[0].rpartition(b"\n")[2].startswith(b"{"):
        if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
            raise Unreachable(f"no answer within {deadline:g} s whether the run was started", "ask again")
        block = os.read(fd, 1 << 16)
        if not block:
            break
        said += block
    return said


def _launched(said: bytes) -> Launched:
    lines = said.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
    try:
        answer: Any = json.loads(lines[-1])
        for name in ("started", "already"):
            if name in answer:
                return Launched(Started.from_json(answer[name]), name == "already")
        kind, message, hint = getattr(errors, answer["error"]), str(answer["message"]), answer["hint"]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise GuildsyncError(f"the supervisor cannot be started: {lines[-1][:500]}") from None
    raise _known(kind)(message, None if hint is None else str(hint))


def _known(kind: Any) -> Any:
    return kind if isinstance(kind, type) and issubclass(kind, GuildsyncError) else GuildsyncError


def user_name() -> Optional[str]:
    """Whose process this is; None where nobody knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return None


def steps() -> Iterator[Step]:
    """What training there has to know: none of it fails a check."""
    yield Step("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    found = gpus()
    yield Step("gpus", True, ", ".join(found) or "none that nvidia-smi shows")
    yield _logout()


def gpus() -> List[str]:
    """As nvidia-smi names them; none where there is none, or it does not answer."""
    argv = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        ran = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_DEADLINE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in ran.stdout.decode(errors="replace").splitlines() if line.strip()][:64]


def _logout() -> Step:
    kills, file = _kills_at_logout()
    if not kills:
        return Step("log-out", True, "processes go on after it")
    user = str(os.environ.get("USER") or os.environ.get("LOGNAME") or os.geteuid())
    if os.path.exists(os.path.join(_LINGER, user)):
        return Step("log-out", True, "processes go on after it (lingering is on)")
    hint = f"have `loginctl enable-linger {user}` run there, else training ends with the connection"
    return Step("log-out", True, f"processes are killed at log-out ({file})", hint)


def _kills_at_logout() -> Tuple[bool, str]:
    """Does logind end what a user leaves behind, and which file says so? The last that says anything counts."""
    said, where = False, ""
    for pattern in _LOGIND:
        for path in sorted(glob.glob(pattern)):
            parser = configparser.RawConfigParser(strict=False)
            try:
                parser.read(path, encoding="utf-8")
                if parser.has_option("Login", "KillUserProcesses"):
                    said, where = parser.getboolean("Login", "KillUserProcesses"), path
            except (OSError, ValueError, configparser.Error):
                continue
    return said, where
