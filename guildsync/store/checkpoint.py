"""Checkpoints: one entry that says all that others said, the indices of many packs in one object, and what may go."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Protocol

import zstandard

from guildsync.errors import Damaged, GuildsyncError
from guildsync.model.manifest import Digest, digest_of
from guildsync.store.fs import Absent, Files
from guildsync.store.journal import MAX_DECODED, Commit, Facts, PackFact, condensed, split_name
from guildsync.store.pack import ROW, Row
from guildsync.store.reading import GRACE_AT_LEAST, Journal, Reading

GRACE = 24 * 3600.0
"""Seconds by the store's clock that a checkpoint is there before what it sums up is deleted."""
SOON = 3600.0
"""The same under a mirror, which puts an entry every half a minute: rule K4 asks for ten minutes."""
CHECKPOINT_AFTER = 64
"""So many entries that no checkpoint sums up make a writer write one."""
MOST_TABLES = 16
"""So many index objects are replaced by one."""
MOST_DELETED = 1000
"""So many entries does one commit delete at most."""

_MAGIC = b"guildsync-index 1\n"


class Indices(Protocol):
    """Where the objects of packs stand (`store.objects.Objects`)."""

    def load(self, facts: Iterable[PackFact], tables: Collection[Digest]) -> Mapping[str, Exception]: ...

    def index(self, pack: str) -> Mapping[Digest, Row]: ...


# -- what to do: pure


def is_due(reading: Reading) -> bool:
    """Enough entries stand for themselves; from a reading that lacks some, nothing is summed up."""
    alone = reading.names.difference(*(checkpoint.sums for checkpoint in reading.checkpoints))
    return not reading.problems and len(alone) >= CHECKPOINT_AFTER


def summary(reading: Reading, commit: str, tables: Iterable[Digest]) -> Commit:
    """Rule K1: the union of all facts of a reading without problems, condensed, with their own ids and stamps."""
    if reading.problems or reading.view.store is None:
        raise ValueError("only what was read whole can be summed up")
    names, facts = tuple(sorted(reading.names)), condensed(reading.view.facts)
    writers = {version.id.partition("/")[0] for version in facts.versions}
    writers |= {mark.commit for mark in facts.marks} | {edit.commit for edit in facts.edits}
    times = tuple(sorted((writer, int(since)) for writer, since in reading.stored.items() if writer in writers))
    return Commit(reading.view.store, reading.next_sequence, commit, facts, names, tuple(sorted(tables)), times)


def superseded(reading: Reading, own: str, grace: float) -> Mapping[str, list[str]]:
    """By checkpoint, the newest first, what it sums up and is still there, for those that are there for longer than
    `grace` (rules K2, K4). The clock is the store's: it says when the entry `own` came, just now."""
    now, out = reading.modified.get(own), {}
    for checkpoint in sorted(reading.checkpoints, key=lambda checkpoint: checkpoint.name, reverse=True):
        since = reading.modified.get(checkpoint.name)
        doomed = [name for name in checkpoint.sums if name in reading.names]
        if doomed and now is not None and since is not None and now - since > grace:
            out[checkpoint.name] = doomed
    return out


def hidden(reading: Reading, own: str, grace: float) -> list[str]:
    """Of the entries that checkpoints sum up, those that may be checkpoints themselves and are old enough to go by, the
    newest first. Who reads does not get them; where many commit, the checkpoints that he does get are all young."""
    now, facts = reading.modified.get(own), reading.view.facts
    spoke = {version.id.partition("/")[0] for version in facts.versions}
    spoke |= {mark.commit for mark in facts.marks} | {edit.commit for edit in facts.edits}
    summed = {name for checkpoint in reading.checkpoints for name in checkpoint.sums}
    old = (name for name in summed & reading.modified.keys() if split_name(name)[1] not in spoke)
    return sorted((n for n in old if now is not None and now - reading.modified[n] > grace), reverse=True)


def uncovered(reading: Reading) -> list[PackFact]:
    """The packs, neither condemned nor dropped, that the index objects of no checkpoint were made for."""
    known = (checkpoint.facts.adds for checkpoint in reading.checkpoints if checkpoint.tables)
    return sorted(set(usable(reading.view.facts)).difference(*known))


