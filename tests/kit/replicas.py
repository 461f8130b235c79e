"""Places for replicas of every kind, opened by the same client again or by a fresh one, and contents to put there."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from getpass import getuser
from pathlib import Path
from typing import NamedTuple

import pytest

from guildsync.agent.client import FarTree
from guildsync.agent.server import serve
from guildsync.attributes import AttributedTree
from guildsync.model.manifest import (
    PART_SIZE,
    Digest,
    Manifest,
    Part,
    digest_of,
    directory_entry,
    file_entry,
    link_entry,
    parent,
)
from guildsync.model.ports import Piece, Replica, Want
from guildsync.model.run import RunId
from guildsync.store.fs import S3, Files, open_s3, open_url
from guildsync.store.sftp import Door, Sftp, open_sftp
from guildsync.store.store import Store
from guildsync.tree.home import Home
from guildsync.tree.kept import HomeCache
from guildsync.tree.tree import Tree
from tests.conftest import new_bucket
from tests.kit.counting import CountingFiles, Counts
from tests.kit.servers import REGION, S3Server
from tests.kit.sshd import sshd
from tests.kit.trees import EPOCH_NS

TREES = ("near", "far")
STORES = ("folder", "memory", *(pytest.param(kind, marks=pytest.mark.servers) for kind in ("s3", "obstore", "sftp")))
ALL = (*TREES, *STORES)


@dataclass
class Site:
    """A place where one replica lies. `counts` sum up a store's calls, `far` is the FarTree that was opened last."""

    kind: str
    home: Path
    files: Callable[[], Files] | None = None
    counts: Counts = field(default_factory=Counts)
    far: FarTree | None = None

    @property
    def is_store(self) -> bool:
        return self.files is not None

    @contextmanager
    def opened(self, fresh: bool = True) -> Iterator[Replica]:
        """The replica as a client without any cache sees it, or (`fresh` False) always the same client."""
        if self.files is not None:
            cache = None if fresh else HomeCache(Home(str(self.home)), self.kind)
            store = Store(CountingFiles(self.files(), self.counts), cache)  # type: ignore[arg-type]
            try:
                yield store
            finally:
                store.close()
            return
        tree = Tree(Home(str(self.home)))
        try:
            if self.kind == "far":
                with served(tree) as self.far:
                    yield AttributedTree(self.far)
            else:
                yield AttributedTree(tree)
        finally:
            tree.close()


@contextmanager
def served(tree: Tree) -> Iterator[FarTree]:
    """The tree through a pair of sockets, with the agent in a thread."""
    near, far = socket.socketpair()
    thread = threading.Thread(target=serve, args=(tree, far, far, 60.0, 10.0), daemon=True)
    thread.start()
    with FarTree(near, near, timeout=60.0) as client:
        yield client
    thread.join(10)
    assert not thread.is_alive()


def new_site(kind: str, directory: Path, request: pytest.FixtureRequest) -> Site:
    """A place where nothing is yet: one of the kinds in ALL."""
    home = directory / "home"
    if kind in TREES:
        return Site(kind, home)
    if kind == "folder":
        url = f"file://{directory}/store"
        return Site(kind, home, lambda: open_url(url))
    if kind == "memory":
        url = f"memory://{uuid.uuid4().hex}/store"
        return Site(kind, home, lambda: open_url(url))
    if kind == "sftp":
        return Site(kind, home, partial(open_sftp, _sftp(directory, request)))
    server: S3Server = request.getfixturevalue("seaweed")
    request.getfixturevalue("monkeypatch").setenv("AWS_ACCESS_KEY_ID", server.access_key)
    request.getfixturevalue("monkeypatch").setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    where = S3(
        new_bucket(server), "team/runs", REGION, endpoint_url=server.endpoint, engine={"s3": "s3fs"}.get(kind, kind)
    )
    return Site(kind, home, lambda: open_s3(where))


def _sftp(directory: Path, request: pytest.FixtureRequest) -> Sftp:
    running = sshd({"ForceCommand": "internal-sftp"})
    server = running.__enter__()
    request.addfinalizer(lambda: running.__exit__(None, None, None))
    known = directory / "known_hosts"
    known.write_text(server.known_hosts_line)
    door = Door("box", "127.0.0.1", getuser(), server.port, "127.0.0.1", (str(known),), (str(server.user_key),))
    return Sftp(door, f"{directory}/store")


# -- contents


class File(NamedTuple):
    data: bytes
    mode: int = 0o644


class Directory(NamedTuple):
    mode: int = 0o755


class Link(NamedTuple):
    target: bytes


Kind = File | Directory | Link | bytes
Literal = Mapping[bytes, Kind]
"""What lies in a run, by path; bytes are an ordinary file. Directories that are not named have mode 0755."""


class Content:
    """A run's manifest, and the bytes of all its objects."""

    def __init__(self, literal: Literal, mtime_ns: int = EPOCH_NS) -> None:
        self.objects: dict[Digest, bytes] = {}
        entries = {}
        for path, kind in literal.items():
            if isinstance(kind, Link):
                entries[path] = link_entry(path, kind.target, mtime_ns)
            elif isinstance(kind, Directory):
                entries[path] = directory_entry(path, kind.mode, mtime_ns)
            else:
                file = File(kind) if isinstance(kind, bytes) else kind
                parts = self._parts(file.data)
                digest = digest_of(file.data)
                entries[path] = file_entry(path, file.mode, len(file.data), digest, mtime_ns, parts)
            top = parent(path)
            while top and top not in literal:
                entries[top] = directory_entry(top, 0o755, mtime_ns)
                top = parent(top)
        self.manifest = Manifest(entries.values())

    def _parts(self, data: bytes) -> list[Part]:
        parts = []
        for start in range(0, len(data), PART_SIZE):
            block = data[start : start + PART_SIZE]
            parts.append(Part(digest_of(block), len(block)))
            self.objects[parts[-1].digest] = block
        return parts

    def wants(self, run: RunId, leave_out: Iterable[bytes] = ()) -> list[Want]:
        return [
            Want(found.digest, found.size, run, entry.path, found.offset)
            for entry in self.manifest.entries
            if entry.path not in leave_out
            for found in entry.objects()
        ]

    def pieces(self, wants: Iterable[Want]) -> list[Piece]:
        return [Piece(want, self.objects[want.digest]) for want in wants]


def write(home: str | os.PathLike[str], run: str, content: Content) -> Path:
    """The content as a run's directory, by plain system calls."""
    root = Path(home) / "runs" / run
    root.mkdir(parents=True)
    top = os.fsencode(root)
    for entry in content.manifest.entries:
        path = os.path.join(top, entry.path)
        if entry.kind == "dir":
            os.mkdir(path)
        elif entry.kind == "link":
            os.symlink(entry.target or b"", path)
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
        else:
            with open(path, "wb") as file:
                file.writelines(content.objects[found.digest] for found in entry.objects())
            os.chmod(path, entry.mode)
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))
    for entry in reversed(content.manifest.entries):
        if entry.kind == "dir":
            path = os.path.join(top, entry.path)
            os.chmod(path, entry.mode)
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))
    return root
