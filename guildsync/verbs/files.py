"""The files of a run, looked at where it lies."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from guildsync.errors import DAMAGED, MISSING, Damaged, GuildsyncError, NotFound, Problem, Usage
from guildsync.model.manifest import DIRECTORY, FILE, Digest, Entry, Manifest
from guildsync.model.ports import Lost, Replica, Source, Want
from guildsync.model.run import RunId
from guildsync.verbs.deliver import wants_of
from guildsync.verbs.sync import Choose

_BYTES_AT_A_TIME = 16 << 20
_LOOKED_THROUGH = 2000
"""Paths among which one is sought that was meant perhaps."""


@dataclass(frozen=True)
class Files:
    """What one run of `source` holds now. With problems the manifest may lack what they name."""

    source: Source
    run: RunId
    manifest: Manifest
    problems: tuple[Problem, ...] = ()

    def below(self, path: bytes = b"") -> list[Entry]:
        """All that lies in the directory `path` (empty: in the run), or the one entry of that path; raises NotFound."""
        if not path:
            return list(self.manifest.entries)
        entry = self._entry(path)
        if entry.kind != DIRECTORY:
            return [entry]
        return [each for each in self.manifest.entries if each.path.startswith(path + b"/")]

    def read(self, path: bytes) -> Iterator[bytes]:
        """The verified bytes of a file, in order, a few objects in memory at a time.

        Raises NotFound, Usage for what is no file, and Damaged (or another error) behind the last byte that is good.
        """
        if not path:
            raise Usage("that is the directory of the run itself", "name a file in it")
        entry, whole = self._entry(path), hashlib.sha256()
        if entry.kind == DIRECTORY:
            raise Usage(f"{_text(path)} is a directory", "`guildsync ls RUN PATH` shows what is in it")
        if entry.kind != FILE:
            raise Usage(f"{_text(path)} is a link to {_text(entry.target or b'')}", "links are kept, not followed")
        for group in _groups(wants_of(self.run, [entry])):
            answers = {answer.want.digest: answer for answer in self.source.fetch(_firsts(group))}
            for want in group:
                answer = answers.get(want.digest)
                if answer is None or isinstance(answer, Lost):
                    raise _error(answer.problem if answer else Problem(self.run, path, MISSING, "a part is not there"))
                whole.update(answer.data)
                yield answer.data
        if whole.hexdigest() != entry.digest:
            raise Damaged(f"{_text(path)}: its parts are good, but not those of the file that was stored")

    def _entry(self, path: bytes) -> Entry:
        entry = self.manifest.by_path.get(path)
        if entry is not None:
            return entry
        for problem in self.problems:
            if problem.run == self.run and problem.path == path:
                raise _error(problem)
        paths = [_text(each.path) for each in self.manifest.entries[:_LOOKED_THROUGH]]
        near = difflib.get_close_matches(_text(path), paths, 1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise NotFound(f"run {self.run[:8]} has no {_text(path)!r}{meant}", "`guildsync ls RUN` shows what it has")


def look(replica: Replica, choose: Choose, details: bool = False) -> Files:
    """The files of the one run that is chosen, by its `details` too; raises NotFound, Usage for several, Damaged."""
    records = choose(list(replica.runs(sizes=details)))
    if len(records) != 1:
        raise Usage(f"{len(records)} runs are named", "name one") if records else NotFound("there are no runs")
    (files,) = files_of(replica, [records[0].run])
    return files


def files_of(replica: Replica, runs: Sequence[RunId]) -> list[Files]:
    """The files of these runs, in their order; raises NotFound, Damaged."""
    found = {scan.run: scan for scan in replica.manifests(dict.fromkeys(runs, ()))}
    files = []
    for run in runs:
        scan = found.get(run)
        if scan is None or (scan.manifest is None and not scan.problems):
            raise NotFound(f"run {run[:8]} went away")
        if scan.manifest is None:
            raise _error(scan.problems[0])
        files.append(Files(replica, run, scan.manifest, (*replica.problems, *scan.problems)))
    return files


def _groups(wants: Iterable[Want]) -> Iterator[list[Want]]:
    """In order, so many at a time that their different objects fit into the memory we allow."""
    group: list[Want] = []
    sizes: dict[Digest, int] = {}
    for want in wants:
        if group and want.digest not in sizes and sum(sizes.values()) + want.size > _BYTES_AT_A_TIME:
            yield group
            group, sizes = [], {}
        group.append(want)
        sizes[want.digest] = want.size
    if group:
        yield group


def _firsts(wants: Sequence[Want]) -> list[Want]:
    return list({want.digest: want for want in reversed(wants)}.values())[::-1]


def _error(problem: Problem) -> GuildsyncError:
    """A problem that ends the operation, because it is about all that was asked for."""
    place = _text(problem.path) if problem.path is not None else f"run {problem.run[:8]}"
    if problem.reason in (DAMAGED, MISSING):
        return Damaged(f"{place}: {problem.detail}", "`guildsync verify` shows all that is damaged")
    return GuildsyncError(f"{place}: {problem.detail}", "try again")


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
