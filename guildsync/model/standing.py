"""How a run at a remote compares with the local home's: which of the two changed since both had the same."""

from __future__ import annotations

from collections.abc import Collection

from guildsync.model.manifest import Digest
from guildsync.model.ports import Base

SAME, LOCAL_NEWER, REMOTE_NEWER, BOTH_CHANGED = "same", "local newer", "remote newer", "both changed"
ONLY_HERE, ONLY_THERE = "only here", "only there"


def standing(here: Digest, there: Digest, base: Base | None, history: Collection[Digest] | None) -> str:
    """From the contents here and there, the base of the pair, and the contents that the remote's line of versions had
    (None: it keeps no history).

    A base that a history knows nothing of says nothing: the remote went back in time. Where neither side changed since
    the last sync, what differs was left out of it, or is one side's own: the side that is as the base has less.
    """
    if here == there:
        return SAME
    if base is not None and history is not None and base.seen.isdisjoint(history):
        base = None
    if base is not None:
        here_stands, there_stands = here in base.seen, there in base.seen
        if here_stands and there_stands:
            here_stands, there_stands = here == base.content, there == base.content
        if here_stands != there_stands:
            return REMOTE_NEWER if here_stands else LOCAL_NEWER
    if history is not None and here in history:
        return REMOTE_NEWER
    return BOTH_CHANGED
