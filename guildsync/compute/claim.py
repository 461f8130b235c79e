"""The files by which a run is started once, and ends, for all to see: the claim and `process`, LOCK and attributes."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from typing import Callable, Dict, List, Optional, Tuple

from guildsync.errors import Damaged, GuildsyncError, NotFound, Refused, SafetyStop, Unreachable
from guildsync.procinfo import MAX_PROCESS, Started, decode_started

SYNC = "sync"
CLAIM, PROCESS, HEARTBEAT, ENDED, LOG = "claim", "process", "heartbeat", "ended", "supervisor.log"
BUSY_PATIENCE = 20.0
"""Seconds that another start of the run may take until it says which process it is."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_WAITING = ("STAGED", "PENDING")
_SPARE = 64
_POLL = 0.05


class Claim:
    """One run directory, by descriptors: it may be renamed meanwhile.

    The claim is a lock that the system drops with its process. Who holds it and finds no `process` file knows that no
    training process of this run was ever let go: whoever came this far before is dead, and so is what it forked.
    """

    def __init__(self, run: str) -> None:
        """Raises NotFound, Refused."""
        self.run = run
        self._fds: List[int] = []
        self._spares: Dict[str, int] = {}
        try:
            self.directory = self._open(_encoded(run))
            self.guild = self._open(b".guild", self.directory)
            self.sync = self._private(SYNC)
            self.attrs = self._made("attrs")
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise NotFound(f"there is no run in {run}") from exc
        except OSError as exc:
            raise Refused(f"cannot use {run}: {exc.strerror}") from exc

    def take(self, patience: float = BUSY_PATIENCE, after: Optional[int] = None) -> Optional[Started]:
        """None where the run is ours to start; else what was started before. With `after`, one that was started then
        (by its attribute; 0: it has none) and has ended is ours once more: what starts it anew changes the attribute.
        Raises Unreachable where somebody else is about to and does not get done, SafetyStop where it was started by
        something else, or goes on, Damaged."""
        deadline = time.monotonic() + patience
        fd = self._claim()
        while not _locked(fd):
            found = self._process()
            if found is not None and not self._once_more(found, after):
                return found
            if time.monotonic() > deadline:
                raise Unreachable(f"another start of {self.run} does not get done", "try again in a minute")
            time.sleep(_POLL)
        found = self._process()
        again = self._once_more(found, after)
        if found is None or again:
            self._check_nobody_else(found, again)
        return None if again else found

    def _once_more(self, found: Optional[Started], after: Optional[int]) -> bool:
        if after is None or (_number(_read(self.attrs, "started")) or 0) != after:
            return False
        if found is not None and found.is_alive and _read(self.attrs, "exit_status") is None:
            raise SafetyStop(f"the run in {self.run} goes on", "stop it first")
        return True

    def open_log(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return self._kept(os.open(LOG, flags, 0o600, dir_fd=self.sync))

    def begin(self, started: Started, now: int) -> None:
        """Makes it durable that the run runs, since `now` (microseconds): before the training process is let go, and
        `process` first. Where anything fails, all but the markers is as it was. Raises OSError."""
        for name in ("exit_status", "stopped"):
            self._spares[name] = self._spare(name)
        try:
            self._write(self.sync, PROCESS, started.encode())
            self._write(self.guild, "LOCK", str(started.supervisor.pid).encode())
            self._write(self.attrs, "started", _document(now))
            self.beat()
            for name in _WAITING:
                _removed(name, self.guild)
            self._forget_the_end()
            os.fsync(self.guild)
        except OSError:
            _removed("LOCK", self.guild)
            _removed(PROCESS, self.sync)
            os.fsync(self.sync)
            raise

    def _forget_the_end(self) -> None:
        """Of what the run was before it was started once more."""
        for name in ("exit_status", "stopped"):
            _removed(name, self.attrs)
        _removed(ENDED, self.sync)
        os.fsync(self.attrs)

    def beat(self) -> None:
        """The heartbeat is the time of an empty file. Raises OSError."""
        try:
            os.utime(HEARTBEAT, dir_fd=self.sync, follow_symlinks=False)
        except FileNotFoundError:
            os.close(os.open(HEARTBEAT, _NEW, 0o600, dir_fd=self.sync))

    def end(self, exit_status: int, now: int, note: Callable[[str], None]) -> None:
        """Attributes first, then LOCK goes: in between the run has ended for every reader. The attributes have had
        their room on the disk since the start. What cannot be written is noted, and the rest is done."""
        steps: List[Tuple[str, Callable[[], None]]] = [
            ("stopped", lambda: self._fill("stopped", _document(now))),
            ("exit_status", lambda: self._fill("exit_status", _document(exit_status))),
            ("LOCK", lambda: _removed("LOCK", self.guild)),
            (ENDED, lambda: self._write(self.sync, ENDED, _ended(exit_status, now))),
        ]
        for name, step in steps:
            try:
                step()
            except OSError as exc:
                note(f"cannot write {name}: {exc.strerror}")

    def close(self) -> None:
        for fd in [*self._fds, *self._spares.values()]:
            os.close(fd)
        self._fds, self._spares = [], {}

    def _open(self, name: bytes, dir_fd: Optional[int] = None) -> int:
        return self._kept(os.open(name, _DIRECTORY, dir_fd=dir_fd))

    def _kept(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _made(self, name: str) -> int:
        try:
            os.mkdir(name, 0o700, dir_fd=self.guild)
        except FileExistsError:
            pass
        return self._open(name.encode(), self.guild)

    def _private(self, name: str) -> int:
        fd = self._made(name)
        info = os.fstat(fd)
        if info.st_uid != os.geteuid():
            raise Refused(f"{self.run} belongs to another user", "start runs in a home of your own")
        if stat.S_IMODE(info.st_mode) != 0o700:
            os.fchmod(fd, 0o700)
        return fd

    def _claim(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return self._kept(os.open(CLAIM, flags, 0o600, dir_fd=self.sync))
        except OSError as exc:
            raise Refused(f"cannot write to {self.run}: {exc.strerror}") from exc

    def _process(self) -> Optional[Started]:
        data = _read(self.sync, PROCESS)
        found = None if data is None else decode_started(data)
        if data is not None and found is None:
            hint = "it may be of another guildsync; the run is not started again"
            raise Damaged(f"{self.run}/.guild/{SYNC}/{PROCESS} cannot be read", hint)
        return found

    def _check_nobody_else(self, found: Optional[Started], again: bool) -> None:
        """A LOCK that names our own supervisor is left of it: that it is gone is known."""
        if not again and _read(self.attrs, "exit_status") is not None:
            raise SafetyStop(f"the run in {self.run} has ended", "start a new one")
        lock = _read(self.guild, "LOCK")
        ours = found is not None and _number(lock) == found.supervisor.pid
        if lock is not None and _is_pid(lock) and not ours:
            raise SafetyStop(f"process {int(lock)} says that it runs the run in {self.run}", "stop it first")

    def _spare(self, name: str) -> int:
        """A file that has its room on the disk."""
        fd = os.open(f"{name}.spare", _NEW, 0o600, dir_fd=self.sync)
        try:
            _write_all(fd, b" " * _SPARE)
            os.fsync(fd)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _fill(self, name: str, data: bytes) -> None:
        """An attribute, out of its spare file."""
        fd = self._spares[name]
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))
        os.fsync(fd)
        os.replace(f"{name}.spare", name, src_dir_fd=self.sync, dst_dir_fd=self.attrs)
        os.fsync(self.attrs)

    def _write(self, directory: int, name: str, data: bytes) -> None:
        """Old or new after a crash; what that leaves under a temporary name lies in our own directory."""
        temporary = f"{name}.new"
        fd = os.open(temporary, _NEW, 0o600, dir_fd=self.sync)
        try:
            _write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, name, src_dir_fd=self.sync, dst_dir_fd=directory)
        os.fsync(directory)


