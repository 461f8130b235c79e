"""Make a run at its final name what it is to be: whole by one rename, or path by path where it is there already."""

from __future__ import annotations

import os
import stat
from typing import Collection, Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, Optional, Sequence

from guildsync.errors import CHANGED, Problem
from guildsync.model.manifest import DIRECTORY, FILE, LINK, NOTHING, PART_SIZE, Entry, Manifest, parent, same
from guildsync.model.plan import Change
from guildsync.model.ports import Aim, RawUpdate
from guildsync.tree import attrs
from guildsync.tree.dirs import Descent, open_directory, remove_tree
from guildsync.tree.durable import EACH, Durability
from guildsync.tree.hashing import Torn
from guildsync.tree.home import Home
from guildsync.tree.scan import Found, View, walked
from guildsync.tree.staged import StagedFiles, name_of
from guildsync.tree.statcache import Known, Stamp, fingerprint, stamp_of

_UNSETTLED = 0o700
"""The mode of a directory of ours until all is in it."""


def assemble(files: StagedFiles, update: RawUpdate, want: Manifest, durability: Durability) -> None:
    """Put a run that was not there together where nobody looks, without the files that are withheld."""
    name = os.fsencode(update.run)
    remove_tree(name, files.fd)
    os.mkdir(name, 0o777, dir_fd=files.fd)
    with Descent(open_directory(name, files.fd)) as descent:
        for entry in want.entries:
            if entry.path in update.withheld:
                continue
            fd, last = descent.place(entry.path)
            _add(files, update.run, entry, fd, last)
        attrs.write_attributes(descent.at(b""), update.attributes, update.markers, files.fd, durability)
        _settle(descent, want.entries, [b""], durability)


class Laid(NamedTuple):
    """A run that was put together, and that nobody can have touched: its stat data as a scan finds them. The bytes of
    `unsure` files are perhaps seen as others."""

    found: List[Found]
    unsure: FrozenSet[bytes]

    def known(self, want: Manifest, until_ns: int) -> Known:
        """What the stat cache may say of it, once it has appeared: where the clock has ticked since, no file can change
        without another ctime. `until_ns` is the latest ctime of which that is so."""
        stamps = {
            path: stamp_of(info)
            for path, info in self.found
            if not stat.S_ISDIR(info.st_mode) and path not in self.unsure and info.st_ctime_ns <= until_ns
        }
        whole = all(entry.kind == DIRECTORY or entry.path in stamps for entry in want.entries)
        return Known.of(fingerprint(self.found) if whole else None, want, stamps)


def laid_down(staging: int, run: str, want: Manifest, view: View) -> Laid:
    """Of an assembled run whose bytes are on the disk."""
    unsure = set()
    with Descent(open_directory(os.fsencode(run), staging)) as descent:
        found = walked(descent.at(b""))
        for path, info in found:
            if view.redacts(path):
                fd, name = descent.place(path)
                if not same(view.entry((fd, name), path, info), want.by_path.get(path)):
                    unsure.add(path)
    return Laid(found, frozenset(unsure))


def appear(home: Home, files: StagedFiles, update: RawUpdate, want: Manifest) -> None:
    """Rename an assembled run that is durable to its place; who calls makes that durable. One that lacks files stays
    marked as inflight."""
    name = os.fsencode(update.run)
    if update.withheld:
        home.begin(update.run, NOTHING, want)
    os.rename(name, os.path.join(home.runs, name), src_dir_fd=files.fd)
    if not update.withheld:
        home.end(update.run)


class Rewritten(NamedTuple):
    """What became of a run that was there. `placed` are the large files that were renamed to their places, with their
    stat data: they are on the disk."""

    refused: Sequence[Problem]
    placed: Mapping[bytes, Stamp]


def rewrite(home: Home, files: StagedFiles, update: RawUpdate, have: Manifest, want: Manifest, view: View) -> Rewritten:
    """A run that is there: every path becomes new by one step and is otherwise left alone; removals come last. The
    inflight marker stands from before the first step until after the last. Paths that are no longer what `have`
    says are left alone, and then so is all of the run."""
    placed: Dict[bytes, Stamp] = {}
    changes = _changes(have, want, update.withheld)
    with Descent(home.open_run(update.run)) as descent:
        moved = (_moved(update.run, change, descent, view) for change in _relied_on(changes, have))
        refused = [problem for problem in moved if problem is not None]
        if refused:
            return Rewritten(refused, {})
        cut = home.aim(update.run)
        if changes:
            home.begin(update.run, have, want)
        for change in _steps(changes):
            if not _grown(files, update.run, change, descent, view):
                _step(files, update.run, change, descent)
                placed.update(_placed(change, descent))
        attrs.write_attributes(descent.at(b""), update.attributes, update.markers, files.fd)
        if cut is not None:
            _finish_times(descent, cut, want)
        made = [change.want for change in changes if change.want is not None]
        gone = {change.path for change in changes if change.want is None or change.want.kind != DIRECTORY}
        _settle(descent, made, {parent(change.path) for change in changes} - gone)
    if not update.withheld:
        home.end(update.run)
    return Rewritten((), placed)


def _placed(change: Change, descent: Descent) -> Mapping[bytes, Stamp]:
    """A large file that was renamed to its place just now, if it is still there."""
    entry = change.want
    if entry is None or entry.kind != FILE or entry.size <= PART_SIZE:
        return {}
    fd, name = descent.place(change.path)
    try:
        return {change.path: stamp_of(os.stat(name, dir_fd=fd, follow_symlinks=False))}
    except FileNotFoundError:
        return {}


