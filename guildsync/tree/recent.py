"""Small objects that were just seen, so that who wants their bytes need not read them again."""

from __future__ import annotations

from collections import OrderedDict
from typing import Optional

from guildsync.model.manifest import Digest

SMALL = 256 << 10
"""Bytes of the largest object that is kept: reading a larger one costs little beside hashing it."""


class Recent:
    """Bytes by their digest, within a budget; the oldest go first."""

    def __init__(self, budget: int = 48 << 20) -> None:
        """`budget` in bytes."""
        self._left = budget
        self._data: OrderedDict[Digest, bytes] = OrderedDict()

    def keep(self, digest: Digest, data: bytes) -> None:
        """The caller knows that the digest is that of the bytes."""
        if len(data) > SMALL or digest in self._data:
            return
        self._data[digest] = data
        self._left -= len(data)
        while self._left < 0:
            self._left += len(self._data.popitem(last=False)[1])

    def get(self, digest: Digest) -> Optional[bytes]:
        return self._data.get(digest)

    def take(self, digest: Digest) -> Optional[bytes]:
        """The bytes, which are kept no longer."""
        data = self._data.pop(digest, None)
        self._left += len(data or b"")
        return data

    def clear(self) -> None:
        self._left += sum(map(len, self._data.values()))
        self._data.clear()
