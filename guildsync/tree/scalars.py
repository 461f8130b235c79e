"""Event files -> summaries of their scalars, incrementally."""

from __future__ import annotations

import hashlib
import json
import os
from copy import copy
from math import isnan
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

from guildsync.errors import Damaged
from guildsync.model.manifest import canonical, check_path, parent
from guildsync.model.run import plain
from guildsync.tree.dirs import Descent
from guildsync.tree.events import Add, Events, read_records
from guildsync.tree.hashing import read_at
from guildsync.tree.scan import open_file

Scalars = Dict[str, Dict[str, Any]]
"""Tag -> `first`, `last`, `min`, `max`, each with its `_step`, `avg` and `count`; numbers that are not finite are the
strings `nan`, `inf`, `-inf`."""

VERSION = 1
"""Of the state."""
MAX_TAGS = 10_000
"""A file has no more, nor a run; those that come first are taken."""
MAX_STATE = 16 << 20
"""About so many bytes of state are kept of one run; files and tags that come later are passed over."""

_HEAD = 64


def is_event_file(path: bytes) -> bool:
    """As TensorBoard knows them: by their name."""
    return b"tfevents" in path.rpartition(b"/")[2]


def summarise(run_fd: int, files: Iterable[Tuple[bytes, int]], state: Optional[bytes]) -> Tuple[Scalars, bytes]:
    """The scalars of a run, and the state for the next call.

    `files` are its event files: path relative to the run, and the size up to which it counts. `state` is what the last
    call answered: then only what the files gained is read. Without one, with one that cannot be understood, and for
    files that were replaced or are shorter than they were, all is read. A record that is not complete yet is read next
    time; a damaged one ends its file. What cannot be opened, is no regular file or lies behind a link has no scalars.
    Nothing that files or `state` hold raises.

    As Guild AI has it: tags of files at the root or in `.guild` are plain (where both have one, that in `.guild`
    counts), those of others are `<directory>#<tag>`. The files of a directory are one series in the order of their
    names: `first` is the value of the lowest step (of several the first written), `last` that of the highest (of
    several the last written), `avg` the mean of all, NaN where one is. Unlike there, `min` and `max` pass over NaN
    wherever it stands; they are NaN where all values are.
    """
    known = _load(state)
    wanted = sorted(dict(files).items())
    kept = {path: known[path] for path, _ in wanted if path in known}
    room = _Room(MAX_STATE - sum(found.cost(path) for path, found in kept.items()))
    read: Dict[bytes, _File] = {}
    with Descent(os.dup(run_fd)) as descent:
        for path, size in wanted:
            try:
                check_path(path)
                fd = open_file(*descent.place(path))
                try:
                    found = _read(fd, path, size, kept.get(path), room)
                finally:
                    os.close(fd)
            except (OSError, Damaged):
                continue
            if found is not None:
                read[path] = found
    rows = {_text(path): found.to_json() for path, found in read.items()}
    return _joined(read), canonical({"files": rows, "version": VERSION})


class _Series:
    """What is kept of the values of one tag."""

    __slots__ = ("count", "first", "first_step", "last", "last_step", "max", "max_step", "min", "min_step", "total")

    def __init__(self, step: int, value: float) -> None:
        self.first_step = self.last_step = self.min_step = self.max_step = step
        self.first = self.last = self.min = self.max = self.total = value
        self.count = 1

    def add(self, step: int, value: float) -> None:
        if step >= self.last_step:
            self.last_step, self.last = step, value
        elif step < self.first_step:
            self.first_step, self.first = step, value
        if value < self.min:
            self.min_step, self.min = step, value
        elif value > self.max:
            self.max_step, self.max = step, value
        elif isnan(self.min) and not isnan(value):
            self.min_step = self.max_step = step
            self.min = self.max = value
        self.total += value
        self.count += 1

    def join(self, later: _Series) -> None:
        """As if what `later` took had come after, value by value."""
        if later.first_step < self.first_step:
            self.first_step, self.first = later.first_step, later.first
        if later.last_step >= self.last_step:
            self.last_step, self.last = later.last_step, later.last
        unknown = isnan(self.min) and not isnan(later.min)
        if later.min < self.min or unknown:
            self.min_step, self.min = later.min_step, later.min
        if later.max > self.max or unknown:
            self.max_step, self.max = later.max_step, later.max
        self.total += later.total
        self.count += later.count

    def summary(self) -> Dict[str, Any]:
        found = {name: plain(getattr(self, name)) for name in self.__slots__ if name != "total"}
        found["avg"] = plain(self.total / self.count)
        return found

    def to_json(self) -> List[Any]:
        return [plain(getattr(self, name)) for name in self.__slots__]

    @classmethod
    def from_json(cls, row: List[Any]) -> _Series:
        """Raises ValueError, TypeError."""
        if len(row) != len(cls.__slots__):
            raise ValueError("not a series")
        series = cls(0, 0.0)
        for index, name in enumerate(cls.__slots__):
            value = row[index]
            if name == "count" or name.endswith("_step"):
                if type(value) is not int:
                    raise TypeError(name)
                setattr(series, name, value)
            elif isinstance(value, (float, str)):
                setattr(series, name, float(value))
            else:
                raise TypeError(name)
        if series.count < 1:
            raise ValueError("not a series")
        return series


