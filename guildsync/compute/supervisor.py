"""Owns one training process of one run: starts it once, keeps its output, tells its end, whatever becomes of others.

A supervisor is a process of its own, in a session of its own; nobody's connection or terminal is near it. After the
training process has ended, its output is read for `GRACE` seconds more where processes that it left behind hold it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import selectors
import signal
import time
import traceback
from typing import Any, Dict, List, Mapping, Optional, Tuple

from guildsync.compute.capture import ERR, OUT, Capture
from guildsync.compute.claim import Claim
from guildsync.compute.scalars_out import Lines, OutputScalars
from guildsync.compute.spec import Spec, encoded
from guildsync.errors import GuildsyncError
from guildsync.procinfo import Identity, Started, identity

BEAT = 10.0
"""Seconds between two heartbeats."""
GRACE = 5.0

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit statuses of a program that could not be started, as shells have them."""

_BLOCK = 64 << 10
_LEFT_OVER = 16  # blocks: more than a pipe holds
_PASSED_ON = (signal.SIGTERM, signal.SIGINT)
_RESET = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ)
_READY, _GO = b"r", b"g"
_PEEKS = hasattr(os, "waitid")  # on macOS since Python 3.13


def main() -> None:
    """Reads a Spec from stdin to its end and answers over stdout, one line of JSON: `{"started": …}` or `{"already":
    …}` with who runs it, or `{"error": <class>, "message", "hint"}`. Who started this process has it back at once; what
    goes on is its child."""
    data = b"".join(iter(lambda: os.read(0, _BLOCK), b""))
    if os.fork():
        os._exit(0)
    mask = os.umask(0o077)
    code = 1
    try:
        os.chdir("/")
        supervise(Spec.decode(data), mask)
        code = 0
    except GuildsyncError as exc:
        _answer({"error": type(exc).__name__, "message": exc.message, "hint": exc.hint})
    except OSError as exc:
        note(traceback.format_exc())
        _answer({"error": "Refused", "message": f"cannot start the run: {exc.strerror}", "hint": None})
    except BaseException:  # noqa: BLE001 -- the log is all that would know
        note(traceback.format_exc())
    finally:
        os._exit(code)


def supervise(spec: Spec, mask: int) -> None:
    """Raises GuildsyncError, OSError where nothing was started."""
    claim = Claim(spec.run)
    found = claim.take(after=spec.after)
    if found is not None:
        _answer({"already": found.to_json()})
        return
    log = claim.open_log()
    wake = _Wake()
    capture = Capture(claim.guild, time.time, note)
    child = Child(spec, mask, claim.directory)
    started = Started(_identity(os.getpid()), child.identity)
    try:
        claim.begin(started, _microseconds())
    except OSError:
        child.dismiss()
        raise
    refusal = child.let_go()
    os.dup2(log, 2)
    _answer({"started": started.to_json()})
    note(f"process {child.pid} started")
    if refusal is not None:
        status, why = explained(spec, refusal)
        capture.say(why)
        child.reap()
    else:
        status = _Watch(claim, child, capture, wake).follow()
    capture.close()
    claim.end(status, _microseconds(), note)
    note(f"process {child.pid} ended with {status}")
    claim.close()


class Child:
    """The training process: forked and waiting to be let go. It leads a session and a process group of its own, and
    ends by itself where who forked it dies before."""

    def __init__(self, spec: Spec, mask: int, directory: int) -> None:
        out, err, ready, go = os.pipe(), os.pipe(), os.pipe(), os.pipe()
        environment = spec.environment(os.environb)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for fd in (out[0], err[0], ready[0], go[1]):
                    os.close(fd)
                os.umask(mask if spec.umask is None else spec.umask)
                _become(spec.words(), environment, directory, (out[1], err[1], ready[1], go[0]))
            finally:
                os._exit(NOT_FOUND)
        for fd in (out[1], err[1], ready[1], go[0]):
            os.close(fd)
        self.streams = {out[0]: OUT, err[0]: ERR}
        for fd in self.streams:
            os.set_blocking(fd, False)
        self._ready, self._go = ready[0], go[1]
        self._reaped = False
        os.read(self._ready, 1)  # from now on its group has its id
        self.identity = _identity(self.pid)

    def dismiss(self) -> None:
        """It never was let go, and has ended when this returns."""
        os.close(self._go)
        self.reap()

    def let_go(self) -> Optional[int]:
        """None when it has become the program, else the system's number for why it did not."""
        os.write(self._go, _GO)
        os.close(self._go)
        said = os.read(self._ready, 16)
        os.close(self._ready)
        return int(said) if said else None

    def ended(self) -> Optional[int]:
        """Its exit status, or minus the signal that ended it; None while it runs. It stays a zombie, so that nobody
        else gets its id before it is reaped, where the system can do that."""
        if not _PEEKS:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._reaped = pid == self.pid
            return None if pid == 0 else -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def reap(self) -> None:
        if not self._reaped:
            self._reaped = True
            os.waitpid(self.pid, 0)

    def signal(self, number: int) -> None:
        """To its group, which nobody else can have before it is reaped."""
        try:
            if not self._reaped:
                os.killpg(self.pid, number)
        except ProcessLookupError:
            pass


