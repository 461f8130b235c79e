"""What was done to a run, as far as the journal of its store still says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

from guildsync.model.ports import Moment
from guildsync.model.run import RunId
from guildsync.store.draft import summary_of
from guildsync.store.journal import FORGOTTEN, HIDDEN, Edit, Mark, split_name
from guildsync.store.reading import Reading
from guildsync.store.view import View

VERSION, DELETE, RESTORE, PURGE = "version", "delete", "restore", "purge"


class _Placed(NamedTuple):
    """A moment, and where it stands: by the sequence of its commit, then by the store's clock; of one commit what must
    have been there comes before what was done to it."""

    sequence: int
    since: float
    rank: int
    name: str
    moment: Moment


def history(reading: Reading, run: RunId) -> tuple[Moment, ...]:
    """Versions, edits of the metadata (also those that lost), delete, restore and purge; the newest last. Who wrote a
    thing after having seen another comes behind it, whatever the clocks were."""
    times, sequences = reading.stored, _sequences(reading, run)
    moments = [*_versions(reading.view, run), *_edits(reading.view, run), *_marks(reading.view, run)]
    placed = []
    for commit, rank, name, moment in moments:
        since = times.get(commit)
        sequence = sequences[commit] if commit in sequences else _guess(since, sequences, times)
        placed.append(_Placed(sequence, since or 0.0, rank, name, moment._replace(stored=since)))
    placed += _purges(reading, run, {each.name: each for each in placed if each.moment.what == VERSION})
    return tuple(each.moment for each in sorted(placed, key=lambda each: each[:4]))


def _sequences(reading: Reading, run: RunId) -> dict[str, int]:
    """By commit, as far as an entry that is there, a checkpoint, or a stamp says it."""
    names = {*reading.commits, *(name for checkpoint in reading.checkpoints for name in checkpoint.sums)}
    found = {commit: sequence for sequence, commit in map(split_name, names)}
    stamped: Iterator[Mark | Edit] = chain(reading.view.facts.marks, reading.view.facts.edits)
    found.update((fact.commit, fact.sequence) for fact in stamped if fact.run == run)
    return found


def _guess(since: float | None, sequences: Mapping[str, int], times: Mapping[str, float]) -> int:
    """Of a commit that nothing names any more: that of the last one that came before it."""
    if since is None:
        return 0
    return max((number for commit, number in sequences.items() if times.get(commit, since + 1) <= since), default=0)


_Said = tuple[str, int, str, Moment]
"""The commit, the rank in it, a name of its own, and the moment without its time."""


def _versions(view: View, run: RunId) -> Iterator[_Said]:
    heads = {head.id for head in view.heads(run)}
    replaces = {version.id: version.replaces for version in view.versions(run)}
    for version in view.versions(run):
        summary, forgotten = summary_of(version), version.manifest == FORGOTTEN
        value = {
            "id": version.id,
            "content": version.content,
            "manifest": None if forgotten else version.manifest,
            "status": None if forgotten else summary.status,
            "size": summary.size,
            "files": summary.files,
            "kept": version.id in view.living,
        }
        commit = version.id.partition("/")[0]
        yield commit, _depth(version.id, replaces), version.id, Moment(None, VERSION, value, version.id in heads)


def _depth(version: str, replaces: Mapping[str, tuple[str, ...]]) -> int:
    """How many versions of the run it goes beyond, as a rank that is before those of all else."""
    seen: set[str] = set()
    todo = [version]
    while todo:
        new = [before for before in replaces.get(todo.pop(), ()) if before not in seen]
        seen.update(new)
        todo += new
    return len(seen) - len(replaces) - 1


def _edits(view: View, run: RunId) -> Iterator[_Said]:
    fields, edits = view.fields(run), [edit for edit in view.facts.edits if edit.run == run]
    standing = {id_ for field in {edit.field for edit in edits} for id_ in view.standing_edits(run, field)}
    for edit in edits:
        value = _plain(json.loads(edit.value))
        current = edit.id in standing and value == fields.get(edit.field)
        yield edit.commit, 1, edit.id, Moment(None, edit.field, value, current)


def _plain(value: Any) -> Any:
    """What the view takes a value for: what is not so is at rest."""
    return None if value is False else value


def _marks(view: View, run: RunId) -> Iterator[_Said]:
    marks = sorted((mark for mark in view.facts.marks if mark.run == run), key=_stamp)
    for mark in marks:
        what = DELETE if mark.value == HIDDEN else RESTORE
        yield mark.commit, 2, mark.value, Moment(None, what, None, mark is marks[-1])


def _stamp(mark: Mark) -> tuple[int, str, str]:
    return (mark.sequence, mark.commit, mark.value)


def _purges(reading: Reading, run: RunId, versions: Mapping[str, _Placed]) -> Iterator[_Placed]:
    """Only entries that are there name the commit of a purge; what none names comes behind the last of its versions."""
    view, times = reading.view, reading.stored
    left = {version for version in versions if version in view.facts.purged}
    gone = view.is_purged(run)
    for name, commit in sorted(reading.commits.items()):
        purged = left & commit.facts.purged
        if purged and not commit.sums:
            left -= purged
            moment = Moment(times.get(commit.id), PURGE, sorted(purged), gone)
            yield _Placed(commit.sequence, moment.stored or 0.0, 3, name, moment)
    if left:
        last = max((versions[version] for version in left), key=lambda each: each[:4])
        yield last._replace(rank=3, moment=Moment(None, PURGE, sorted(left), gone))
