"""Facts: what a journal object says, its bytes, and the union of many."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import zstandard

from guildsync.errors import Damaged
from guildsync.model.manifest import Digest, canonical, checked_digest
from guildsync.model.run import RunId, checked_run_id

FORMAT = 1
MAX_DECODED = 1 << 30  # bytes that a journal object may decompress to
SEQUENCES = range(1, 10**16)

HIDDEN, LIVE, GONE = "hidden", "live", "gone"
TAG = "tag:"

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_NAME = re.compile(rf"([0-9]{{16}})-({_UUID})\Z")
_OPTIONAL = ("sums", "tables", "times")
_FIRST_LINE = re.compile(rb"guildsync-journal ([0-9]{1,9})(?: ([0-9a-f]{64})\n)?")


class PackFact(NamedTuple):
    """A pack was stored: `size` bytes, whose index begins at `index_offset` and has `index_digest`."""

    name: Digest
    size: int
    index_offset: int
    index_digest: Digest


class Version(NamedTuple):
    """A run at one moment. `id` is `<commit uuid>/<run id>`; `summary` is the canonical JSON text of an object;
    `replaces` are the sorted ids of the versions its writer knew and went beyond."""

    id: str
    run: RunId
    manifest: Digest
    content: Digest
    summary: str
    replaces: tuple[str, ...]


class Claim(NamedTuple):
    """These packs, sorted, suffice to read the version."""

    version: str
    packs: tuple[Digest, ...]


class Mark(NamedTuple):
    """The run was put into the trash (`hidden`) or taken out (`live`), stamped with (sequence, commit)."""

    run: RunId
    value: str
    sequence: int
    commit: str


class Edit(NamedTuple):
    """One metadata field of the run was set to the JSON text `value`; `null` removes it. `id` is
    `<commit uuid>/<number>`; `replaces` are the sorted ids of the edits its writer saw standing."""

    id: str
    run: RunId
    field: str
    value: str
    replaces: tuple[str, ...]
    sequence: int
    commit: str


@dataclass(frozen=True)
class Facts:
    """Grow-only sets: a commit, a checkpoint and all that a store ever said are of this one kind."""

    stores: frozenset[str] = frozenset()
    adds: frozenset[PackFact] = frozenset()
    versions: frozenset[Version] = frozenset()
    claims: frozenset[Claim] = frozenset()
    condemned: frozenset[Digest] = frozenset()
    dropped: frozenset[Digest] = frozenset()
    purged: frozenset[str] = frozenset()
    marks: frozenset[Mark] = frozenset()
    edits: frozenset[Edit] = frozenset()


NO_FACTS = Facts()
FORGOTTEN = Digest("0" * 64)
"""Stands in a version that was purged for its manifest."""
KINDS = tuple(field.name for field in fields(Facts))


def join(states: Iterable[Facts]) -> Facts:
    """The component-wise union: in any order, any grouping, any number of times it is the same."""
    states = tuple(states)
    return Facts(**{kind: frozenset().union(*(getattr(state, kind) for state in states)) for kind in KINDS})


def condensed(facts: Facts) -> Facts:
    """Rule K1: the same, without what nothing depends on any more. Of a dropped pack its name is left, of a purged
    version its id, its content and what it replaced. Of the union with what was not condensed the same is left."""
    gone, purged = facts.dropped, facts.purged
    return replace(
        facts,
        adds=frozenset(fact for fact in facts.adds if fact.name not in gone),
        versions=frozenset(
            version._replace(manifest=FORGOTTEN, summary="{}") if version.id in purged else version
            for version in facts.versions
        ),
        claims=frozenset(claim for claim in facts.claims if claim.version not in purged),
    )


def is_said(facts: Facts, known: Facts) -> bool:
    """Is there nothing in the facts, as far as anything depends on it, that is not `known`? That is condensed."""
    left = condensed(replace(facts, dropped=known.dropped, purged=known.purged))
    left = replace(left, dropped=facts.dropped, purged=facts.purged)
    return all(getattr(left, kind) <= getattr(known, kind) for kind in KINDS)


@dataclass(frozen=True)
class Commit:
    """One immutable object of the journal; `id` is a uuid4.

    A checkpoint is a commit whose facts are all those of other entries, condensed: `sums` are their names, `tables` the
    index objects that go with it, `times` when other commits came (seconds since the epoch by the store's clock), all
    sorted. None of them is a fact: they save requests, and say what may be deleted."""

    store: str
    sequence: int
    id: str
    facts: Facts
    sums: tuple[str, ...] = ()
    tables: tuple[Digest, ...] = ()
    times: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.sequence:016d}-{self.id}"

    @property
    def state(self) -> Facts:
        """What a reading joins: the facts, and the store id that the commit carries."""
        return join([self.facts, Facts(stores=frozenset([self.store]))])


def split_name(name: str) -> tuple[int, str]:
    """The sequence and the commit id of a journal object's name; raises Damaged for any other name."""
    match = _NAME.match(name)
    if match is None or int(match[1]) not in SEQUENCES:
        raise Damaged(f"not the name of a journal entry: {name[:80]!r}")
    return int(match[1]), match[2]


def next_sequence(facts: Facts, names: Iterable[str]) -> int:
    """The sequence of a commit made from this reading: above those of all names and of all stamps in checkpoints."""
    stamps = {mark.sequence for mark in facts.marks} | {edit.sequence for edit in facts.edits}
    following = 1 + max(stamps.union(split_name(name)[0] for name in names), default=0)
    if following not in SEQUENCES:
        raise Damaged("the journal has no sequence number left", "Copy its runs to a new store.")
    return following


def encode(commit: Commit) -> bytes:
    """The commit's bytes. Raises Damaged for a commit that `decode` would refuse: nobody could ever mend it there."""
    facts = {kind: sorted(rows) for kind in KINDS if (rows := getattr(commit.facts, kind))}
    value = {"store": commit.store, "sequence": commit.sequence, "commit": commit.id, "facts": facts}
    value |= {key: list(rows) for key in _OPTIONAL if (rows := getattr(commit, key))}
    try:
        data = canonical(value)
        readable = len(data) <= MAX_DECODED and _commit(json.loads(data)) == commit
    except (ValueError, TypeError, RecursionError) as exc:
        raise Damaged("a commit holds what JSON cannot say") from exc
    if not readable:
        raise Damaged("a commit holds facts that no reader would take")
    frame = zstandard.ZstdCompressor(level=3).compress(data)
    return f"guildsync-journal {FORMAT} {hashlib.sha256(frame).hexdigest()}\n".encode() + frame


def decode(name: str, data: bytes) -> Commit:
    """The inverse of `encode`, for the object that was read under `name`; raises Damaged for everything else."""
    split_name(name)
    try:
        commit = _commit(json.loads(_payload(data)))
    except Damaged as exc:
        raise Damaged(f"the journal entry {name} cannot be read: {exc.message}", exc.hint) from exc
    except (ValueError, RecursionError) as exc:
        raise Damaged(f"the journal entry {name} is malformed") from exc
    if commit.name != name:
        raise Damaged(f"the journal entry {name} says that it is {commit.name}")
    return commit


def _payload(data: bytes) -> bytes:
    match = _FIRST_LINE.match(data)
    if match is None:
        raise Damaged("it does not begin like one")
    if int(match[1]) != FORMAT:
        raise _newer(f"format {int(match[1])}")
    frame = data[match.end() :]
    if match[2] is None or hashlib.sha256(frame).hexdigest().encode() != match[2]:
        raise Damaged("its bytes do not match their digest")
    try:
        if not 0 < zstandard.frame_content_size(frame) <= MAX_DECODED:
            raise Damaged("it does not say its size, or is larger than allowed")
        return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise Damaged("it cannot be decompressed") from exc


def _newer(what: str) -> Damaged:
    return Damaged(f"a newer guildsync wrote it ({what[:80]})", "Upgrade guildsync here.")


def _commit(value: Any) -> Commit:
    """Checks everything; raises Damaged, and ValueError or RecursionError for what is wrong inside JSON."""
    if not isinstance(value, dict) or not isinstance(value.get("facts"), dict):
        raise Damaged("it is not a commit")
    known = {"store", "sequence", "commit", "facts", *_OPTIONAL}
    unknown = (value.keys() - known) | (value["facts"].keys() - _FACTS.keys())
    if unknown:
        raise _newer(f"unknown: {min(unknown)}")
    facts = Facts(**{kind: frozenset(map(_FACTS[kind], _list(rows))) for kind, rows in value["facts"].items()})
    store, sequence, commit = (value.get(key) for key in ("store", "sequence", "commit"))
    sums, tables = _ascending(value.get("sums", []), _entry_name), _ascending(value.get("tables", []), checked_digest)
    times = _ascending(value.get("times", []), _time)
    found = Commit(_store_id(store), _sequence(sequence), _commit_id(commit), facts, sums, tables, times)
    if sums and sums[-1] >= found.name:  # else two checkpoints could sum up each other
        raise Damaged("it sums up what sorts after it")
    return found


def _list(value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise Damaged("a fact is malformed")
    return value


def _shaped(shape: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(shape, value):
        raise Damaged(f"not an id: {str(value)[:80]!r}")
    return value


_store_id = partial(_shaped, "[0-9a-f]{32}")
_commit_id = partial(_shaped, _UUID)
_version_id = partial(_shaped, _UUID + "/[0-9a-f]{32}")
_edit_id = partial(_shaped, _UUID + "/[0-9]{1,9}")


def _entry_name(value: Any) -> str:
    name = _shaped(_NAME.pattern, value)
    split_name(name)
    return name


def _sequence(value: Any) -> int:
    if type(value) is not int or value not in SEQUENCES:
        raise Damaged(f"not a sequence number: {str(value)[:80]!r}")
    return value


def _time(value: Any) -> tuple[str, int]:
    commit, seconds = _list(value, 2)
    if type(seconds) is not int or not 0 <= seconds < 1 << 53:
        raise Damaged(f"not a time: {str(seconds)[:80]!r}")
    return _commit_id(commit), seconds


Id = TypeVar("Id", str, Digest, tuple[str, int])


def _ascending(value: Any, check: Callable[[Any], Id]) -> tuple[Id, ...]:
    found = tuple(map(check, _list(value)))
    if any(one >= other for one, other in pairwise(found)):
        raise Damaged("a list in a fact is not sorted")
    return found


def _parsed(text: Any) -> Any:
    if not isinstance(text, str):
        raise Damaged(f"not JSON: {str(text)[:80]!r}")
    text.encode()  # refuses lone surrogates
    return json.loads(text)


def _is_shallow(value: Any, depth: int = 8) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_shallow(item, depth - 1) for item in inner)


def _pack_fact(row: Any) -> PackFact:
    name, size, offset, index = _list(row, 4)
    if type(size) is not int or type(offset) is not int or not 0 < offset < size < 1 << 63:
        raise Damaged("a pack has an impossible size")
    return PackFact(checked_digest(name), size, offset, checked_digest(index))


def _version(row: Any) -> Version:
    version, run, manifest, content, summary, replaces = _list(row, 6)
    if _version_id(version).partition("/")[2] != checked_run_id(run):
        raise Damaged("a version is not of the run it names")
    if not isinstance(_parsed(summary), dict):
        raise Damaged("the summary of a version is malformed")
    before = _ascending(replaces, _version_id)
    return Version(version, run, checked_digest(manifest), checked_digest(content), summary, before)


def _claim(row: Any) -> Claim:
    version, packs = _list(row, 2)
    return Claim(_version_id(version), _ascending(packs, checked_digest))


def _mark(row: Any) -> Mark:
    run, value, sequence, commit = _list(row, 4)
    if value not in (HIDDEN, LIVE):
        raise Damaged(f"a mark says neither hidden nor live: {str(value)[:80]!r}")
    return Mark(checked_run_id(run), value, _sequence(sequence), _commit_id(commit))


def _edit(row: Any) -> Edit:
    edit, run, name, value, replaces, sequence, commit = _list(row, 7)
    if _edit_id(edit).partition("/")[0] != _commit_id(commit):
        raise Damaged("an edit is not of the commit it names")
    parsed = _parsed(value)
    if not (isinstance(name, str) and name.encode() and _is_shallow(parsed) and canonical(parsed) == value.encode()):
        raise Damaged(f"an edit is malformed: {str(name)[:80]!r}")
    before = _ascending(replaces, _edit_id)
    return Edit(edit, checked_run_id(run), name, value, before, _sequence(sequence), commit)


_FACTS: Mapping[str, Callable[[Any], Any]] = {
    "stores": _store_id,
    "adds": _pack_fact,
    "versions": _version,
    "claims": _claim,
    "condemned": checked_digest,
    "dropped": checked_digest,
    "purged": _version_id,
    "marks": _mark,
    "edits": _edit,
}
