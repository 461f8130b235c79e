"""Configuration -> Remote: the only place where rooms meet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from guildsync.attributes import AttributedTree
from guildsync.config import FsspecRemote, LocalRemote, RemoteConfig, S3Remote
from guildsync.cutting import content_cut
from guildsync.errors import Usage, without_secrets
from guildsync.model.ports import Bases, Reads, Replica
from guildsync.tree.hashing import Buffer, even
from guildsync.tree.home import Home, HomeBases, HomeCache
from guildsync.tree.tree import Tree

__all__ = ["Home", "Remote", "bases", "open_remote", "opened_home"]

Warn = Callable[[str], None]


class _Files(Protocol):
    """What remotes needs of the store's files before the store's packages are imported."""

    fs: Any
    where: str


@dataclass(frozen=True)
class Remote:
    """A place for runs: a filesystem, and maybe an executor. `where` is the place in words for people."""

    config: RemoteConfig
    where: str
    layout: str

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def fs(self) -> Any:
        """The remote's fsspec filesystem."""
        return _files(self.config).fs

    @contextmanager
    def opened(
        self,
        home: Home,
        warn: Warn = lambda _: None,
        fresh: bool = False,
        rehash: bool = False,
        jobs: int | None = None,
    ) -> Iterator[Replica]:
        """The remote's replica, closed at the end. `home` keeps what is cached of it; `fresh`: as a client without
        any cache would see it; `rehash`: all files of a tree are read; `jobs`: so many packs of a store are on their
        way at a time."""
        if self.layout == "tree":
            tree = Tree(Home(_path(self.config)), self.config.keep_env, _cut, rehash)
            try:
                yield AttributedTree(tree)
            finally:
                tree.close()
            return
        from guildsync.store.store import JOBS, Store

        files = _files(self.config)
        cache = None if fresh else HomeCache(home, _location(self.config, files))
        store = Store(files, cache, warn, jobs=jobs or JOBS)
        try:
            yield store
        finally:
            store.close()


def open_remote(config: RemoteConfig) -> Remote:
    """The remote that a configuration describes; nothing is asked of it yet."""
    if isinstance(config, LocalRemote):
        return Remote(config, config.path, config.layout)
    if isinstance(config, S3Remote):
        root = f"{config.bucket}/{config.root}".rstrip("/")
        return Remote(config, f"s3:{root}", "store")
    if isinstance(config, FsspecRemote):
        return Remote(config, without_secrets(config.url), "store")
    raise Usage(f"remotes of type {config.type} ({config.name}) are not supported by this version")


@contextmanager
def opened_home(home: Home, keep_env: bool = False, rehash: bool = False) -> Iterator[Replica]:
    """The local home as a replica. `keep_env`: captured environments are seen as they are; `rehash`: all is read."""
    tree = Tree(home, keep_env, _cut, rehash)
    try:
        yield AttributedTree(tree)
    finally:
        tree.close()


def _cut(fd: int, start: int, stop: int) -> Iterable[Buffer]:
    """Content-defined parts where the package for it is, looked for when the first large file is hashed."""
    return (content_cut() or even)(fd, start, stop)


def bases(home: Home, one: Reads, other: Reads) -> Bases:
    return HomeBases(home, one.aliases, other.aliases)


def _path(config: RemoteConfig) -> str:
    if not isinstance(config, LocalRemote):
        raise Usage(f"{config.name} has no home of plain directories")
    return config.path


def _files(config: RemoteConfig) -> Any:
    from guildsync.store import fs

    if isinstance(config, S3Remote):
        where = fs.S3(
            config.bucket,
            config.root,
            config.region,
            config.profile,
            config.endpoint_url,
            config.storage_class,
            config.sse,
            config.local_env,
            config.engine,
        )
        return fs.open_s3(where)
    if isinstance(config, FsspecRemote):
        return fs.open_url(config.url, config.options)
    return fs.open_url("file://" + _path(config))


def _location(config: RemoteConfig, files: _Files) -> str:
    endpoint = config.endpoint_url if isinstance(config, S3Remote) else None
    return f"{endpoint or ''} {files.where}"