class _Room:
    """How much more may be kept of a run."""

    def __init__(self, left: int) -> None:
        self._left = left

    def take(self, cost: int) -> bool:
        if cost > self._left:
            return False
        self._left -= cost
        return True

    def give(self, cost: int) -> None:
        self._left += cost


class _File(NamedTuple):
    """What is known of an event file: the digest of its first bytes, and the scalars of all records before `offset`."""

    inode: int
    offset: int
    head: str
    series: Dict[str, _Series]

    def cost(self, path: bytes) -> int:
        return _cost(_text(path)) + sum(map(_cost, self.series))

    def to_json(self) -> List[Any]:
        return [self.inode, self.offset, self.head, {tag: series.to_json() for tag, series in self.series.items()}]

    @classmethod
    def from_json(cls, value: Any) -> _File:
        """Raises ValueError, TypeError, AttributeError."""
        inode, offset, head, tags = value
        if type(inode) is not int or type(offset) is not int or offset < 0:
            raise TypeError("not a file")
        for tag in tags:
            tag.encode()  # raises ValueError for what JSON can say and UTF-8 cannot
        return cls(inode, offset, str(head), {tag: _Series.from_json(row) for tag, row in tags.items()})


def _cost(name: str) -> int:
    """About what a file or a tag takes in the state, with its name."""
    return 160 + len(json.dumps(name))


def _text(path: bytes) -> str:
    """Any bytes as JSON can say them."""
    return path.decode("latin-1")


def _load(state: Optional[bytes]) -> Dict[bytes, _File]:
    if state is None:
        return {}
    try:
        value = json.loads(state)
        if value["version"] != VERSION:
            return {}
        return {path.encode("latin-1"): _File.from_json(row) for path, row in value["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _read(fd: int, path: bytes, size: int, known: Optional[_File], room: _Room) -> Optional[_File]:
    """The file as it is now; `known` is gone on with where it still begins so. None where there is no room for it.
    Raises OSError."""
    info = os.fstat(fd)
    size = min(size, info.st_size)
    head = read_at(fd, min(_HEAD, size), 0)
    if known is not None and (
        known.inode != info.st_ino or known.offset > size or known.head != _digest(head[: known.offset])
    ):
        room.give(known.cost(path))
        known = None
    if known is None:
        if not room.take(_cost(_text(path))):
            return None
        known = _File(info.st_ino, 0, "", {})
    events = Events(_Tags(known.series, room).take)
    offset = read_records(fd, known.offset, size, events.take)
    return _File(info.st_ino, offset, _digest(head[:offset]), known.series)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Tags:
    """The series of one file, and new ones while there is room."""

    def __init__(self, series: Dict[str, _Series], room: _Room) -> None:
        self._series, self._room = series, room

    def take(self, tag: str, step: int, value: float) -> Optional[Add]:
        """See `events.Take`."""
        series = self._series.get(tag)
        if series is not None:
            series.add(step, value)
            return series.add
        if len(self._series) >= MAX_TAGS or not self._room.take(_cost(tag)):
            return None
        series = self._series[tag] = _Series(step, value)
        return series.add


def _joined(files: Dict[bytes, _File]) -> Scalars:
    directories: Dict[bytes, Dict[str, _Series]] = {}
    for path in sorted(files):
        joined = directories.setdefault(parent(path), {})
        for tag, series in files[path].series.items():
            if tag in joined:
                joined[tag].join(series)
            else:
                joined[tag] = copy(series)
    found: Scalars = {}
    for directory in sorted(directories):
        prefix = "" if directory in (b"", b".guild") else directory.decode("utf-8", "replace") + "#"
        for tag, series in directories[directory].items():
            if len(found) < MAX_TAGS or prefix + tag in found:
                found[prefix + tag] = series.summary()
    return found
