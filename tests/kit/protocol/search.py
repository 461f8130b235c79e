"""Search through the states that a first one leads to: all of them, the nearest first, or some on random ways."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)

LONGEST = 500
"""Moves of a random way, at most."""


@dataclass(frozen=True)
class Found(Generic[S]):
    """How many `states` were explored in how many `moves`, and whether there are no more (`whole`); what is `wrong`
    with the last state of `path`, which is as short as can be; the words of all moves, `said`."""

    states: int
    moves: int
    whole: bool
    said: frozenset[str]
    wrong: str | None = None
    path: tuple[tuple[str, S], ...] = ()

    def __str__(self) -> str:
        end = f"wrong: {self.wrong}" if self.wrong else "to the end" if self.whole else "cut off"
        return f"{self.states:,} states, {self.moves:,} moves, {end}"


def explore(
    first: S,
    moves: Callable[[S], Iterable[tuple[str, S]]],
    wrong: Callable[[S], str | None],
    most: int | None = None,
) -> Found[S]:
    """All states, or about `most` of them, the nearest first."""
    with _nothing_thrown_away():
        return _explore(first, moves, wrong, most)


@contextmanager
def _nothing_thrown_away() -> Iterator[None]:
    """All states are kept: to look for rubbish among them would take a quarter of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _explore(
    first: S, moves: Callable[[S], Iterable[tuple[str, S]]], wrong: Callable[[S], str | None], most: int | None
) -> Found[S]:
    before: dict[S, tuple[str, S] | None] = {first: None}
    said: set[str] = set()
    frontier, made = [first], 0
    reason = wrong(first)
    if reason:
        return Found(1, 0, False, frozenset(), reason, (("", first),))
    while frontier and (most is None or len(before) < most):
        following: list[S] = []
        for state in frontier:
            for what, new in moves(state):
                made += 1
                said.add(what)
                if new in before:
                    continue
                before[new] = (what, state)
                reason = wrong(new)
                if reason:
                    return Found(len(before), made, False, frozenset(said), reason, _path(before, new))
                following.append(new)
            if most is not None and len(before) >= most:
                break
        else:
            frontier = following
    return Found(len(before), made, not frontier, frozenset(said))


def wander(
    first: S,
    moves: Callable[[S], Iterable[tuple[str, S]]],
    wrong: Callable[[S], str | None],
    ways: int,
    seed: int = 0,
) -> Found[S]:
    """So many random ways to where nothing moves any more: few of all states, but late ones among them."""
    chance = random.Random(seed)
    seen, said, made = {first}, set[str](), 0
    for _ in range(ways):
        path = [("", first)]
        while len(path) < LONGEST and (following := list(moves(path[-1][1]))):
            path.append(chance.choice(following))
            made += 1
            what, state = path[-1]
            said.add(what)
            if state not in seen:
                seen.add(state)
                reason = wrong(state)
                if reason:
                    return Found(len(seen), made, False, frozenset(said), reason, tuple(path))
    return Found(len(seen), made, False, frozenset(said))


def _path(before: dict[S, tuple[str, S] | None], last: S) -> tuple[tuple[str, S], ...]:
    path: list[tuple[str, S]] = []
    state: S | None = last
    while state is not None:
        what, earlier = before[state] or ("", None)
        path.append((what, state))
        state = earlier
    return tuple(reversed(path))
