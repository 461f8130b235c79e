"""What a sync should do to a run: three-way diff, apply, guard. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Collection, Dict, Iterable, List, Mapping, Optional, Tuple

from guildsync.errors import SafetyStop
from guildsync.model.manifest import DIRECTORY, FILE, Entry, Manifest, Object, directory_entry, parent, same
from guildsync.model.paths import EVERYTHING, Paths

SOURCE, TARGET = "source", "target"

MAX_COMPARED = 16 << 20
"""Bytes that may be read to find out whether one file is how another begins."""

Entries = Dict[bytes, Entry]


@dataclass(frozen=True)
class Policy:
    """What a person allowed: removing at the target, whose side to take in conflicts, and which paths count. What is
    left out stays at the target as it is."""

    delete: bool = False
    resolve: Optional[str] = None
    paths: Paths = EVERYTHING


@dataclass(frozen=True)
class Change:
    """One path of the target: `want` None removes it, `have` None adds it."""

    path: bytes
    have: Optional[Entry]
    want: Optional[Entry]


@dataclass(frozen=True)
class Clash:
    """A path that both sides changed, differently."""

    path: bytes
    base: Optional[Entry]
    have: Optional[Entry]
    want: Optional[Entry]

    @property
    def growth(self) -> Optional[Tuple[str, Entry, Entry]]:
        """(side that is longer, longer, shorter) where one may be a prefix of the other: only bytes can tell."""
        have, want = self.have, self.want
        if have is None or want is None or have.kind != FILE or want.kind != FILE:
            return None
        if have.mode != want.mode or have.size == want.size:
            return None
        return (SOURCE, want, have) if want.size > have.size else (TARGET, have, want)


@dataclass(frozen=True)
class Plan:
    """What is to happen to one run at the target. With clashes nothing of it is sent. `conceded` are clashing paths
    where the target's side was taken; `out` are paths that differ and were left out."""

    changes: Tuple[Change, ...]
    clashes: Tuple[Clash, ...]
    left: Tuple[bytes, ...]
    conceded: Tuple[bytes, ...] = ()
    out: Tuple[bytes, ...] = ()

    @property
    def removals(self) -> Tuple[Change, ...]:
        return tuple(change for change in self.changes if change.want is None)


def diff(
    base: Optional[Manifest],
    have: Manifest,
    want: Manifest,
    policy: Policy = Policy(),
    grown: Collection[bytes] = (),
) -> Plan:
    """Path by path: what only the source changed is sent, what only the target changed is left alone, what both
    changed differently clashes. Paths in `grown` are known to be prefixes of one another: the longer one is newer.
    Of what is left out, only directories that something chosen needs are sent.
    """
    b: Mapping[bytes, Entry] = base.by_path if base is not None else {}
    h, w = have.by_path, want.by_path
    result: Entries = {}
    clashes: List[Clash] = []
    left: List[bytes] = []
    out: List[bytes] = []
    for path in sorted(h.keys() | w.keys()):
        clash = Clash(path, b.get(path), h.get(path), w.get(path))
        chosen = _is_chosen(clash.have, clash.want, policy.paths)
        side = _side(clash, policy, path in grown) if chosen else TARGET
        if side is None:
            clashes.append(clash)
            side = TARGET
        elif side == TARGET and not same(clash.have, clash.want):
            (left if chosen else out).append(path)
        entry = (w if side == SOURCE else h).get(path)
        if entry is not None:
            result[path] = entry
    clashes += _mend_shape(result, h, w, b, policy)
    changes = tuple(
        Change(path, h.get(path), result.get(path))
        for path in sorted(h.keys() | result.keys())
        if not same(h.get(path), result.get(path))
    )
    return Plan(changes, tuple(clashes), tuple(left), out=tuple(out))


def apply(plan: Plan, have: Manifest, *known: Manifest) -> Manifest:
    """The manifest of the run once the plan is carried out; one of `known` where it is the same."""
    entries = dict(have.by_path)
    for change in plan.changes:
        if change.want is None:
            del entries[change.path]
        else:
            entries[change.path] = change.want
    return Manifest.of(entries, *known)


