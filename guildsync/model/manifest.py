"""Digest, entry, part, manifest; their codec; path safety, going in and coming out."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, NewType, Optional, Tuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from guildsync.errors import Damaged

Digest = NewType("Digest", str)
"""SHA-256 as 64 lower-case hex digits."""

FILE, DIRECTORY, LINK = "file", "dir", "link"

FORMAT = 1
PART_SIZE = 1 << 20
"""A file above this many bytes is kept as parts; they are of about this size."""
MAX_OBJECT = 4 << 20
"""No object is larger, manifests excepted: one fits into a frame and into memory."""
MAX_ENTRIES = 5_000_000
MAX_DEPTH = 255
MAX_PATH = 4096
MAX_MANIFEST = 1 << 30

EMPTY = Digest(hashlib.sha256(b"").hexdigest())

MARKERS = (b"LOCK", b"LOCK.remote", b"PENDING", b"STAGED", b"JOB")
METADATA_ATTRIBUTES = (b"label", b"tags", b"comments", b"marked")
NEVER_ENTRIES = frozenset(
    [b".guild/" + name for name in MARKERS]
    + [b".guild/attrs/" + name for name in METADATA_ATTRIBUTES]
    + [b".guild/job-packages", b".guild/sync"]
)
"""Paths that are how a Tree writes down status and metadata, or are the supervisor's own; nor is what lies below."""

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_SAFE_PATH = re.compile(rb"(?!\.\.?(?:/|\Z))[^/\0]{1,255}(?:/(?!\.\.?(?:/|\Z))[^/\0]{1,255})*\Z")


