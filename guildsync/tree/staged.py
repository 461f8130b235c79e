"""Objects on their way into a Tree: kept in a staging directory, put together into files."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import OrderedDict
from contextlib import suppress
from typing import Callable, Collection, Container, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Set

from guildsync.errors import DAMAGED, MOVED, Damaged, Problem
from guildsync.model.manifest import MAX_OBJECT, PART_SIZE, Digest, Entry, digest_of
from guildsync.model.ports import Piece, Want
from guildsync.model.run import RunId, is_run_id
from guildsync.tree.dirs import open_directory, remove_tree, write_all
from guildsync.tree.durable import EACH, Durability
from guildsync.tree.hashing import SHORT_PART
from guildsync.tree.recent import Recent

LOG = b"log"
"""The file in a staging directory that says what objects were written where."""
UNLOGGED = 1 << 20
"""Bytes that may be written before the log says so."""

_OPEN_FILES = 16
_MAX_LOG = 64 << 20
_PLAIN = 64  # characters of the name that a path's staged file has
_ROW = re.compile(rb"([0-9a-f]{64}(?:-[0-9a-f]{16})?) ([0-9]{1,18}) ([0-9]{1,9}) ([0-9a-f]{64})")


class Row(NamedTuple):
    """One line of a log: an object that was written to a staged file. It proves nothing."""

    name: bytes
    offset: int
    size: int
    digest: Digest


class Staging:
    """A directory that is locked until it is closed, or its process dies."""

    def __init__(self, path: bytes, lock: int, fd: int) -> None:
        """Takes both descriptors over."""
        self.path, self.fd, self._lock = path, fd, lock
        self._rows: List[Row] = []
        self._unlogged = 0

    def wrote(self, row: Row) -> None:
        """To be told of what has been written. What a crash takes of it is staged again; the log is never synced."""
        self._rows.append(row)
        self._unlogged += row.size
        if self._unlogged >= UNLOGGED:
            self.flush()

    def flush(self) -> None:
        """After a line that a crash or a full disk cut off, the next one begins a new line."""
        if not self._rows:
            return
        lines = b"".join(b"%b %d %d %b\n" % (*row[:3], row.digest.encode()) for row in self._rows)
        fd = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        try:
            write_all(fd, b"\n" + lines)
        finally:
            os.close(fd)
        self._rows, self._unlogged = [], 0

    def close(self, keep: bool = False) -> None:
        """Remove it, or `keep` it: then it is there for the next one, if it has a log."""
        if self._lock < 0:
            return
        try:
            if keep:
                self.flush()
            else:
                with suppress(FileNotFoundError):  # it goes first: nobody goes on with what is half removed
                    os.unlink(LOG, dir_fd=self.fd)
                remove_tree(self.path)
                os.unlink(self.path + b".lock")
        finally:
            os.close(self.fd)
            os.close(self._lock)
            self._lock = -1


def logged(fd: int) -> Iterator[Row]:
    """What the log in a staging directory says, oldest first; lines that no log has are passed over. Raises OSError."""
    log = os.open(LOG, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    with open(log, "rb") as file:
        file.seek(max(0, os.fstat(log).st_size - _MAX_LOG))
        data = file.read(_MAX_LOG)
    for line in data.split(b"\n")[:-1]:
        found = _ROW.fullmatch(line)
        if found is not None and 0 < int(found[3]) <= MAX_OBJECT:
            yield Row(found[1], int(found[2]), int(found[3]), Digest(found[4].decode()))


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
        self._left = _left_in(staging.fd)
        self._rewritten: Set[bytes] = set(self._left)
        self._hashes: Dict[bytes, _InOrder] = {}
        self._recent = Recent()
        self._opened = Opened(staging.fd)

    @property
    def fd(self) -> int:
        """The staging directory."""
        return self._staging.fd

    @property
    def staging(self) -> str:
        """Its name, for who is to write there, too."""
        return os.fsdecode(os.path.basename(self._staging.path))

    def __contains__(self, digest: Digest) -> bool:
        """Staged and not yet renamed away."""
        place = self._places.get(digest)
        return place is not None and place.name is not None

    def take_over(self, wanted: Collection[Want], here: Container[Digest]) -> int:
        """Go on with what an interrupted sync left of the objects that are wanted and not `here`; answers their bytes.

        Only what has its digest counts, and only where nothing else is going to be written over it."""
        if not self._left:
            return 0
        places = {(name_of(want.run, want.path), want.offset): want for want in wanted}
        names = {name for name, _ in places}
        anywhere = {want.digest: want for want in wanted}
        size = 0
        for name in sorted(self._left.keys()):
            rows = self._left[name]
            for row in sorted(rows.values(), key=lambda row: row.offset):
                want = places.get((name, row.offset)) if name in names else anywhere.get(row.digest)
                if want is None or (want.digest, want.size) != (row.digest, row.size):
                    continue
                del rows[row.offset]
                data = None if row.digest in here else self._read(row)
                if data is not None:
                    size += 0 if row.digest in self else row.size
                    self._stands(name, want._replace(offset=row.offset), data)
            if not rows:
                del self._left[name]
        return size

    def gather(self, wants: Iterable[Want]) -> None:
        """Take over what other processes say that they wrote here; what does not have its digest was not written."""
        for want in sorted(wants, key=lambda want: (want.run, want.path, want.offset)):
            name = name_of(want.run, want.path)
            data = self._read(Row(name, want.offset, want.size, want.digest))
            if data is not None:
                self._stands(name, want, data)

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
            if not want.offset:  # what stands behind may not be verified yet
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
        fd = self._opened.get(name)
        os.ftruncate(fd, entry.size)
        for offset in [offset for offset in written if offset >= entry.size]:
            self._drop(name, written.pop(offset))
        if self._in_order(name).digest(fd, entry.size) != entry.digest:
            self._discard(name)
            return Problem(run, entry.path, DAMAGED, "its parts do not add up to its digest")
        return None

    def finish(self, run: str, entry: Entry, durability: Durability = EACH) -> None:
        """Give a built file its mode and mtime and make it durable. May be called from any thread."""
        name, fd = name_of(run, entry.path), self._staging.fd
        if durability.at_once:
            os.chmod(name, entry.mode, dir_fd=fd)
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=fd, follow_symlinks=False)
            return
        built = open_staged(name, 0, fd)
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
        built = self._opened.get(name)
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
        self._opened.close(name)
        self._written.pop(name, None)
        self._hashes.pop(name, None)
        self._left.pop(name, None)
        for digest in self._kept.pop(name, ()):
            self._places[digest] = Place(None, self._places[digest].want)

    def close(self, keep: bool = True) -> None:
        """Unless all that was staged is in its runs, or not `keep`, it stays for the next one who stages."""
        self._opened.close_all()
        try:
            self._staging.close(keep and self.is_worth_keeping)
        except OSError:
            pass  # a sweep removes it, or the next one goes on with what the log does say

    @property
    def is_worth_keeping(self) -> bool:
        """Is something staged that is not in its run?"""
        staged = [name for name, digests in self._kept.items() if digests] + list(self._left)
        if any(len(name) == _PLAIN or name[:_PLAIN] in self._written or name[:_PLAIN] in self._left for name in staged):
            return True
        return any(map(is_run_id, os.listdir(self._staging.fd)))  # put together, and not in its place

    def _put(self, name: bytes, want: Want, data: bytes) -> None:
        write_all(self._opened.get(name), data, want.offset)
        self._staging.wrote(Row(name, want.offset, len(data), want.digest))
        self._stands(name, want, data)

    def _stands(self, name: bytes, want: Want, data: bytes) -> None:
        """The staged file holds the object at `want.offset`."""
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

    def _discard(self, name: bytes) -> None:
        """What is staged for a file is of no use: it is wanted again."""
        self._opened.close(name)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._staging.fd)
        for digest in list(self._kept.get(name, ())):
            self._drop(name, digest)
        self._written.pop(name, None)
        self._hashes.pop(name, None)
        self._left.pop(name, None)

    def _read(self, row: Row) -> Optional[bytes]:
        """The bytes that a log speaks of, if they are there."""
        try:
            data = os.pread(self._opened.get(row.name), row.size, row.offset)
        except OSError:
            return None
        return data if digest_of(data) == row.digest else None

    def _copy(self, digest: Digest, elsewhere: Mapping[Digest, Want]) -> Optional[bytes]:
        data = self._recent.get(digest)
        if data is not None:
            return data
        place = self._places.get(digest)
        candidates = []
        if place is not None and place.name is not None:
            candidates.append(os.pread(self._opened.get(place.name), place.want.size, place.want.offset))
        elif place is not None:
            candidates.append(self._read_run(place.want) or b"")
        if digest in elsewhere:
            candidates.append(self._read_run(elsewhere[digest]) or b"")
        found = next((data for data in candidates if digest_of(data) == digest), None)
        if found is None and place is not None:
            if place.name is None:
                del self._places[digest]
            else:  # another version was written over it
                self._written.get(place.name, {}).pop(place.want.offset, None)
                self._drop(place.name, digest)
        return found


class Opened:
    """Staged files that are open, the last used ones."""

    def __init__(self, staging: int) -> None:
        self._staging = staging
        self._fds: OrderedDict[bytes, int] = OrderedDict()

    def get(self, name: bytes) -> int:
        """Its descriptor, valid until the next call; the file is made where it is not there."""
        fd = self._fds.pop(name, -1)
        if fd < 0:
            fd = open_staged(name, os.O_CREAT, self._staging)
        self._fds[name] = fd
        while len(self._fds) > _OPEN_FILES:
            os.close(self._fds.popitem(last=False)[1])
        return fd

    def close(self, name: bytes) -> None:
        fd = self._fds.pop(name, -1)
        if fd >= 0:
            os.close(fd)

    def close_all(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])


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


def open_staged(name: bytes, flags: int, dir_fd: int) -> int:
    """A staged file for reading and writing, whatever mode an earlier `finish` gave it."""
    flags |= os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, 0o600, dir_fd=dir_fd)
    except PermissionError:
        os.chmod(name, 0o600, dir_fd=dir_fd)
        return os.open(name, flags, 0o600, dir_fd=dir_fd)


def _left_in(fd: int) -> Dict[bytes, Dict[int, Row]]:
    """What a staging directory's log says of the files that are in it, by offset. Everything else in it is removed.
    Raises OSError."""
    for run in filter(is_run_id, os.listdir(fd)):
        with suppress(NotADirectoryError):
            _take_apart(run, b"", open_directory(os.fsencode(run), fd), fd)
    left: Dict[bytes, Dict[int, Row]] = {}
    names = set(map(os.fsencode, os.listdir(fd)))
    if LOG in names:
        for row in logged(fd):
            if row.name in names:
                left.setdefault(row.name, {})[row.offset] = row
    for name in names - {LOG}:
        info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            remove_tree(name, fd)
        elif name not in left or not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
            os.unlink(name, dir_fd=fd)
        else:
            continue
        left.pop(name, None)
    return left


def _take_apart(run: str, path: bytes, fd: int, staging: int) -> None:
    """Give the files in a directory of a run that was put together and never appeared the names back that they were
    staged under. Takes `fd` over."""
    try:
        os.fchmod(fd, 0o700)
        with os.scandir(fd) as found:
            entries = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in found]
        for name, is_directory in entries:
            if is_directory:
                _take_apart(run, path + name + b"/", open_directory(name, fd), staging)
            else:
                os.rename(name, name_of(run, path + name), src_dir_fd=fd, dst_dir_fd=staging)
    finally:
        os.close(fd)


def name_of(run: str, path: bytes) -> bytes:
    """The name of the staged file for a path of a run: flat, and never longer than a name may be."""
    return hashlib.sha256(run.encode() + b"/" + path).hexdigest().encode()
