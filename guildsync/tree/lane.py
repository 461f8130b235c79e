"""A process beside the one that commits: it writes objects into that one's staging directory."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Iterable

from guildsync.errors import Damaged
from guildsync.model.ports import Piece
from guildsync.tree.dirs import write_all
from guildsync.tree.home import Home
from guildsync.tree.staged import Row, Staging, name_of, open_staged

_OPEN_FILES = 16


class Lane:
    """Writes where the one that commits would. That one has to be told of the objects (`StagedFiles.gather`): it
    believes none before it has read them. Should it die, the log says what is there."""

    def __init__(self, home: Home, name: str) -> None:
        """`name` is that of a staging directory of this user's; raises OSError where it is not."""
        self._staging: Staging = home.joined(name)
        self._fds: OrderedDict[bytes, int] = OrderedDict()

    def add(self, pieces: Iterable[Piece]) -> None:
        for want, data in pieces:
            if len(data) != want.size:
                raise Damaged(f"the object {want.digest} is not as large as said")
            name = name_of(want.run, want.path)
            write_all(self._open(name), data, want.offset)
            self._staging.wrote(Row(name, want.offset, want.size, want.digest))
        self._staging.flush()

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])
        self._staging.close(keep=True)

    def _open(self, name: bytes) -> int:
        fd = self._fds.pop(name, -1)
        if fd < 0:
            fd = open_staged(name, os.O_CREAT, self._staging.fd)
        self._fds[name] = fd
        while len(self._fds) > _OPEN_FILES:
            os.close(self._fds.popitem(last=False)[1])
        return fd
