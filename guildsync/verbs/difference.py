"""What differs between two runs of one place: their flags, their paths, and the lines of their text files."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from guildsync.errors import NOT_KEPT, NotFound, Problem, Usage, exit_code_of
from guildsync.model.manifest import DIRECTORY, FILE, LINK, Digest, Entry, canonical, parent, same, text
from guildsync.model.ports import Piece, Replica, Source, Want
from guildsync.model.run import Record, RunId, plain
from guildsync.verbs.deliver import wants_of
from guildsync.verbs.files import Files, files_of
from guildsync.verbs.outcome import problem_row
from guildsync.verbs.sync import Choose

MOST_TEXT = 1 << 20
"""Bytes of a file that is compared line by line. No such file has parts."""
_BYTES_AT_A_TIME = 16 << 20
_MOST_PAIRS = 30_000_000
"""Of lines that differ on both sides: with more of them, looking for what they share would take too long."""
_CONTEXT = 3
_GUILD = b".guild"
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_NO_NEWLINE = "\\ No newline at end of file"


class FlagChange(NamedTuple):
    """A flag with different values; None where a run does not have it."""

    name: str
    was: Any
    now: Any


@dataclass(frozen=True)
class PathChange:
    """A path that is not the same in both runs. `patch` are the lines of a unified diff, None where nobody asked for
    it, or there is none: `binary` says that one of the files is no text, `large` that one is too large to be looked
    at."""

    path: bytes
    was: Entry | None
    now: Entry | None
    patch: tuple[str, ...] | None = None
    binary: bool = False
    large: bool = False

    @property
    def letter(self) -> str:
        return "A" if self.was is None else "D" if self.now is None else "M"

    def to_json(self) -> dict[str, Any]:
        row = {"change": self.letter, "from": _entry_row(self.was), "to": _entry_row(self.now)}
        patch = None if self.patch is None else "".join(f"{line}\n" for line in self.patch)
        return {**_named("path", self.path), **row, "patch": patch}


@dataclass(frozen=True)
class Difference:
    runs: tuple[RunId, RunId]
    flags: tuple[FlagChange, ...]
    paths: tuple[PathChange, ...]
    problems: tuple[Problem, ...]

    @property
    def exit_code(self) -> int:
        """That the runs differ is no failure."""
        return exit_code_of(self.problems)

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": list(self.runs),
            "flags": [{"flag": change.name, "from": change.was, "to": change.now} for change in self.flags],
            "paths": [change.to_json() for change in self.paths],
            "problems": [problem_row(problem) for problem in self.problems],
        }


@dataclass(frozen=True)
class Scope:
    """What of two runs is compared: `path`, or what lies below it (empty: all); what Guild notes (`.guild/`) only if
    it is named, or `every` path is asked for. `patch`: line by line where that can be done."""

    path: bytes = b""
    every: bool = False
    patch: bool = False

    def holds(self, path: bytes) -> bool:
        if self.path:
            return path == self.path or path.startswith(self.path + b"/")
        return self.every or not (path == _GUILD or path.startswith(_GUILD + b"/"))


def difference(
    replica: Replica, one: Choose, other: Choose, scope: Scope = Scope(), details: bool = False
) -> Difference:
    """From the run that `one` chooses, by its `details` too, to that of `other`. Only files that are to be shown and
    differ are fetched.

    Raises NotFound for a run that is not there and a path that neither has, Usage where several runs are chosen,
    Damaged."""
    records = list(replica.runs(sizes=details))
    was, now = _single(one(records)), _single(other(records))
    sides = files_of(replica, [was.run, now.run])
    if scope.path:
        _require(sides, scope.path)
    problems = tuple(dict.fromkeys(problem for side in sides for problem in side.problems))
    unread = {problem.path for problem in problems if problem.path is not None and problem.reason != NOT_KEPT}
    changes = path_changes(sides[0].manifest.by_path, sides[1].manifest.by_path)
    wanted = [change for change in changes if scope.holds(change.path) and change.path not in unread]
    lost: list[Problem] = []
    if scope.patch:
        wanted = list(_patched(replica, (was.run, now.run), wanted, lost))
    flags = flag_changes(was.summary.flags, now.summary.flags)
    return Difference((was.run, now.run), flags, tuple(wanted), (*problems, *lost))


def _entry_row(entry: Entry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    mode = f"{entry.mode:03o}" if entry.kind != LINK else None
    row = {"kind": entry.kind, "mode": mode, "size": entry.size, "digest": entry.digest}
    return row | (_named("target", entry.target) if entry.target is not None else {"target": None})


def _named(key: str, name: bytes) -> dict[str, Any]:
    """A name that is not UTF-8 is percent-encoded, and says so."""
    said = text(name)
    return {key: said} if isinstance(said, str) else {key: said["percent"], f"{key}_encoding": "percent"}


def _single(records: Sequence[Record]) -> Record:
    if len(records) == 1:
        return records[0]
    raise Usage(f"{len(records)} runs are named", "name two, one by one") if records else NotFound("there are no runs")


def _require(sides: Iterable[Files], path: bytes) -> None:
    missing: list[NotFound] = []
    for side in sides:
        try:
            side.below(path)
        except NotFound as exc:
            missing.append(exc)
        else:
            return
    raise missing[0]


# -- what differs: pure


def flag_changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[FlagChange, ...]:
    """By name. Values are the same where JSON says them the same: 1 is neither 1.0 nor true."""
    changes = (FlagChange(name, plain(was.get(name)), plain(now.get(name))) for name in sorted({*was, *now}))
    return tuple(change for change in changes if canonical(change.was) != canonical(change.now))


def path_changes(was: Mapping[bytes, Entry], now: Mapping[bytes, Entry]) -> list[PathChange]:
    """By path. A directory that only one side has is told by what lies in it, if anything does."""
    told = {parent(path) for path in was.keys() ^ now.keys()}
    changes = []
    for path in sorted({*was, *now}):
        one, other = was.get(path), now.get(path)
        only = one or other if one is None or other is None else None
        if not same(one, other) and not (only is not None and only.kind == DIRECTORY and path in told):
            changes.append(PathChange(path, one, other))
    return changes


def unified(was: bytes | None, now: bytes | None, path: str) -> tuple[str, ...] | None:
    """The lines of a unified diff, without their ends; None where one side is no text (UTF-8 without NUL). A side that
    is None is not there."""
    try:
        one, other = (_LINES.findall((data or b"").decode()) for data in (was, now))
    except UnicodeDecodeError:
        return None
    if b"\0" in (was or b"") or b"\0" in (now or b""):
        return None
    names = ("/dev/null" if was is None else f"a/{path}", "/dev/null" if now is None else f"b/{path}")
    first, last = _shared(one, other)
    if (len(one) - first - last) * (len(other) - first - last) > _MOST_PAIRS:
        lines: Iterable[str] = [f"--- {names[0]}", f"+++ {names[1]}", *_one_hunk(one, other, first, last)]
    else:
        lines = difflib.unified_diff(one, other, *names, n=_CONTEXT, lineterm="")
    return tuple(_without_ends(lines))


def _shared(one: Sequence[str], other: Sequence[str]) -> tuple[int, int]:
    """How many lines both begin with, and end with."""
    most = min(len(one), len(other))
    first = next((n for n in range(most) if one[n] != other[n]), most)
    last = next((n for n in range(most - first) if one[-1 - n] != other[-1 - n]), most - first)
    return first, last


def _one_hunk(one: Sequence[str], other: Sequence[str], first: int, last: int) -> Iterator[str]:
    """All between the first and the last line that differs, as one change."""
    start, after = max(0, first - _CONTEXT), min(last, _CONTEXT)
    ends = [len(side) - last for side in (one, other)]
    spans = (f"{start + 1},{end + after - start}" for end in ends)
    yield "@@ -{} +{} @@".format(*spans)
    yield from (f" {line}" for line in one[start:first])
    yield from (f"-{line}" for line in one[first : ends[0]])
    yield from (f"+{line}" for line in other[first : ends[1]])
    yield from (f" {line}" for line in one[ends[0] : ends[0] + after])


def _without_ends(lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield line.removesuffix("\n")
        if number >= 2 and not line.startswith("@@") and not line.endswith("\n"):
            yield _NO_NEWLINE


# -- reading what is needed


def _patched(
    source: Source, runs: tuple[RunId, RunId], changes: Iterable[PathChange], lost: list[Problem]
) -> Iterator[PathChange]:
    """The changes with their patches. What cannot be read is added to `lost`, and its change has none."""
    for group in _groups(changes):
        wants: dict[Digest, Want] = {}
        for run, entry in (pair for change in group if _is_small(change) for pair in _sides(runs, change)):
            wants.update((want.digest, want) for want in wants_of(run, [entry]))
        read: dict[Digest, bytes] = {}
        for answer in source.fetch(wants.values()) if wants else ():
            if isinstance(answer, Piece):
                read[answer.want.digest] = answer.data
            else:
                lost.append(answer.problem)
        yield from (_with_patch(change, read) for change in group)


def _groups(changes: Iterable[PathChange]) -> Iterator[list[PathChange]]:
    """In order, so many at a time that what is read of them fits into the memory we allow."""
    group: list[PathChange] = []
    size = 0
    for change in changes:
        more = sum(entry.size for entry in (change.was, change.now) if entry) if _is_small(change) else 0
        if group and size + more > _BYTES_AT_A_TIME:
            yield group
            group, size = [], 0
        group.append(change)
        size += more
    if group:
        yield group


def _with_patch(change: PathChange, read: Mapping[Digest, bytes]) -> PathChange:
    if not _is_small(change):
        return replace(change, large=_is_about_bytes(change))
    was, now = _bytes(change.was, read), _bytes(change.now, read)
    if (change.was and was is None) or (change.now and now is None):
        return change
    patch = unified(was, now, change.path.decode("utf-8", "backslashreplace"))
    return replace(change, patch=patch, binary=patch is None)


def _bytes(entry: Entry | None, read: Mapping[Digest, bytes]) -> bytes | None:
    if entry is None or entry.digest is None:
        return None
    return read.get(entry.digest) if entry.size else b""


def _sides(runs: tuple[RunId, RunId], change: PathChange) -> Iterator[tuple[RunId, Entry]]:
    for run, entry in zip(runs, (change.was, change.now), strict=True):
        if entry is not None:
            yield run, entry


def _is_about_bytes(change: PathChange) -> bool:
    """Is it about files, and not about their modes alone?"""
    was, now = change.was, change.now
    files = all(entry is None or entry.kind == FILE for entry in (was, now))
    return files and (was.digest if was else None) != (now.digest if now else None)


def _is_small(change: PathChange) -> bool:
    sizes = (entry.size for entry in (change.was, change.now) if entry is not None)
    return _is_about_bytes(change) and all(size <= MOST_TEXT for size in sizes)
