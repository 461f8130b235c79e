"""The files of a home at the other end of the pipe."""

from __future__ import annotations

from collections.abc import Iterator

from guildsync.agent.calls import Calls, each
from guildsync.agent.frames import Item
from guildsync.agent.values import PIECE_LIMITS, info_of, rows
from guildsync.errors import Damaged
from guildsync.model.manifest import text
from guildsync.model.ports import FileInfo


class FarFolder:
    """See `model.ports.Folder`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def list(self, path: bytes) -> Iterator[FileInfo]:
        return self._calls.make("list", each(info_of), arguments=rows([text(path)]))

    def info(self, path: bytes) -> FileInfo:
        return self._calls.one("info", info_of, rows([text(path)]))

    def read(self, path: bytes, start: int, stop: int) -> Iterator[bytes]:
        left = stop - start

        def piece(item: Item) -> list[bytes]:
            nonlocal left
            data = item[1] or b""
            left -= len(data)
            if not data or left < 0:
                raise Damaged("other bytes than were asked for")
            return [data]

        return self._calls.make("read", piece, PIECE_LIMITS, rows([text(path), start, stop]))
