"""Damaged packs that this client remembers, until what lay in them is stored anew (rule W0 of the protocol)."""

from __future__ import annotations

from dataclasses import replace

from guildsync.model.manifest import Digest
from guildsync.model.ports import Cache
from guildsync.store.reading import Reading
from guildsync.store.view import View

CACHED = "damaged"
_WHOLE = "pack"
"""Stands for the pack itself: it is not there, not of its size, or its index cannot be read."""


class Damage:
    """What reads found. To this client such packs are condemned already: what it pushes relies on none of them, and the
    commit says so to everybody. What is found to be good after all (bytes may be damaged on their way) is forgotten."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._packs = {
            Digest(name): set((cache.load(CACHED, name) or b"").decode().split()) for name in cache.names(CACHED)
        }

    def note(self, pack: str, digest: str = _WHOLE) -> None:
        """An object of the pack is damaged, or all of it."""
        found = self._packs.setdefault(Digest(pack), set())
        if digest not in found:
            found.add(digest)
            self._cache.keep(CACHED, pack, " ".join(sorted(found)).encode())

    def acquit(self, pack: str, digest: str = _WHOLE) -> None:
        """It is good."""
        found = self._packs.get(Digest(pack))
        if found is None or digest not in found:
            return
        found.discard(digest)
        if found:
            self._cache.keep(CACHED, pack, " ".join(sorted(found)).encode())
        else:
            self.forget(frozenset([Digest(pack)]))

    def forget(self, packs: frozenset[Digest]) -> None:
        """Everybody knows now, or nothing is wrong."""
        for pack in packs:
            self._packs.pop(pack, None)
            self._cache.drop(CACHED, pack)

    def news(self, reading: Reading) -> frozenset[Digest]:
        """The remembered packs that the journal counts on."""
        if not self._packs:
            return frozenset()
        facts = reading.view.facts
        return frozenset(fact.name for fact in facts.adds if fact.name in self._packs) - facts.condemned - facts.dropped

    def applied(self, reading: Reading) -> Reading:
        """The reading as if all that is remembered had been condemned."""
        news = self.news(reading)
        if not news:
            return reading
        facts = reading.view.facts
        return replace(reading, view=View(replace(facts, condemned=facts.condemned | news)))
