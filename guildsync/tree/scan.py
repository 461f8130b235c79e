"""A run's directory -> Manifest, with its own walker and every error accounted for."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from guildsync.errors import NOT_KEPT, TORN, UNREADABLE, Damaged, Problem
from guildsync.model.manifest import (
    DIRECTORY,
    FILE,
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
from guildsync.tree.hashing import Cut, Torn, hash_bytes, hash_file, read_at, read_file
from guildsync.tree.redact import LIMIT, PATHS, VERSION, redact
from guildsync.tree.statcache import SETTLED_NS, WRITTEN_BACK_NS, Known, Stamp, fingerprint, stamp_of

Clock = Callable[[], int]

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


class View:
    """How the bytes of a run's files are seen: captured environments redacted, or (`keep_env`) as they are."""

    def __init__(self, keep_env: bool = False, cut: Optional[Cut] = None) -> None:
        """`cut` says where the parts of large files end, else they are of equal size."""
        self._redacted = frozenset() if keep_env else PATHS
        self._cut = cut

    @property
    def name(self) -> str:
        """Views with one name show the same."""
        return f"redacted-{VERSION}" if self._redacted else "plain"

    def redacts(self, path: bytes) -> bool:
        return path in self._redacted

    def entry(
        self, dir_fd: int, name: bytes, path: bytes, info: os.stat_result, before: Optional[Entry] = None
    ) -> Optional[Entry]:
        """The entry of one path now; None for a kind of file that is not kept. `before` is what it was: a file that
        begins so keeps its parts. Raises OSError, Torn."""
        mode = stat.S_IMODE(info.st_mode) & 0o777
        if stat.S_ISDIR(info.st_mode):
            return directory_entry(path, mode, info.st_mtime_ns)
        if stat.S_ISLNK(info.st_mode):
            return link_entry(path, os.readlink(name, dir_fd=dir_fd), info.st_mtime_ns)
        if not stat.S_ISREG(info.st_mode):
            return None
        fd = open_file(dir_fd, name)
        try:
            if self.redacts(path):
                data, info = self._read(fd)
                hashed = hash_bytes(data, info.st_mtime_ns)
            else:
                hashed = hash_file(fd, before, self._cut)
        finally:
            os.close(fd)
        return file_entry(path, mode, hashed.size, hashed.digest, hashed.mtime_ns, hashed.parts)

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


def scan(run: str, run_fd: int, view: View, known: Optional[Known] = None, clock: Optional[Clock] = None) -> Scanned:
    """All of a run. A path that cannot be read, or changes each time it is, is a problem and no entry.

    `known` is what the stat cache says: where all stat data are as they were nothing is read, else what changed.
    `clock` tells the time of the filesystem in ns; without one, nothing of this scan is good for a cache.
    """
    problems: List[Problem] = []
    report = _Report(run, problems)
    found: List[Tuple[bytes, os.stat_result]] = []
    _walk(run_fd, b"", found, report)
    mark = fingerprint(found) if not problems else None
    if known is not None and mark is not None and known.fingerprint == mark:
        return Scanned(known)
    return _hashed(run_fd, view, found, _Hints(known, clock), report)


class _Hints:
    """What an earlier scan knew, and which rows of this one may be kept."""

    def __init__(self, known: Optional[Known], clock: Optional[Clock]) -> None:
        self._entries = known.manifest().by_path if known is not None else {}
        self._stamps = known.stamps if known is not None else {}
        self._now_ns = clock() if clock is not None else None

    def entry(self, path: bytes) -> Optional[Entry]:
        entry = self._entries.get(path)
        return entry if entry is not None and entry.kind == FILE else None

    def unchanged(self, path: bytes, info: os.stat_result) -> Optional[Entry]:
        """The file's entry from the cache, where its row is good for it."""
        entry = self.entry(path)
        if entry is None or self._stamps.get(path) != stamp_of(info):
            return None
        mode = stat.S_IMODE(info.st_mode) & 0o777
        return Entry(path, FILE, mode, entry.size, entry.digest, None, entry.mtime_ns, entry.parts)

    def settle(self, dir_fd: int, name: bytes, info: os.stat_result) -> bool:
        """May a row of this file be kept, if hashing begins now? Syncs a file whose pages may still be written."""
        changed = max(info.st_mtime_ns, info.st_ctime_ns)
        if self._now_ns is None or changed > self._now_ns - SETTLED_NS:
            return False
        if changed > self._now_ns - WRITTEN_BACK_NS:
            fd = open_file(dir_fd, name)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        return True


class _Report:
    def __init__(self, run: str, problems: List[Problem]) -> None:
        self._run, self.problems = run, problems

    def __call__(self, path: bytes, reason: str, detail: str) -> None:
        self.problems.append(Problem(self._run, path, reason, detail))

    @contextmanager
    def about(self, path: bytes) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            pass  # it went away since the directory was read
        except Torn:
            self(path, TORN, "it changes while it is read")
        except Damaged as exc:
            self(path, NOT_KEPT, exc.message)
        except OSError as exc:
            self(path, UNREADABLE, exc.strerror or str(exc))


def _walk(fd: int, prefix: bytes, found: List[Tuple[bytes, os.stat_result]], report: _Report) -> None:
    with os.scandir(fd) as listed:
        names = sorted((os.fsencode(entry.name), entry) for entry in listed)
    for name, entry in names:
        path = prefix + name
        if not is_entry_path(path):
            continue
        with report.about(path):
            check_path(path)
            info = entry.stat(follow_symlinks=False)
            below = open_directory(name, fd) if stat.S_ISDIR(info.st_mode) else -1
            found.append((path, info))
            if below >= 0:
                try:
                    _walk(below, path + b"/", found, report)
                finally:
                    os.close(below)


def _hashed(
    run_fd: int, view: View, found: List[Tuple[bytes, os.stat_result]], hints: _Hints, report: _Report
) -> Scanned:
    entries: List[Entry] = []
    stamps: Dict[bytes, Stamp] = {}
    directories = {b""}
    with Descent(os.dup(run_fd)) as descent:
        for path, info in found:
            with report.about(path):
                if parent(path) not in directories:
                    continue  # what it lay in went away, or is no directory any more
                entry = hints.unchanged(path, info)
                if entry is not None:
                    stamps[path] = stamp_of(info)
                else:
                    fd, name = descent.place(path)
                    settled = stat.S_ISREG(info.st_mode) and hints.settle(fd, name, info)
                    entry = view.entry(fd, name, path, info, hints.entry(path))
                    if entry is None:
                        report(path, NOT_KEPT, "a socket, pipe or device")
                        continue
                    if settled and stamp_of(os.stat(name, dir_fd=fd, follow_symlinks=False)) == stamp_of(info):
                        stamps[path] = stamp_of(info)
                entries.append(entry)
                if entry.kind == DIRECTORY:
                    directories.add(path)
    manifest = Manifest(entries)
    whole = not report.problems and all(entry.kind != FILE or entry.path in stamps for entry in entries)
    known = Known(fingerprint(found) if whole else None, manifest.content, stamps, manifest.encode())
    return Scanned(known, tuple(report.problems), manifest)
