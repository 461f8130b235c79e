"""What a sync should do to a run: three-way diff, apply, guard. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Collection, Dict, Iterable, List, Mapping, Optional, Tuple

from guildsync.errors import SafetyStop
from guildsync.model.manifest import DIRECTORY, FILE, Entry, Manifest, Object, directory_entry, parent, same

SOURCE, TARGET = "source", "target"

Entries = Dict[bytes, Entry]


@dataclass(frozen=True)
class Policy:
    """What a person allowed: removing at the target, and whose side to take in conflicts."""

    delete: bool = False
    resolve: Optional[str] = None


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
    where the target's side was taken."""

    changes: Tuple[Change, ...]
    clashes: Tuple[Clash, ...]
    left: Tuple[bytes, ...]
    conceded: Tuple[bytes, ...] = ()

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
    """
    b: Mapping[bytes, Entry] = base.by_path if base is not None else {}
    h, w = have.by_path, want.by_path
    result: Entries = {}
    clashes: List[Clash] = []
    left: List[bytes] = []
    for path in sorted(h.keys() | w.keys()):
        clash = Clash(path, b.get(path), h.get(path), w.get(path))
        side = _side(clash, policy, path in grown)
        if side is None:
            clashes.append(clash)
            side = TARGET
        elif side == TARGET and not same(clash.have, clash.want):
            left.append(path)
        entry = (w if side == SOURCE else h).get(path)
        if entry is not None:
            result[path] = entry
    clashes += _mend_shape(result, h, w, b, policy)
    changes = tuple(
        Change(path, h.get(path), result.get(path))
        for path in sorted(h.keys() | result.keys())
        if not same(h.get(path), result.get(path))
    )
    return Plan(changes, tuple(clashes), tuple(left))


def apply(plan: Plan, have: Manifest) -> Manifest:
    """The manifest of the run once the plan is carried out."""
    entries = dict(have.by_path)
    for change in plan.changes:
        if change.want is None:
            del entries[change.path]
        else:
            entries[change.path] = change.want
    return Manifest(entries.values())


def agreed(base: Optional[Manifest], have: Manifest, want: Manifest) -> Manifest:
    """The base of the next sync: where both sides are equal now what they have, elsewhere what they had before."""
    b: Mapping[bytes, Entry] = base.by_path if base is not None else {}
    h, w = have.by_path, want.by_path
    entries: Entries = {}
    for path in h.keys() | w.keys() | b.keys():
        entry = h.get(path) if same(h.get(path), w.get(path)) else b.get(path)
        if entry is not None:
            entries[path] = entry
    return _pruned(entries)


def noted(base: Manifest, want: Manifest, conceded: Collection[bytes]) -> Manifest:
    """The base after the target's side was taken at and below some paths: what the source has there is no news any
    more."""
    tops = frozenset(conceded)
    entries = {path: entry for path, entry in base.by_path.items() if not _is_below(path, tops)}
    entries.update((path, entry) for path, entry in want.by_path.items() if _is_below(path, tops))
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
        top = parent(path)
        while top and not _is_directory(entries.get(top)):
            entries[top] = directory_entry(top, 0, 0)  # of a mode that neither side is known to have had
            top = parent(top)
    return _pruned(entries)


def tail_to_compare(shorter: Entry, longer: Entry) -> Optional[Tuple[Object, Object]]:
    """Where a file may be a prefix of another: the last object of the shorter one and the object of the longer one
    whose first bytes must be equal to it. None where the objects before already differ, or are cut differently."""
    short, long = tuple(shorter.objects()), tuple(longer.objects())
    if not short or len(long) < len(short) or short[:-1] != long[: len(short) - 1]:
        return None
    last, other = short[-1], long[len(short) - 1]
    return (last, other) if other.offset == last.offset and other.size >= last.size else None


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
    directory with things in it and the other as something else is a clash, settled as a whole."""
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
            if policy.resolve is None:
                clashes.append(Clash(top, base.get(top), have.get(top), want.get(top)))
            _take_below(result, top, want if policy.resolve == SOURCE else have)
            break
    return clashes


def _take_below(result: Entries, top: bytes, side: Mapping[bytes, Entry]) -> None:
    below = top + b"/"
    for path in [p for p in result if p == top or p.startswith(below)]:
        del result[path]
    for path, entry in side.items():
        if path == top or path.startswith(below):
            result[path] = entry


def _is_below(path: bytes, tops: Collection[bytes]) -> bool:
    while path and path not in tops:
        path = parent(path)
    return bool(path)


def _is_directory(entry: Optional[Entry]) -> bool:
    return entry is not None and entry.kind == DIRECTORY


def _pruned(entries: Entries) -> Manifest:
    """Without what no longer hangs together: a base that knows less only makes a sync more careful."""
    directories = {b""}
    out = []
    for path in sorted(entries):
        if parent(path) in directories:
            out.append(entries[path])
            if entries[path].kind == DIRECTORY:
                directories.add(path)
    return Manifest(out)