def digest_of(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


def checked_digest(value: object) -> Digest:
    """`value` as a Digest; raises Damaged when it is not one."""
    if not isinstance(value, str) or not _DIGEST.match(value):
        raise Damaged(f"not a SHA-256 digest: {str(value)[:80]!r}")
    return Digest(value)


def is_entry_path(path: bytes) -> bool:
    """False for markers, metadata and what else of a run directory never is an entry."""
    if not path.startswith(b".guild/"):
        return True
    return path not in NEVER_ENTRIES and not path.startswith((b".guild/job-packages/", b".guild/sync/"))


def parent(path: bytes) -> bytes:
    """The directory of `path`; empty for a path at the top of the run."""
    return path.rpartition(b"/")[0]


class Part(NamedTuple):
    """An object that is a piece of a file."""

    digest: Digest
    size: int


class Object(NamedTuple):
    """One of the objects that a file's bytes are kept as, and where in the file it stands."""

    digest: Digest
    size: int
    offset: int


@dataclass(frozen=True)
class Entry:
    """One path of a run. Equality that syncs go by is `same`, which leaves mtime and parts out."""

    __slots__ = ("digest", "kind", "mode", "mtime_ns", "parts", "path", "size", "target")

    path: bytes
    kind: str
    mode: int
    size: int
    digest: Optional[Digest]
    target: Optional[bytes]
    mtime_ns: int
    parts: Tuple[Part, ...]

    def identity(self) -> Tuple[str, int, int, Optional[Digest], Optional[bytes]]:
        """What decides whether two entries of one path are the same."""
        return (self.kind, self.mode, self.size, self.digest, self.target)

    def objects(self) -> Iterator[Object]:
        """The objects of a file in order; none for an empty file, a directory or a link."""
        if self.digest is None or self.size == 0:
            return
        if not self.parts:
            yield Object(self.digest, self.size, 0)
            return
        offset = 0
        for part in self.parts:
            yield Object(part.digest, part.size, offset)
            offset += part.size


def same(one: Optional[Entry], other: Optional[Entry]) -> bool:
    if one is None or other is None:
        return one is other
    return one.identity() == other.identity()


def file_entry(path: bytes, mode: int, size: int, digest: Digest, mtime_ns: int, parts: Iterable[Part] = ()) -> Entry:
    """A file; `parts` of a file that is one object are left out."""
    parts = tuple(parts)
    return Entry(path, FILE, mode, size, digest, None, mtime_ns, parts if size > PART_SIZE else ())


def directory_entry(path: bytes, mode: int, mtime_ns: int) -> Entry:
    return Entry(path, DIRECTORY, mode, 0, None, None, mtime_ns, ())


def link_entry(path: bytes, target: bytes, mtime_ns: int) -> Entry:
    return Entry(path, LINK, 0, 0, None, target, mtime_ns, ())


class Manifest:
    """All entries of one run at one moment, sorted by path; built and decoded only through checks."""

    __slots__ = ("_by_path", "_content", "_encoded", "entries")

    def __init__(self, entries: Iterable[Entry]) -> None:
        """Raises Damaged for paths that are unsafe, doubled, or lie below something that is no directory."""
        self.entries: Tuple[Entry, ...] = tuple(sorted(entries, key=lambda entry: entry.path))
        self._by_path: Optional[Dict[bytes, Entry]] = None
        self._content: Optional[Digest] = None
        self._encoded: Optional[bytes] = None
        _check(self.entries)

    @classmethod
    def of(cls, entries: Mapping[bytes, Entry], *known: Manifest) -> Manifest:
        """The manifest of these entries by path; one of `known` where it has just them: its checks and its bytes need
        not be made again."""
        listed = tuple(entries[path] for path in sorted(entries))
        same_as = next((manifest for manifest in known if manifest.entries == listed), None)
        return cls(listed) if same_as is None else same_as

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.content)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"Manifest({len(self.entries)} entries, {self.content[:12]})"

    @property
    def by_path(self) -> Dict[bytes, Entry]:
        if self._by_path is None:
            self._by_path = {entry.path: entry for entry in self.entries}
        return self._by_path

    @property
    def content(self) -> Digest:
        """The digest that alone decides whether two runs hold the same; mtimes and parts do not count."""
        if self._content is None:
            rows = (
                [text(e.path), e.kind, e.mode, e.size, e.digest, None if e.target is None else text(e.target)]
                for e in self.entries
            )
            self._content = digest_of(_array(rows))
        return self._content

    @property
    def files(self) -> int:
        return sum(1 for entry in self.entries if entry.kind == FILE)

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries)

    def encode(self) -> bytes:
        """Canonical JSON: `[format, [entry, ...]]`."""
        if self._encoded is None:
            self._encoded = b"[%d,%b]" % (FORMAT, _array(map(_entry_to_json, self.entries)))
        return self._encoded

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """The inverse of `encode`; raises Damaged for anything that is not a valid manifest."""
        if len(data) > MAX_MANIFEST:
            raise Damaged(f"a manifest of {len(data)} bytes is larger than allowed")
        try:
            value = json.loads(data, object_hook=_entry_or_name)
        except (ValueError, RecursionError) as exc:
            raise Damaged("a manifest is not JSON") from exc
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], list):
            raise Damaged("a manifest is not [format, entries]")
        if value[0] != FORMAT:
            raise Damaged(f"a manifest has format {value[0]!r}, this guildsync reads format {FORMAT}")
        if len(value[1]) > MAX_ENTRIES:
            raise Damaged(f"a manifest of {len(value[1])} entries is larger than allowed")
        if not all(isinstance(entry, Entry) for entry in value[1]):
            raise Damaged("an entry of a manifest is malformed")
        manifest = cls(value[1])
        if manifest.encode() != data:
            raise Damaged("a manifest is not written as it must be")
        return manifest


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: UTF-8, sorted keys, no white space."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


_AT_ONCE = 1000


def _array(values: Iterable[Any]) -> bytes:
    """`canonical` of a list of values, a few of which are there at a time: they take more room than their text."""
    left = iter(values)
    batches = iter(lambda: list(itertools.islice(left, _AT_ONCE)), [])
    return b"[%b]" % b",".join(canonical(batch)[1:-1] for batch in batches)


