"""Manifests: what is written is read back, and nothing else is read at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guildsync.errors import Damaged
from guildsync.model.manifest import (
    EMPTY,
    FILE,
    MAX_DEPTH,
    MAX_OBJECT,
    NOTHING,
    PART_SIZE,
    Entry,
    Manifest,
    Part,
    check_path,
    digest_of,
    directory_entry,
    file_entry,
    is_entry_path,
    link_entry,
    same,
    text,
    untext,
)
from tests.kit import strategies as some

D = digest_of(b"x")


@given(some.manifests())
def test_encode_then_decode(manifest: Manifest) -> None:
    data = manifest.encode()
    read = Manifest.decode(data)
    assert read == manifest
    assert read.content == manifest.content
    assert read.encode() == data


@given(some.manifests(), st.data())
def test_order_of_entries_does_not_matter(manifest: Manifest, data: st.DataObject) -> None:
    assert Manifest(data.draw(st.permutations(manifest.entries))).encode() == manifest.encode()


@given(some.manifests(), some.times())
def test_content_ignores_times_and_parts(manifest: Manifest, when: int) -> None:
    moved = Manifest(_otherwise_cut(some.at_time(entry, when)) for entry in manifest.entries)
    assert moved.content == manifest.content
    assert all(same(entry, moved.by_path[entry.path]) for entry in manifest.entries)


def _otherwise_cut(entry: Entry) -> Entry:
    if not entry.parts:
        return entry
    parts = [Part(D, 1), *(Part(D, min(PART_SIZE, entry.size - n)) for n in range(1, entry.size, PART_SIZE))]
    assert entry.digest is not None
    return file_entry(entry.path, entry.mode, entry.size, entry.digest, entry.mtime_ns, parts)


@given(some.manifests(), some.manifests())
def test_content_tells_different_runs_apart(one: Manifest, other: Manifest) -> None:
    alike = {e.path: e.identity() for e in one.entries} == {e.path: e.identity() for e in other.entries}
    assert (one.content == other.content) == alike


@given(some.manifests())
def test_objects_cover_files_exactly(manifest: Manifest) -> None:
    for entry in manifest.entries:
        offset = 0
        for piece in entry.objects():
            assert piece.offset == offset
            assert 0 < piece.size <= MAX_OBJECT
            offset += piece.size
        assert offset == entry.size


@given(st.binary(max_size=40))
def test_names_of_any_bytes_survive(name: bytes) -> None:
    said = text(name)
    assert untext(json.loads(json.dumps(said))) == name


@given(some.paths())
def test_ordinary_paths_pass(path: bytes) -> None:
    if len(path) <= 4096:
        check_path(path)


@given(st.binary(max_size=200) | some.manifests().map(Manifest.encode))
def test_any_bytes_decode_or_are_damaged(data: bytes) -> None:
    try:
        Manifest.decode(data)
    except Damaged:
        pass


@given(some.manifests(), st.data())
def test_altered_manifests_decode_or_are_damaged(manifest: Manifest, data: st.DataObject) -> None:
    raw = bytearray(manifest.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from(b'"[]{}:,0189-.eE\\/\x00\xffnabc'))
    try:
        Manifest.decode(bytes(raw))
    except Damaged:
        pass


def test_sizes_and_counts() -> None:
    manifest = Manifest(
        [directory_entry(b"d", 0o755, 0), file_entry(b"d/f", 0o644, 1, D, 0), link_entry(b"l", b"d/f", 0)]
    )
    assert (manifest.files, manifest.size, len(manifest)) == (1, 1, 3)
    assert (NOTHING.files, NOTHING.size, len(NOTHING)) == (0, 0, 0)


def test_encoding_is_the_one_we_know() -> None:
    manifest = Manifest(
        [directory_entry(b"d", 0o755, 2), file_entry(b"\xff%", 0o644, 1, D, 1), link_entry(b"l", b"d", 3)]
    )
    assert manifest.encode().decode() == (
        '[1,[{"kind":"dir","mode":493,"mtime_ns":2,"path":"d"},{"kind":"link","mtime_ns":3,"path":"l","target":"d"},'
        '{"digest":"' + D + '","kind":"file","mode":420,"mtime_ns":1,"path":{"percent":"%FF%25"},"size":1}]]'
    )


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        (b".guild/LOCK", False),
        (b".guild/LOCK.remote", False),
        (b".guild/PENDING", False),
        (b".guild/attrs/label", False),
        (b".guild/attrs/marked", False),
        (b".guild/sync", False),
        (b".guild/sync/claim", False),
        (b".guild/job-packages/a/b", False),
        (b".guild/attrs/labels", True),
        (b".guild/synchronous", True),
        (b".guild/LOCKED", True),
        (b"LOCK", True),
        (b"sub/.guild/LOCK", True),
        (b".guild/attrs/env", True),
    ],
)
def test_what_is_an_entry(path: bytes, kept: bool) -> None:
    assert is_entry_path(path) is kept


# Hostile manifests. Each is a valid one but for a single thing.


def a_file(**changes: Any) -> dict[str, Any]:
    return _row({"path": "f", "kind": "file", "mode": 420, "mtime_ns": 1, "size": 1, "digest": D}, changes)


def a_directory(**changes: Any) -> dict[str, Any]:
    return _row({"path": "d", "kind": "dir", "mode": 493, "mtime_ns": 1}, changes)


def a_link(**changes: Any) -> dict[str, Any]:
    return _row({"path": "l", "kind": "link", "mtime_ns": 1, "target": "f"}, changes)


def big(size: int, *parts: Any) -> dict[str, Any]:
    return a_file(size=size, parts=list(parts))


def _row(row: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    row = {**row, **changes}
    return {name: value for name, value in row.items() if value is not ...}


MIB = PART_SIZE
DEEP = "/".join(["d"] * (MAX_DEPTH + 1))


def chain(path: str) -> list[dict[str, Any]]:
    parts = path.split("/")
    above = [a_directory(path="/".join(parts[:n])) for n in range(1, len(parts))]
    return [*above, a_file(path=path)]


HOSTILE: dict[str, list[Any]] = {
    "traversal": [a_file(path="../f")],
    "traversal inside": [a_directory(), a_directory(path="d/.."), a_file(path="d/../f")],
    "traversal alone": [a_directory(path="..")],
    "traversal percent": [a_file(path={"percent": "%FF/../x"})],
    "dot": [a_directory(path=".")],
    "dot inside": [a_directory(), a_file(path="d/./f")],
    "absolute": [a_file(path="/etc/passwd")],
    "root": [a_directory(path="/")],
    "empty path": [a_file(path="")],
    "empty part": [a_directory(), a_file(path="d//f")],
    "trailing slash": [a_directory(path="d/")],
    "NUL": [a_file(path="f\0g")],
    "NUL percent": [a_file(path={"percent": "%FF%00"})],
    "name of 256 bytes": [a_file(path="x" * 256)],
    "path too long": chain("/".join(["y" * 250] * 17)),
    "path too deep": chain(DEEP),
    "twice": [a_file(), a_file()],
    "twice, other kind": [a_file(path="d"), a_directory()],
    "below a file": [a_file(path="d"), a_file(path="d/f")],
    "below a link": [a_link(path="d", target="/etc"), a_file(path="d/f")],
    "missing parent": [a_file(path="d/f")],
    "missing grandparent": [a_directory(path="d/e"), a_file(path="d/e/f")],
    "LOCK": [a_directory(path=".guild"), a_file(path=".guild/LOCK")],
    "LOCK.remote": [a_directory(path=".guild"), a_file(path=".guild/LOCK.remote")],
    "PENDING as a directory": [a_directory(path=".guild"), a_directory(path=".guild/PENDING")],
    "supervisor's own": [a_directory(path=".guild"), a_directory(path=".guild/sync")],
    "below supervisor's own": [
        a_directory(path=".guild"),
        a_directory(path=".guild/sync"),
        a_file(path=".guild/sync/claim"),
    ],
    "job packages": [a_directory(path=".guild"), a_directory(path=".guild/job-packages")],
    "label": [a_directory(path=".guild"), a_directory(path=".guild/attrs"), a_file(path=".guild/attrs/label")],
    "entry is null": [None],
    "entry is a list": [["f", "file"]],
    "entry is a string": ["f"],
    "entry is a number": [1],
    "entry is empty": [{}],
    "no path": [a_file(path=...)],
    "no kind": [a_file(kind=...)],
    "no mode": [a_file(mode=...)],
    "no mtime": [a_file(mtime_ns=...)],
    "no size": [a_file(size=...)],
    "no digest": [a_file(digest=...)],
    "no target": [a_link(target=...)],
    "path a number": [a_file(path=1)],
    "path null": [a_file(path=None)],
    "path a list": [a_file(path=["f"])],
    "path an empty object": [a_file(path={})],
    "path with more keys": [a_file(path={"percent": "%FF", "x": 1})],
    "percent a number": [a_file(path={"percent": 1})],
    "percent not needed": [a_file(path={"percent": "f"})],
    "percent of UTF-8": [a_file(path={"percent": "%C3%A9"})],
    "percent lower-case": [a_file(path={"percent": "%ff"})],
    "percent of a safe byte": [a_file(path={"percent": "%FF%41"})],
    "percent cut short": [a_file(path={"percent": "%FF%F"})],
    "percent surrogate": [a_file(path={"percent": "%FF\ud800"})],
    "percent beyond ASCII": [a_file(path={"percent": "%FFé"})],
    "lone surrogate": [a_file(path="f\udcff")],
    "lone surrogate in target": [a_link(target="\ud800")],
    "lone surrogate in kind": [a_file(kind="\ud800")],
    "lone surrogate in digest": [a_file(digest="\ud800" * 64)],
    "kind device": [a_file(kind="device")],
    "kind upper-case": [a_file(kind="FILE")],
    "kind null": [a_file(kind=None)],
    "kind a list": [a_file(kind=["file"])],
    "mode a bool": [a_file(mode=True)],
    "mode a string": [a_file(mode="420")],
    "mode a float": [a_file(mode=420.0)],
    "mode negative": [a_file(mode=-1)],
    "mode null": [a_file(mode=None)],
    "setuid": [a_file(mode=0o4755)],
    "setgid directory": [a_directory(mode=0o2755)],
    "sticky directory": [a_directory(mode=0o1777)],
    "mode with file type": [a_file(mode=0o100644)],
    "size a bool": [a_file(size=True)],
    "size negative": [a_file(size=-1)],
    "size a float": [a_file(size=1.0)],
    "size NaN": [a_file(size=float("nan"))],
    "size infinite": [a_file(size=float("inf"))],
    "size huge": [a_file(size=1 << 63)],
    "size enormous": [a_file(size=10**4000)],
    "size null": [a_file(size=None)],
    "size 0 of other digest": [a_file(size=0)],
    "size 1 of empty digest": [a_file(digest=EMPTY)],
    "mtime a bool": [a_file(mtime_ns=False)],
    "mtime a float": [a_file(mtime_ns=1.5)],
    "mtime huge": [a_file(mtime_ns=-(1 << 63))],
    "mtime null": [a_link(mtime_ns=None)],
    "mtime a string": [a_directory(mtime_ns="now")],
    "digest upper-case": [a_file(digest=D.upper())],
    "digest short": [a_file(digest=D[:63])],
    "digest long": [a_file(digest=D + "0")],
    "digest with newline": [a_file(digest=D + "\n")],
    "digest not hex": [a_file(digest="g" * 64)],
    "digest of other digits": [a_file(digest="\u0660" * 64)],
    "digest a path": [a_file(digest="../" * 21 + "x")],
    "digest null": [a_file(digest=None)],
    "digest a number": [a_file(digest=1)],
    "digest a list": [a_file(digest=[D])],
    "target empty": [a_link(target="")],
    "target NUL": [a_link(target="a\0b")],
    "target a number": [a_link(target=1)],
    "target null": [a_link(target=None)],
    "target too long": [a_link(target="x" * 5000)],
    "parts missing": [a_file(size=MIB + 1)],
    "parts empty": [big(MIB + 1)],
    "parts of a small file": [big(1, [D, 1])],
    "parts of exactly 1 MiB": [big(MIB, [D, MIB])],
    "parts add up to less": [big(MIB + 2, [D, MIB], [D, 1])],
    "parts add up to more": [big(MIB + 1, [D, MIB], [D, 2])],
    "part too large": [big(MAX_OBJECT + 2, [D, MAX_OBJECT + 1], [D, 1])],
    "part of no bytes": [big(MIB + 1, [D, MIB], [D, 0], [D, 1])],
    "part negative": [big(MIB + 1, [D, MIB + 2], [D, -1])],
    "part size a bool": [big(MIB + 1, [D, MIB], [D, True])],
    "part size a float": [big(MIB + 1, [D, float(MIB)], [D, 1])],
    "part digest wrong": [big(MIB + 1, [D.upper(), MIB], [D, 1])],
    "part without size": [big(MIB + 1, [D], [D, 1])],
    "part of three": [big(MIB + 1, [D, MIB, 0], [D, 1])],
    "part null": [big(MIB + 1, None)],
    "part a number": [big(MIB + 1, 1)],
    "part a string": [big(MIB + 1, D)],
    "parts null": [a_file(parts=None)],
    "parts a number": [a_file(parts=1)],
    "parts an object": [a_file(size=MIB + 1, parts={D: MIB + 1})],
    "parts a string": [a_file(size=MIB + 1, parts="ab")],
}

HOSTILE_BYTES: dict[str, bytes] = {
    "nothing": b"",
    "not JSON": b"\x00\x01\x02",
    "cut short": b'[1,[{"path":"f"',
    "trailing bytes": b"[1,[]]x",
    "not UTF-8": b'[1,["\xff"]]',
    "null": b"null",
    "object": b'{"format":1,"entries":[]}',
    "number": b"1",
    "string": b'"[1,[]]"',
    "one element": b"[1]",
    "three elements": b"[1,[],0]",
    "entries an object": b"[1,{}]",
    "entries null": b"[1,null]",
    "entries a string": b'[1,"f"]',
    "format 0": b"[0,[]]",
    "format 2": b"[2,[]]",
    "format null": b"[null,[]]",
    "format a string": b'["1",[]]',
    "format NaN": b"[NaN,[]]",
    "format a list": b"[[1],[]]",
    "digits without end": b"[" + b"9" * 100_000 + b",[]]",
    "exponent": b"[1e999,[]]",
    "deep lists": b"[" * 200_000,
    "deep lists, closed": b"[1,[" + b"[" * 100_000 + b"]" * 100_000 + b"]]",
    "deep objects": b"[1,[" + b'{"path":' * 100_000 + b"1" + b"}" * 100_000 + b"]]",
}


def as_manifest(entries: list[Any]) -> bytes:
    """Canonical, so that nothing but what is hostile can be the reason."""
    try:
        return json.dumps([1, entries], sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:  # lone surrogates
        return json.dumps([1, entries], sort_keys=True, separators=(",", ":")).encode()


def test_what_hostile_manifests_are_made_of_is_valid() -> None:
    rows = [a_directory(), a_file(path="d/f"), a_file(), a_link()]
    assert len(Manifest.decode(as_manifest(rows))) == 4
    assert len(Manifest.decode(as_manifest([big(MIB + 1, [D, MIB], [D, 1])]))) == 1
    assert len(Manifest.decode(as_manifest(chain("/".join(["d"] * MAX_DEPTH))))) == MAX_DEPTH
    assert Manifest.decode(b"[1,[]]") == NOTHING


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_entries_are_damaged(name: str) -> None:
    with pytest.raises(Damaged):
        Manifest.decode(as_manifest(HOSTILE[name]))


@pytest.mark.parametrize("name", HOSTILE_BYTES)
def test_hostile_bytes_are_damaged(name: str) -> None:
    with pytest.raises(Damaged):
        Manifest.decode(HOSTILE_BYTES[name])


@pytest.mark.parametrize("template", [b'{"path":%s}', b'{"kind":%s}', b'{"kind":"file","path":"f","mtime_ns":%s}'])
def test_nesting_of_any_depth_is_damaged(template: bytes) -> None:
    """Also where JSON just goes through and something later, a message say, does not."""
    for depth in [*range(900, 1100, 3), 2000, 5000, 20_000]:
        with pytest.raises(Damaged):
            Manifest.decode(b"[1,[" + template % (b"[" * depth + b"]" * depth) + b"]]")


@pytest.mark.parametrize(
    "entry",
    [
        file_entry(b"../f", 0o644, 1, D, 0),
        file_entry(b"f", 0o4755, 1, D, 0),
        Entry(b"f", FILE, 0o644, 1, None, None, 0, ()),
        Entry(b"f", "device", 0o644, 0, None, None, 0, ()),
        link_entry(b"l", b"", 0),
        file_entry(b".guild/LOCK", 0o644, 1, D, 0),
    ],
)
def test_nothing_unsafe_goes_out_either(entry: Entry) -> None:
    with pytest.raises(Damaged):
        Manifest([directory_entry(b".guild", 0o755, 0), entry])


# A manifest that is not the one text of its value.

NOT_CANONICAL: dict[str, bytes] = {
    "not sorted": as_manifest([a_file(path="b"), a_file(path="a")]),
    "white space": b"[1, []]",
    "format true": b"[true,[]]",
    "format 1.0": b"[1.0,[]]",
    "another key": as_manifest([a_file(setuid=True)]),
    "link with mode": as_manifest([a_link(mode=0o777)]),
    "directory with size": as_manifest([a_directory(size=5)]),
    "directory with digest": as_manifest([a_directory(digest=D)]),
    "file with target": as_manifest([a_file(target="/etc/passwd")]),
    "parts empty though small": as_manifest([a_file(parts=[])]),
    "key twice": b'[1,[{"kind":"dir","mode":493,"mtime_ns":1,"path":"a","path":"d"}]]',
    "keys not sorted": b'[1,[{"path":"d","kind":"dir","mode":493,"mtime_ns":1}]]',
    "UTF-16": "[1,[]]".encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf[1,[]]",
    "escaped": b'[1,[{"kind":"dir","mode":493,"mtime_ns":1,"path":"\\u0064"}]]',
}


@pytest.mark.parametrize("name", NOT_CANONICAL)
def test_not_canonical(name: str) -> None:
    with pytest.raises(Damaged):
        Manifest.decode(NOT_CANONICAL[name])
