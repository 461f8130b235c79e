"""A run's directory -> Manifest, with its own walker and every error accounted for."""

from __future__ import annotations

import os
import stat
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

from guildsync.errors import NOT_KEPT, TORN, UNREADABLE, UNSETTLED, Damaged, Problem
from guildsync.model.manifest import (
    DIRECTORY,
    FILE,
    MAX_DEPTH,
    MAX_PATH,
    Digest,
    Entry,
    Manifest,
    check_path,
    directory_entry,
    file_entry,
    is_entry_path,
    link_entry,
    parent,
)
from guildsync.tree.dirs import Descent, open_directory
from guildsync.tree.durable import write_back
from guildsync.tree.hashing import Cut, Torn, hash_bytes, hash_file, read_at, read_file
from guildsync.tree.recent import Recent
from guildsync.tree.redact import LIMIT, PATHS, VERSION, redact
from guildsync.tree.settling import Patience, Seen
from guildsync.tree.statcache import SETTLED_NS, TICK_NS, Known, Lstat, Stamp, Stat, fingerprint, lstat_of, stamp_of

Clock = Callable[[], int]

_TROUBLE = (OSError, Torn, Damaged)
"""What concerns one path only."""

_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Scanned:
    """What a run's directory holds. With problems the manifest lacks what they name, and proves no absence. `known` is
    what a stat cache may keep of it."""

    def __init__(self, known: Known, problems: Tuple[Problem, ...] = (), manifest: Optional[Manifest] = None) -> None:
        self.known = known
        self.problems = problems
        self._manifest = manifest

    @property
    def content(self) -> Digest:
        return self.known.content

    @property
    def manifest(self) -> Manifest:
        if self._manifest is None:
            self._manifest = self.known.manifest()
        return self._manifest


Found = Tuple[bytes, Lstat]
"""A path that may be an entry, and its lstat data."""


class View:
    """How the bytes of a run's files are seen: captured environments redacted, or (`keep_env`) as they are."""

    def __init__(self, keep_env: bool = False, cut: Optional[Cut] = None, once: bool = False) -> None:
        """`cut` says where the parts of large files end, else they are of equal size. `once`: what changes while it is
        read is not read again at once."""
        self.recent = Recent()
        self._redacted = frozenset() if keep_env else PATHS
        self._cut, self._once = cut, once

    @property
    def name(self) -> str:
        """Views with one name show the same."""
        return f"redacted-{VERSION}" if self._redacted else "plain"

    def redacts(self, path: bytes) -> bool:
        return path in self._redacted

    def entry(
        self,
        place: Tuple[int, bytes],
        path: bytes,
        info: Stat,
        before: Optional[Entry] = None,
        to_keep: bool = False,
    ) -> Optional[Entry]:
        """The entry of one path now, that lies at `place` (descriptor of its directory, name there); None for a kind
        of file that is not kept. `before` is what it was: a file that begins so keeps its parts. `to_keep`: what is
        hashed is to be known by its stat data from now on. Raises OSError, Torn."""
        return self.look(place, path, info, before, to_keep).entry

    def look(self, place: Tuple[int, bytes], path: bytes, info: Stat, before: Optional[Entry], to_keep: bool) -> Seen:
        """As `entry`; and whether the file begins with what it was."""
        dir_fd, name = place
        mode = stat.S_IMODE(info.st_mode) & 0o777
        if stat.S_ISDIR(info.st_mode):
            return Seen(directory_entry(path, mode, info.st_mtime_ns))
        if stat.S_ISLNK(info.st_mode):
            return Seen(link_entry(path, os.readlink(name, dir_fd=dir_fd), info.st_mtime_ns))
        if not stat.S_ISREG(info.st_mode):
            return Seen(None)
        fd = open_file(dir_fd, name)
        try:
            if to_keep:
                write_back(fd)
            if self.redacts(path):
                data, info = self._read(fd)
                hashed = hash_bytes(data, info.st_mtime_ns)
            else:
                hashed = hash_file(fd, before, self._cut, self._once)
        finally:
            os.close(fd)
        if hashed.data is not None:
            self.recent.keep(hashed.digest, hashed.data)
        entry = file_entry(path, mode, hashed.size, hashed.digest, hashed.mtime_ns, hashed.parts)
        return Seen(entry, hashed.grew)

    def read(self, fd: int, path: bytes, size: int, offset: int) -> bytes:
        """Up to `size` bytes at `offset` of the file `path` behind `fd`, as the view shows them."""
        if self.redacts(path):
            return self._read(fd)[0][offset : offset + size]
        return read_at(fd, size, offset)

    def _read(self, fd: int) -> Tuple[bytes, os.stat_result]:
        if os.fstat(fd).st_size > LIMIT:
            raise OSError(f"a captured environment of more than {LIMIT >> 20} MiB")
        data, info = read_file(fd)
        return redact(data), info


