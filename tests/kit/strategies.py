"""Hypothesis strategies: paths, manifests, triples of manifests that share structure, summaries, metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from guildsync.model.manifest import (
    DIRECTORY,
    PART_SIZE,
    Entry,
    Manifest,
    Part,
    digest_of,
    directory_entry,
    file_entry,
    is_entry_path,
    link_entry,
    parent,
)
from guildsync.model.run import STATUSES, Comment, Metadata, Summary

Tree = dict[bytes, Entry]
Draw = Callable[[st.SearchStrategy[Any]], Any]

_UGLY = [b"a", b"b", b".guild", b"attrs", b"new\nline", b"\\", b"-x", b"[*?]", b"\xff", b"%41", b" ", b"\xc3\xa9", b"A"]


def names() -> st.SearchStrategy[bytes]:
    """One part of a path: any bytes but NUL and `/`, not `.` or `..`."""
    odd = st.binary(min_size=1, max_size=12).map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"\\"))
    return (st.sampled_from(_UGLY) | odd).filter(lambda name: name not in (b".", b".."))


def paths() -> st.SearchStrategy[bytes]:
    """A path that may be an entry."""
    return st.lists(names(), min_size=1, max_size=5).map(b"/".join).filter(is_entry_path)


def times() -> st.SearchStrategy[int]:
    return st.integers(-(1 << 62), 1 << 62)


def modes() -> st.SearchStrategy[int]:
    return st.sampled_from([0o644, 0o755, 0o400]) | st.integers(0, 0o777)


@st.composite
def entries(draw: Draw, path: bytes) -> Entry:
    """A file, directory or link at `path`; few different contents, so that equal ones happen."""
    kind = draw(st.sampled_from(["small", "small", "small", "dir", "dir", "link", "big"]))
    when = draw(times())
    if kind == "dir":
        return directory_entry(path, draw(modes()), when)
    if kind == "link":
        target = draw(st.binary(min_size=1, max_size=8).filter(lambda t: b"\0" not in t))
        return link_entry(path, target, when)
    number = draw(st.integers(0, 5))
    if kind == "big":
        last = draw(st.integers(1, PART_SIZE))
        full = draw(st.integers(1, 3))
        sizes = [PART_SIZE] * full + [last]
        parts = [Part(digest_of(b"part %d %d" % (number, n)), size) for n, size in enumerate(sizes)]
        return file_entry(path, draw(modes()), sum(sizes), digest_of(b"big %d %d" % (number, full)), when, parts)
    data = b"x" * number
    return file_entry(path, draw(modes()), len(data), digest_of(data), when)


def place(tree: Tree, entry: Entry) -> None:
    """Put `entry` into `tree`, which stays one: directories appear above it, what cannot stay below it goes."""
    top = parent(entry.path)
    while top:
        if top not in tree or tree[top].kind != DIRECTORY:
            tree[top] = directory_entry(top, 0o755, 0)
        top = parent(top)
    if entry.kind != DIRECTORY:
        uproot(tree, entry.path)
    tree[entry.path] = entry


def uproot(tree: Tree, path: bytes) -> None:
    """Take `path`, and what lies below it, out of `tree`."""
    for name in [name for name in tree if name == path or name.startswith(path + b"/")]:
        del tree[name]


@st.composite
def manifests(draw: Draw, max_entries: int = 12) -> Manifest:
    tree: Tree = {}
    for path in draw(st.lists(paths(), max_size=max_entries)):
        place(tree, draw(entries(path)))
    return Manifest(tree.values())


@st.composite
def mutations(draw: Draw, manifest: Manifest) -> Manifest:
    """`manifest` after a few edits: things appear, go, change their content, mode, kind or only their mtime."""
    tree: Tree = dict(manifest.by_path)
    for _ in range(draw(st.integers(0, 4))):
        known = sorted(tree)
        edit = draw(st.sampled_from(["add", "remove", "replace", "touch", "below"])) if known else "add"
        if edit == "add":
            place(tree, draw(entries(draw(paths()))))
            continue
        path = draw(st.sampled_from(known))
        if edit == "remove":
            uproot(tree, path)
        elif edit == "replace":
            place(tree, draw(entries(path)))
        elif edit == "below":
            path = path + b"/" + draw(st.sampled_from([b"a", b"b"]))
            if is_entry_path(path):
                place(tree, draw(entries(path)))
        else:
            tree[path] = at_time(tree[path], draw(times()))
    return Manifest(tree.values())


def at_time(entry: Entry, mtime_ns: int) -> Entry:
    """The same entry with another mtime."""
    return Entry(entry.path, entry.kind, entry.mode, entry.size, entry.digest, entry.target, mtime_ns, entry.parts)


@st.composite
def triples(draw: Draw) -> tuple[Manifest | None, Manifest, Manifest]:
    """(base, have, want): both sides are edits of the base; sometimes there is no base, or a side did not move."""
    base = draw(manifests(6))
    have, want = draw(mutations(base)), draw(mutations(base))
    return draw(st.sampled_from([base, base, base, None])), have, want


def words() -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def comments() -> st.SearchStrategy[Comment]:
    return st.builds(Comment, words(), st.none() | st.integers(0, 1 << 52), st.none() | words(), st.none() | words())


def metadata() -> st.SearchStrategy[Metadata]:
    """Metadata as replicas hold it: comments once each and in their order."""

    def build(label: str | None, tags: frozenset[str], remarks: list[Comment], marked: bool) -> Metadata:
        once = {comment.id: comment for comment in remarks}
        ordered = sorted(once.values(), key=lambda comment: (comment.time or 0, comment.id))
        return Metadata(label, tags, tuple(ordered), marked)

    few = st.sampled_from(["a", "b", "c"]) | words()
    return st.builds(
        build, st.none() | few, st.frozensets(few, max_size=4), st.lists(comments(), max_size=3), st.booleans()
    )


def flag_values() -> st.SearchStrategy[Any]:
    """What a flag can be once YAML was read, finite or not."""
    leaf = st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | st.floats() | words()
    return st.recursive(leaf, lambda v: st.lists(v, max_size=3) | st.dictionaries(words(), v, max_size=3), max_leaves=6)


def summaries() -> st.SearchStrategy[Summary]:
    count = st.none() | st.integers(0, 1 << 60)
    scalar = st.fixed_dictionaries({"last": st.floats(), "step": st.integers(0, 1 << 40)})
    return st.builds(
        Summary,
        words(),
        st.sampled_from(STATUSES),
        count,
        count,
        st.none() | st.integers(-255, 255),
        st.dictionaries(words(), flag_values(), max_size=4),
        st.dictionaries(words(), scalar, max_size=3),
        st.lists(words(), max_size=4).map(tuple),
        st.none() | st.binary(max_size=4).map(digest_of),
        count,
        count,
    )
