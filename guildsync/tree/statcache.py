"""The stat cache: what a run's files were when they were hashed, so that the second time is free."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import uuid
from dataclasses import dataclass
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple, Union

from guildsync.errors import Damaged
from guildsync.model.manifest import Digest, Manifest, canonical, checked_digest, digest_of, same
from guildsync.tree.home import Home

SCHEMA = 1
SETTLED_NS = 60_000_000_000
"""A file that changed less than this before it was hashed may change again and keep its times: within one tick of the
clock, or in pages that a memory-mapped writer dirtied and that are not written back yet."""
TICK_NS = 20_000_000
"""No filesystem's clock stands still for so long: what changes so much later has another ctime."""
BLIND = frozenset(("tmpfs", "ramfs", "hugetlbfs", "devtmpfs", "overlay"))
"""Filesystems that never write back (or may lie above one), so that a memory-mapped writer changes bytes and no times:
nothing is kept."""


class Stamp(NamedTuple):
    """The stat data that a row is good for."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class Lstat(NamedTuple):
    """What of lstat data anybody asks for: all of it takes 1.3 KB a file."""

    st_mode: int
    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_ino: int


Stat = Union[os.stat_result, Lstat]


def lstat_of(info: os.stat_result) -> Lstat:
    return Lstat(info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)


def stamp_of(info: Stat) -> Stamp:
    return Stamp(info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)


def fingerprint(found: Iterable[Tuple[bytes, Lstat]]) -> str:
    """One digest over the sorted lstat data of a run: equal means that nothing of it needs a look."""
    whole = hashlib.sha256()
    for path, info in found:
        if stat.S_ISDIR(info.st_mode):
            whole.update(b"%b\0%o\n" % (path, info.st_mode))
        else:
            whole.update(b"%b\0%o %d %d %d %d\n" % (path, info.st_mode, *stamp_of(info)))
    return whole.hexdigest()


@dataclass(frozen=True)
class Known:
    """What the cache says of one run. `stamps` are of the files whose rows may be trusted; `fingerprint` is None unless
    all of them may, and all paths could be read. `alive`: a process of the run was running, which may have files mapped
    into its memory: after it ended, all are hashed again."""

    fingerprint: Optional[str]
    content: Digest
    encoded_stamps: bytes
    encoded: bytes
    alive: bool = False

    @classmethod
    def of(cls, fingerprint: Optional[str], manifest: Manifest, stamps: Mapping[bytes, Stamp]) -> Known:
        rows = json.dumps({os.fsdecode(path): stamp for path, stamp in stamps.items()}).encode()
        return cls(fingerprint, manifest.content, rows, manifest.encode())

    def only_hints(self) -> Known:
        """Without what says that a file need not be read."""
        return Known(None, self.content, b"{}", self.encoded)

    def stamps_still_good(self, after: Manifest) -> Dict[bytes, Stamp]:
        """The rows of files that a commit left alone, which made the run what `after` says."""
        before, now = self.manifest().by_path, after.by_path
        return {path: row for path, row in self.stamps.items() if same(before.get(path), now.get(path))}

    @property
    def stamps(self) -> Dict[bytes, Stamp]:
        return {os.fsencode(path): Stamp(*row) for path, row in json.loads(self.encoded_stamps).items()}

    def manifest(self) -> Manifest:
        return Manifest.decode(self.encoded)


class StatCache:
    """One file a run below `.guildsync/stat/`, replaced by rename: what is lost is hashed again."""

    def __init__(self, home: Home, view: str) -> None:
        """`view` names how bytes are seen: rows of one view say nothing in another."""
        self._directory = os.path.join(home.state, b"stat", f"{SCHEMA}-{view}".encode())
        self._home = home
        self._sees: Optional[bool] = None

    @property
    def usable(self) -> bool:
        """False on a filesystem that cannot be trusted, and in a home that guildsync has not written to, or cannot."""
        if self._sees is None:
            self._sees = filesystem(self._home.runs) not in BLIND
        return self._sees and os.access(self._home.state, os.W_OK)

    def load(self, run: str) -> Optional[Known]:
        """None where nothing is known, also where it cannot be read."""
        if not self.usable:
            return None
        try:
            with open(os.path.join(self._directory, os.fsencode(run)), "rb") as file:
                head, _, rest = file.read().partition(b"\n")
            value = json.loads(head)
            if digest_of(rest) != value["body"]:
                return None
            stamps, _, encoded = rest.partition(b"\n")
            return Known(value["fingerprint"], checked_digest(value["content"]), stamps, encoded, bool(value["alive"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, Damaged):
            return None

    def keep(self, run: str, known: Known) -> None:
        """A home that cannot be written keeps nothing, and works."""
        if not self.usable:
            return
        body = known.encoded_stamps + b"\n" + known.encoded
        head = {"alive": known.alive, "body": digest_of(body), "content": known.content}
        head["fingerprint"] = known.fingerprint
        path = os.path.join(self._directory, os.fsencode(run))
        temporary = path + b"." + uuid.uuid4().hex.encode()
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(canonical(head) + b"\n" + body)
            os.replace(temporary, path)
        except OSError:
            pass

    def time_ns(self) -> Optional[int]:
        """As `now_ns`; None in a home that cannot be written."""
        try:
            return self.now_ns()
        except OSError:
            return None

    def now_ns(self) -> int:
        """The time by the clock of the filesystem where the runs lie: no other clock is compared with their times."""
        path = os.path.join(self._home.beside_runs(), b"clock." + uuid.uuid4().hex.encode())
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            return os.fstat(fd).st_mtime_ns
        finally:
            os.close(fd)
            os.unlink(path)


def filesystem(path: bytes) -> str:
    """The type of the filesystem that holds `path`; empty where the system does not say."""
    try:
        device = os.stat(path).st_dev
        with open("/proc/self/mountinfo", "rb") as file:
            lines: List[bytes] = file.read().splitlines()
    except OSError:
        return ""
    wanted = b"%d:%d" % (os.major(device), os.minor(device))
    for line in lines:
        words = line.split(b" ")
        if len(words) > 6 and words[2] == wanted and b"-" in words:
            return os.fsdecode(words[words.index(b"-") + 1])
    return ""
