"""Configuration -> Remote: the only place where rooms meet."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from guildsync import hosts
from guildsync.attributes import AttributedTree
from guildsync.compute.executor import LocalExecutor
from guildsync.compute.source import Source, copy_source
from guildsync.config import LOCAL, Ec2Remote, FsspecRemote, HostRemote, LocalRemote, RemoteConfig, S3Remote, SshRemote
from guildsync.cutting import content_cut
from guildsync.errors import GuildsyncError, NotFound, Refused, Stopped, Usage, without_secrets
from guildsync.hints import Periodic, WatchedHome
from guildsync.hosts import PLAIN, Surroundings, Way
from guildsync.model.machine import Machine, Reach
from guildsync.model.ports import Bases, Executor, Hints, Reads, Replica, Step
from guildsync.model.run import RunId, checked_run_id
from guildsync.tree.hashing import Buffer, even
from guildsync.tree.home import Home
from guildsync.tree.kept import HomeBases, HomeCache
from guildsync.tree.newrun import write_run
from guildsync.tree.tree import Tree

__all__ = ["Home", "Listed", "Remote", "bases", "open_remote", "opened_home"]

Warn = Callable[[str], None]


class _Files(Protocol):
    """What remotes needs of the store's files before the store's packages are imported."""

    fs: Any
    where: str


@dataclass(frozen=True)
class Remote:
    """A place for runs: a filesystem, maybe an executor, and maybe a machine that can be started (it is talked to by
    `reach`) and stopped. `where` is the place in words; `way` leads to a host, whose runs have `surroundings`.
    `patient`: files of a tree that are being rewritten are held back until they rest."""

    config: RemoteConfig
    where: str
    layout: str
    surroundings: Surroundings = PLAIN
    way: Way | None = None
    machine: Machine | None = None
    reach: Reach | None = None
    patient: bool = False

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def fs(self) -> Any:
        """The remote's fsspec filesystem. A host's is confined to its home and only read, over a connection that ends
        with the filesystem."""
        if far := self._far:
            from guildsync.store.folder import FolderFileSystem

            return FolderFileSystem(partial(hosts.far_folder, *far))
        return _files(self).fs

    @property
    def _far(self) -> tuple[HostRemote, Way] | None:
        """Of a home of plain directories on a host."""
        if isinstance(self.config, HostRemote) and self.way is not None and self.layout == "tree":
            return self.config, self.way
        return None

    @property
    def may_ask(self) -> bool:
        """May a person be asked for something, at the terminal, when it is opened?"""
        return self._far is not None

    @contextmanager
    def opened(
        self,
        home: Home,
        warn: Warn = lambda _: None,
        fresh: bool = False,
        rehash: bool = False,
        jobs: int | None = None,
        quietly: bool = False,
    ) -> Iterator[Replica]:
        """The remote's replica, closed at the end. `home` keeps what is cached of it; `fresh`: as a client without
        any cache would see it; `rehash`: all files of a tree are read; `jobs`: so many packs of a store are on their
        way at a time; `quietly`: nobody is asked for a passphrase."""
        if far := self._far:
            with hosts.connected(*far, home, {"rehash": rehash, "patient": self.patient}, quietly) as there:
                yield AttributedTree(there.far)
            return
        if self.layout == "tree":
            with opened_home(Home(_path(self.config)), self.config.keep_env, rehash, self.patient) as tree:
                yield tree
            return
        from guildsync.store.checkpoint import GRACE
        from guildsync.store.store import JOBS, Store

        files = _files(self)
        memory = HomeCache(home, _location(self.config, files))
        cache = None if fresh else memory
        grace = self.config.grace if isinstance(self.config, S3Remote) else GRACE
        store = Store(files, cache, warn, grace, jobs or JOBS, memory)
        try:
            yield store
        finally:
            store.close()

    @property
    def can_execute(self) -> bool:
        """Can processes be started beside its runs?"""
        return self.layout == "tree"

    def require_executor(self) -> None:
        """Raises Usage where nothing can be started."""
        if not self.can_execute:
            hint = "runs are started where they lie as plain directories: here, on hosts, in other homes"
            raise Usage(f"nothing can be started at {self.where}", hint)

    @contextmanager
    def executing(self, home: Home, quietly: bool = False) -> Iterator[Executor]:
        """What starts and follows processes of its runs; raises Usage where there can be none. `quietly`: nobody is
        asked for anything."""
        self.require_executor()
        if far := self._far:
            with hosts.connected(*far, home, {}, quietly, lists=False) as there:
                yield there.far.executor
            return
        yield LocalExecutor(home.runs if self.name == LOCAL else Home(_path(self.config)).runs)

    def require_machine(self) -> tuple[Machine, Reach]:
        """And how it is talked to. Raises Usage where there is nothing that could be started or stopped."""
        if self.machine is None or self.reach is None:
            hint = "remotes of type ec2 can be: docs/remotes.md"
            raise Usage(f"{self.name} ({self.config.type}) cannot be started or stopped", hint)
        return self.machine, self.reach

    def check(self, home: Home, warn: Warn = lambda _: None, jobs: int | None = None) -> Iterator[Step]:
        """Can it be used? Ends after the first step that failed. A machine that is stopped can be, once it is started:
        what is behind it is not tried."""
        for step in self.machine.check() if self.machine is not None else ():
            yield step
            if not step.ok:
                return
        for step in self.available(home, warn, jobs):
            yield step._replace(ok=True, exit_code=0) if step.name == _STOPPED else step

    def available(
        self, home: Home, warn: Warn = lambda _: None, jobs: int | None = None
    ) -> Generator[Step, None, None]:
        """Can its runs be reached now? Ends after the first step that failed."""
        try:
            if far := self._far:
                with hosts.connected(*far, home, {}) as there:
                    yield from hosts.steps(there)
            else:
                with self.opened(home, warn, jobs=jobs) as replica:
                    yield from replica.check()
        except GuildsyncError as exc:
            yield Step(_STEP_OF.get(type(exc), "reachable"), False, exc.message, exc.hint or "", exc.exit_code)


_STOPPED = "host"
_STEP_OF: Mapping[type, str] = {Refused: "log-in", NotFound: "python", Stopped: _STOPPED}


def open_remote(config: RemoteConfig, home: Home) -> Remote:
    """The remote that a configuration describes; nothing is asked of it yet. `home` remembers machines."""
    if isinstance(config, LocalRemote):
        return Remote(config, config.path, config.layout)
    if isinstance(config, SshRemote):
        root = f" {hosts.sftp_root(config)}" if config.layout == "store" else ""
        way = hosts.way_to(config)
        return Remote(config, f"ssh:{way.host()}{root}", config.layout, hosts.surroundings_of(config, config.init), way)
    if isinstance(config, Ec2Remote):
        from guildsync import machines  # no other remote has any use for them

        machine, reach, way = machines.ec2(config, home)
        where = f"ec2:{config.region}/{config.instance_type}"
        return Remote(config, where, config.layout, hosts.surroundings_of(config, None), way, machine, reach)
    if isinstance(config, S3Remote):
        root = f"{config.bucket}/{config.root}".rstrip("/")
        return Remote(config, f"s3:{root}", "store")
    if isinstance(config, FsspecRemote):
        return Remote(config, without_secrets(config.url), "store")
    raise Usage(f"remotes of type {config.type} ({config.name}) are not supported by this version")


@contextmanager
def opened_home(home: Home, keep_env: bool = False, rehash: bool = False, patient: bool = False) -> Iterator[Replica]:
    """A home on this machine as a replica. `keep_env`: captured environments are seen as they are; `rehash`: all is
    read; `patient`: what is being rewritten is held back."""
    tree = Tree(home, keep_env, _cut, rehash, patient)
    try:
        yield AttributedTree(tree)
    finally:
        tree.close()


@contextmanager
def new_run(run: RunId, attributes: Mapping[str, bytes], opref: bytes, source: Source) -> Iterator[Replica]:
    """A replica that holds this run alone, and nobody else sees."""
    with tempfile.TemporaryDirectory(prefix="guildsync-run-") as directory:
        home = Home(directory)
        write_run(home, run, attributes, opref, partial(copy_source, source))
        with opened_home(home) as replica:
            yield replica


def _cut(fd: int, start: int, stop: int) -> Iterable[Buffer]:
    """Content-defined parts where the package for it is, looked for when the first large file is hashed."""
    return (content_cut() or even)(fd, start, stop)


@contextmanager
def hinted(remote: Remote, home: Home, replica: Replica) -> Iterator[Hints]:
    """What says when to look at an opened remote again: files that are here are watched, a store is looked at every few
    seconds."""
    if replica.hints is None:
        yield Periodic(remote.config.poll)
    elif isinstance(remote.config, LocalRemote):
        watched = WatchedHome(home if remote.name == LOCAL else Home(_path(remote.config)))
        try:
            yield watched
        finally:
            watched.close()
    else:
        yield replica.hints


def bases(home: Home, one: Reads, other: Reads) -> Bases:
    return HomeBases(home, one.aliases, other.aliases)


class Listed:
    """The runs of a remote as they were last listed, kept at home: ids and labels, for whoever must not ask it."""

    def __init__(self, home: Home, remote: Remote) -> None:
        self._cache = HomeCache(home, f"listed {remote.name} {remote.where}")

    def note(self, runs: Sequence[tuple[RunId, str]]) -> None:
        data = json.dumps(runs).encode()
        if data != self._cache.load("listed", "runs"):
            self._cache.keep("listed", "runs", data)

    def load(self) -> list[tuple[RunId, str]]:
        """Nothing where it was never listed, or what is kept cannot be read."""
        try:
            rows = json.loads(self._cache.load("listed", "runs") or b"[]")
            return [(checked_run_id(run), str(label)) for run, label in rows]
        except (ValueError, TypeError, GuildsyncError):
            return []


def _path(config: RemoteConfig) -> str:
    if not isinstance(config, LocalRemote):
        raise Usage(f"{config.name} has no home of plain directories")
    return config.path


def _files(remote: Remote) -> Any:
    from guildsync.store import fs

    config = remote.config
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
    if isinstance(config, HostRemote) and remote.way is not None:
        return hosts.sftp_files(config, remote.way)
    return fs.open_url("file://" + _path(config))


def _location(config: RemoteConfig, files: _Files) -> str:
    endpoint = config.endpoint_url if isinstance(config, S3Remote) else None
    return f"{endpoint or ''} {files.where}"