def agreed(base: Optional[Manifest], have: Manifest, want: Manifest, out: Collection[bytes] = frozenset()) -> Manifest:
    """The base of the next sync: where both sides are equal now what they have, elsewhere what they had before. What
    is below a directory in `out` is known although that differs."""
    b: Mapping[bytes, Entry] = base.by_path if base is not None else {}
    h, w, out = have.by_path, want.by_path, frozenset(out)
    entries: Entries = {}
    for path in h.keys() | w.keys() | b.keys():
        entry = h.get(path) if same(h.get(path), w.get(path)) else b.get(path)
        if entry is not None:
            entries[path] = entry
    if out:
        for path in tuple(entries):
            _stand_in_above(entries, path, out)
    return _pruned(entries, have, want)


def noted(
    base: Manifest, want: Manifest, conceded: Collection[bytes], out: Collection[bytes] = frozenset()
) -> Manifest:
    """The base after the target's side was taken at and below some paths: what the source has there is no news any
    more, but where it is in `out`."""
    if not conceded:
        return base
    tops = frozenset(conceded)
    unsaid = frozenset(out) - tops
    entries = {path: entry for path, entry in base.by_path.items() if path in unsaid or not _is_below(path, tops)}
    for path, entry in want.by_path.items():
        if path not in unsaid and _is_below(path, tops):
            entries[path] = entry
            _stand_in_above(entries, path, unsaid)
    return _pruned(entries)


def continued(base: Optional[Manifest], have: Manifest, before: Manifest, aim: Manifest) -> Manifest:
    """The base for a target where a commit from `before` towards `aim` never ended: what it already changed there is
    no change of the target's own."""
    entries: Entries = dict(base.by_path) if base is not None else {}
    was, to, now = before.by_path, aim.by_path, have.by_path
    for path in was.keys() | to.keys():
        if same(was.get(path), to.get(path)) or not same(now.get(path), to.get(path)):
            continue
        entry = now.get(path)
        if entry is None:
            entries.pop(path, None)
            continue
        entries[path] = entry
        _stand_in_above(entries, path)
    return _pruned(entries)


def tails_to_compare(shorter: Entry, longer: Entry) -> Optional[Tuple[List[Object], List[Object]]]:
    """Where a file may be a prefix of another: the objects of the shorter one behind those that both begin with, and
    the objects of the longer one that cover them. None where that would be too much to read."""
    short, long = list(shorter.objects()), list(longer.objects())
    while short and long and short[0] == long[0]:
        del short[0], long[0]
    covering = [found for found in long if found.offset < shorter.size]
    return (short, covering) if sum(found.size for found in covering) <= MAX_COMPARED else None


def guard(plans: Iterable[Tuple[str, Plan, Manifest]], max_delete: Optional[int] = None) -> None:
    """Refuses to destroy from ignorance: more than half of a run's files, or more than 1,000 in all.

    Takes (run, plan, what the target has); raises SafetyStop unless `max_delete` allows as many removals.
    """
    total = 0
    worst: Optional[Tuple[str, int, int]] = None
    for run, plan, have in plans:
        removed = sum(1 for change in plan.removals if change.have is not None and change.have.kind != DIRECTORY)
        total += removed
        files = sum(1 for entry in have.entries if entry.kind != DIRECTORY)
        if removed * 2 > files and (worst is None or removed > worst[1]):
            worst = (run, removed, files)
    if max_delete is not None:
        if total > max_delete:
            raise SafetyStop(
                f"this would remove {total} files, more than the {max_delete} allowed", f"--max-delete {total}"
            )
        return
    hint = f"if that is what you want: --max-delete {total}"
    if worst is not None:
        raise SafetyStop(f"this would remove {worst[1]} of the {worst[2]} files of run {worst[0]}", hint)
    if total > 1000:
        raise SafetyStop(f"this would remove {total} files", hint)


