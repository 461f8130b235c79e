"""Objects on their way into a Tree: kept in a staging directory, put together into files."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from typing import Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Set

from guildsync.errors import DAMAGED, MOVED, Damaged, Problem
from guildsync.model.manifest import PART_SIZE, Digest, Entry, digest_of
from guildsync.model.ports import Piece, Want
from guildsync.model.run import RunId
from guildsync.tree.dirs import write_all
from guildsync.tree.durable import EACH, Durability
from guildsync.tree.hashing import SHORT_PART
from guildsync.tree.home import Staging
from guildsync.tree.recent import Recent

_OPEN_FILES = 16


class Place(NamedTuple):
    """Where bytes of an object lie in this home: a staged file, or a file of a run."""

    name: Optional[bytes]
    want: Want


ReadPlace = Callable[[Want], Optional[bytes]]


class StagedFiles:
    """One staged file for every file that is to be; parts are written where they will stand."""

    def __init__(self, staging: Staging, read_run: ReadPlace) -> None:
        """`read_run` reads an object from where it stands in a run of this home, unverified."""
        self._staging = staging
        self._read_run = read_run
        self._places: Dict[Digest, Place] = {}
        self._kept: Dict[bytes, List[Digest]] = {}
        self._written: Dict[bytes, Dict[int, Digest]] = {}
        self._rewritten: Set[bytes] = set()
        self._hashes: Dict[bytes, _InOrder] = {}
        self._recent = Recent()
        self._fds: OrderedDict[bytes, int] = OrderedDict()

    @property
    def fd(self) -> int:
        """The staging directory."""
        return self._staging.fd

    def __contains__(self, digest: Digest) -> bool:
        """Staged and not yet renamed away."""
        place = self._places.get(digest)
        return place is not None and place.name is not None

    def add(self, pieces: Iterable[Piece]) -> None:
        for want, data in pieces:
            if len(data) != want.size:
                raise Damaged(f"the object {want.digest} is not as large as said")
            if want.digest in self:
                continue
            name = name_of(want.run, want.path)
            if self._written.get(name, {}).get(want.offset, want.digest) != want.digest:
                name += b"-" + want.digest[:16].encode()  # an earlier version's object stands there
            self._put(name, want, data)
            self._recent.keep(want.digest, data)

    def build(self, run: str, entry: Entry, elsewhere: Mapping[Digest, Want]) -> Optional[Problem]:
        """Complete the staged file of `entry`: what was not staged for it is copied from where it lies in this home
        (`elsewhere`), and hashed on the way. Afterwards the file has its bytes, under `name_of`."""
        name = name_of(run, entry.path)
        written = self._written.setdefault(name, {})
        for digest, size, offset in entry.objects():
            if written.get(offset) == digest:
                continue
            data = self._copy(digest, elsewhere)
            if data is None:
                return Problem(run, entry.path, MOVED, f"object {digest} is not where it was any more")
            self._put(name, Want(digest, size, RunId(run), entry.path, offset), data)
        if entry.size <= PART_SIZE and name not in self._rewritten and written == {0: entry.digest}:
            return None
        fd = self._open(name)
        os.ftruncate(fd, entry.size)
        for offset in [offset for offset in written if offset >= entry.size]:
            self._drop(name, written.pop(offset))
        if entry.size > PART_SIZE and self._in_order(name).digest(fd, entry.size) != entry.digest:
            return Problem(run, entry.path, DAMAGED, "its parts do not add up to its digest")
        return None

    def finish(self, run: str, entry: Entry, durability: Durability = EACH) -> None:
        """Give a built file its mode and mtime and make it durable. May be called from any thread."""
        name, fd = name_of(run, entry.path), self._staging.fd
        if durability.at_once:
            os.chmod(name, entry.mode, dir_fd=fd)
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=fd, follow_symlinks=False)
            return
        built = _open_ours(name, 0, fd)
        try:
            os.fchmod(built, entry.mode)
            os.utime(built, ns=(entry.mtime_ns, entry.mtime_ns))
            durability.sync(built)
        finally:
            os.close(built)

    def append(self, run: str, entry: Entry, have: Entry, fd: int) -> bool:
        """Write what a built file has beyond `have` to the end of `fd`, durably; False, and nothing is written, where
        it does not begin with what `have` says."""
        name = name_of(run, entry.path)
        built = self._open(name)
        if self._in_order(name).digest(built, have.size) != have.digest:
            return False
        for offset in range(have.size, entry.size, PART_SIZE):
            write_all(fd, os.pread(built, PART_SIZE, offset), offset)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        os.fsync(fd)
        os.unlink(name, dir_fd=self._staging.fd)
        self.forget(run, entry.path)
        return True

    def forget(self, run: str, path: bytes) -> None:
        """The staged file was renamed into its run: its objects lie there now."""
        name = name_of(run, path)
        self._close(name)
        self._written.pop(name, None)
        self._hashes.pop(name, None)
        for digest in self._kept.pop(name, ()):
            self._places[digest] = Place(None, self._places[digest].want)

    def close(self) -> None:
        for name in list(self._fds):
            self._close(name)
        self._staging.close()

    def _put(self, name: bytes, want: Want, data: bytes) -> None:
        fd = self._open(name)
        write_all(fd, data, want.offset)
        if len(data) >= SHORT_PART or name in self._hashes:
            self._in_order(name).wrote(want.offset, data)
        written = self._written.setdefault(name, {})
        before = written.get(want.offset, want.digest)
        if before != want.digest:
            self._rewritten.add(name)
            self._drop(name, before)
        written[want.offset] = want.digest
        if want.digest not in self:
            self._places[want.digest] = Place(name, want)
            self._kept.setdefault(name, []).append(want.digest)

    def _in_order(self, name: bytes) -> _InOrder:
        return self._hashes.setdefault(name, _InOrder())

    def _drop(self, name: bytes, digest: Digest) -> None:
        """The staged file does not hold the object any more."""
        if digest in self._kept.get(name, ()):
            self._kept[name].remove(digest)
            del self._places[digest]

    def _copy(self, digest: Digest, elsewhere: Mapping[Digest, Want]) -> Optional[bytes]:
        data = self._recent.get(digest)
        if data is not None:
            return data
        place = self._places.get(digest)
        candidates = []
        if place is not None and place.name is not None:
            candidates.append(os.pread(self._open(place.name), place.want.size, place.want.offset))
        elif place is not None:
            candidates.append(self._read_run(place.want) or b"")
        if digest in elsewhere:
            candidates.append(self._read_run(elsewhere[digest]) or b"")
        found = next((data for data in candidates if digest_of(data) == digest), None)
        if found is None and place is not None and place.name is None:
            del self._places[digest]
        return found

    def _open(self, name: bytes) -> int:
        fd = self._fds.pop(name, -1)
        if fd < 0:
            fd = _open_ours(name, os.O_CREAT, self._staging.fd)
        self._fds[name] = fd
        while len(self._fds) > _OPEN_FILES:
            os.close(self._fds.popitem(last=False)[1])
        return fd

    def _close(self, name: bytes) -> None:
        fd = self._fds.pop(name, -1)
        if fd >= 0:
            os.close(fd)


class _InOrder:
    """The digest of a staged file: hashed while it is written, as far as its parts come in order."""

    def __init__(self) -> None:
        self._hash, self._size = hashlib.sha256(), 0

    def wrote(self, offset: int, data: bytes) -> None:
        """To be told of everything written."""
        if offset < self._size:
            self._hash, self._size = hashlib.sha256(), 0
        if offset == self._size:
            self._hash.update(data)
            self._size += len(data)

    def digest(self, fd: int, size: int) -> str:
        """Of the first `size` bytes, fewer where the file is shorter."""
        whole, offset = (self._hash.copy(), self._size) if self._size <= size else (hashlib.sha256(), 0)
        while offset < size:
            block = os.pread(fd, min(PART_SIZE, size - offset), offset)
            if not block:
                break
            whole.update(block)
            offset += len(block)
        return whole.hexdigest()


def _open_ours(name: bytes, flags: int, dir_fd: int) -> int:
    """A staged file for reading and writing, whatever mode an earlier `finish` gave it."""
    flags |= os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, 0o600, dir_fd=dir_fd)
    except PermissionError:
        os.chmod(name, 0o600, dir_fd=dir_fd)
        return os.open(name, flags, 0o600, dir_fd=dir_fd)


def name_of(run: str, path: bytes) -> bytes:
    """The name of the staged file for a path of a run: flat, and never longer than a name may be."""
    return hashlib.sha256(run.encode() + b"/" + path).hexdigest().encode()
