"""Facts: encode, merge (pure), decode."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
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


KINDS = tuple(field.name for field in fields(Facts))


def join(states: Iterable[Facts]) -> Facts:
    """The component-wise union: in any order, any grouping, any number of times it is the same."""
    states = tuple(states)
    return Facts(**{kind: frozenset().union(*(getattr(state, kind) for state in states)) for kind in KINDS})


@dataclass(frozen=True)
class Commit:
    """One immutable object of the journal; `id` is a uuid4."""

    store: str
    sequence: int
    id: str
    facts: Facts

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
    unknown = (value.keys() - {"store", "sequence", "commit", "facts"}) | (value["facts"].keys() - _FACTS.keys())
    if unknown:
        raise _newer(f"unknown: {min(unknown)}")
    facts = Facts(**{kind: frozenset(map(_FACTS[kind], _list(rows))) for kind, rows in value["facts"].items()})
    store, sequence, commit = (value.get(key) for key in ("store", "sequence", "commit"))
    return Commit(_store_id(store), _sequence(sequence), _commit_id(commit), facts)


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


def _sequence(value: Any) -> int:
    if type(value) is not int or value not in SEQUENCES:
        raise Damaged(f"not a sequence number: {str(value)[:80]!r}")
    return value


Id = TypeVar("Id", bound=str)


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


def _ancestors(start: Iterable[str], known: Mapping[str, Version] | Mapping[str, Edit]) -> set[str]:
    seen: set[str] = set()
    todo = list(start)
    while todo:
        new = known[fact].replaces if (fact := todo.pop()) in known else ()
        todo.extend(id_ for id_ in new if id_ not in seen)
        seen.update(new)
    return seen


class View:
    """What is current, in the trash and in conflict: a pure function of the set of facts, and of nothing else. What
    no honest writer makes (rings of `replaces`, two facts with one id) gives some view, always the same."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._bad = facts.condemned | facts.dropped
        self._versions = _by_id(facts.versions)
        self._of_run = _grouped(self._versions.values(), lambda version: version.run)
        self._claims = _grouped(sorted(facts.claims), lambda claim: claim.version)
        self._edits = _grouped(facts.edits, lambda edit: edit.run)
        self._marks: dict[str, Mark] = {mark.run: mark for mark in sorted(facts.marks, key=_stamp)}
        self._heads: dict[str, tuple[Version, ...]] = {}

    @property
    def store(self) -> str | None:
        """The store's id: the smallest that any client gave it."""
        return min(self.facts.stores, default=None)

    def runs(self) -> tuple[RunId, ...]:
        """The ids, sorted, of all runs that have a version or a mark, also of those that are gone."""
        return tuple(sorted(map(RunId, {*self._of_run, *self._marks})))

    def version(self, version: str) -> Version | None:
        return self._versions.get(version)

    def claims(self, version: str) -> Sequence[Claim]:
        """All claims of a version, the smallest first."""
        return self._claims.get(version, ())

    def is_void(self, version: str) -> bool:
        """No claim is free of dropped packs. This may end: its writer can add a claim."""
        return all(not self.facts.dropped.isdisjoint(claim.packs) for claim in self.claims(version))

    @cached_property
    def living(self) -> frozenset[str]:
        """The ids of the versions that are neither purged nor void."""
        return frozenset(v for v in self._versions if v not in self.facts.purged and not self.is_void(v))

    def heads(self, run: str) -> tuple[Version, ...]:
        """The living versions that no living one goes beyond, sorted by id; empty only where none lives."""
        if run not in self._heads:
            mine = [version.id for version in self._of_run.get(run, ()) if version.id in self.living]
            past = _ancestors(mine, self._versions)
            heads = [version for version in mine if version not in past] or mine
            self._heads[run] = tuple(self._versions[version] for version in sorted(heads))
        return self._heads[run]

    def current(self, run: str) -> Version | None:
        """The head that listings show and pulls deliver."""
        return next(iter(self.heads(run)), None)

    def history(self, run: str) -> frozenset[Digest]:
        """The contents of the current version and of all that it goes beyond, also purged and void ones."""
        heads = [version.id for version in self.heads(run)[:1]]
        line = {*heads, *_ancestors(heads, self._versions)}
        return frozenset(self._versions[version].content for version in line if version in self._versions)

    def rivals(self, run: str) -> tuple[Version, ...]:
        """The heads whose content is not the current one's: while there are any, the run is in conflict."""
        heads = self.heads(run)
        return tuple(version for version in heads if version.content != heads[0].content)

    def status(self, run: str) -> str:
        """`gone` if no version lives, else `hidden` or `live` as the greatest stamp says."""
        value = self._marks[run].value if run in self._marks else LIVE
        return value if self.heads(run) else GONE

    def good_claim(self, version: str) -> Claim | None:
        """The smallest claim none of whose packs is condemned or dropped."""
        return next((claim for claim in self.claims(version) if self._bad.isdisjoint(claim.packs)), None)

    def claim(self, version: str) -> Claim | None:
        """The claim to read by: a good one, else one without a dropped pack."""
        free = (claim for claim in self.claims(version) if self.facts.dropped.isdisjoint(claim.packs))
        return self.good_claim(version) or next(free, None)

    def settled(self, version: str) -> bool:
        """The version lives and has a good claim: it may be acknowledged, and history before it pruned."""
        return version in self.living and self.good_claim(version) is not None

    def needed_packs(self) -> frozenset[Digest]:
        """The packs of the smallest good claim of each living version; of all its claims where none is good."""
        chosen = ([good] if (good := self.good_claim(v)) else self.claims(v) for v in self.living)
        return frozenset(pack for claims in chosen for claim in claims for pack in claim.packs)

    def fields(self, run: str) -> dict[str, Any]:
        """The metadata: of the edits that stand, the greatest stamp's value; a tag is there if any says so."""
        winners = {name: _winner(name, edits) for name, edits in self._standing(run).items()}
        return {name: value for name, value in winners.items() if value is not None}

    def overruled(self, run: str) -> dict[str, tuple[Any, ...]]:
        """By field, what other edits stand for and `fields` does not say (None: removed): kept, and to be reported."""
        out = {}
        for name, edits in self._standing(run).items():
            values = {canonical(value): value for value in map(_value, edits)}
            values.pop(canonical(_winner(name, edits)), None)
            if values:
                out[name] = tuple(values[text] for text in sorted(values))
        return out

    def standing_edits(self, run: str, field: str) -> tuple[str, ...]:
        """The sorted ids of the edits of one field that nobody replaced: what a new edit replaces."""
        return tuple(sorted(edit.id for edit in self._standing(run).get(field, ())))

    def _standing(self, run: str) -> Mapping[str, list[Edit]]:
        """The edits by field that no other replaced, each field's by ascending stamp."""
        edits = _by_id(self._edits.get(run, ()))
        past = _ancestors(edits, edits)
        standing = [edit for edit in edits.values() if edit.id not in past]
        return _grouped(sorted(standing, key=_stamp), lambda edit: edit.field)


Named = TypeVar("Named", Version, Edit)
Fact = TypeVar("Fact")


def _by_id(found: Iterable[Named]) -> dict[str, Named]:
    """By id; of facts that share one, the smallest."""
    return {fact.id: fact for fact in sorted(found, reverse=True)}


def _grouped(found: Iterable[Fact], key: Callable[[Fact], str]) -> Mapping[str, list[Fact]]:
    groups: dict[str, list[Fact]] = defaultdict(list)
    for fact in found:
        groups[key(fact)].append(fact)
    return groups


def _stamp(fact: Mark | Edit) -> tuple[int, str, str]:
    """The total order of marks and edits; what one commit says twice is ordered somehow, always the same way."""
    return (fact.sequence, fact.commit, fact.id if isinstance(fact, Edit) else fact.value)


def _value(edit: Edit) -> Any:
    """What the edit sets its field to; None where it puts it at rest."""
    return None if edit.value == "false" else json.loads(edit.value)


def _winner(name: str, edits: list[Edit]) -> Any:
    if name.startswith(TAG):
        return True if any(edit.value == "true" for edit in edits) else None
    return _value(edits[-1])
