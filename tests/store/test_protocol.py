"""The protocol of a store, in all orders: whoever writes, collects, sums up or dies, nothing acknowledged is lost."""

from __future__ import annotations

import pytest

from guildsync.store.journal import Claim, Facts
from tests.kit.protocol.collecting import Collector
from tests.kit.protocol.mutations import MUTATIONS
from tests.kit.protocol.people import Checkpointer, Person, Pruner, Reader
from tests.kit.protocol.scopes import G1, LARGER, SCOPES, living, search, stroll
from tests.kit.protocol.search import Found, explore, wander
from tests.kit.protocol.world import Process, Scope, State, World
from tests.kit.protocol.writing import Again, Writer

SLICE, WAYS = 5_000, 300
"""States, and random ways, of a search that is too long to be carried out by every run of the tests."""

STATES = {
    "B4": 225_685,
    "B5": 83_341,
    "B14": 328_466,
    "C1": 636,
    "E3": 98_639,
    "M1": 121_508,
    "M2": 98_597,
    "M3": 4_472,
    "M4": 54_747,
    "M5": 88_407,
    "P5": 155_671,
    "P6": 175_014,
    "R1": 489,
    "R2": 463,
    "R3": 28_759,
    "R4": 179_819,
    "R5": 69_714,
}
"""How many states there are. A search that finds much fewer lacks moves."""

ENDLESS = {"2 writers, 2 gcs": 1_500_000, "3 gcs": 1_500_000, "everybody": 400_000}
"""How far searches go that have never ended: a state of many takes 15 KB."""

WORDS = {
    Writer: {"stages anew", "sees that a pack was condemned", "sees that it is stored"},
    Again: {"is up to date"},
    Collector: {"condemns", "copies", "claims and drops"},
    Person: {"commits"},
    Pruner: {"prunes"},
    Checkpointer: {"sums up", "deletes an entry"},
    Reader: {"finds a pack gone", "has all"},
}
"""What everybody is to have done somewhere in a search; else it proves less than it seems to."""


def acts(process: Process) -> set[str]:
    return {f"{process.name} {word}" for word in WORDS[type(process)]}


def check(name: str, world: World, found: Found[State], whole: bool) -> None:
    print(f"{name}: {found}")
    assert found.wrong is None, world.story(found)
    if whole:
        assert found.whole
        assert set().union(*map(acts, world.scope.processes)) <= found.said


@pytest.mark.parametrize("name", SCOPES)
def test_nothing_is_lost_in_any_order(name: str) -> None:
    world, found = search(SCOPES[name])
    check(name, world, found, whole=True)
    assert found.states > 0.8 * STATES[name]


@pytest.mark.parametrize("name", LARGER)
def test_nothing_is_lost_near_the_beginning(name: str) -> None:
    check(name, *search(LARGER[name], most=SLICE), whole=False)


@pytest.mark.parametrize("name", LARGER)
def test_nothing_is_lost_on_random_ways(name: str) -> None:
    check(name, *stroll(LARGER[name], ways=WAYS), whole=False)


@pytest.mark.soak
@pytest.mark.parametrize("name", LARGER)
def test_nothing_is_lost_among_more(name: str) -> None:
    check(name, *search(LARGER[name], most=ENDLESS.get(name)), whole=name not in ENDLESS)


@pytest.mark.soak
@pytest.mark.parametrize("name", ENDLESS)
def test_nothing_is_lost_on_many_random_ways(name: str) -> None:
    check(name, *stroll(LARGER[name], ways=200 * WAYS), whole=False)


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_rule_is_needed(name: str) -> None:
    mutation = MUTATIONS[name]
    world, found = search(mutation.scope, mutation.rules, 20_000)
    print(world.story(found))
    assert found.wrong is not None, f"{found}: nothing is lost without the rule"
    assert found.wrong.startswith(mutation.why), world.story(found)


def test_a_search_ends_at_the_nearest_wrong_state() -> None:
    def moves(number: int):
        return [("doubled", 2 * number), ("plus one", number + 1)]

    found = explore(1, moves, lambda number: "large" if number >= 10 else None)
    assert found.wrong == "large"
    assert [number for _, number in found.path] == [1, 2, 4, 8, 16]
    whole = explore(0, lambda number: [("on", (number + 1) % 7)], lambda _: None)
    assert (whole.states, whole.whole) == (7, True)
    assert not explore(0, lambda number: [("on", number + 1)], lambda _: None, 100).whole


def test_a_random_way_says_where_it_went() -> None:
    found = wander(1, lambda number: [("on", number + 1)], lambda number: "large" if number > 3 else None, 1)
    assert (found.wrong, found.path) == ("large", (("", 1), ("on", 2), ("on", 3), ("on", 4)))


def test_a_claim_that_does_not_suffice_is_found() -> None:
    scope = living(G1)
    (stored,) = scope.facts
    (version,) = stored.versions
    short = Facts(claims=frozenset([Claim(version.id, ())]))
    _, found = search(Scope(scope.processes, (stored, short), scope.packs))
    assert found.wrong is not None
    assert found.wrong.startswith("I1")