def usable(facts: Facts) -> list[PackFact]:
    """The packs that are neither condemned nor dropped."""
    bad = facts.condemned | facts.dropped
    return sorted(fact for fact in facts.adds if fact.name not in bad)


# -- index objects


def table_path(name: str) -> str:
    """Where an index object lies below the root of its store."""
    return f"index/{name}"


def encode_table(indices: Mapping[Digest, bytes]) -> bytes:
    """An index object: the bytes of the indices of packs (as `pack.read_index` takes them), by pack."""
    rows = (bytes.fromhex(pack) + len(data).to_bytes(4, "big") + data for pack, data in sorted(indices.items()))
    return _MAGIC + zstandard.ZstdCompressor(level=3).compress(b"".join(rows))


def decode_table(name: str, data: bytes) -> dict[Digest, bytes]:
    """The inverse of `encode_table`; raises Damaged. What it says of a pack is believed only where `read_index` is."""
    frame = data.removeprefix(_MAGIC)
    try:
        if digest_of(data) != name or frame == data or not 0 <= zstandard.frame_content_size(frame) <= MAX_DECODED:
            raise Damaged(f"the index object {name} is not what its name says")
        raw = memoryview(zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False))
    except zstandard.ZstdError as exc:
        raise Damaged(f"the index object {name} cannot be decompressed") from exc
    out, place = {}, 0
    while place < len(raw):
        pack, start = raw[place : place + 32], place + 36
        place = start + int.from_bytes(raw[place + 32 : start], "big")
        if place > len(raw):
            raise Damaged(f"the index object {name} ends too early")
        out[Digest(pack.hex())] = bytes(raw[start:place])
    return out


# -- doing it


class Checkpointer:
    """Keeps a journal short, after commits. Wherever it dies, every reading before and after is the same union."""

    def __init__(self, files: Files, journal: Journal, indices: Indices, grace: float = GRACE) -> None:
        self._files, self._journal, self._indices, self._grace = files, journal, indices, grace

    def tidy(self, reading: Reading, own: str, soon: bool = False) -> None:
        """After the entry `own` was put, and then `reading` made: write a checkpoint if one is due, and delete what an
        older one sums up; where more comes `soon`, that one need not be as old. A commit is acknowledged by then: what
        goes wrong here is left for the next one to do."""
        try:
            grace = max(min(SOON, self._grace) if soon else self._grace, GRACE_AT_LEAST)
            if is_due(reading):
                self.sum_up(reading)
                reading = self._with_hidden(reading, own, grace)
            for checkpoint, doomed in superseded(reading, own, grace).items():
                if self._journal.is_sound(checkpoint):
                    self._journal.remove(doomed[:MOST_DELETED])
                    break
        except (GuildsyncError, Absent):
            pass

    def _with_hidden(self, reading: Reading, own: str, grace: float) -> Reading:
        """With the newest checkpoint that is old enough, should another hide it."""
        for name in hidden(reading, own, grace):
            found = self._journal.entry(name)
            if found is not None and found.sums:
                return replace(reading, checkpoints=(*reading.checkpoints, found))
        return reading

    def sum_up(self, reading: Reading) -> None:
        """Put a checkpoint of a reading without problems, after the index object that it names."""
        tables = set(reading.tables)
        anew = len(tables) >= MOST_TABLES
        packs = usable(reading.view.facts) if anew else uncovered(reading)
        self._indices.load(packs, reading.tables)
        indices, room = {}, MAX_DECODED
        for fact in packs:
            rows = self._indices.index(fact.name).values()
            data = b"".join(ROW.pack(bytes.fromhex(row.digest), *row[1:]) for row in rows)
            room -= 36 + len(data)
            if digest_of(data) == fact.index_digest and room >= 0:
                indices[fact.name] = data
        tables = set() if anew else tables
        if indices:
            table = encode_table(indices)
            tables.add(digest_of(table))
            self._files.put(table_path(digest_of(table)), table)
        self._journal.put(summary(reading, str(uuid.uuid4()), tables))
