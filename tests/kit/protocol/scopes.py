"""The scopes that are searched: who shares a store, and what it holds at first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from guildsync.store.journal import Facts
from tests.kit.protocol.collecting import Collector
from tests.kit.protocol.invariants import watch
from tests.kit.protocol.people import Checkpointer, Person, Pruner, Reader
from tests.kit.protocol.search import Found, explore, wander
from tests.kit.protocol.world import LETTERS, Process, Rules, Scope, State, World, pack_fact, version_facts
from tests.kit.protocol.writing import Again, Writer

_STORED = version_facts("R0", "a", "p0")


def living(*processes: Process, **how: Any) -> Scope:
    """The run R0 is stored in p0."""
    return Scope(processes, (_STORED,), (("p0", "a"),), **how)


def purged(*processes: Process, **how: Any) -> Scope:
    """It was purged, and its pack is still there."""
    return replace(living(*processes, **how), facts=(_STORED, Facts(purged=frozenset(v.id for v in _STORED.versions))))


def beside(*processes: Process, **how: Any) -> Scope:
    """It is stored, and beside it lies a pack of another object that nobody needs."""
    facts = (_STORED, Facts(adds=frozenset([pack_fact("p1")])))
    return replace(living(*processes, **how), facts=facts, packs=(("p0", "a"), ("p1", "b")))


def apart(*processes: Process, **how: Any) -> Scope:
    """It lies in two small packs, which a collector may put together."""
    facts = (version_facts("R0", "ab", "p0", "p1"),)
    return Scope(processes, facts, (("p0", "a"), ("p1", "b")), **{"together": True, **how})


def mirrored(*processes: Process, versions: int = 2, **how: Any) -> Scope:
    """A mirror has committed some versions of it, and beside them lies a pack that nobody needs."""
    facts = [version_facts("R0", number * "a", "p0", mirrored=number) for number in range(1, versions + 1)]
    return Scope(processes, (*facts, Facts(adds=frozenset([pack_fact("p1")]))), (("p0", "a"), ("p1", "b")), **how)


def people(*roles: str) -> Scope:
    """They change R0, by one commit each; `x` is a checkpointer."""
    named = [(f"{role} {number}", role, LETTERS[number + 1]) for number, role in enumerate(roles)]
    return living(*(Checkpointer(name) if role == "x" else Person(name, role, "R0", a) for name, role, a in named))


W1, W2, BOTH, OTHER = (
    Writer(*who) for who in (("W1", "R1", "a"), ("W2", "R2", "ab"), ("W1", "R1", "ab"), ("W1", "R0", "b"))
)
MIRROR = Writer("M", "R0", "b", mirrored=True)
HEALER = Writer("W1", "R0", "a", damaged=("p0",))
G1, G2, G3 = Collector("G1"), Collector("G2"), Collector("G3")
P, H, X, R, U = Person("P", "purge"), Pruner("H"), Checkpointer("X"), Reader("R", "R0"), Again("U", "R1", "a")
D = Person("D", "delete")

SCOPES = {
    "B4": living(W1, W2, G1, P, late=True, late_deletes=True),
    "B5": living(W1, G1, G2, P, late=True, late_deletes=True),
    "B14": living(W1, G1, P, X, R, late=True),
    "C1": beside(OTHER, G1, H, late=True),
    "E3": purged(W1, G1, G2, U, late=True, any_pack=True),
    "M1": apart(W2, G1, P, D, late=True, late_deletes=True),
    "M2": apart(W1, G1, G2),
    "M3": apart(W1, G1, R, paged=True),
    "M4": mirrored(MIRROR, G1, P, H, late=True, any_pack=True),
    "M5": mirrored(MIRROR, G1, X, late=True),
    "P5": living(W1, G1, G2, paged=True, any_pack=True),
    "P6": living(BOTH, G1, P, R, paged=True, any_pack=True, late=True, late_deletes=True),
    "R1": people("push", "push", "delete", "restore"),
    "R2": people("push", "delete", "purge", "restore"),
    "R3": people("push", "delete", "restore", "purge", "x"),
    "R4": people("push", "push", "purge", "x", "x"),
    "R5": people("edit", "edit", "push", "delete", "x"),
}
"""Searched to the end by every run of the tests."""

_AS_IT_IS_DONE = {"reads_before": False, "lists_after": True}
LARGER = {
    **{f"{name} as it is done": replace(SCOPES[name], **_AS_IT_IS_DONE) for name in ("B4", "B5", "P5", "P6")},
    "B8": living(W1, G1, X, P, late=True, copies=True),
    "B10": living(Writer("W1", "R0", "ab"), Writer("W2", "R0", "a"), G1, late=True, any_pack=True),
    "C5": beside(OTHER, G1, H, X, late=True, copies=True),
    "W0, checkpointer": living(HEALER, G1, X, R, late=True),
    "W0, 2 writers": living(HEALER, W2, G1, R, late=True, late_deletes=True),
    "W0, 2 gcs": living(HEALER, G1, G2, late=True, any_pack=True),
    "M, 2 writers": apart(W1, W2, G1, P, late=True, late_deletes=True),
    "M, 2 gcs": apart(W2, G1, G2, P, late=True),
    "M, checkpointer": apart(W1, G1, X, R, late=True, copies=True),
    "mirror, 2 gcs": mirrored(MIRROR, G1, G2, H, late=True),
    "mirror, everybody": mirrored(MIRROR, W1, G1, P, X, R, late=True, copies=True, any_pack=True),
    "2 writers, 2 gcs": living(W1, W2, G1, G2, P, late=True, any_pack=True),
    "3 gcs": living(W1, G1, G2, G3, paged=True, any_pack=True),
    "everybody": beside(OTHER, G1, G2, H, P, X, R, late=True, copies=True, any_pack=True, **_AS_IT_IS_DONE),
}
"""Searched to the end, or as far as is bearable, by `scripts/soak`."""


def search(scope: Scope, rules: Rules = Rules(), most: int | None = None) -> tuple[World, Found[State]]:
    """`most`: states to explore, about."""
    world = World(scope, rules)
    return world, explore(world.first(), world.moves, watch(world), most)


def stroll(scope: Scope, rules: Rules = Rules(), ways: int = 100) -> tuple[World, Found[State]]:
    world = World(scope, rules)
    return world, wander(world.first(), world.moves, watch(world), ways)
