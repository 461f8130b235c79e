"""A process beside the one that commits: it writes objects into that one's staging directory."""

from __future__ import annotations

from typing import Iterable

from guildsync.errors import Damaged
from guildsync.model.ports import Piece
from guildsync.tree.dirs import write_all
from guildsync.tree.home import Home
from guildsync.tree.staged import Opened, Row, Staging, name_of


class Lane:
    """Writes where the one that commits would. That one has to be told of the objects (`StagedFiles.gather`): it
    believes none before it has read them. Should it die, the log says what is there."""

    def __init__(self, home: Home, name: str) -> None:
        """`name` is that of a staging directory of this user's; raises OSError where it is not."""
        self._staging: Staging = home.joined(name)
        self._opened = Opened(self._staging.fd)

    def add(self, pieces: Iterable[Piece]) -> None:
        for want, data in pieces:
            if len(data) != want.size:
                raise Damaged(f"the object {want.digest} is not as large as said")
            name = name_of(want.run, want.path)
            write_all(self._opened.get(name), data, want.offset)
            self._staging.wrote(Row(name, want.offset, want.size, want.digest))
        self._staging.flush()

    def close(self) -> None:
        self._opened.close_all()
        self._staging.close(keep=True)
