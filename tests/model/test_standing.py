"""How a run there compares with the one here: every case of contents, base and history."""

from __future__ import annotations

import pytest

from guildsync.model.manifest import Digest, Manifest, digest_of, file_entry
from guildsync.model.ports import Base
from guildsync.model.run import NO_METADATA
from guildsync.model.standing import BOTH_CHANGED, LOCAL_NEWER, REMOTE_NEWER, SAME, standing


def manifest(word: str) -> Manifest:
    return Manifest([file_entry(b"a", 0o644, len(word), digest_of(word.encode()), 0)])


def content(word: str) -> Digest:
    return manifest(word).content


def base(of: str, *seen: str) -> Base:
    return Base.of(manifest(of), NO_METADATA, "completed", [content(word) for word in seen or (of,)])


@pytest.mark.parametrize(
    ("here", "there", "known", "history", "expected"),
    [
        ("a", "a", None, None, SAME),
        ("a", "a", base("z"), ["a"], SAME),
        ("b", "a", base("a"), None, LOCAL_NEWER),
        ("a", "b", base("a"), None, REMOTE_NEWER),
        ("b", "c", base("a"), None, BOTH_CHANGED),
        ("a", "b", None, None, BOTH_CHANGED),
        # a store's line of versions
        ("b", "a", base("a"), ["a"], LOCAL_NEWER),
        ("a", "b", base("a"), ["a", "b"], REMOTE_NEWER),
        ("a", "b", None, ["a", "b"], REMOTE_NEWER),
        ("a", "b", None, ["b"], BOTH_CHANGED),
        ("b", "c", base("a"), ["a", "b", "c"], REMOTE_NEWER),
        ("b", "c", base("a"), ["a", "c"], BOTH_CHANGED),
        # one that went back in time, or another store: the base says nothing
        ("a", "z", base("a"), ["z"], BOTH_CHANGED),
        ("a", "b", base("a"), ["z", "b"], BOTH_CHANGED),
        ("z", "b", base("a"), ["z", "b"], REMOTE_NEWER),
        # what was left out of the last sync, or was one side's own
        ("w", "a", base("a", "a", "w"), None, LOCAL_NEWER),
        ("a", "w", base("a", "a", "w"), None, REMOTE_NEWER),
        ("v", "w", base("a", "v", "w"), None, BOTH_CHANGED),
    ],
)
def test_standing(here: str, there: str, known: Base | None, history: list[str] | None, expected: str) -> None:
    line = None if history is None else [content(word) for word in history]
    assert standing(content(here), content(there), known, line) == expected
