"""What must hold in every state of a search, whoever dies there.

I1: what is to be seen can be read. I2: what was acknowledged stays, until a purge that names it. I3: no edit is lost.
I4: the greatest stamp wins, whatever was summed up. I5: collectors alone, after everybody died, leave what living
versions need and nothing else. I6: what was purged does not come back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

from guildsync.store.journal import HIDDEN, LIVE
from tests.kit.protocol.collecting import Collector
from tests.kit.protocol.people import Reader
from tests.kit.protocol.world import Journal, Rules, State, Stored, World

PASSES = 3
"""So many collections by nobody but collectors leave nothing to do."""


def watch(world: World) -> Callable[[State], str | None]:
    """Says what is wrong with a state, in words."""
    collectors = sum(1 for process in world.scope.processes if isinstance(process, Collector))
    readers = [place for place, process in enumerate(world.scope.processes) if isinstance(process, Reader)]

    def wrong(state: State) -> str | None:
        stored, processes = state
        for place in readers:
            said = _unreadable(stored, processes[place], collectors)
            if said:
                return said
        kept = ("kept", stored.journal, stored.packs, stored.told)
        said = world.once(kept, lambda: _broken(world, stored.journal, stored.packs) or _broken_promise(world, stored))
        if said or not collectors:
            return said
        return world.once(("alone", stored.journal, stored.packs), lambda: _does_not_converge(world, stored))

    return wrong


def _broken(world: World, journal: Journal, packs: frozenset[str]) -> str | None:
    """I1."""
    seen = world.seen(journal)
    if not seen.relied_on <= packs:
        return f"I1: a version is to be seen, and {min(seen.relied_on - packs)} of its claim is gone"
    return f"I1: {seen.scant}" if seen.scant else None


def _broken_promise(world: World, stored: Stored) -> str | None:
    view = world.seen(stored.journal).view
    told: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for kind, *about in stored.told:
        told[kind].append(tuple(about))
    given_up = {version for (version,) in told["purged"] + told["pruned"]}
    for (version,) in sorted(told["stored"]):
        if version not in view.living and version not in given_up:
            return f"I2: {world.short(version)} was acknowledged and is gone"
    purged = {version.partition("/")[2] for (version,) in told["purged"]}
    for (version,) in sorted(told["pruned"]):
        run = version.partition("/")[2]
        if not view.heads(run) and run not in purged:
            return f"I2: {world.short(version)} was pruned, and nothing is left of its run"
    if given_up & view.living:
        return f"I6: {world.short(min(given_up & view.living))} was purged and comes back"
    if told["edited"]:
        run, *_, label = max(told["edited"])
        if view.fields(run).get("label") != label:
            return f"I3, I4: the label is {view.fields(run).get('label')}, the last edit says {label}"
    marks = [(*about, kind) for kind in (HIDDEN, LIVE) for about in told[kind]]
    for run in view.runs():
        last = max((mark for mark in marks if mark[0] == run), default=(LIVE,))[-1]
        if view.heads(run) and view.status(run) != last:
            return f"I4: the run is {view.status(run)}, the last mark says {last}"
    return None


def _does_not_converge(world: World, stored: Stored) -> str | None:
    """I5: nothing that was under way arrives any more."""
    alone = world.once("alone", lambda: _alone(world))
    living, journal, packs = world.seen(stored.journal).view.living, stored.journal, stored.packs
    for number in range(PASSES):
        collector = Collector(f"collector {number + 1} alone")
        for _ in range(50):
            step = next(iter(collector.moves(alone, Stored(journal, packs))), None)
            if step is None:
                break
            _, collector, (journal, packs, *_) = step
            broken = _broken(world, journal, packs)
            if broken or not living <= world.seen(journal).view.living:
                return f"I5: alone, {broken or 'I2: a living version is lost'}"
        else:
            return "I5: a collector alone does not end"
    seen = world.seen(journal)
    if packs != seen.needed:
        return f"I5: {', '.join(sorted(packs ^ seen.needed))} is left for ever"
    if seen.needed & seen.view.facts.condemned:
        return f"I5: {min(seen.needed & seen.view.facts.condemned)} stays condemned and needed"
    return None


def _alone(world: World) -> World:
    """Who comes last goes by the rules, and finds no trouble."""
    scope = replace(world.scope, any_pack=False, paged=False, late_deletes=False)
    return world.under(scope, Rules(merge=world.rules.merge))


def _unreadable(stored: Stored, reader: Reader, collectors: int) -> str | None:
    if reader.restarts > 2 + 2 * collectors:
        return f"V2: {reader.name} starts again for ever"
    if reader.at == "sees nothing" and not any(fact[0] == "purged" for fact in stored.told):
        return f"I2: {reader.name} does not see what was acknowledged"
    return None
