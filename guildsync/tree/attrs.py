"""`.guild/` attributes and markers as raw bytes: the one place that reads and writes them."""

from __future__ import annotations

import os
import stat
import uuid
from typing import Dict, FrozenSet, Mapping, Optional, Tuple

from guildsync.model.run import Attributes
from guildsync.procinfo import Started, decode_started
from guildsync.tree.dirs import Descent, open_directory, write_all
from guildsync.tree.durable import EACH, Durability

LISTED = (
    "cmd",
    "comments",
    "exit_status",
    "flags",
    "initialized",
    "label",
    "marked",
    "op",
    "started",
    "stopped",
    "tags",
)
"""The attributes that summary and metadata are made of."""

MARKERS = ("LOCK", "LOCK.remote", "PENDING", "STAGED")
OURS = ("LOCK.remote", "PENDING", "STAGED")
"""Markers that a sync sets and clears; LOCK belongs to the process that runs."""

_LIMIT = 1 << 20


def read_attributes(run_fd: int, inflight: bool) -> Attributes:
    """What a listing needs of a run; an attribute that cannot be read counts as absent."""
    values: Dict[str, bytes] = {}
    opref = None
    markers: FrozenSet[str] = frozenset()
    is_running = lost = False
    try:
        guild = open_directory(b".guild", run_fd)
    except OSError:
        guild = None
    if guild is not None:
        try:
            opref = _read(guild, b"opref")
            present = set(os.listdir(guild))
            markers = frozenset(name for name in MARKERS if name in present)
            values = _read_listed(guild) if "attrs" in present else {}
            if "LOCK" in markers or ("sync" in present and "exit_status" not in values):
                is_running, ours = _who_runs(guild)
                if ours and not is_running and "exit_status" not in values:
                    values = _read_listed(guild)  # it may have ended since: that is written before it is gone
                    lost = "exit_status" not in values
        finally:
            os.close(guild)
    return Attributes(values, opref, markers, is_running, inflight, lost=lost)


def alive(run_fd: int) -> bool:
    """Is a process of this run running on this host? Then nothing but its metadata may be written."""
    try:
        guild = open_directory(b".guild", run_fd)
    except OSError:
        return False
    try:
        return _who_runs(guild)[0]
    finally:
        os.close(guild)


def _who_runs(guild: int) -> Tuple[bool, bool]:
    """(does a process of the run run here, is it one that a supervisor of ours started).

    What a supervisor wrote down of itself and its process tells them from others that got their ids. A LOCK that
    names anybody else is Guild AI's.
    """
    lock, started = _read(guild, b"LOCK"), _started(guild)
    if started is not None and (lock is None or lock.strip() == b"%d" % started.supervisor.pid):
        return started.is_alive, True
    return (started is not None and started.is_alive) or (lock is not None and is_alive(lock)), False


def _started(guild: int) -> Optional[Started]:
    try:
        sync = open_directory(b"sync", guild)
    except OSError:
        return None
    try:
        data = _read(sync, b"process")
        return None if data is None else decode_started(data)
    finally:
        os.close(sync)


def is_alive(lock: bytes) -> bool:
    """Does the LOCK name a process of this host? A process we may not signal is one."""
    try:
        pid = int(lock.strip())
    except ValueError:
        return False
    if not 0 < pid < 1 << 31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def changed(run_fd: int, were: Mapping[str, Optional[bytes]]) -> bool:
    """Does an attribute hold other bytes than it did?"""
    if not were:
        return False
    with Descent(os.dup(run_fd)) as descent:
        try:
            fd = descent.at(b".guild/attrs")
        except OSError:
            return any(data is not None for data in were.values())
        return any(_read(fd, os.fsencode(name)) != data for name, data in were.items())


def write_attributes(
    run_fd: int,
    attributes: Mapping[str, Optional[bytes]],
    markers: Optional[Mapping[str, bytes]] = None,
    staging: Optional[int] = None,
    durability: Durability = EACH,
) -> None:
    """Set metadata attributes (None removes one) and, unless None, the markers that a sync sets. Each file is
    replaced by a rename: a crash leaves each old or new. Directories are made only for what is to lie in them.

    A crash leaves its temporary file in the directory `staging` (None: beside the attribute, where it is an entry of
    the run until the attribute is next written)."""
    with Descent(os.dup(run_fd)) as descent:
        _replace_all(descent, b".guild/attrs", attributes, staging, durability)
        if markers is not None:
            _replace_all(descent, b".guild", {name: markers.get(name) for name in OURS}, staging, durability)


def _replace_all(
    descent: Descent,
    directory: bytes,
    files: Mapping[str, Optional[bytes]],
    staging: Optional[int],
    durability: Durability,
) -> None:
    if not files:
        return
    try:
        fd = descent.at(directory, None if set(files.values()) == {None} else 0o777)
    except FileNotFoundError:
        return
    for name, data in files.items():
        _replace(fd, os.fsencode(name), data, staging, durability)
    durability.sync(fd)


def _replace(dir_fd: int, name: bytes, data: Optional[bytes], staging: Optional[int], durability: Durability) -> None:
    if data is None:
        try:
            os.unlink(name, dir_fd=dir_fd)
        except FileNotFoundError:
            pass
        return
    if _read(dir_fd, name) == data:
        return
    temporary, temporary_fd = b".guildsync-" + name, dir_fd
    if staging is not None:  # other runs use it at the same time
        temporary, temporary_fd = temporary + b"-" + uuid.uuid4().hex.encode(), staging
    try:
        os.unlink(temporary, dir_fd=temporary_fd)
    except FileNotFoundError:
        pass
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o666, dir_fd=temporary_fd)
    try:
        write_all(fd, data)
        durability.sync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, name, src_dir_fd=temporary_fd, dst_dir_fd=dir_fd)


def _read(dir_fd: int, name: bytes) -> Optional[bytes]:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError:
        return None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > _LIMIT:
            return None
        return os.read(fd, _LIMIT)
    except OSError:
        return None
    finally:
        os.close(fd)


def _read_listed(guild: int) -> Dict[str, bytes]:
    try:
        attrs = open_directory(b"attrs", guild)
    except OSError:
        return {}
    try:
        found = ((name, _read(attrs, os.fsencode(name))) for name in LISTED)
        return {name: data for name, data in found if data is not None}
    finally:
        os.close(attrs)