def started_in(run: str) -> Optional[Started]:
    """Who was started in a run directory by a supervisor of ours; None where nobody was. Raises OSError."""
    place = os.path.join(_encoded(run), b".guild", SYNC.encode())
    try:
        fd = os.open(place, _DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        data = _read(fd, PROCESS)
        return None if data is None else decode_started(data)
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        hint = "runs are started where the filesystem has locks: use a home on another one"
        raise GuildsyncError(f"the filesystem of the home has no locks: {exc.strerror}", hint) from exc
    return True


def _read(directory: int, name: str) -> Optional[bytes]:
    """None where there is no such file. Raises OSError where it cannot be read: that proves nothing."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, MAX_PROCESS)
    finally:
        os.close(fd)


def _number(data: Optional[bytes]) -> Optional[int]:
    try:
        return None if data is None else int(data)
    except ValueError:
        return None


def _is_pid(lock: bytes) -> bool:
    """As Guild AI takes a LOCK: does any process have that id?"""
    try:
        pid = int(lock)
        if pid < 1:
            return False
        os.kill(pid, 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except OSError:
        return True
    return True


def _removed(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass


def _document(value: int) -> bytes:
    """As YAML."""
    return b"%d\n" % value


def _ended(exit_status: int, now: int) -> bytes:
    return json.dumps({"exit_status": exit_status, "stopped": now, "version": 1}, sort_keys=True).encode() + b"\n"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
