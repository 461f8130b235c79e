"""Directories by descriptor: one component at a time, following no link."""

from __future__ import annotations

import os
from types import TracebackType
from typing import List, Optional, Tuple, Type

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_directory(name: bytes, dir_fd: Optional[int] = None) -> int:
    """A descriptor of a directory; raises OSError where `name` is a link or anything else."""
    return os.open(name, _OPEN_DIRECTORY, dir_fd=dir_fd)


class Descent:
    """The directories below one root. Holds as many descriptors as the place last asked for is deep."""

    def __init__(self, root: int) -> None:
        """Takes the descriptor over: it is closed with the descent."""
        self._path = b""
        self._names: List[bytes] = []
        self._fds = [root]

    def __enter__(self) -> Descent:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def at(self, path: bytes, mode: Optional[int] = None) -> int:
        """The descriptor of the directory `path` (b"" is the root), valid until the next call.

        With `mode`, directories that are not there are made. Raises OSError where a component is no directory.
        """
        if path == self._path:
            return self._fds[-1]
        self._path = b"\0"  # no directory's, should this end halfway
        names = path.split(b"/") if path else []
        shared = 0
        while shared < min(len(names), len(self._names)) and names[shared] == self._names[shared]:
            shared += 1
        while len(self._names) > shared:
            os.close(self._fds.pop())
            self._names.pop()
        for name in names[shared:]:
            if mode is not None:
                try:
                    os.mkdir(name, mode, dir_fd=self._fds[-1])
                except FileExistsError:
                    pass
            self._fds.append(open_directory(name, self._fds[-1]))
            self._names.append(name)
        self._path = path
        return self._fds[-1]

    def place(self, path: bytes) -> Tuple[int, bytes]:
        """(descriptor of the directory that holds `path`, its name there)."""
        directory, _, name = path.rpartition(b"/")
        return self.at(directory), name


def sync_path(path: bytes) -> None:
    """Make a directory's entries durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: bytes, data: bytes, mode: int = 0o600) -> None:
    """Replace a small file of ours that only one at a time writes: a reader sees the old bytes or the new ones, and so
    does who comes after a crash. What a crash leaves under a temporary name the next call takes over."""
    directory = os.path.dirname(path)
    temporary = path + b".tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, path)
    sync_path(directory)


def write_all(fd: int, data: bytes, offset: Optional[int] = None) -> None:
    """All of `data`, at the end or at `offset`."""
    view = memoryview(data)
    while view:
        count = os.write(fd, view) if offset is None else os.pwrite(fd, view, offset)
        view = view[count:]
        if offset is not None:
            offset += count


def remove_tree(name: bytes, dir_fd: Optional[int] = None) -> None:
    """Remove a directory of ours and all below it, following no link; what is gone already is no error."""
    try:
        fd = open_directory(name, dir_fd)
    except FileNotFoundError:
        return
    try:
        os.fchmod(fd, 0o700)
        with os.scandir(fd) as found:
            entries = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in found]
        for child, is_directory in entries:
            if is_directory:
                remove_tree(child, fd)
            else:
                try:
                    os.unlink(child, dir_fd=fd)
                except FileNotFoundError:
                    pass
    finally:
        os.close(fd)
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
