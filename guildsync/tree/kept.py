"""What a home keeps of others: the bases of every pair of replicas, and what of remotes can be had again."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import uuid
from contextlib import suppress
from typing import Iterable, List, Optional, Tuple

from guildsync.errors import Damaged
from guildsync.model.manifest import canonical, checked_digest, digest_of
from guildsync.model.ports import Base
from guildsync.model.run import Metadata, RunId, checked_run_id
from guildsync.tree.home import Home


def _make_private(directory: bytes, home: Home) -> None:
    """A directory of ours below the home's state, which nobody else can enter, whatever the umask is."""
    if not os.path.isdir(directory):
        os.makedirs(home.path, exist_ok=True)
        os.makedirs(home.state, mode=0o700, exist_ok=True)
        os.makedirs(directory, mode=0o700, exist_ok=True)


class HomeBases:
    """The bases that a home keeps for one pair of replicas (see `model.ports.Bases`)."""

    def __init__(self, home: Home, source: Iterable[str], target: Iterable[str]) -> None:
        """Each side by all ids it ever had."""
        self._targets = sorted(target)
        every = itertools.product(sorted(source), self._targets)
        pairs = ("+".join(sorted(map(checked_run_id, pair))) for pair in every)
        self._home = home
        self._directories = [os.path.join(home.state, b"bases", pair.encode()) for pair in pairs]
        self._directory = self._directories[0]

    def load(self, run: RunId, content: Optional[str]) -> Optional[Base]:
        name = os.fsencode(checked_run_id(run))
        for directory in self._directories:
            intended = self._read(os.path.join(directory, name + b".intended"))
            if intended is not None and intended[0] == content and intended[1] in self._targets:
                return intended[2]
            saved = self._read(os.path.join(directory, name))
            if saved is not None:
                return saved[2]
        return None

    def intend(self, run: RunId, content: str, base: Base) -> None:
        self._write(self._path(run) + b".intended", content, base)

    def save(self, run: RunId, base: Base) -> None:
        path = self._path(run)
        self._write(path, base.content, base)
        with suppress(FileNotFoundError):
            os.unlink(path + b".intended")

    def _path(self, run: RunId) -> bytes:
        return os.path.join(self._directory, os.fsencode(checked_run_id(run)))

    def _write(self, path: bytes, content: str, base: Base) -> None:
        _make_private(self._directory, self._home)
        # The target is named, for both directions share the file: that the source has the content proves nothing.
        value = {
            "base": base.content,
            "body": digest_of(base.encoded),
            "content": content,
            "metadata": base.metadata.fields(),
            "seen": sorted(base.seen),
            "status": base.status,
            "target": self._targets[0],
        }
        # Not synced: a base that a power cut takes with it makes the next sync more careful, never wrong.
        temporary = path + b".%d.tmp" % os.getpid()
        with open(temporary, "wb") as file:
            file.write(canonical(value) + b"\n" + base.encoded)
        os.replace(temporary, path)

    def _read(self, path: bytes) -> Optional[Tuple[str, str, Base]]:
        """None also for what cannot be understood: knowing less only makes a sync more careful."""
        try:
            with open(path, "rb") as file:
                head, _, body = file.read().partition(b"\n")
            value = json.loads(head)
            if digest_of(body) != value["body"]:
                return None
            seen = frozenset(checked_digest(content) for content in value["seen"])
            metadata, status = Metadata.from_fields(value["metadata"]), str(value["status"])
            base = Base(checked_digest(value["base"]), metadata, status, seen, body)
            return checked_digest(value["content"]), str(value["target"]), base
        except (FileNotFoundError, ValueError, KeyError, TypeError, Damaged):
            return None


class HomeCache:
    """What a home keeps of a remote (see `model.ports.Cache`); `location` names the remote's place."""

    def __init__(self, home: Home, location: str) -> None:
        name = hashlib.sha256(location.encode()).hexdigest()[:32]
        self._home = home
        self._directory = os.path.join(os.fsdecode(home.state), "remotes", name)

    def load(self, kind: str, name: str) -> Optional[bytes]:
        try:
            with open(os.path.join(self._directory, kind, name), "rb") as file:
                return file.read()
        except OSError:
            return None

    def keep(self, kind: str, name: str, data: bytes) -> None:
        """A home that cannot be written keeps nothing, and works."""
        path = os.path.join(self._directory, kind, name)
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            _make_private(os.fsencode(os.path.dirname(path)), self._home)
            with open(temporary, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except OSError:
            pass

    def names(self, kind: str) -> List[str]:
        try:
            return [name for name in os.listdir(os.path.join(self._directory, kind)) if not name.endswith(".tmp")]
        except OSError:
            return []

    def drop(self, kind: str, name: str) -> None:
        try:
            os.unlink(os.path.join(self._directory, kind, name))
        except OSError:
            pass