def _become(words: Tuple[str, ...], environment: Mapping[bytes, bytes], directory: int, pipes: Tuple[int, ...]) -> None:
    out, err, ready, go = pipes
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in _RESET:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.write(ready, _READY)
        if os.read(go, 1) != _GO:
            return
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, fd in enumerate((nothing, out, err)):
            os.dup2(fd, target)
        os.fchdir(directory)
        os.execvpe(encoded(words[0]), [encoded(word) for word in words], environment)  # noqa: S606 -- there is no shell
    except OSError as exc:
        os.write(ready, b"%d" % (exc.errno or 0))


def explained(spec: Spec, number: int) -> Tuple[int, str]:
    """(exit status, words) for what the system would not start, by the system's number for why."""
    program = spec.words()[0]
    if number not in (errno.ENOENT, errno.ENOTDIR):
        return NOT_EXECUTABLE, f"cannot start {program}: {os.strerror(number)}"
    if "/" not in program:
        return NOT_FOUND, f"cannot start {program}: there is no such program on the PATH"
    if os.path.exists(os.path.join(encoded(spec.run), encoded(program))):
        return NOT_FOUND, f"cannot start {program}: the interpreter that its first line names is not there"
    return NOT_FOUND, f"cannot start {program}: there is no such program"


class _Wake:
    """Signals as bytes in a pipe, so that waiting for output ends when one comes."""

    def __init__(self) -> None:
        self.fd, write = os.pipe()
        for fd in (self.fd, write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in (signal.SIGCHLD, *_PASSED_ON):
            signal.signal(number, _noticed)

    def signals(self) -> List[int]:
        """Those that came since it was last asked, that the training process is to have."""
        try:
            return [number for number in os.read(self.fd, 4096) if number in _PASSED_ON]
        except BlockingIOError:
            return []


class _Watch:
    """From the first byte of output to the last."""

    def __init__(self, claim: Claim, child: Child, capture: Capture, wake: _Wake) -> None:
        host = re.sub(r"[^A-Za-z0-9.-]", "-", os.uname().nodename)
        name = f"events.out.tfevents.{int(time.time())}.{host}.{child.pid}"
        self._claim, self._child, self._capture, self._wake = claim, child, capture, wake
        self._scalars = OutputScalars(claim.guild, name, time.time)
        self._lines: Dict[int, Lines] = {OUT: Lines(), ERR: Lines()}
        self._selector = selectors.DefaultSelector()
        self._open = dict(child.streams)
        for fd in (*self._open, wake.fd):
            self._selector.register(fd, selectors.EVENT_READ)
        self._beat_at = time.monotonic() + BEAT

    def follow(self) -> int:
        """Its exit status, when it has ended and all of its output is there."""
        status, deadline = None, float("inf")
        while True:
            now = time.monotonic()
            if status is None:
                status = self._child.ended()
                deadline = deadline if status is None else now + GRACE
            if status is not None and (not self._open or now >= deadline):
                break
            self._beat(now)
            for key, _ in self._selector.select(max(0.0, min(self._beat_at, deadline) - now)):
                if key.fd in self._open:
                    self._read(key.fd)
            for number in self._wake.signals():
                note(f"signal {number} is passed on")
                self._child.signal(number)
        for fd in list(self._open):
            self._read_what_is_left(fd)
        self._scalars.close()
        self._child.reap()
        return status

    def _beat(self, now: float) -> None:
        if now >= self._beat_at:
            self._beat_at = now + BEAT
            try:
                self._claim.beat()
            except OSError as exc:
                note(f"no heartbeat: {exc.strerror}")

    def _read(self, fd: int) -> bool:
        """False when there is no more, for now or for ever."""
        stream = self._open[fd]
        try:
            data = os.read(fd, _BLOCK)
        except BlockingIOError:
            return False
        if data:
            self._capture.write(stream, data)
            self._scalars.take(self._lines[stream].take(data))
            return True
        self._done(fd)
        return False

    def _read_what_is_left(self, fd: int) -> None:
        """By processes that outlived the training process: what they write from now on is theirs."""
        for _ in range(_LEFT_OVER):
            if not self._read(fd):
                break
        if fd in self._open:
            note("processes that it left behind still hold its output")
            self._done(fd)

    def _done(self, fd: int) -> None:
        self._scalars.take(self._lines[self._open.pop(fd)].end())
        self._selector.unregister(fd)
        os.close(fd)


def note(text: str) -> None:
    """One line for the log; never of the environment."""
    line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n"
    try:
        os.write(2, line.encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # a full disk: the output's own lines will say so


def _noticed(number: int, frame: Any) -> None:
    """That it has a handler makes it wake us."""


def _answer(said: Mapping[str, Any]) -> None:
    """Once; then nothing is left of who started this process."""
    try:
        os.write(1, json.dumps(said).encode() + b"\n")
    except OSError:
        pass  # it is gone, which it may be at any time
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)


def _identity(pid: int) -> Identity:
    found = identity(pid)
    if found is None:
        raise GuildsyncError("the system does not tell about processes", "is /proc mounted there?")
    return found


def _microseconds() -> int:
    return time.time_ns() // 1000
