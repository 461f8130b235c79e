"""What a run is beyond its attributes: its size, and what the scalars in its event files say."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Iterator, List, Optional, Tuple

from guildsync.model.manifest import FILE, Manifest, is_entry_path
from guildsync.model.run import Attributes, RunId
from guildsync.tree.dirs import open_directory
from guildsync.tree.home import Home
from guildsync.tree.scalars import Scalars, is_event_file, summarise


def measured(home: Home, run: RunId, fd: int, found: Attributes) -> Attributes:
    """By stat data alone, but for event files; what cannot be read is not counted."""
    files = size = 0
    events: List[Tuple[bytes, int]] = []
    for path, length in _files(fd):
        files, size = files + 1, size + length
        if is_event_file(path):
            events.append((path, length))
    return replace(found, files=files, size=size, scalars=_summarised(home, run, fd, events))


def scalars_of(home: Home, run: RunId, fd: int, manifest: Manifest) -> Scalars:
    """Those of the event files that a manifest of the run names, as far as it counts them."""
    events = (entry for entry in manifest.entries if entry.kind == FILE and is_event_file(entry.path))
    return _summarised(home, run, fd, [(entry.path, entry.size) for entry in events])


def _summarised(home: Home, run: RunId, fd: int, files: List[Tuple[bytes, int]]) -> Scalars:
    """What was read before is remembered beside the runs; a home that cannot be written works without."""
    if not files:
        return {}
    path = os.path.join(home.state, b"scalars", os.fsencode(run))
    before = _load(path)
    found, now = summarise(fd, files, before)
    if now != before:
        _keep(path, now)
    return found


def _load(path: bytes) -> Optional[bytes]:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def _keep(path: bytes, data: bytes) -> None:
    temporary = path + b".%d.tmp" % os.getpid()
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        pass


def _files(fd: int, prefix: bytes = b"") -> Iterator[Tuple[bytes, int]]:
    """The paths and sizes of all files below a directory that are entries."""
    with os.scandir(fd) as found:
        entries = list(found)
    for entry in entries:
        path = prefix + os.fsencode(entry.name)
        if not is_entry_path(path):
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                below = open_directory(os.fsencode(entry.name), fd)
                try:
                    yield from _files(below, path + b"/")
                finally:
                    os.close(below)
            elif entry.is_file(follow_symlinks=False):
                yield path, entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
