"""Collectors in a search: what they condemn, copy, claim and drop is decided by the functions of `store/gc.py`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from guildsync.model.manifest import Digest
from guildsync.store import gc
from guildsync.store.draft import good_packs
from guildsync.store.journal import Claim, Facts
from guildsync.store.view import View
from tests.kit.protocol.world import Journal, Move, Stored, World, pack_fact


class Collector(NamedTuple):
    """One collection, by rules G1 to G5. No grace time: whatever there is, is old enough.

    `earlier`: the packs that it knows condemned from a reading that has ended; when it deletes, those to delete.
    `copied`: the pack that it put what it rescues into."""

    name: str
    at: str = "reads"
    journal: Journal | None = None
    earlier: frozenset[str] = frozenset()
    count: int = 0
    copied: str | None = None

    def moves(self, world: World, stored: Stored) -> Iterable[Move]:
        step = _STEPS.get(self.at)
        return () if step is None else step(self, world, stored)

    def _reads(self, world: World, stored: Stored) -> Iterable[Move]:
        reads = self._replace(journal=stored.journal)
        if world.scope.lists_after:
            yield "reads", reads._replace(at="lists"), stored
        else:
            for _, after, _ in reads._lists(world, stored):
                yield "reads", after, stored

    def _lists(self, world: World, stored: Stored) -> Iterable[Move]:
        """Rule G1."""
        assert self.journal is not None
        facts = world.seen(self.journal).view.facts
        key = ("condemn", self.journal, stored.packs)
        for condemn in world.once(key, lambda: self._choices(world, stored)):
            after = self._replace(earlier=condemn | (facts.condemned - facts.dropped))
            if condemn and world.rules.condemns:
                yield "lists packs", after._replace(at="condemns"), stored
            else:
                yield "lists packs", after._replace(at="reads again")._about_to_decide(world), stored

    def _choices(self, world: World, stored: Stored) -> list[frozenset[Digest]]:
        """What may be condemned: all that nobody needs or, where any may go, any one pack. None where there is nothing
        to do at all."""
        assert self.journal is not None
        view, ages = world.seen(self.journal).view, dict.fromkeys(stored.packs, 1.0)
        unneeded = gc.condemnable(view, ages, (), 0.0)
        if world.scope.any_pack:
            each = [gc.condemnable(view, {pack: 1.0}, [pack], 0.0) for pack in sorted(stored.packs)]
            return [*filter(None, each), *([unneeded] if len(unneeded) != 1 else [])]
        facts = view.facts
        if world.scope.together:
            all_of_them = gc.condemnable(view, ages, sorted(stored.packs), 0.0)
            return [*filter(None, {unneeded, all_of_them})] or ([unneeded] if facts.condemned & stored.packs else [])
        return [unneeded] if unneeded or facts.condemned - facts.dropped or facts.dropped & stored.packs else []

    def _condemns(self, world: World, stored: Stored) -> Iterable[Move]:
        assert self.journal is not None
        commit = world.once(self, lambda: self._condemnation(world))
        after = self._replace(at="reads again", journal=self.journal | {commit}, count=self.count + 1)
        yield "condemns", after._about_to_decide(world), stored._replace(journal=stored.journal | {commit})

    def _condemnation(self, world: World) -> int:
        assert self.journal is not None
        condemned = self.earlier - world.seen(self.journal).view.facts.condemned
        return world.say(self.journal, self.name, self.count, Facts(condemned=frozenset(map(Digest, condemned))))

    def _about_to_decide(self, world: World) -> Collector:
        """Rule G2: what it read before is forgotten."""
        return self._replace(journal=None) if world.rules.reads_again else self._replace(at="decides")

    def _reads_again(self, world: World, stored: Stored) -> Iterable[Move]:
        if world.scope.paged and self.journal is None:
            yield "begins a LIST", self._replace(journal=stored.journal), stored
            return
        for journal in world.listings(self.journal or stored.journal, stored.journal):
            yield "reads again", self._decided(world, journal, stored), stored

    def _decides(self, world: World, stored: Stored) -> Iterable[Move]:
        assert self.journal is not None
        yield "decides", self._decided(world, self.journal, stored), stored

    def _decided(self, world: World, journal: Journal, stored: Stored) -> Collector:
        after = self._replace(journal=journal)
        if after._to_copy(world):
            return after._replace(at="copies")
        return after._replace(at="puts") if after._facts(world) != Facts() else after._dropped(world, stored)

    def _copies(self, world: World, stored: Stored) -> Iterable[Move]:
        copies, facts = self._to_copy(world), self._view(world).facts
        condemned = sorted(facts.condemned - facts.dropped)
        if len(world.find(copies, [pack for pack in condemned if pack in stored.packs])) < len(copies):
            yield "finds its source gone", self._replace(at="reads again", journal=None, count=self.count + 1), stored
            return
        name = world.pack(self.name, self.count, copies)
        after = self._replace(at="puts", count=self.count + 1, copied=name)
        yield "copies", after, stored._replace(packs=stored.packs | {name})

    def _puts(self, world: World, stored: Stored) -> Iterable[Move]:
        """Rule G4."""
        assert self.journal is not None
        facts, after = self._facts(world), self._dropped(world, stored)
        there = sorted(facts.dropped & stored.packs)
        if world.rules.drops == "after" and there:
            yield "deletes", self, stored._replace(packs=stored.packs - {there[0]})
            return
        apart = world.rules.rescues_apart and bool(gc.stranded(self._view(world)))
        if apart:
            after = self._replace(at="reads again", journal=None, count=self.count + 1, copied=None)
        if apart or world.rules.drops == "never":
            facts = replace(facts, dropped=frozenset())
        commit = world.say(self.journal, self.name, self.count, facts)
        yield "claims and drops", after, stored._replace(journal=stored.journal | {commit})

    def _dropped(self, world: World, stored: Stored) -> Collector:
        """It goes on with what is to be deleted."""
        doomed = (self._facts(world).dropped | self._view(world).facts.dropped) & stored.packs
        return Collector(self.name, "deletes", None, doomed) if doomed else Collector(self.name, "done")

    def _facts(self, world: World) -> Facts:
        return world.once(("facts", self.journal, self.earlier, self.copied), lambda: self._new_facts(world))

    def _new_facts(self, world: World) -> Facts:
        view, rules = self._view(world), world.rules
        needs = {version: world.needs(view, version) for version in view.living}
        packs = [*good_packs(view), *([self.copied] if self.copied else [])]

        def locate(digest: Digest) -> str | None:
            return world.find([digest], packs).get(digest, (None,))[0]

        drop = rules.droppable(view, self.earlier)
        rescued = gc.new_claims(view, needs, locate) if rules.rescues else frozenset[Claim]()
        claims = rescued | rules.repeated(view, drop)
        adds = frozenset([pack_fact(self.copied)] if self.copied else [])
        return Facts(adds=adds, claims=claims, dropped=drop)

    def _to_copy(self, world: World) -> frozenset[Digest]:
        key = ("copy", self.journal, None if world.rules.condemns else self.earlier)
        return world.once(key, lambda: self._unlocated(world))

    def _unlocated(self, world: World) -> frozenset[Digest]:
        view = self._view(world)
        needs = {version: world.needs(view, version) for version in view.living}
        good = good_packs(view)
        if not world.rules.rescues:
            return frozenset()
        return gc.to_copy(view, needs, lambda digest: world.find([digest], good).get(digest, (None,))[0])

    def _view(self, world: World) -> View:
        assert self.journal is not None
        view = world.seen(self.journal).view
        if world.rules.condemns:
            return view
        return View(replace(view.facts, condemned=view.facts.condemned | frozenset(map(Digest, self.earlier))))

    def _deletes(self, world: World, stored: Stored) -> Iterable[Move]:
        """Rule G5."""
        there = sorted(self.earlier & stored.packs)
        if not there:
            return
        after = self._replace(earlier=frozenset(there[1:])) if there[1:] else Collector(self.name, "done")
        if world.scope.late_deletes:
            yield "sends a DELETE", after, stored._replace(under_way=stored.under_way | {("delete", there[0])})
        else:
            yield "deletes", after, stored._replace(packs=stored.packs - {there[0]})


_STEPS = {
    "reads": Collector._reads,
    "lists": Collector._lists,
    "condemns": Collector._condemns,
    "reads again": Collector._reads_again,
    "decides": Collector._decides,
    "copies": Collector._copies,
    "puts": Collector._puts,
    "deletes": Collector._deletes,
}
