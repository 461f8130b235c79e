"""Everybody else in a search: who prunes, sums up and reads, and who pushes, deletes, purges or edits by one commit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from guildsync.model.run import RunId
from guildsync.store.draft import Draft
from guildsync.store.journal import GONE, HIDDEN, LIVE, Edit, Facts, Mark
from tests.kit.protocol.world import Journal, Move, Stored, Told, World, objects, pack_fact, told
from tests.kit.protocol.writing import publish


class Pruner(NamedTuple):
    """Rule H1: gives up what was replaced, however short ago."""

    name: str
    journal: Journal | None = None
    at: str = "reads"

    def moves(self, world: World, stored: Stored) -> Iterable[Move]:
        if self.at == "reads" and self._old(world, stored.journal):
            yield "reads", self._replace(journal=stored.journal, at="prunes"), stored
        elif self.at == "prunes":
            assert self.journal is not None
            commit = world.say(self.journal, self.name, 0, Facts(purged=self._old(world, self.journal)))
            there = told(stored, "pruned", world.commits[commit].facts.purged)
            yield "prunes", Pruner(self.name, at="done"), there._replace(journal=stored.journal | {commit})

    def _old(self, world: World, journal: Journal) -> frozenset[str]:
        return world.once(("old", journal), lambda: world.rules.prunable(world.seen(journal).view, {}, 0.0, -1.0))


class Checkpointer(NamedTuple):
    """Rules K1 and K2, without any grace time."""

    name: str
    journal: Journal | None = None
    at: str = "reads"

    def moves(self, world: World, stored: Stored) -> Iterable[Move]:
        if self.at == "reads":
            at = "deletes" if world.rules.deletes_first else "sums up"
            yield "reads", self._replace(journal=stored.journal, at=at), stored
            return
        assert self.journal is not None
        if self.at == "sums up":
            commit = world.once(self, lambda: self._checkpoint(world))
            after = self._replace(at="done" if world.rules.deletes_first else "deletes")
            yield "sums up", after, stored._replace(journal=stored.journal | {commit})
        elif self.at == "deletes":
            for number in sorted(self.journal & stored.journal):
                yield "deletes an entry", self, stored._replace(journal=stored.journal - {number})
            if world.rules.deletes_first and not self.journal & stored.journal:
                yield "has deleted all", self._replace(at="sums up"), stored

    def _checkpoint(self, world: World) -> int:
        assert self.journal is not None
        return world.number(world.rules.summary(world.seen(self.journal).reading, world.commit_id(self.name, 0), ()))


class Reader(NamedTuple):
    """Rules V1 and V2: a pull of a run, pack by pack."""

    name: str
    run: str
    at: str = "reads"
    packs: tuple[str, ...] = ()
    restarts: int = 0
    journal: Journal | None = None

    def moves(self, world: World, stored: Stored) -> Iterable[Move]:
        if self.at == "reads":
            if world.scope.paged and self.journal is None:
                yield "begins a LIST", self._replace(journal=stored.journal), stored
                return
            for journal in world.listings(self.journal or stored.journal, stored.journal):
                yield "reads", self._chosen(world, journal), stored
        elif self.at == "fetches" and self.packs:
            if self.packs[0] in stored.packs:
                yield "fetches", self._replace(packs=self.packs[1:]), stored
            else:
                yield "finds a pack gone", Reader(self.name, self.run, restarts=self.restarts + 1), stored
        elif self.at == "fetches":
            yield "has all", Reader(self.name, self.run, "done"), stored

    def _chosen(self, world: World, journal: Journal) -> Reader:
        view = world.seen(journal).view
        current = view.current(self.run)
        claim = view.claim(current.id) if current is not None else None
        if claim is None:
            return Reader(self.name, self.run, "sees nothing", restarts=self.restarts)
        return Reader(self.name, self.run, "fetches", claim.packs, self.restarts)


class Person(NamedTuple):
    """Somebody who reads and then, at any time later, changes one run by one commit: `does` is `push` (of what is made
    of `letters`), `delete`, `restore`, `purge` (rule U1) or `edit`."""

    name: str
    does: str
    run: str = "R0"
    letters: str = ""
    journal: Journal | None = None
    at: str = "reads"

    def moves(self, world: World, stored: Stored) -> Iterable[Move]:
        if self.at == "reads":
            yield "reads", self._replace(journal=stored.journal, at="writes"), stored
        elif self.at == "writes":
            facts, tell = world.once(self, lambda: self._act(world))
            after = Person(self.name, self.does, self.run, at="done")
            if facts == Facts():
                yield "need not do anything", after, stored
                return
            assert self.journal is not None
            commit = world.say(self.journal, self.name, 0, facts)
            packs = stored.packs | {fact.name for fact in facts.adds}
            there = stored._replace(journal=stored.journal | {commit}, packs=packs, told=stored.told | tell)
            yield "commits", after, there

    def _act(self, world: World) -> tuple[Facts, frozenset[Told]]:
        """The facts of its commit, and what it is told then."""
        assert self.journal is not None
        reading = world.seen(self.journal).reading
        view, stamp = reading.view, (reading.next_sequence, world.commit_id(self.name, 0))
        if view.status(self.run) not in _WHERE[self.does]:
            return Facts(), frozenset()
        if self.does == "push":
            return self._push(world, stamp)
        if self.does == "edit":
            before = view.standing_edits(self.run, "label")
            edit = Edit(f"{stamp[1]}/0", RunId(self.run), "label", json.dumps(self.name), before, *stamp)
            return Facts(edits=frozenset([edit])), frozenset([("edited", self.run, *stamp, self.name)])
        mark = Mark(RunId(self.run), LIVE if self.does == "restore" else HIDDEN, *stamp)
        purged = frozenset[str]()
        if self.does == "purge":
            purged = frozenset(version.id for version in view.versions(self.run)) - view.facts.purged
        facts = Facts(purged=purged, marks=frozenset([mark]))
        return facts, frozenset([(mark.value, self.run, *stamp), *(("purged", version) for version in purged)])

    def _push(self, world: World, stamp: tuple[int, str]) -> tuple[Facts, frozenset[Told]]:
        assert self.journal is not None
        own, reading = world.pack(self.name, 0, objects(self.letters)), world.seen(self.journal).reading
        draft = Draft(reading, stamp[1], {own: pack_fact(own)})
        commit = publish(world, draft, reading.view, self.run, self.letters)
        marks = frozenset([Mark(RunId(self.run), LIVE, *stamp)] if world.rules.reveals else [])
        told_of = frozenset(("stored", version.id) for version in commit.facts.versions)
        return replace(commit.facts, marks=marks), told_of


_WHERE = {
    "push": {LIVE},
    "delete": {LIVE},
    "restore": {HIDDEN},
    "purge": {LIVE, HIDDEN},
    "edit": {LIVE, HIDDEN, GONE},
}
"""What is done to a run of which status; else there is nothing to do."""