def open_file(dir_fd: int, name: bytes) -> int:
    """A regular file's descriptor for reading; raises OSError where `name` is a link or anything that could block."""
    fd = os.open(name, _OPEN_FILE, dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError("not a regular file any more")
    return fd


class Hints(NamedTuple):
    """What may save a scan some reading. `known` is what the stat cache says; `clock` tells the time of the filesystem
    in ns: without one, nothing of this scan is good for a cache. With `patience`, a file that is being rewritten is a
    problem until it rests. `placed` are files that a commit put there and on the disk (`publish.Rewritten`): to write
    their pages back costs nothing, so that rows of them are good as soon as the clock has ticked."""

    known: Optional[Known] = None
    clock: Optional[Clock] = None
    patience: Optional[Patience] = None
    placed: Mapping[bytes, Stamp] = {}


def scan(run: str, run_fd: int, view: View, hints: Hints = Hints()) -> Scanned:
    """All of a run. A path that cannot be read, or changes each time it is, is a problem and no entry. Where all stat
    data are as they were known nothing is read, else what changed."""
    problems: List[Problem] = []
    report, known = _Report(run, problems), hints.known
    found: List[Found] = []
    _walk(run_fd, b"", found, report)
    if known is not None and known.fingerprint is not None and not problems and known.fingerprint == fingerprint(found):
        return Scanned(known)
    return _hashed(run_fd, view, found, _Rows(hints), report)


def walked(run_fd: int) -> List[Found]:
    """As `scan` finds the paths of a run; what cannot be read is left out."""
    found: List[Found] = []
    _walk(run_fd, b"", found, _Report("", []))
    return found


class _Rows:
    """What an earlier scan knew, and which rows of this one may be kept."""

    def __init__(self, hints: Hints) -> None:
        known = hints.known
        self.patience = hints.patience
        self._placed = hints.placed
        self._entries = known.manifest().by_path if known is not None else {}
        self._stamps = known.stamps if known is not None else {}
        self._now_ns = hints.clock() if hints.clock is not None else None

    def entry(self, path: bytes) -> Optional[Entry]:
        entry = self._entries.get(path)
        return entry if entry is not None and entry.kind == FILE else None

    def unchanged(self, path: bytes, info: Stat) -> Optional[Entry]:
        """The file's entry from the cache, where its row is good for it."""
        entry = self.entry(path)
        if entry is None or self._stamps.get(path) != stamp_of(info):
            return None
        mode = stat.S_IMODE(info.st_mode) & 0o777
        return Entry(path, FILE, mode, entry.size, entry.digest, None, entry.mtime_ns, entry.parts)

    def settled(self, path: bytes, info: Stat) -> bool:
        """May a row of this file be kept, if hashing begins now?"""
        if self._now_ns is None:
            return False
        if self._placed.get(path) == stamp_of(info):
            return info.st_ctime_ns <= self._now_ns - TICK_NS
        return max(info.st_mtime_ns, info.st_ctime_ns) <= self._now_ns - SETTLED_NS


class _Report:
    def __init__(self, run: str, problems: List[Problem]) -> None:
        self._run, self.problems = run, problems

    def __call__(self, path: bytes, reason: str, detail: str) -> None:
        self.problems.append(Problem(self._run, path, reason, detail))

    def failed(self, path: bytes, exc: Exception) -> None:
        if isinstance(exc, Torn):
            self(path, TORN, "it changes while it is read")
        elif isinstance(exc, Damaged):
            self(path, NOT_KEPT, exc.message)
        elif isinstance(exc, OSError) and not isinstance(exc, FileNotFoundError):
            self(path, UNREADABLE, exc.strerror or str(exc))
        # else it went away since the directory was read


def _walk(fd: int, prefix: bytes, found: List[Found], report: _Report) -> None:
    with os.scandir(fd) as listed:
        names = sorted((os.fsencode(entry.name), entry) for entry in listed)
    for name, entry in names:
        path = prefix + name
        if not is_entry_path(path):
            continue
        try:
            if len(path) > MAX_PATH or path.count(b"/") >= MAX_DEPTH:
                check_path(path)  # nothing else can be wrong with what a directory lists
            info = lstat_of(entry.stat(follow_symlinks=False))
            below = open_directory(name, fd) if stat.S_ISDIR(info.st_mode) else -1
            found.append((path, info))
            if below >= 0:
                try:
                    _walk(below, path + b"/", found, report)
                finally:
                    os.close(below)
        except _TROUBLE as exc:
            report.failed(path, exc)


_WAITS = "it is being rewritten, and waits until it rests"
_NO_FILE = "a socket, pipe or device"


def _looked_at(view: View, place: Tuple[int, bytes], found: Found, rows: _Rows) -> Optional[Entry]:
    path, info = found

    def read(before: Optional[Entry]) -> Seen:
        return view.look(place, path, info, before, rows.settled(path, info))

    before = rows.entry(path)
    if rows.patience is None:
        return read(before).entry
    try:
        return rows.patience.look(path, info, before, read).entry
    except Torn:
        return None  # nothing to be tried again at once: it waits as any other


def _hashed(run_fd: int, view: View, found: List[Found], rows: _Rows, report: _Report) -> Scanned:
    entries: List[Entry] = []
    stamps: Dict[bytes, Stamp] = {}
    directories = {b""}
    with Descent(os.dup(run_fd)) as descent:
        for path, info in found:
            if parent(path) not in directories:
                continue  # what it lay in went away, or is no directory any more
            try:
                entry = rows.unchanged(path, info)
                if entry is not None:
                    stamps[path] = stamp_of(info)
                else:
                    fd, name = descent.place(path)
                    settled = rows.settled(path, info)
                    entry = _looked_at(view, (fd, name), (path, info), rows)
                    if entry is None:
                        rewritten = stat.S_ISREG(info.st_mode)
                        report(path, UNSETTLED, _WAITS) if rewritten else report(path, NOT_KEPT, _NO_FILE)
                        continue
                    if entry.kind != DIRECTORY and settled:
                        now = os.stat(name, dir_fd=fd, follow_symlinks=False)
                        if stamp_of(now) == stamp_of(info):
                            stamps[path] = stamp_of(info)
            except _TROUBLE as exc:
                report.failed(path, exc)
                continue
            entries.append(entry)
            if entry.kind == DIRECTORY:
                directories.add(path)
    manifest = Manifest(entries)
    whole = not report.problems and all(entry.kind == DIRECTORY or entry.path in stamps for entry in entries)
    known = Known.of(fingerprint(found) if whole else None, manifest, stamps)
    return Scanned(known, tuple(report.problems), manifest)
