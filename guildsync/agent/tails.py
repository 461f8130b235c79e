"""What an end has of an object that it wants, so that only the rest crosses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from guildsync.errors import Damaged, GuildsyncError, Unreachable
from guildsync.model.manifest import Digest, digest_of
from guildsync.model.ports import Piece, RawTree, Want
from guildsync.model.run import RunId
from guildsync.tree import redact

FEW = 64
"""Objects of one call: who wants more does not wait for what was appended somewhere."""
LEAST = 4096
"""Bytes that are worth the words about them."""
BUDGET = 32 << 20


class Begun(NamedTuple):
    """An object at hand that may be how another one begins."""

    size: int
    digest: Digest


def rest(data: bytes, begun: Begun | None) -> bytes:
    """What follows, where it does begin so; else all of it."""
    if begun is None or begun.size >= len(data) or digest_of(data[: begun.size]) != begun.digest:
        return data
    return data[begun.size :]


def lying(tree: RawTree, wants: Sequence[Want], missing: Collection[Digest]) -> dict[int, Begun]:
    """By the number of a want: what stands in its place now."""
    lacking = [(number, want) for number, want in enumerate(wants) if want.digest in missing]
    found: dict[int, Begun] = {}
    for number, want in lacking if len(lacking) <= FEW else ():
        if want.size > LEAST and want.path not in redact.PATHS:
            data = _read(tree, want, want.size - 1)
            if len(data) >= LEAST:
                found[number] = Begun(len(data), digest_of(data))
    return found


def completed(tree: RawTree, want: Want, size: int, tail: bytes) -> Piece:
    """What stands there, and the rest of it."""
    data = _read(tree, want, size) + tail
    if len(data) != want.size or digest_of(data) != want.digest:
        path = want.path.decode(errors="backslashreplace")
        raise Unreachable(f"{path} of run {want.run[:8]} changed there just now", "try again")
    return Piece(want, data)


def _read(tree: RawTree, want: Want, size: int) -> bytes:
    """Of what stands in the place of a want; nothing where that cannot be read."""
    path = b"runs/%b/%b" % (want.run.encode(), want.path)
    try:
        return b"".join(tree.folder.read(path, want.offset, want.offset + size))
    except GuildsyncError:
        return b""


class Carried:
    """What came of places where more may come; the oldest goes first."""

    def __init__(self, budget: int = BUDGET) -> None:
        """`budget` in bytes."""
        self._left = budget
        self._pieces: OrderedDict[tuple[RunId, bytes, int], Piece] = OrderedDict()

    def keep(self, piece: Piece) -> None:
        place = piece.want[2:]
        before = self._pieces.pop(place, None)
        self._pieces[place] = piece
        self._left += (len(before.data) if before is not None else 0) - len(piece.data)
        while self._left < 0:
            self._left += len(self._pieces.popitem(last=False)[1].data)

    def begun(self, wants: Iterable[Want]) -> dict[Want, Begun]:
        """Which of them may begin with what came."""
        found = [(want, self._pieces.get(want[2:])) for want in wants]
        return {
            want: Begun(piece.want.size, piece.want.digest)
            for want, piece in found
            if piece is not None and LEAST <= piece.want.size < want.size
        }

    def completed(self, want: Want, size: int, tail: bytes) -> bytes:
        """Raises Damaged where that much never came."""
        piece = self._pieces.get(want[2:])
        if piece is None or piece.want.size != size:
            raise Damaged(f"object {want.digest} comes without its beginning")
        return piece.data + tail
