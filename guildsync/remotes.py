"""Configuration -> Remote: the only place where rooms meet."""

from __future__ import annotations

import json
import os
import re
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

from guildsync.agent.bootstrap import command, digest, first_words
from guildsync.agent.client import TIMEOUT, FarTree, NeedsModules, Opening
from guildsync.attributes import AttributedTree
from guildsync.compute.executor import LocalExecutor
from guildsync.compute.source import Source, copy_source
from guildsync.compute.ssh import Host, Process, Ssh, effective, has_terminal, quoted
from guildsync.config import LOCAL, FsspecRemote, LocalRemote, RemoteConfig, S3Remote, SshRemote
from guildsync.cutting import content_cut
from guildsync.errors import GuildsyncError, NotFound, Refused, Unreachable, Usage, without_secrets
from guildsync.model.ports import Bases, Cache, Executor, Folder, Reads, Replica, Step
from guildsync.model.run import RunId, checked_run_id
from guildsync.store.cache import NoCache
from guildsync.tree.hashing import Buffer, even
from guildsync.tree.home import Home
from guildsync.tree.kept import HomeBases, HomeCache
from guildsync.tree.newrun import write_run
from guildsync.tree.tree import Tree

__all__ = ["Home", "Listed", "Remote", "bases", "open_remote", "opened_home"]

Warn = Callable[[str], None]
SESSIONS = 4
"""Channels that large transfers want."""


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
        """The remote's fsspec filesystem. A host's is confined to its home and only read, over a connection that ends
        with the filesystem."""
        if isinstance(self.config, SshRemote) and self.layout == "tree":
            from guildsync.store.folder import FolderFileSystem

            return FolderFileSystem(partial(_far_folder, self.config))
        return _files(self.config).fs

    @property
    def may_ask(self) -> bool:
        """May a person be asked for something, at the terminal, when it is opened?"""
        return isinstance(self.config, SshRemote) and self.layout == "tree"

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
        if isinstance(self.config, SshRemote) and self.layout == "tree":
            with _connected(self.config, home, rehash, quietly) as there:
                yield AttributedTree(there.far)
            return
        if self.layout == "tree":
            tree = Tree(Home(_path(self.config)), self.config.keep_env, _cut, rehash)
            try:
                yield AttributedTree(tree)
            finally:
                tree.close()
            return
        from guildsync.store.checkpoint import GRACE
        from guildsync.store.store import JOBS, Store

        files = _files(self.config)
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
        if isinstance(self.config, SshRemote):
            with _connected(self.config, home, False, quietly, lists=False) as there:
                yield there.far.executor
            return
        yield LocalExecutor(home.runs if self.name == LOCAL else Home(_path(self.config)).runs)

    @property
    def surroundings(self) -> Surroundings:
        """What the configuration says of the environment of its runs."""
        return _surroundings(self.config)

    def check(self, home: Home, warn: Warn = lambda _: None, jobs: int | None = None) -> Iterator[Step]:
        """Can it be used? Ends after the first step that failed."""
        try:
            if isinstance(self.config, SshRemote) and self.layout == "tree":
                with _connected(self.config, home, False) as there:
                    yield from _ssh_steps(there)
            else:
                with self.opened(home, warn, jobs=jobs) as replica:
                    yield from replica.check()
        except GuildsyncError as exc:
            yield Step(_STEP_OF.get(type(exc), "reachable"), False, exc.message, exc.hint or "", exc.exit_code)


_STEP_OF: Mapping[type, str] = {Refused: "log-in", NotFound: "python"}


def open_remote(config: RemoteConfig) -> Remote:
    """The remote that a configuration describes; nothing is asked of it yet."""
    if isinstance(config, LocalRemote):
        return Remote(config, config.path, config.layout)
    if isinstance(config, SshRemote):
        root = f" {_sftp_root(config)}" if config.layout == "store" else ""
        return Remote(config, f"ssh:{_host(config)}{root}", config.layout)
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


class Surroundings(NamedTuple):
    """Of a training process: its interpreter, shell lines and a shell command that come first, and variables."""

    python: str
    init: str | None = None
    activate: str | None = None
    env: Mapping[str, str] = {}


