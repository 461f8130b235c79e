"""A run's directory -> Manifest, with its own walker and every error accounted for."""

from __future__ import annotations

import os
import stat
from typing import List, NamedTuple, Optional, Tuple

from guildsync.errors import NOT_KEPT, TORN, UNREADABLE, Damaged, Problem
from guildsync.model.manifest import (
    Entry,
    Manifest,
    check_path,
    directory_entry,
    file_entry,
    is_entry_path,
    link_entry,
)
from guildsync.tree.dirs import open_directory
from guildsync.tree.hashing import Torn, hash_bytes, hash_file, read_file
from guildsync.tree.redact import LIMIT, PATHS, redact

_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Scanned(NamedTuple):
    """What a run's directory holds. With problems the manifest lacks what they name, and proves no absence."""

    manifest: Manifest
    problems: Tuple[Problem, ...]


class View:
    """How the bytes of a run's files are seen: captured environments redacted, or (`keep_env`) as they are."""

    def __init__(self, keep_env: bool = False) -> None:
        self._redacted = frozenset() if keep_env else PATHS

    def redacts(self, path: bytes) -> bool:
        return path in self._redacted

    def entry(self, dir_fd: int, name: bytes, path: bytes, info: os.stat_result) -> Optional[Entry]:
        """The entry of one path now; None for a kind of file that is not kept. Raises OSError, Torn."""
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
                hashed = hash_file(fd)
        finally:
            os.close(fd)
        return file_entry(path, mode, hashed.size, hashed.digest, hashed.mtime_ns, hashed.parts)

    def read(self, fd: int, path: bytes, size: int, offset: int) -> bytes:
        """Up to `size` bytes at `offset` of the file `path` behind `fd`, as the view shows them."""
        if self.redacts(path):
            return self._read(fd)[0][offset : offset + size]
        data = os.pread(fd, size, offset)
        while len(data) < size:
            more = os.pread(fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

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


def scan(run: str, run_fd: int, view: View) -> Scanned:
    """All of a run. A path that cannot be read, or changes each time it is, is a problem and no entry."""
    entries: List[Entry] = []
    problems: List[Problem] = []
    _walk(run_fd, b"", view, entries, _Report(run, problems))
    return Scanned(Manifest(entries), tuple(problems))


class _Report:
    def __init__(self, run: str, problems: List[Problem]) -> None:
        self._run, self._problems = run, problems

    def __call__(self, path: bytes, reason: str, detail: str) -> None:
        self._problems.append(Problem(self._run, path, reason, detail))


def _walk(fd: int, prefix: bytes, view: View, entries: List[Entry], report: _Report) -> None:
    with os.scandir(fd) as found:
        names = sorted((os.fsencode(entry.name), entry) for entry in found)
    for name, listed in names:
        path = prefix + name
        if not is_entry_path(path):
            continue
        try:
            check_path(path)
            info = listed.stat(follow_symlinks=False)
            entry = view.entry(fd, name, path, info)
            if entry is None:
                report(path, NOT_KEPT, "a socket, pipe or device")
                continue
            below = open_directory(name, fd) if stat.S_ISDIR(info.st_mode) else -1
            entries.append(entry)
            if below >= 0:
                try:
                    _walk(below, path + b"/", view, entries, report)
                finally:
                    os.close(below)
        except FileNotFoundError:
            continue  # it went away since the directory was read
        except Torn:
            report(path, TORN, "it changes while it is read")
        except Damaged as exc:
            report(path, NOT_KEPT, exc.message)
        except OSError as exc:
            report(path, UNREADABLE, exc.strerror or str(exc))
