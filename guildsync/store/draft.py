"""A commit in the making: updates -> facts, and the proof afterwards that they hold."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from guildsync.errors import CONFLICT, MISSING, MOVED, PURGED, TRASHED, Damaged, Problem
from guildsync.model.manifest import Digest, Manifest, canonical, digest_of
from guildsync.model.ports import Update
from guildsync.model.run import RunId, Summary
from guildsync.store.journal import NO_FACTS, Claim, Commit, Edit, Facts, PackFact, Version
from guildsync.store.mirrored import KEPT, outdated, summary_text
from guildsync.store.objects import Objects
from guildsync.store.reading import Reading
from guildsync.store.view import View


class Draft:
    """Facts for one journal object, made from one reading. `id` is the commit's uuid4; `own` are the confirmed packs
    that the journal does not name yet, `damaged` those that nobody is to rely on from now on."""

    def __init__(
        self,
        reading: Reading,
        id: str,  # noqa: A002 - a commit's id
        own: dict[str, PackFact],
        damaged: frozenset[Digest] = frozenset(),
    ) -> None:
        self._view = reading.view
        self._sequence = reading.next_sequence
        self._id = id
        self._own, self._damaged = own, damaged
        self._versions: list[Version] = []
        self._claims: dict[RunId, list[Claim]] = {}
        self._edits: list[Edit] = []
        self._purged: set[str] = set()

    def add(self, update: Update, objects: Objects) -> list[Problem]:
        """The facts of one run; a problem, and none of them, where an object it needs lies nowhere."""
        if update.summary is not None:
            problem = None
            if update.want is None:
                self._restate(update, update.summary)
            else:
                problem = self._publish(update, update.want, update.summary, objects)
            if problem is not None:
                return [problem]
        self._edit(update)
        return []

    def commit(self, store: str) -> Commit | None:
        """None where there is nothing to say."""
        facts = Facts(
            adds=frozenset(self._own.values()),
            versions=frozenset(self._versions),
            claims=frozenset(claim for claims in self._claims.values() for claim in claims),
            edits=frozenset(self._edits),
            purged=frozenset(self._purged),
        )
        if facts == NO_FACTS:
            return None
        return Commit(store, self._sequence, self._id, replace(facts, condemned=self._damaged))

    def proof(self, after: View) -> list[Problem]:
        """Rule W4: what a reading that began after the commit was confirmed says against its versions."""
        bad = after.facts.condemned | after.facts.dropped
        problems = []
        for run, claims in self._claims.items():
            versions = [claim.version for claim in claims]
            if not after.facts.purged.isdisjoint(versions):
                problems.append(Problem(run, None, PURGED, "it was purged there meanwhile"))
            elif not after.living.issuperset(versions) or any(not bad.isdisjoint(claim.packs) for claim in claims):
                problems.append(Problem(run, None, MOVED, "a collector condemned a pack that it relied on"))
            elif after.rivals(run) and any(head.id in versions for head in after.heads(run)):
                problems.append(Problem(run, None, CONFLICT, "another writer pushed this run at the same time"))
            elif after.status(run) == "hidden":
                problems.append(Problem(run, None, TRASHED, "it is stored, in the trash: it was deleted there"))
        return problems

    def _publish(self, update: Update, want: Manifest, said: Summary, objects: Objects) -> Problem | None:
        manifest = digest_of(want.encode())
        needed = {manifest} | {found.digest for entry in want.entries for found in entry.objects()}
        found = objects.find(needed, self._packs(update.run))
        if len(found) < len(needed):
            lost = min(needed - found.keys())
            return Problem(update.run, None, MISSING, f"the object {lost} was neither staged nor there")
        packs = tuple(sorted({Digest(pack) for pack, _ in found.values()}))
        summary = summary_text(said, update.mirrored)
        heads = self._view.heads(update.run)
        if heads and all(
            (head.manifest, head.content, head.summary) == (manifest, want.content, summary) for head in heads
        ):
            # It is there, but not settled: the same version, readable from other packs.
            self._claims[update.run] = [Claim(head.id, packs) for head in heads]
            return None
        self._add_version(update, manifest, want.content, summary, packs)
        return None

    def _restate(self, update: Update, said: Summary) -> None:
        """The same content under another status: a version that shares everything with the current one."""
        current = self._view.current(update.run)
        claim = self._view.good_claim(current.id) if current is not None else None
        if current is None or claim is None:
            return
        there = summary_of(current)
        if there.status == said.status:
            return
        now = replace(said, size=there.size, files=there.files, scalars=there.scalars)
        self._add_version(update, current.manifest, current.content, summary_text(now, update.mirrored), claim.packs)

    def _add_version(
        self, update: Update, manifest: Digest, content: Digest, summary: str, packs: tuple[Digest, ...]
    ) -> None:
        """With it a mirror gives up what it goes beyond, but for the one before it: that shows should this one, which
        nobody has proved yet, become void (rule H1)."""
        run, version = update.run, f"{self._id}/{update.run}"
        self._versions.append(Version(version, run, manifest, content, summary, tuple(sorted(update.heads))))
        self._claims[run] = [Claim(version, packs)]
        if update.mirrored:
            self._purged |= outdated(self._view, run, KEPT - 1)

    def _edit(self, update: Update) -> None:
        was, now = update.metadata_was.fields(), update.metadata.fields()
        for name in sorted(was.keys() | now.keys()):
            if was.get(name) == now.get(name):
                continue
            value = canonical(now.get(name)).decode()
            replaces = self._view.standing_edits(update.run, name)
            number = f"{self._id}/{len(self._edits)}"
            self._edits.append(Edit(number, update.run, name, value, replaces, self._sequence, self._id))

    def _packs(self, run: RunId) -> Iterable[str]:
        """Where to look for objects: first where the run's current version has them, so that claims stay short."""
        current = self._view.current(run)
        claim = self._view.good_claim(current.id) if current is not None else None
        return dict.fromkeys([*(claim.packs if claim else ()), *self._own, *good_packs(self._view)])


def good_packs(view: View) -> list[Digest]:
    """The packs that are neither condemned nor dropped."""
    bad = view.facts.condemned | view.facts.dropped
    return sorted(fact.name for fact in view.facts.adds if fact.name not in bad)


def summary_of(version: Version) -> Summary:
    """The summary of a version; an unreadable one says nothing: summaries decide nothing about bytes."""
    try:
        return Summary.from_json(json.loads(version.summary))
    except (ValueError, RecursionError, Damaged):
        return Summary()
