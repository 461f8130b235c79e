"""A home: where its runs lie, and what guildsync keeps beside them (identity, lock, bases, inflight, staging)."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import time
import uuid
from contextlib import contextmanager, suppress
from typing import Callable, Iterator, List, Optional, Tuple

from guildsync.errors import Damaged, NoRoom, NotFound, Refused, Unreachable, Usage
from guildsync.model.manifest import NOTHING, Manifest, canonical
from guildsync.model.ports import Aim
from guildsync.model.run import RunId, checked_run_id, is_run_id
from guildsync.tree.dirs import Descent, open_directory, remove_tree, sync_path, write_durably
from guildsync.tree.staged import LOG, Staging

FORMAT = 1
KEPT_NS = 7 * 86_400 * 1_000_000_000
"""How long an interrupted sync can be gone on with."""

_LOCK_DEADLINE = 60.0
_OPEN_LOCK = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_STAGED = re.compile(r"[0-9a-f]{32}")  # what has not got its name in a run yet


class Home:
    """The layout of one home. Nothing is made before something is to be written."""

    def __init__(self, path: str) -> None:
        self.path = os.fsencode(os.path.abspath(os.path.expanduser(path)))
        self.runs = os.path.realpath(os.path.join(self.path, b"runs"))
        self.trash = os.path.realpath(os.path.join(self.path, b"trash", b"runs"))
        self.state = os.path.join(self.path, b".guildsync")
        self._identity: Optional[str] = None
        self._is_prepared = False

    def exists(self) -> bool:
        """A directory alone is no home yet: the agent itself lies in one."""
        return os.path.isdir(self.runs)

    def free_bytes(self) -> int:
        """What this user may still write beside the runs."""
        found = os.statvfs(self.runs)
        return found.f_bavail * found.f_frsize

    def run_ids(self, deleted: bool = False) -> List[RunId]:
        """The runs that lie here (or in the trash), in no order. A home that is not there has none; one that cannot
        be read is an error: it proves nothing."""
        try:
            names = os.listdir(self.trash if deleted else self.runs)
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise Refused(f"cannot read {self.text}: {exc.strerror}") from exc
        return [RunId(name) for name in map(os.fsdecode, names) if is_run_id(name)]

    def open_run(self, run: RunId, deleted: bool = False) -> int:
        """A descriptor of the run's directory; raises OSError where there is none."""
        return open_directory(os.path.join(self.trash if deleted else self.runs, os.fsencode(checked_run_id(run))))

    @property
    def text(self) -> str:
        return os.fsdecode(self.path)

    # -- what guildsync keeps

    def prepare(self) -> None:
        """Make the directories that writing needs. Raises Refused where the home belongs to somebody else; Unreachable
        where they are not there any more: what was moved away, or unmounted, is not made anew."""
        if self._is_prepared and not os.path.isdir(self.runs):
            raise Unreachable(f"{self.text} is not there any more", "mount it, or put it back")
        try:
            os.makedirs(self.path, exist_ok=True)
            if os.stat(self.path).st_uid != os.geteuid():
                raise Refused(
                    f"{self.text} belongs to another user: it is only read", "use a home of your own: -H PATH"
                )
            os.makedirs(self.runs, exist_ok=True)
            os.makedirs(self.trash, exist_ok=True)
            os.makedirs(self.state, mode=0o700, exist_ok=True)
        except OSError as exc:
            raise translated(self.text, exc) from exc
        self._is_prepared = True

    @property
    def identity(self) -> str:
        """32 hex digits, made once and kept for ever."""
        if self._identity is None:
            self._identity = self._read_identity() or self._make_identity()
        return self._identity

    def _read_identity(self) -> Optional[str]:
        try:
            with open(os.path.join(self.state, b"identity"), "rb") as file:
                value = json.loads(file.read(4096))
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise translated(self.text, exc) from exc
        except ValueError as exc:
            raise Damaged(f"{self.text}/.guildsync/identity is not readable", "restore it, or remove it") from exc
        if not isinstance(value, dict):
            raise Damaged(f"{self.text}/.guildsync/identity is malformed", "restore it, or remove it")
        if value.get("format") != FORMAT:
            raise Usage(
                f"{self.text} was written by another guildsync (format {value.get('format')!r})", "update guildsync"
            )
        return str(checked_run_id(value.get("id")))

    def _make_identity(self) -> str:
        self.prepare()
        path = os.path.join(self.state, b"identity")
        made = path + b"." + uuid.uuid4().hex.encode()
        write_durably(made, canonical({"format": FORMAT, "id": uuid.uuid4().hex}))
        with suppress(FileExistsError):  # the first of two makers wins
            os.link(made, path)
        os.unlink(made)
        sync_path(self.state)
        found = self._read_identity()
        if found is None:
            raise Damaged(f"{self.text}/.guildsync/identity vanished")
        return found

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One commit at a time in a home. Dies with its holder; waits a minute at the most."""
        fd = os.open(os.path.join(self.state, b"lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + _LOCK_DEADLINE
            while not _try_lock(fd):
                if time.monotonic() > deadline:
                    raise Unreachable(f"another guildsync has been writing to {self.text} for a minute", "try again")
                time.sleep(0.02)
            yield
        finally:
            os.close(fd)

    @contextmanager
    def mirroring(self, place: str) -> Iterator[bool]:
        """True: nobody else mirrors this home and that place until the end. Dies with its holder; waits for nobody."""
        self.prepare()
        top = os.path.join(self.state, b"mirrors")
        os.makedirs(top, mode=0o700, exist_ok=True)
        name = hashlib.sha256(place.encode()).hexdigest()[:32].encode()
        fd = os.open(os.path.join(top, name), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            yield _try_lock(fd)
        finally:
            os.close(fd)

    # -- inflight: the marker of a commit that has begun

    def _inflight(self, run: RunId) -> bytes:
        return os.path.join(self.state, b"inflight", os.fsencode(run))

    def begin(self, run: RunId, before: Manifest, want: Manifest) -> None:
        """Durably note what the run is to become, before its first change."""
        os.makedirs(os.path.join(self.state, b"inflight"), mode=0o700, exist_ok=True)
        write_durably(self._inflight(run), before.encode() + b"\n" + want.encode())

    def end(self, run: RunId) -> None:
        """The last change is durable."""
        try:
            os.unlink(self._inflight(run))
        except FileNotFoundError:
            return
        sync_path(os.path.join(self.state, b"inflight"))

    def is_inflight(self, run: RunId) -> bool:
        return os.path.exists(self._inflight(run))

    def inflight_runs(self) -> List[RunId]:
        return self._noted(b"inflight")

    def _noted(self, kind: bytes) -> List[RunId]:
        """The runs of which something is noted; what was not yet made durable says nothing."""
        try:
            names = os.listdir(os.fsdecode(os.path.join(self.state, kind)))
        except FileNotFoundError:
            return []
        return [RunId(name) for name in names if is_run_id(name)]

    # -- what became of runs

    def is_deleted(self, run: RunId) -> bool:
        """In the trash."""
        return os.path.isdir(os.path.join(self.trash, os.fsencode(run)))

    def is_purged(self, run: RunId) -> bool:
        """Was it here, and is it to come back only where somebody asks for it?"""
        return os.path.exists(self._tombstone(run))

    def purged_runs(self) -> List[RunId]:
        return self._noted(b"tombstones")

    def note_purged(self, run: RunId) -> None:
        """Durably."""
        os.makedirs(os.path.join(self.state, b"tombstones"), mode=0o700, exist_ok=True)
        write_durably(self._tombstone(run), b"")

    def forget_purged(self, run: RunId) -> None:
        try:
            os.unlink(self._tombstone(run))
        except FileNotFoundError:
            return
        sync_path(os.path.join(self.state, b"tombstones"))

    def _tombstone(self, run: RunId) -> bytes:
        return os.path.join(self.state, b"tombstones", os.fsencode(run))

    def aim(self, run: RunId) -> Optional[Aim]:
        """The commit that never ended; None where all did. An unreadable note says only that one did not end."""
        try:
            with open(self._inflight(run), "rb") as file:
                before, _, want = file.read().partition(b"\n")
            return Aim(Manifest.decode(before), Manifest.decode(want))
        except FileNotFoundError:
            return None
        except Damaged:
            return Aim(NOTHING, NOTHING)

    # -- staging

    def sweep(self) -> None:
        """Remove what dead processes staged and nobody can go on with."""
        for top in self._staging_tops():
            try:
                _sweep(top)
            except OSError:
                continue  # nothing was ever staged there, or it is not ours to remove

    def left_behind(self) -> List[bytes]:
        """The directories that `sweep` would remove."""
        found = []
        for top in self._staging_tops():
            try:
                names = [os.path.join(top, name) for name in os.listdir(top) if is_run_id(os.fsdecode(name))]
            except OSError:
                continue  # as in sweep
            found += [path for path in names if _is_nobodys(path)]
        return found

    def beside_runs(self) -> bytes:
        """A directory of ours on the filesystem of the runs."""
        same = os.stat(self.state).st_dev == os.stat(self.runs).st_dev
        path = self.state if same else os.path.join(self.runs, b".guildsync")
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    def staging(self) -> Staging:
        """A new directory for bytes that nobody sees yet, on the filesystem of the runs. It sweeps."""
        self.prepare()
        top = os.path.join(self.beside_runs(), b"staging")
        os.makedirs(top, mode=0o700, exist_ok=True)
        _sweep(top)
        path = os.path.join(top, uuid.uuid4().hex.encode())
        lock = _locked_file(path + b".lock")
        os.mkdir(path, 0o700)
        return Staging(path, lock, open_directory(path))

    def joined(self, name: str) -> Staging:
        """The staging directory of that name, which another process holds. Raises OSError where it is not ours."""
        if not is_run_id(name):
            raise PermissionError(errno.EPERM, "no staging directory", name)
        path = os.path.join(self.beside_runs(), b"staging", os.fsencode(name))
        fd = _open_ours(path)
        return Staging(path, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), fd)

    def left_over(self, useful: Callable[[int], bool]) -> Optional[Staging]:
        """The newest directory that a dead process left and that is `useful`, which is asked with its descriptor; it is
        locked now, and no other process gets it. Nothing is made where nothing was left."""
        for top in self._staging_tops():
            try:
                if os.stat(top).st_dev == os.stat(self.runs).st_dev:
                    found = _adopted(top, useful)
                    if found is not None:
                        return found
            except OSError:
                continue  # as in sweep
        return None

    def _staging_tops(self) -> List[bytes]:
        return [os.path.join(top, b"staging") for top in (self.state, os.path.join(self.runs, b".guildsync"))]


def _locked_file(path: bytes) -> int:
    """A file that is locked from the moment it has its name: whoever finds it unlocked finds a dead process's."""
    while True:
        fd = os.open(path + b".new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            os.rename(path + b".new", path)
        except FileNotFoundError:  # a sweeper was quicker than our lock
            os.close(fd)
            continue
        return fd


def _sweep(top: bytes) -> None:
    with Descent(open_directory(top)) as descent:
        top_fd = descent.at(b"")
        for name in map(os.fsencode, os.listdir(top_fd)):
            with suppress(FileNotFoundError):  # another one removes it
                if name.endswith(b".lock.new"):
                    _sweep_one(name, None, top_fd)
                elif name.endswith(b".lock"):
                    _sweep_one(name, name[: -len(b".lock")], top_fd)


def _sweep_one(name: bytes, staged: Optional[bytes], top_fd: int) -> None:
    """Where somebody can go on, not even the lock is touched: it would be in the way of who does."""
    lock = os.open(name, _OPEN_LOCK, dir_fd=top_fd)
    try:
        if staged is None:
            if _try_lock(lock):
                os.unlink(name, dir_fd=top_fd)
        elif not _is_left(staged, top_fd, lock) and _try_lock(lock) and not _is_left(staged, top_fd, lock):
            try:
                remove_tree(staged, top_fd)
            except NotADirectoryError:  # nor is it followed
                os.unlink(staged, dir_fd=top_fd)
            os.unlink(name, dir_fd=top_fd)
    finally:
        os.close(lock)


def _is_nobodys(path: bytes) -> bool:
    """Is the process that staged here dead, and can nobody go on with it?"""
    try:
        lock = os.open(path + b".lock", _OPEN_LOCK)
    except OSError:
        return False
    try:
        return _try_lock(lock) and not _is_left(path, None, lock)
    finally:
        os.close(lock)


def _adopted(top: bytes, useful: Callable[[int], bool]) -> Optional[Staging]:
    with Descent(_open_ours(top)) as descent:
        top_fd = descent.at(b"")
        found: List[Tuple[int, bytes]] = []
        for name in map(os.fsencode, filter(is_run_id, os.listdir(top_fd))):
            with suppress(OSError):  # it has no log, or went away
                log = os.stat(name + b"/" + LOG, dir_fd=top_fd, follow_symlinks=False)
                found.append((log.st_mtime_ns, name))
        for _, name in sorted(found, reverse=True):
            with suppress(OSError):  # it went away, or is not ours
                staging = _adopted_one(top, name, top_fd, useful)
                if staging is not None:
                    return staging
    return None


def _adopted_one(top: bytes, name: bytes, top_fd: int, useful: Callable[[int], bool]) -> Optional[Staging]:
    path = os.path.join(top, name)
    fds = [os.open(name + b".lock", _OPEN_LOCK, dir_fd=top_fd)]
    try:
        lock = fds[0]
        # a lock whose name is gone keeps nobody out
        locked = _try_lock(lock) and os.path.samestat(os.fstat(lock), os.lstat(path + b".lock"))
        if locked and _is_left(name, top_fd, lock):
            fds.append(_open_ours(name, top_fd))
            if useful(fds[1]):
                return Staging(path, fds.pop(0), fds.pop())
        return None
    finally:
        for fd in fds:
            os.close(fd)


def _is_left(name: bytes, top_fd: Optional[int], lock: int) -> bool:
    """Can somebody go on with it? A log says what lies there, and it is younger than a week by the clock of the
    filesystem, which the file of the lock is given the time of."""
    try:
        with Descent(_open_ours(name, top_fd)) as descent:
            log = os.stat(LOG, dir_fd=descent.at(b""), follow_symlinks=False)
            said = stat.S_ISREG(log.st_mode) and log.st_size > 0
            if not said or not any(map(_STAGED.match, os.listdir(descent.at(b"")))):
                return False
            os.utime(lock)
            return abs(os.fstat(lock).st_mtime_ns - log.st_mtime_ns) < KEPT_NS
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False


def _open_ours(name: bytes, dir_fd: Optional[int] = None) -> int:
    """A directory that nobody but this user can have written to; raises PermissionError for any other."""
    fd = open_directory(name, dir_fd)
    info = os.fstat(fd)
    if info.st_uid != os.geteuid() or info.st_mode & 0o777 != 0o700:
        os.close(fd)
        raise PermissionError(errno.EPERM, "not this user's alone", name)
    return fd


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def translated(where: str, exc: OSError) -> Exception:
    """What a failed system call means for the home at `where`."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom(f"cannot write to {where}: {exc.strerror}", "make room there; then the same command goes on")
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Refused(f"cannot write to {where}: {exc.strerror}")
    if exc.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(f"cannot use {where}: {exc.strerror}")
    return Unreachable(f"cannot use {where}: {exc.strerror}")
