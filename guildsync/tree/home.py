"""A home: where its runs lie, and what guildsync keeps beside them (identity, lock, bases, inflight, staging)."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import time
import uuid
from contextlib import contextmanager
from typing import Iterable, Iterator, List, Optional, Tuple

from guildsync.errors import Damaged, NotFound, Refused, Unreachable, Usage
from guildsync.model.manifest import NOTHING, Manifest, canonical, checked_digest, digest_of
from guildsync.model.ports import Aim, Base
from guildsync.model.run import Metadata, RunId, checked_run_id, is_run_id
from guildsync.tree.dirs import open_directory, remove_tree, sync_path, write_durably

FORMAT = 1
_LOCK_DEADLINE = 60.0


class Home:
    """The layout of one home. Nothing is made before something is to be written."""

    def __init__(self, path: str) -> None:
        self.path = os.fsencode(os.path.abspath(os.path.expanduser(path)))
        self.runs = os.path.realpath(os.path.join(self.path, b"runs"))
        self.trash = os.path.realpath(os.path.join(self.path, b"trash", b"runs"))
        self.state = os.path.join(self.path, b".guildsync")
        self._identity: Optional[str] = None

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
        """Make the directories that writing needs. Raises Refused where the home belongs to somebody else."""
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
        try:
            os.link(made, path)  # the first of two makers wins
        except FileExistsError:
            pass
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

    def is_deleted(self, run: RunId) -> bool:
        """In the trash."""
        return os.path.isdir(os.path.join(self.trash, os.fsencode(run)))

    def inflight_runs(self) -> List[str]:
        try:
            names = os.listdir(os.fsdecode(os.path.join(self.state, b"inflight")))
        except FileNotFoundError:
            return []
        return [name for name in names if is_run_id(name)]  # a note that was not yet made durable says nothing

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
        """Remove what dead processes staged."""
        for top in (self.state, os.path.join(self.runs, b".guildsync")):
            try:
                _sweep(os.path.join(top, b"staging"))
            except OSError:
                continue  # nothing was ever staged there, or it is not ours to remove

    def beside_runs(self) -> bytes:
        """A directory of ours on the filesystem of the runs."""
        same = os.stat(self.state).st_dev == os.stat(self.runs).st_dev
        path = self.state if same else os.path.join(self.runs, b".guildsync")
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    def staging(self) -> Staging:
        """A new directory for bytes that nobody sees yet, on the filesystem of the runs. Leftovers of dead
        processes are removed."""
        self.prepare()
        top = os.path.join(self.beside_runs(), b"staging")
        os.makedirs(top, mode=0o700, exist_ok=True)
        _sweep(top)
        return Staging(top)


class Staging:
    """A directory that is locked as long as its process lives."""

    def __init__(self, top: bytes) -> None:
        self.path = os.path.join(top, uuid.uuid4().hex.encode())
        self._lock = _locked_file(self.path + b".lock")
        os.mkdir(self.path, 0o700)
        self.fd = open_directory(self.path)

    def close(self) -> None:
        if self._lock < 0:
            return
        os.close(self.fd)
        remove_tree(self.path)
        os.unlink(self.path + b".lock")
        os.close(self._lock)
        self._lock = -1


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
    for name in os.listdir(top):
        if not name.endswith((b".lock", b".lock.new")):
            continue
        path = os.path.join(top, name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if _try_lock(fd):
                if name.endswith(b".lock"):
                    remove_tree(path[: -len(b".lock")])
                os.unlink(path)
        except FileNotFoundError:
            continue
        finally:
            os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class HomeBases:
    """The bases that a home keeps for one pair of replicas (see `model.ports.Bases`)."""

    def __init__(self, home: Home, source: Iterable[str], target: Iterable[str]) -> None:
        """Each side by all ids it ever had."""
        self._targets = sorted(target)
        every = itertools.product(sorted(source), self._targets)
        pairs = ("+".join(sorted(map(checked_run_id, pair))) for pair in every)
        self._directories = [os.path.join(home.state, b"bases", pair.encode()) for pair in pairs]
        self._directory = self._directories[0]

    def load(self, run: RunId, content: Optional[str]) -> Optional[Base]:
        name = os.fsencode(checked_run_id(run))
        for directory in self._directories:
            intended = self._read(os.path.join(directory, name + b".intended"))
            if intended is not None and intended[0] == content and intended[1] in self._targets:
                return intended[2]
            saved = self._read(os.path.join(directory, name))
            if saved is not None:
                return saved[2]
        return None

    def intend(self, run: RunId, content: str, base: Base) -> None:
        self._write(self._path(run) + b".intended", content, base)

    def save(self, run: RunId, base: Base) -> None:
        path = self._path(run)
        self._write(path, base.content, base)
        try:
            os.unlink(path + b".intended")
        except FileNotFoundError:
            pass

    def _path(self, run: RunId) -> bytes:
        return os.path.join(self._directory, os.fsencode(checked_run_id(run)))

    def _write(self, path: bytes, content: str, base: Base) -> None:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        # The target is named, for both directions share the file: that the source has the content proves nothing.
        value = {
            "base": base.content,
            "body": digest_of(base.encoded),
            "content": content,
            "metadata": base.metadata.fields(),
            "seen": sorted(base.seen),
            "status": base.status,
            "target": self._targets[0],
        }
        # Not synced: a base that a power cut takes with it makes the next sync more careful, never wrong.
        temporary = path + b".%d.tmp" % os.getpid()
        with open(temporary, "wb") as file:
            file.write(canonical(value) + b"\n" + base.encoded)
        os.replace(temporary, path)

    def _read(self, path: bytes) -> Optional[Tuple[str, str, Base]]:
        """None also for what cannot be understood: knowing less only makes a sync more careful."""
        try:
            with open(path, "rb") as file:
                head, _, body = file.read().partition(b"\n")
            value = json.loads(head)
            if digest_of(body) != value["body"]:
                return None
            seen = frozenset(checked_digest(content) for content in value["seen"])
            metadata, status = Metadata.from_fields(value["metadata"]), str(value["status"])
            base = Base(checked_digest(value["base"]), metadata, status, seen, body)
            return checked_digest(value["content"]), str(value["target"]), base
        except (FileNotFoundError, ValueError, KeyError, TypeError, Damaged):
            return None


class HomeCache:
    """What a home keeps of a remote (see `model.ports.Cache`); `location` names the remote's place."""

    def __init__(self, home: Home, location: str) -> None:
        name = hashlib.sha256(location.encode()).hexdigest()[:32]
        self._directory = os.path.join(os.fsdecode(home.state), "remotes", name)

    def load(self, kind: str, name: str) -> Optional[bytes]:
        try:
            with open(os.path.join(self._directory, kind, name), "rb") as file:
                return file.read()
        except OSError:
            return None

    def keep(self, kind: str, name: str, data: bytes) -> None:
        """A home that cannot be written keeps nothing, and works."""
        path = os.path.join(self._directory, kind, name)
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except OSError:
            pass

    def names(self, kind: str) -> List[str]:
        try:
            return [name for name in os.listdir(os.path.join(self._directory, kind)) if not name.endswith(".tmp")]
        except OSError:
            return []

    def drop(self, kind: str, name: str) -> None:
        try:
            os.unlink(os.path.join(self._directory, kind, name))
        except OSError:
            pass


def translated(where: str, exc: OSError) -> Exception:
    """What a failed system call means for the home at `where`."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return Unreachable(f"cannot write to {where}: {exc.strerror}", "make room there; then the same command goes on")
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Refused(f"cannot write to {where}: {exc.strerror}")
    if exc.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(f"cannot use {where}: {exc.strerror}")
    return Unreachable(f"cannot use {where}: {exc.strerror}")