def _finish_times(descent: Descent, aim: Aim, want: Manifest) -> None:
    """A commit that was cut off may have written a file to its end, and not given it its time."""
    for change in _changes(aim.before, aim.want, ()):
        entry = change.want
        if entry is not None and entry.kind == FILE and same(entry, want.by_path.get(change.path)):
            fd, name = descent.place(change.path)
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=fd, follow_symlinks=False)


def cut_short(aim: Aim, now: Manifest) -> Aim:
    """The aim of a rewrite that never ended, with what a step left halfway as if that had been wanted: a directory
    without its mode yet, a name between two kinds. So nobody takes it for a change of the run's own."""
    want = dict(aim.want.by_path)
    for change in _changes(aim.before, aim.want, ()):
        path, was, to, found = change.path, change.have, change.want, now.by_path.get(change.path)
        if to is None or (was is not None and (was.kind == DIRECTORY) == (to.kind == DIRECTORY)):
            continue  # one step does it
        if found is None and was is not None:
            want = {p: entry for p, entry in want.items() if p != path and not p.startswith(path + b"/")}
        elif found is not None and found.mode == _UNSETTLED and found.kind == to.kind == DIRECTORY and path in want:
            want[path] = found
    return Aim(aim.before, Manifest(want.values()))


def _changes(have: Manifest, want: Manifest, withheld: Collection[bytes]) -> List[Change]:
    h, w = have.by_path, want.by_path
    return [
        Change(path, h.get(path), w.get(path))
        for path in sorted(h.keys() | w.keys())
        if path not in withheld and not same(h.get(path), w.get(path))
    ]


def _relied_on(changes: List[Change], have: Manifest) -> List[Change]:
    """The changes, and the directories they are made in, which must be there still."""
    tops = {parent(change.path) for change in changes} - {change.path for change in changes}
    return changes + [Change(path, have.by_path[path], have.by_path[path]) for path in sorted(tops - {b""})]


def _steps(changes: List[Change]) -> List[Change]:
    """In an order that always finds its parents, and removes last what can be removed last."""
    becoming = tuple(c.path + b"/" for c in changes if c.have and c.want and c.have.kind == DIRECTORY != c.want.kind)
    gone = [c for c in reversed(changes) if c.want is None]
    first = [c for c in gone if c.path.startswith(becoming)]
    last = [c for c in gone if not c.path.startswith(becoming)]
    return first + [c for c in changes if c.want is not None] + last


def _moved(run: str, change: Change, descent: Descent, view: View) -> Optional[Problem]:
    """The problem that this path is not what the plan was made for."""
    try:
        fd, name = descent.place(change.path)
        info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        now = view.entry((fd, name), change.path, info)
        there = now is not None and same(now, change.have)
    except (FileNotFoundError, NotADirectoryError):
        there = change.have is None
    except (OSError, Torn):
        there = False
    return None if there else Problem(run, change.path, CHANGED, "it changed here after the plan was made")


def _grown(files: StagedFiles, run: str, change: Change, descent: Descent, view: View) -> bool:
    """Append in place what a file only gained: who has it open goes on reading. A crash leaves a prefix of the new."""
    have, want = change.have, change.want
    if have is None or want is None or not have.kind == want.kind == FILE or have.mode != want.mode:
        return False
    if not 0 < have.size < want.size or view.redacts(change.path):
        return False
    fd, name = descent.place(change.path)
    try:
        there = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return False  # a new file by that name can do without
    try:
        info = os.fstat(there)
        alone = stat.S_ISREG(info.st_mode) and info.st_nlink == 1
        return alone and info.st_size == have.size and files.append(run, want, have, there)
    finally:
        os.close(there)


def _step(files: StagedFiles, run: str, change: Change, descent: Descent) -> None:
    fd, name = descent.place(change.path)
    have, want = change.have, change.want
    if have is not None and (want is None or (have.kind == DIRECTORY) != (want.kind == DIRECTORY)):
        if have.kind == DIRECTORY:
            os.rmdir(name, dir_fd=fd)
        else:
            os.unlink(name, dir_fd=fd)
        have = None
    if want is not None and not (want.kind == DIRECTORY and have is not None):
        _add(files, run, want, fd, name)


def _add(files: StagedFiles, run: str, entry: Entry, fd: int, name: bytes) -> None:
    """Put one entry in place; what has the name already (and is no directory) is replaced by one rename."""
    if entry.kind == DIRECTORY:
        os.mkdir(name, _UNSETTLED, dir_fd=fd)
        return
    staged = name_of(run, entry.path)
    if entry.kind == LINK:
        try:
            os.unlink(staged, dir_fd=files.fd)
        except FileNotFoundError:
            pass
        os.symlink(entry.target or b"", staged, dir_fd=files.fd)
        os.utime(staged, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=files.fd, follow_symlinks=False)
    os.rename(staged, name, src_dir_fd=files.fd, dst_dir_fd=fd)
    if entry.kind == FILE:
        files.forget(run, entry.path)


def _settle(descent: Descent, made: Iterable[Entry], touched: Iterable[bytes], durability: Durability = EACH) -> None:
    """Give directories their modes and times, and make what they list durable, deepest first."""
    directories = {entry.path: entry for entry in made if entry.kind == DIRECTORY}
    for path in sorted(directories.keys() | set(touched), reverse=True):
        fd = descent.at(path)
        entry = directories.get(path)
        if entry is not None:
            os.fchmod(fd, entry.mode)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        durability.sync(fd)