def _side(clash: Clash, policy: Policy, grown: bool) -> Optional[str]:
    base, have, want = clash.base, clash.have, clash.want
    if same(have, want) or same(base, want):
        return TARGET
    if want is None:
        # Gone at the source. Without a base this says nothing but that the source never had it.
        if base is None or not policy.delete:
            return TARGET
        return SOURCE if same(have, base) else policy.resolve
    if same(have, base):
        return SOURCE
    growth = clash.growth
    if grown and growth is not None:
        return growth[0]
    return policy.resolve


def _mend_shape(
    result: Entries,
    have: Mapping[bytes, Entry],
    want: Mapping[bytes, Entry],
    base: Mapping[bytes, Entry],
    policy: Policy,
) -> List[Clash]:
    """Make `result` a tree: bring back directories that something new needs; a name that one side holds as a
    directory with things in it and the other as something else is a clash, settled as a whole. It stays one where the
    source's side would cost the target something that is left out."""
    clashes: List[Clash] = []
    for path in sorted(result):
        if path not in result:
            continue
        top = parent(path)
        while top and not _is_directory(result.get(top)):
            if top not in result:
                entry = next((e[top] for e in (want, have) if _is_directory(e.get(top))), None)
                if entry is not None:
                    result[top] = entry
                    top = parent(top)
                    continue
            takes_source = policy.resolve == SOURCE and not _leaves_out_below(top, have, want, policy.paths)
            if not takes_source and policy.resolve != TARGET:
                clashes.append(Clash(top, base.get(top), have.get(top), want.get(top)))
            _take_below(result, top, _chosen_of(want, have, policy.paths) if takes_source else have)
            break
    return clashes


def _take_below(result: Entries, top: bytes, side: Mapping[bytes, Entry]) -> None:
    below = top + b"/"
    for path in [p for p in result if p == top or p.startswith(below)]:
        del result[path]
    for path, entry in side.items():
        if path == top or path.startswith(below):
            result[path] = entry


def _is_chosen(have: Optional[Entry], want: Optional[Entry], paths: Paths) -> bool:
    """A path is left out as soon as what one of the sides has there is."""
    return (have is None or have in paths) and (want is None or want in paths)


def _chosen_of(side: Mapping[bytes, Entry], other: Mapping[bytes, Entry], paths: Paths) -> Mapping[bytes, Entry]:
    """What is chosen of a side, and the directories that it needs."""
    if not paths.leave_out:
        return side
    entries: Entries = {}
    for path, entry in side.items():
        if _is_chosen(entry, other.get(path), paths):
            while path and path not in entries:
                entries[path] = side[path]
                path = parent(path)
    return entries


def _leaves_out_below(top: bytes, have: Mapping[bytes, Entry], want: Mapping[bytes, Entry], paths: Paths) -> bool:
    """Does the target have something at or below `top` that is left out?"""
    if not paths.leave_out:
        return False
    below = top + b"/"
    return any(
        not _is_chosen(entry, want.get(path), paths)
        for path, entry in have.items()
        if path == top or path.startswith(below)
    )


def _stand_in_above(entries: Entries, path: bytes, where: Optional[Collection[bytes]] = None) -> None:
    """Put directories above `path` (`where`: as far as they are among these) that `entries` lacks, of a mode that
    neither side is known to have had."""
    top = parent(path)
    while top and (where is None or top in where) and not _is_directory(entries.get(top)):
        entries[top] = directory_entry(top, 0, 0)
        top = parent(top)


def _is_below(path: bytes, tops: Collection[bytes]) -> bool:
    while path and path not in tops:
        path = parent(path)
    return bool(path)


def _is_directory(entry: Optional[Entry]) -> bool:
    return entry is not None and entry.kind == DIRECTORY


def _pruned(entries: Entries, *known: Manifest) -> Manifest:
    """Without what no longer hangs together: a base that knows less only makes a sync more careful. One of `known`
    where it is the same."""
    directories = {b""}
    out = {}
    for path in sorted(entries):
        if parent(path) in directories:
            out[path] = entries[path]
            if entries[path].kind == DIRECTORY:
                directories.add(path)
    return Manifest.of(out, *known)