def _surroundings(config: RemoteConfig) -> Surroundings:
    if not isinstance(config, SshRemote):
        return Surroundings("python3")
    if config.venv_path:
        activate: str | None = f". {_in_shell(config.venv_path.rstrip('/') + '/bin/activate')}"
    elif config.conda_env:
        activate = f'eval "$(conda shell.posix hook)" && conda activate {quoted([config.conda_env])}'
    else:
        activate = config.venv_activate
    return Surroundings("python" if activate else config.python, config.init, activate, config.env)


def _in_shell(path: str) -> str:
    """A path as a word of the shell there, which expands `~` at its beginning."""
    return f'"$HOME"/{quoted([path[2:]])}' if path.startswith("~/") else quoted([path])


@contextmanager
def new_run(run: RunId, attributes: Mapping[str, bytes], opref: bytes, source: Source) -> Iterator[Replica]:
    """A replica that holds this run alone, and nobody else sees."""
    with tempfile.TemporaryDirectory(prefix="guildsync-run-") as directory:
        home = Home(directory)
        write_run(home, run, attributes, opref, partial(copy_source, source))
        with opened_home(home) as replica:
            yield replica


class _Connected(NamedTuple):
    """A host while it is used."""

    ssh: Ssh
    process: Process
    far: FarTree


@contextmanager
def _connected(
    config: SshRemote, home: Home, rehash: bool, quietly: bool = False, lists: bool = True
) -> Iterator[_Connected]:
    """A Tree at the far end of ssh. Errors of the connection say what ssh said."""
    ssh = Ssh(_host(config), has_terminal() and not quietly)
    far, process = _started(config, ssh, home, rehash, lists)
    far.further = partial(_lanes, config, ssh)
    try:
        yield _Connected(ssh, process, far)
    except Unreachable as exc:
        if far.broken is exc:
            far.close()
            raise process.broke(exc) from exc
        raise
    finally:
        far.close()


def _far_folder(config: SshRemote) -> Folder:
    """Of a connection that ends with the process, or when nobody refers to it any more."""
    far, _ = _started(config, Ssh(_host(config), has_terminal()), None, rehash=False)
    folder = far.folder
    weakref.finalize(folder, far.close)
    return folder


def _ssh_steps(there: _Connected) -> Iterator[Step]:
    yield Step("log-in", True, f"{there.ssh.host} is a known host, and lets us in")
    if there.far.noise:
        hint = "have them print only where a terminal is: it breaks other tools (scp, rsync, sftp)"
        yield Step("quiet", True, "start-up files of the shell there print to stdout; that was passed over", hint)
    for step in there.far.check():
        yield step
        if not step.ok:
            return
    sessions = there.ssh.sessions(SESSIONS)
    hint = "" if sessions == SESSIONS else "raise MaxSessions in its sshd_config: large transfers use several"
    yield Step("sessions", True, f"{sessions} of {SESSIONS} at a time over one connection", hint)


def _started(
    config: SshRemote, ssh: Ssh, home: Home | None, rehash: bool, lists: bool = True
) -> tuple[FarTree, Process]:
    """The modules go along where they are not known to be there."""
    cache: Cache = HomeCache(home, f"ssh:{ssh.host} {config.guild_home}") if home is not None else NoCache()
    arguments = {"keep_env": config.keep_env, "rehash": rehash}
    for bundled in (False, True) if digest() in cache.names("agent") else (True,):
        process = ssh.open(command(config.python))
        opening = Opening(first_words(config.guild_home, arguments, bundled), ssh.patience, lists)
        try:
            far = FarTree(process.reader, process.writer, process, TIMEOUT, opening=opening)
        except NeedsModules:
            cache.drop("agent", digest())
            continue
        except Unreachable as exc:
            raise process.why() from exc
        cache.keep("agent", digest(), b"")
        return far, process
    raise GuildsyncError(f"{ssh.host} does not keep the modules it is given", "is its home full?")


