"""Objects read from where they stand in runs."""

from __future__ import annotations

import os
from typing import Optional, Tuple

from guildsync.model.ports import Want
from guildsync.model.run import RunId
from guildsync.tree.dirs import Descent
from guildsync.tree.hashing import Torn
from guildsync.tree.home import Home
from guildsync.tree.scan import View, open_file


class Reader:
    """Reads objects from where they stand in runs, keeping the last file open."""

    def __init__(self, home: Home, view: View) -> None:
        self._home, self._view = home, view
        self._open: Optional[Tuple[RunId, bytes]] = None
        self._fd = -1

    def read(self, want: Want) -> bytes:
        """The bytes there now, unverified. Raises OSError, Torn."""
        if self._open != (want.run, want.path):
            self.close()
            with Descent(self._home.open_run(want.run)) as descent:
                self._fd = open_file(*descent.place(want.path))
            self._open = (want.run, want.path)
        return self._view.read(self._fd, want.path, want.size, want.offset)

    def read_or_none(self, want: Want) -> Optional[bytes]:
        try:
            return self.read(want)
        except (OSError, Torn):
            return None
        finally:
            self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._open = -1, None
