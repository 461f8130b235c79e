"""The files of a home far away as an fsspec filesystem, confined to that home, to be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from guildsync.errors import NotFound
from guildsync.model.manifest import DIRECTORY
from guildsync.model.ports import FileInfo, Folder

_TYPES = {"dir": "directory"}


class FolderFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """Paths are relative to the home. What is not there raises FileNotFoundError, what cannot be seen PermissionError
    or a GuildsyncError; nothing can be written: runs are changed by syncs alone."""

    protocol = "guildsync"
    cachable = False

    def __init__(self, open_folder: Callable[[], Folder]) -> None:
        """`open_folder` is called when something is first asked for."""
        super().__init__(use_listings_cache=False)
        self._open_folder = open_folder
        self._folder: Folder | None = None

    @property
    def folder(self) -> Folder:
        if self._folder is None:
            self._folder = self._open_folder()
        return self._folder

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        name = _name(path)
        try:
            found = self.folder.info(name)
            infos = list(self.folder.list(name)) if found.kind == DIRECTORY else None
        except NotFound as exc:
            raise FileNotFoundError(path) from exc
        rows = [_row(found, name)] if infos is None else [_row(info, _joined(name, info.name)) for info in infos]
        return rows if detail else [row["name"] for row in rows]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        try:
            return _row(self.folder.info(_name(path)), _name(path))
        except NotFound as exc:
            raise FileNotFoundError(path) from exc

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        size = self.info(path)["size"]
        first, last, _step = slice(start, end).indices(size)
        return b"".join(self.folder.read(_name(path), first, last)) if first < last else b""

    def modified(self, path: str) -> float:
        """Seconds since the epoch."""
        return float(self.info(path)["mtime"])

    def _open(self, path: str, mode: str = "rb", **options: Any) -> _File:
        if mode != "rb":
            raise PermissionError(f"{path}: runs are changed by syncs alone")
        return _File(self, path, mode, **options)


class _File(AbstractBufferedFile):  # type: ignore[misc]  # fsspec ships no types
    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.cat_file(self.path, start, end))


def _name(path: str) -> bytes:
    return os.fsencode(path.partition("://")[2] if "://" in path else path).strip(b"/")


def _joined(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _row(info: FileInfo, name: bytes) -> dict[str, Any]:
    mtime = info.mtime_ns / 1e9
    return {"name": os.fsdecode(name), "type": _TYPES.get(info.kind, info.kind), "size": info.size, "mtime": mtime}
