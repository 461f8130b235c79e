"""Hosts that OpenSSH reaches: the way to each, what is started there, and its files over SFTP."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from guildsync.agent.bootstrap import command, digest, first_words
from guildsync.agent.client import TIMEOUT, FarTree, NeedsModules, Opening
from guildsync.compute.ssh import Host, Process, Ssh, effective, has_terminal, quoted
from guildsync.config import HostRemote, SshRemote
from guildsync.errors import GuildsyncError, Unreachable, Usage
from guildsync.model.ports import Cache, Folder, Step
from guildsync.store.cache import NoCache
from guildsync.tree.home import Home
from guildsync.tree.kept import HomeCache

SESSIONS = 4
"""Channels that large transfers want."""
JUMPS = 8
"""Hosts that a connection may go through."""


def _nothing_to_admit() -> bool:
    return False


class Way(NamedTuple):
    """The way to a host. `host` says where it is now; raises where it cannot be asked. `admit` is called where nothing
    answers there; True: something was changed, and another try may help."""

    host: Callable[[], Host]
    admit: Callable[[], bool] = _nothing_to_admit


def way_to(config: SshRemote) -> Way:
    """Raises Usage for what cannot be a host."""
    host = Host(config.host, config.user, config.port, config.private_key, config.proxy, config.connect_timeout)
    return Way(lambda: host)


class Surroundings(NamedTuple):
    """Of a training process: its interpreter, shell lines and a shell command that come first, and variables."""

    python: str
    init: str | None = None
    activate: str | None = None
    env: Mapping[str, str] = {}


PLAIN = Surroundings("python3")


def surroundings_of(config: HostRemote, init: str | None) -> Surroundings:
    """What the configuration says of the environment of runs on a host."""
    if config.venv_path:
        activate: str | None = f". {_in_shell(config.venv_path.rstrip('/') + '/bin/activate')}"
    elif config.conda_env:
        activate = f'eval "$(conda shell.posix hook)" && conda activate {quoted([config.conda_env])}'
    else:
        activate = config.venv_activate
    return Surroundings("python" if activate else config.python, init, activate, config.env)


def _in_shell(path: str) -> str:
    """A path as a word of the shell there, which expands `~` at its beginning."""
    return f'"$HOME"/{quoted([path[2:]])}' if path.startswith("~/") else quoted([path])


# -- a Tree at the far end


class Connected(NamedTuple):
    """A host while it is used."""

    ssh: Ssh
    process: Process
    far: FarTree


@contextmanager
def connected(
    config: HostRemote, way: Way, home: Home, flags: Mapping[str, bool], quietly: bool = False, lists: bool = True
) -> Iterator[Connected]:
    """A Tree at the far end of ssh; `flags` are those of `agent.server.main`. Errors of the connection say what ssh
    said."""
    there = _admitted(config, way, home, flags, quietly, lists)
    there.far.further = partial(_lanes, config, there.ssh)
    try:
        yield there
    except Unreachable as exc:
        if there.far.broken is exc:
            there.far.close()
            raise there.process.broke(exc) from exc
        raise
    finally:
        there.far.close()


def far_folder(config: HostRemote, way: Way) -> Folder:
    """Of a connection that ends with the process, or when nobody refers to it any more."""
    far = _admitted(config, way, None, {}).far
    folder = far.folder
    weakref.finalize(folder, far.close)
    return folder


def steps(there: Connected) -> Iterator[Step]:
    """Of a check, once it is connected."""
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


def _admitted(
    config: HostRemote,
    way: Way,
    home: Home | None,
    flags: Mapping[str, bool],
    quietly: bool = False,
    lists: bool = True,
) -> Connected:
    """Where nothing answers, once more after letting this client in made a difference."""

    def start() -> Connected:
        ssh = Ssh(way.host(), has_terminal() and not quietly)
        far, process = _started(config, ssh, home, flags, lists)
        return Connected(ssh, process, far)

    try:
        return start()
    except Unreachable:
        if not way.admit():
            raise
    return start()


def _started(
    config: HostRemote, ssh: Ssh, home: Home | None, flags: Mapping[str, bool], lists: bool = True
) -> tuple[FarTree, Process]:
    """The modules go along where they are not known to be there."""
    place = f"ssh:{ssh.host.alias or ssh.host} {config.guild_home}"
    cache: Cache = HomeCache(home, place) if home is not None else NoCache()
    arguments = {"keep_env": config.keep_env, **flags}
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


def _lanes(config: HostRemote, ssh: Ssh, staging: str) -> list[FarTree]:
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


# -- its files over SFTP


def sftp_root(config: HostRemote) -> str:
    """The folder as SFTP names it, which starts in the home there and knows no `~`."""
    root = config.guild_home
    if root.startswith("~") and root.rstrip("/") != "~" and not root.startswith("~/"):
        raise Usage(f"{config.name}: SFTP does not know {root!r}", "say guild-home as an absolute path, or below ~/")
    return (root.removeprefix("~").lstrip("/") or ".") if root.startswith("~") else root


def sftp_files(config: HostRemote, way: Way) -> Any:
    """What a host shows over SFTP, as the store's room wants files."""
    from guildsync.store.sftp import Sftp, open_sftp

    return open_sftp(Sftp(_door(way.host(), JUMPS), sftp_root(config)))


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
