"""The files of a home by name, for whoever wants to look; nothing outside it, nothing of ours, no link followed."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import Iterator, Tuple

from guildsync.errors import NotFound, Refused
from guildsync.model.manifest import DIRECTORY, FILE, LINK, PART_SIZE, check_path
from guildsync.model.ports import FileInfo
from guildsync.tree.dirs import Descent, open_directory
from guildsync.tree.hashing import read_at
from guildsync.tree.home import Home
from guildsync.tree.scan import open_file

_OURS = b".guildsync"
_KINDS = {stat.S_IFDIR: DIRECTORY, stat.S_IFREG: FILE, stat.S_IFLNK: LINK}


class HomeFolder:
    """See `model.ports.Folder`."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def list(self, path: bytes) -> Iterator[FileInfo]:
        try:
            with self._descent(path) as (descent, below):
                fd = descent.at(below)
                with os.scandir(fd) as found:
                    names = sorted(os.fsencode(entry.name) for entry in found)
                rows = [self._info(fd, name) for name in names if path or name != _OURS]
        except OSError as exc:
            raise self._said(path, exc) from exc
        yield from rows

    def info(self, path: bytes) -> FileInfo:
        try:
            if not path:
                return FileInfo(b"", DIRECTORY, 0, os.stat(self._home.path).st_mtime_ns)
            check_path(path)
            with self._descent(os.path.dirname(path)) as (descent, below):
                return self._info(descent.at(below), os.path.basename(path))
        except OSError as exc:
            raise self._said(path, exc) from exc

    def read(self, path: bytes, start: int, stop: int) -> Iterator[bytes]:
        check_path(path)
        try:
            with self._descent(os.path.dirname(path)) as (descent, below):
                fd = open_file(descent.at(below), os.path.basename(path))
            try:
                for offset in range(start, stop, PART_SIZE):
                    data = read_at(fd, min(PART_SIZE, stop - offset), offset)
                    if not data:
                        return
                    yield data
            finally:
                os.close(fd)
        except OSError as exc:
            raise self._said(path, exc) from exc

    def _info(self, fd: int, name: bytes) -> FileInfo:
        """`runs` itself may be a link to another disk: it is what it leads to."""
        info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if name == b"runs" and os.path.samestat(os.fstat(fd), os.stat(self._home.path)):
            info = os.stat(self._home.runs)
        kind = _KINDS.get(stat.S_IFMT(info.st_mode), "other")
        return FileInfo(name, kind, info.st_size if kind == FILE else 0, info.st_mtime_ns)

    @contextmanager
    def _descent(self, path: bytes) -> Iterator[Tuple[Descent, bytes]]:
        """A descent, and the way to go in it."""
        root, below = self._home.path, path
        if path:
            check_path(path)
            names = path.split(b"/")
            if names[0] == _OURS:
                raise Refused(f"{os.fsdecode(path)} is guildsync's own")
            if names[0] == b"runs":
                root, below = self._home.runs, b"/".join(names[1:])
        with Descent(open_directory(root)) as descent:
            yield descent, below

    def _said(self, path: bytes, exc: OSError) -> Exception:
        name = os.fsdecode(path)
        if isinstance(exc, FileNotFoundError):
            return NotFound(f"there is no {name!r} in {self._home.text}")
        return Refused(f"cannot look at {name!r} in {self._home.text}: {exc.strerror}")