def _lanes(config: SshRemote, ssh: Ssh, staging: str) -> list[FarTree]:
    """Further channels to the same home, of those that the host admits; nobody is asked for anything again."""

    def lane(_: int) -> FarTree | None:
        process = ssh.open(command(config.python), quietly=True)
        words = first_words(config.guild_home, {"keep_env": config.keep_env, "join": staging}, bundled=False)
        opening = Opening(words, ssh.patience, lists=False)
        try:
            return FarTree(process.reader, process.writer, process, TIMEOUT, opening=opening)
        except GuildsyncError:
            return None

    with ThreadPoolExecutor(SESSIONS - 1) as pool:
        return [far for far in pool.map(lane, range(SESSIONS - 1)) if far is not None]


def _host(config: SshRemote) -> Host:
    return Host(config.host, config.user, config.port, config.private_key, config.proxy, config.connect_timeout)


def _cut(fd: int, start: int, stop: int) -> Iterable[Buffer]:
    """Content-defined parts where the package for it is, looked for when the first large file is hashed."""
    return (content_cut() or even)(fd, start, stop)


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
    if isinstance(config, SshRemote):
        return _sftp_files(config)
    return fs.open_url("file://" + _path(config))


JUMPS = 8
"""Hosts that a connection may go through."""


def _sftp_root(config: SshRemote) -> str:
    """The folder as SFTP names it, which starts in the home there and knows no `~`."""
    root = config.guild_home
    if root.startswith("~") and root.rstrip("/") != "~" and not root.startswith("~/"):
        raise Usage(f"{config.name}: SFTP does not know {root!r}", "say guild-home as an absolute path, or below ~/")
    return (root.removeprefix("~").lstrip("/") or ".") if root.startswith("~") else root


def _sftp_files(config: SshRemote) -> Any:
    from guildsync.store.sftp import Sftp, open_sftp

    return open_sftp(Sftp(_door(_host(config), JUMPS), _sftp_root(config)))


def _door(host: Host, left: int) -> Any:
    """How SFTP reaches a host: as OpenSSH would, by its own configuration, but without ever asking."""
    from guildsync.store.sftp import Door

    says = effective(host)
    via = None
    for jump in ",".join(says.get("proxyjump", ())).split(","):
        if jump and jump != "none":
            if left == 0:
                raise Usage(f"{host} is reached through more than {JUMPS} hosts", "look for a circle of ProxyJump")
            via = replace(_door(_jump(jump, host.connect_timeout), left - 1), **({"via": via} if via else {}))
    (agent,) = says["identityagent"] or ["SSH_AUTH_SOCK"]
    named = {"none": None, "SSH_AUTH_SOCK": os.environ.get("SSH_AUTH_SOCK")}
    (command,) = says["proxycommand"] or ["none"]
    return Door(
        str(host),
        says["hostname"][0],
        says["user"][0],
        int(says["port"][0]),
        says.get("hostkeyalias", says["hostname"])[0],
        tuple(says.get("userknownhostsfile", [])) + tuple(says.get("globalknownhostsfile", [])),
        tuple(says.get("identityfile", ())),
        named.get(agent, agent),
        says.get("identitiesonly") == ["yes"],
        host.connect_timeout,
        via,
        ("sh", "-c", f"exec {command}") if command != "none" and via is None else (),
    )


def _jump(text: str, timeout: float) -> Host:
    """`[user@]host[:port]` or `ssh://…` of a ProxyJump."""
    match = re.fullmatch(r"(?:ssh://)?(?:(.*)@)?(\[[^]]*\]|[^:]*|[^:]*(?::[^:]*){2,})(?::(\d+))?/?", text)
    if match is None:
        raise Usage(f"ssh cannot jump through {text[:80]!r}", "say [user@]host[:port]")
    user, name, port = match.groups()
    return Host(name.strip("[]"), user, int(port) if port else None, None, None, timeout)


def _location(config: RemoteConfig, files: _Files) -> str:
    endpoint = config.endpoint_url if isinstance(config, S3Remote) else None
    return f"{endpoint or ''} {files.where}"