def text(data: bytes) -> Any:
    """A name for JSON: a string where it is UTF-8, else `{"percent": …}` with every odd byte as %XX."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"percent": quote_from_bytes(data, safe="/ ")}


def untext(value: Any) -> bytes:
    """The inverse of `text`; raises Damaged for what `text` never writes."""
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as exc:
            raise Damaged("a name holds a lone surrogate") from exc
    if isinstance(value, dict) and set(value) == {"percent"} and isinstance(value["percent"], str):
        data = unquote_to_bytes(value["percent"])
        if text(data) == value:
            return data
    raise Damaged(f"not a name: {str(value)[:80]!r}")


def check_path(path: bytes) -> None:
    """Raises Damaged unless `path` is relative, without empty, `.` or `..` parts, and may be an entry."""
    if not _SAFE_PATH.match(path) or len(path) > MAX_PATH or path.count(b"/") >= MAX_DEPTH:
        raise Damaged(f"an unsafe path in a manifest: {path[:80]!r}")
    if not is_entry_path(path):
        raise Damaged(f"a path that never is content in a manifest: {path[:80]!r}")


def _check(entries: Tuple[Entry, ...]) -> None:
    directories = {b""}
    previous: Optional[bytes] = None
    for entry in entries:
        check_path(entry.path)
        if entry.path == previous:
            raise Damaged(f"a path stands twice in a manifest: {entry.path[:80]!r}")
        if parent(entry.path) not in directories:
            raise Damaged(f"a path below something that is no directory: {entry.path[:80]!r}")
        previous = entry.path
        if entry.kind == DIRECTORY:
            directories.add(entry.path)
        _check_kind(entry)


def _check_kind(entry: Entry) -> None:
    ok = 0 <= entry.mode <= 0o777 and entry.size >= 0
    if entry.kind == FILE:
        ok = ok and entry.digest is not None and entry.target is None
        ok = ok and (entry.size == 0) == (entry.digest == EMPTY)
        ok = ok and all(0 < part.size <= MAX_OBJECT for part in entry.parts)
        ok = ok and sum(part.size for part in entry.parts) == (entry.size if entry.parts else 0)
        ok = ok and (bool(entry.parts) == (entry.size > PART_SIZE))
    elif entry.kind == DIRECTORY:
        ok = ok and entry.digest is None and entry.target is None and entry.size == 0 and not entry.parts
    elif entry.kind == LINK:
        ok = ok and entry.digest is None and bool(entry.target) and b"\0" not in (entry.target or b"")
        ok = ok and entry.size == 0 and entry.mode == 0 and not entry.parts and len(entry.target or b"") <= MAX_PATH
    else:
        ok = False
    if not ok:
        raise Damaged(f"an impossible entry in a manifest: {entry.path[:80]!r}")


def _entry_to_json(entry: Entry) -> Dict[str, Any]:
    row: Dict[str, Any] = {"path": text(entry.path), "kind": entry.kind, "mtime_ns": entry.mtime_ns}
    if entry.kind != LINK:
        row["mode"] = entry.mode
    if entry.kind == FILE:
        row["size"] = entry.size
        row["digest"] = entry.digest
        if entry.parts:
            row["parts"] = [list(part) for part in entry.parts]
    if entry.target is not None:
        row["target"] = text(entry.target)
    return row


def _integer(value: Any) -> int:
    if type(value) is not int or abs(value) >= 1 << 63:
        raise Damaged(f"not a number in a manifest: {str(value)[:80]!r}")
    return value


def _entry_or_name(row: Dict[str, Any]) -> Any:
    """What an object of a manifest is made while it is parsed, so that no more than one is there as such."""
    return row if row.keys() == {"percent"} else _entry_from_json(row)


def _entry_from_json(row: Dict[str, Any]) -> Entry:
    try:
        kind = row["kind"]
        path, mtime_ns = untext(row["path"]), _integer(row["mtime_ns"])
        if kind == LINK:
            return link_entry(path, untext(row["target"]), mtime_ns)
        if kind == DIRECTORY:
            return directory_entry(path, _integer(row["mode"]), mtime_ns)
        if kind == FILE:
            parts: List[Part] = [Part(checked_digest(digest), _integer(size)) for digest, size in row.get("parts", ())]
            digest = checked_digest(row["digest"])
            return Entry(path, FILE, _integer(row["mode"]), _integer(row["size"]), digest, None, mtime_ns, tuple(parts))
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise Damaged("an entry of a manifest is malformed") from exc
    raise Damaged(f"a manifest holds an entry of unknown kind: {str(kind)[:40]!r}")


NOTHING = Manifest(())
