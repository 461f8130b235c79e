"""What is current, in the trash and in conflict: the merge of facts, pure."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

from guildsync.model.manifest import Digest, canonical
from guildsync.model.run import RunId
from guildsync.store.journal import GONE, LIVE, TAG, Claim, Edit, Facts, Mark, Version


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

    def versions(self, run: str) -> tuple[Version, ...]:
        """All versions of a run that anybody ever stored, also purged and void ones, sorted by id."""
        return tuple(sorted(self._of_run.get(run, ())))

    def past(self, run: str) -> tuple[Version, ...]:
        """The living versions that the heads go beyond, sorted by id."""
        heads = {head.id for head in self.heads(run)}
        return tuple(version for version in self.versions(run) if version.id in self.living - heads)

    def before(self, version: str) -> frozenset[str]:
        """The ids of all that a version goes beyond, step by step, also of what is purged, void or unknown."""
        return frozenset(_ancestors([version], self._versions))

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
        return self.mark(run) if self.heads(run) else GONE

    def mark(self, run: str) -> str:
        """`hidden` or `live`, as the greatest stamp says, whether a version lives or not."""
        return self._marks[run].value if run in self._marks else LIVE

    def is_purged(self, run: str) -> bool:
        """Nobody brought it back since its versions were purged."""
        purged = any(version.id in self.facts.purged for version in self.versions(run))
        return purged and not self.heads(run) and self.mark(run) != LIVE

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
