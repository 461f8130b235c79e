"""`.guild/` attributes and markers as raw bytes: the one place that reads and writes them."""

from __future__ import annotations

import os
import stat
import uuid
from typing import Dict, FrozenSet, Mapping, Optional

from guildsync.model.run import Attributes
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
    lock = None
    try:
        guild = open_directory(b".guild", run_fd)
    except OSError:
        guild = None
    if guild is not None:
        try:
            opref = _read(guild, b"opref")
            present = set(os.listdir(guild))
            markers = frozenset(name for name in MARKERS if name in present)
            lock = _read(guild, b"LOCK") if "LOCK" in markers else None
            values = _read_listed(guild) if "attrs" in present else {}
        finally:
            os.close(guild)
    return Attributes(values, opref, markers, lock is not None and is_alive(lock), inflight)


def alive(run_fd: int) -> bool:
    """Is a process of this run running on this host? Then nothing but its metadata may be written."""
    try:
        guild = open_directory(b".guild", run_fd)
    except OSError:
        return False
    try:
        lock = _read(guild, b"LOCK")
        return lock is not None and is_alive(lock)
    finally:
        os.close(guild)


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
