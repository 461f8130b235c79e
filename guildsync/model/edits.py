"""What people change of a run's metadata: each edit is a function from what it was to what it is to be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from guildsync.errors import NotFound
from guildsync.model.run import Comment, Metadata

MetadataEdit = Callable[[Metadata], Metadata]


def set_label(label: str | None) -> MetadataEdit:
    """None, or nothing but white space, clears it."""
    return lambda was: replace(was, label=label if label is not None and label.strip() else None)


def append_label(words: str) -> MetadataEdit:
    return lambda was: set_label(f"{was.label} {words}" if was.label else words)(was)


def prepend_label(words: str) -> MetadataEdit:
    return lambda was: set_label(f"{words} {was.label}" if was.label else words)(was)


def remove_label(words: str) -> MetadataEdit:
    """Take `words` out of the label, wherever they stand in it, and the space that set them off."""

    def remove(was: Metadata) -> Metadata:
        if not words or was.label is None or words not in was.label:
            return was
        parts = (part.strip(" ") for part in was.label.split(words))
        return set_label(" ".join(part for part in parts if part))(was)

    return remove


def change_tags(add: Iterable[str] = (), remove: Iterable[str] = (), clear: bool = False) -> MetadataEdit:
    added, removed = frozenset(add), frozenset(remove)
    return lambda was: replace(was, tags=((frozenset() if clear else was.tags) - removed) | added)


def set_marked(marked: bool) -> MetadataEdit:
    return lambda was: replace(was, marked=marked)


def add_comment(comment: Comment) -> MetadataEdit:
    return lambda was: replace(was, comments=(*was.comments, comment))


def remove_comment(index: int) -> MetadataEdit:
    """The first has index 1. The edit raises NotFound for a run that has not so many."""

    def remove(was: Metadata) -> Metadata:
        if not 1 <= index <= len(was.comments):
            raise NotFound(f"there is no comment {index}", f"there are {len(was.comments)}")
        return replace(was, comments=was.comments[: index - 1] + was.comments[index:])

    return remove


def clear_comments(was: Metadata) -> Metadata:
    return replace(was, comments=())
