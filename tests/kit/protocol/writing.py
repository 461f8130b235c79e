"""Pushes in a search: a writer goes by the project's own `Draft`, from what it finds to what it proves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from guildsync.errors import CONFLICT, MOVED, TRASHED
from guildsync.model.manifest import Digest
from guildsync.model.ports import Update
from guildsync.model.run import RunId, Summary
from guildsync.store.cache import NoCache
from guildsync.store.damage import Damage
from guildsync.store.draft import Draft, good_packs
from guildsync.store.journal import Commit
from guildsync.store.reading import Reading
from guildsync.store.view import View
from tests.kit.protocol.world import STORE, Content, Journal, Move, Stored, World, objects, pack_fact, told

_STORED = {CONFLICT, TRASHED}
"""Problems of a run that is nevertheless stored."""


def publish(world: World, draft: Draft, view: View, run: str, letters: str, mirrored: bool = False) -> Commit:
    """The commit of a draft that was made from a reading with this view."""
    heads = tuple(head.id for head in view.heads(run))
    update = Update(RunId(run), None, Content(letters), Summary(), heads=heads, mirrored=mirrored)
    assert not draft.add(update, world)
    commit = draft.commit(STORE)
    assert commit is not None
    if mirrored and world.rules.outdated is not None:
        return replace(commit, facts=replace(commit.facts, purged=world.rules.outdated(view, run)))
    return commit


def up_to_date(world: World, view: View, run: str, letters: str) -> str | None:
    """The version that makes a push of the run unnecessary."""
    current = view.current(run)
    there = current is not None and current.content == letters and not view.rivals(run)
    return current.id if there and world.rules.up_to_date(view, current.id) else None


class Writer(NamedTuple):
    """A push of one run: rules W0 to W4, round by round, until it is stored or somebody else decided otherwise.

    `damaged`: packs that it remembers as damaged and nobody else knows of. `mirrored`: a mirror does it."""

    name: str
    run: str
    letters: str
    damaged: tuple[str, ...] = ()
    at: str = "reads"
    journal: Journal = frozenset()
    own: tuple[str, ...] = ()
    count: int = 0
    commit: int | None = None
    mirrored: bool = False

    def moves(self, world: World, stored: Stored) -> Iterable[Move]:
        step = _STEPS.get(self.at)
        return () if step is None else step(self, world, stored)

    def _reads(self, world: World, stored: Stored) -> Iterable[Move]:
        yield self._round(world, stored, stored.journal, "reads")

    def _stages(self, world: World, stored: Stored) -> Iterable[Move]:
        name = world.pack(self.name, self.count, self._missing(world, self.journal))
        at = "reads again" if self.at == "stages" and world.scope.reads_before else "puts"
        after = self._replace(at=at, own=(*self.own, name), count=self.count + 1)
        yield self.at, after, stored._replace(packs=stored.packs | {name})

    def _reads_again(self, world: World, stored: Stored) -> Iterable[Move]:
        view = self._reading(world, stored.journal).view
        own = tuple(pack for pack in self.own if pack not in view.facts.condemned | view.facts.dropped)
        after = self._replace(own=own, journal=stored.journal)
        yield self.at, after._replace(at="stages anew" if after._missing(world, stored.journal) else "puts"), stored

    def _puts(self, world: World, stored: Stored) -> Iterable[Move]:
        commit = world.once(self, lambda: self._drafted(world))
        after = self._replace(journal=frozenset(), own=(), count=self.count + 1, commit=commit, damaged=())
        if world.scope.late:
            sent = stored._replace(under_way=stored.under_way | {("commit", commit)})
            yield "sends its commit", after._replace(at="waits"), sent
        else:
            there = told(stored, "pruned", world.commits[commit].facts.purged)
            there = there._replace(journal=stored.journal | {commit})
            yield ("puts its commit", *after._confirmed(world, there))

    def _waits(self, world: World, stored: Stored) -> Iterable[Move]:
        if ("commit", self.commit) not in stored.under_way:
            yield ("hears that it arrived", *self._confirmed(world, stored))

    def _confirmed(self, world: World, stored: Stored) -> tuple[Writer, Stored]:
        return (self._replace(at="proves"), stored) if world.rules.proves else self._is_told(world, stored)

    def _proves(self, world: World, stored: Stored) -> Iterable[Move]:
        if world.scope.paged and self.at == "proves":
            yield "begins a LIST", self._replace(at="ends", journal=stored.journal), stored
            return
        for journal in world.listings(self.journal or stored.journal, stored.journal):
            reasons = world.once(("proof", self.commit, journal), partial(self._proof, world, journal))
            if MOVED in reasons:
                yield self._round(world, stored, journal, "sees that a pack was condemned")
            elif reasons <= _STORED:
                yield ("sees that it is stored", *self._is_told(world, stored))
            else:
                yield "sees that it was purged", self._done(), stored

    def _round(self, world: World, stored: Stored, journal: Journal, what: str) -> Move:
        """Rule W1: what a reading asks for."""
        view = self._reading(world, journal).view
        if view.rivals(self.run):
            return f"{what}, finds a conflict", self._done(), stored
        there = up_to_date(world, view, self.run, self.letters)
        if there is not None:
            return f"{what}, is up to date", self._done(), told(stored, "stored", [there])
        first = self.at == "reads"
        staged = "reads again" if first and world.scope.reads_before else "puts"
        at = ("stages" if first else "stages anew") if self._missing(world, journal) else staged
        return what, self._replace(at=at, journal=journal, commit=None), stored

    def _missing(self, world: World, journal: Journal) -> frozenset[Digest]:
        wanted = objects(self.letters)
        return wanted - world.find(wanted, [*self.own, *good_packs(self._reading(world, journal).view)]).keys()

    def _reading(self, world: World, journal: Journal) -> Reading:
        """Rule W0: to it, what it remembers is condemned already."""
        reading = world.seen(journal).reading
        return world.once(("damage", self.damaged, journal), lambda: _damage(self.damaged).applied(reading))

    def _drafted(self, world: World) -> int:
        damaged = _damage(self.damaged).news(world.seen(self.journal).reading)
        reading, own = self._reading(world, self.journal), {pack: pack_fact(pack) for pack in self.own}
        draft = Draft(reading, world.commit_id(self.name, self.count), own, damaged)
        number = world.number(publish(world, draft, reading.view, self.run, self.letters, self.mirrored))
        world.drafts[number] = draft
        return number

    def _proof(self, world: World, journal: Journal) -> set[str]:
        assert self.commit is not None
        return {problem.reason for problem in world.drafts[self.commit].proof(world.seen(journal).view)}

    def _is_told(self, world: World, stored: Stored) -> tuple[Writer, Stored]:
        assert self.commit is not None
        versions = {claim.version for claim in world.commits[self.commit].facts.claims}
        return self._done(), told(stored, "stored", versions)

    def _done(self) -> Writer:
        return Writer(self.name, self.run, self.letters, at="done")


def _damage(packs: Iterable[str]) -> Damage:
    damage = Damage(NoCache())
    for pack in packs:
        damage.note(pack)
    return damage


_STEPS = {
    "reads": Writer._reads,
    "stages": Writer._stages,
    "stages anew": Writer._stages,
    "reads again": Writer._reads_again,
    "puts": Writer._puts,
    "waits": Writer._waits,
    "proves": Writer._proves,
    "ends": Writer._proves,
}


class Again(NamedTuple):
    """Another push of the same, from elsewhere, that finds the run up to date."""

    name: str
    run: str
    letters: str
    at: str = "reads"

    def moves(self, world: World, stored: Stored) -> Iterable[Move]:
        there = up_to_date(world, world.seen(stored.journal).view, self.run, self.letters)
        if self.at == "reads" and there is not None:
            yield "is up to date", self._replace(at="done"), told(stored, "stored", [there])
