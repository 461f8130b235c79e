"""The files of a store on an account that speaks SFTP: sshfs with its traps mended, and every host key checked."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncssh
from asyncssh import SSHClientConnection, SSHKey, SSHKnownHosts
from sshfs import SSHFileSystem
from sshfs.pools import SFTPSoftChannelPool

from guildsync.errors import GuildsyncError, Refused, Unreachable
from guildsync.store.fs import PATIENCE, Files, Patience, Provider

KEEPALIVE, MISSED = 10.0, 2
"""Seconds of silence until a server is asked whether it lives, and how often it may keep silent to that."""
CHANNELS = 4
DELAYS = (0.5, 2.0, 5.0)
"""Seconds before a call that lost its connection is tried anew, give or take a half."""
LONGEST_PUT = 200.0
"""Seconds on the clock from a file's first bytes to its name: the store says only when it got the bytes (K4)."""
SSH_PORT = 22

_Answer = TypeVar("_Answer")
_Known = tuple[list[SSHKey], list[SSHKey], list[SSHKey]]
"""Keys of the host, of authorities that may vouch for it, and revoked ones."""
_LOST = (
    asyncssh.DisconnectError, asyncssh.ChannelOpenError, asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection,
    ConnectionError,
)  # fmt: skip
_NOT_THERE = (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath)
_FORBIDDEN = (asyncssh.SFTPPermissionDenied, asyncssh.SFTPWriteProtect)
_FULL = (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded)


@dataclass(frozen=True)
class Door:
    """One host to log in to. `name` is its name for people, `known_as` what it is called in the files `known_hosts`.

    `keys` are files that may be there; `agent` is the socket of an agent, which `only_keys` restricts to these keys.
    `via` is the host that the connection goes through, `proxy_command` the argv of a process that makes it.
    """

    name: str
    host: str
    user: str
    port: int
    known_as: str
    known_hosts: tuple[str, ...]
    keys: tuple[str, ...] = ()
    agent: str | None = None
    only_keys: bool = False
    connect_timeout: float = PATIENCE.connect
    via: Door | None = None
    proxy_command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sftp:
    """A folder there. `root` is absolute, or relative to where SFTP starts."""

    door: Door
    root: str

    def __str__(self) -> str:
        return f"ssh:{self.door.user}@{self.door.host}:{self.door.port} {self.root}"


def open_sftp(where: Sftp, patience: Patience = PATIENCE) -> Files:
    """Files below a folder. Connects when first asked for something: raises Refused for a host that is not known, that
    shows another key, or that does not let us in, and Unreachable."""
    return Files(SftpFileSystem(where.door), where.root, str(where), Provider(whole_put=True), patience.total)


class SftpFileSystem(SSHFileSystem):  # type: ignore[misc]  # sshfs ships no types
    """SSHFileSystem as a store needs it.

    It is not used as it is: it accepts every host key, connects once and never again, writes to the final name, moves
    by copy and delete, reads whole files where a range is asked for, and shows what it may not list as empty.
    """

    cachable = False

    def __init__(self, door: Door) -> None:
        self._door = door
        super().__init__(door.host, skip_instance_cache=True)

    def connect(self, *_: Any, **__: Any) -> tuple[None, Connection]:
        """What SSHFileSystem keeps as its client and its pool; connects to nothing yet."""
        return None, Connection(self._door)

    async def _kept(self, act: Callable[[Any], Awaitable[_Answer]]) -> _Answer:
        """What `act` does with a channel, and does anew where the connection is lost: it must be idempotent."""
        with _errors():
            for delay in DELAYS:
                try:
                    async with self._pool.get() as channel:
                        return await act(channel)
                except (*_LOST, Unreachable):
                    if not self._pool.was_there:
                        raise
                await asyncio.sleep(delay * random.uniform(0.5, 1.5))
            async with self._pool.get() as channel:
                return await act(channel)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        async def read(channel: Any) -> bytes:
            async with channel.open(path, "rb") as file:
                first, stop = start or 0, end
                if stop is None or min(first, stop) < 0:
                    size = (await file.stat()).size
                    first, stop, _ = slice(start, end).indices(size)
                return bytes(await file.read(max(0, stop - first), first)) if stop > first else b""

        return await self._kept(read)

    async def _pipe_file(self, path: str, data: Any, **_: Any) -> None:
        """Nothing shows before all is written; a file of that name is replaced, by the same bytes at most."""
        await self._kept(lambda channel: _put(channel, path, data))

    async def _rm_file(self, path: str, **_: Any) -> None:
        await self._kept(lambda channel: channel.unlink(path))

    async def _cp_file(self, path1: str, path2: str, **_: Any) -> None:
        await self._pipe_file(path2, await self._cat_file(path1))

    async def _mv(self, lpath: str, rpath: str, **_: Any) -> None:
        with _errors():
            async with self._pool.get() as channel:
                try:
                    await channel.posix_rename(lpath, rpath)
                except asyncssh.SFTPOpUnsupported:
                    await channel.rename(lpath, rpath)

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        rows = await self._kept(lambda channel: channel.readdir(path or "."))
        found = [
            {**self._decode_attributes(row.attrs), "name": f"{path.rstrip('/')}/{row.filename}"}
            for row in rows
            if row.filename not in (".", "..")
        ]
        return found if detail else sorted(info["name"] for info in found)

    async def _find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, **options: Any) -> Any:
        """All files below. A folder that cannot be listed is an error, one that went away meanwhile is empty."""
        if maxdepth is not None or withdirs:
            return await super()._find(path, maxdepth=maxdepth, withdirs=withdirs, **options)
        found: dict[str, Any] = {}
        left = [path]
        while left:
            answers = await asyncio.gather(*(self._ls(folder) for folder in left), return_exceptions=True)
            below = []
            for folder, answer in zip(left, answers, strict=True):
                if isinstance(answer, FileNotFoundError) and folder != path:
                    continue
                if isinstance(answer, BaseException):
                    raise answer
                found.update((info["name"], info) for info in answer if info["type"] == "file")
                below += [info["name"] for info in answer if info["type"] == "directory"]
            left = below
        return found if options.get("detail") else sorted(found)


async def _put(channel: Any, path: str, data: Any) -> None:
    folder = path.rpartition("/")[0]
    temporary = f"{folder}/.{uuid.uuid4().hex}.tmp"  # never the same again: a lost session may still write to it
    began = time.time()
    try:
        try:
            await _write(channel, temporary, data)
        except _NOT_THERE:
            await channel.makedirs(folder, exist_ok=True)
            await _write(channel, temporary, data)
        if time.time() - began > LONGEST_PUT:
            raise ConnectionError("what was put took too long, or this computer slept")
        await _rename(channel, temporary, path, data)
    except BaseException as exc:
        with suppress(Exception):
            await asyncio.wait_for(channel.unlink(temporary), KEEPALIVE)
        if isinstance(exc, asyncssh.SFTPFailure) and await _is_full(channel, folder, len(data)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from exc
        raise


async def _write(channel: Any, path: str, data: Any) -> None:
    async with channel.open(path, "wb") as file:
        await file.write(bytes(data))
        with suppress(asyncssh.SFTPOpUnsupported):
            await file.fsync()


async def _rename(channel: Any, old: str, new: str, data: Any) -> None:
    """Atomic, or an error. A server that cannot replace is content when the same bytes are there."""
    try:
        await channel.posix_rename(old, new)
        return
    except asyncssh.SFTPOpUnsupported:
        pass
    try:
        await channel.rename(old, new)
    except (asyncssh.SFTPFailure, asyncssh.SFTPFileAlreadyExists):
        async with channel.open(new, "rb") as file:
            if await file.read() != bytes(data):
                raise
        await channel.unlink(old)


async def _is_full(channel: Any, folder: str, wanted: int) -> bool:
    """Is there no room for so many bytes? OpenSSH calls every trouble `Failure`."""
    try:
        room = await asyncio.wait_for(channel.statvfs(folder), KEEPALIVE)
        return bool(room.bavail * room.frsize < wanted)
    except (asyncssh.Error, OSError, asyncio.TimeoutError):
        return False


@contextmanager
def _errors() -> Iterator[None]:
    """What asyncssh raises leaves as an OSError."""
    try:
        yield
    except _NOT_THERE as exc:
        raise FileNotFoundError(errno.ENOENT, exc.reason) from exc
    except asyncssh.SFTPNotADirectory as exc:
        raise NotADirectoryError(errno.ENOTDIR, exc.reason) from exc
    except _FORBIDDEN as exc:
        raise PermissionError(exc.reason) from exc
    except _FULL as exc:
        raise OSError(errno.ENOSPC, exc.reason) from exc
    except (asyncssh.DisconnectError, asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as exc:
        raise ConnectionError(exc.reason or "the connection was lost") from exc
    except asyncssh.ChannelOpenError as exc:
        raise ConnectionError(exc.reason) from exc
    except asyncssh.SFTPError as exc:
        raise OSError(errno.EIO, f"the server says: {exc.reason or type(exc).__name__}") from exc


def _silence(loop: asyncio.AbstractEventLoop) -> None:
    """asyncssh forgets the requests that were under way when a connection is lost: whoever asked has been told, so
    that nobody took their exceptions is no news. All else goes where it went."""
    before = loop.get_exception_handler()
    if getattr(before, "silent", False):
        return

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), (asyncssh.Error, ConnectionError)):
            return
        if before is None:
            loop.default_exception_handler(context)
        else:
            before(loop, context)

    handle.silent = True  # type: ignore[attr-defined]
    loop.set_exception_handler(handle)


class Connection:
    """A connection that is made when it is needed, and made anew when it was lost; what SSHFileSystem calls a pool.

    `was_there`: it could be made once, so that trying again may help."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.was_there = False
        self._live: tuple[AsyncExitStack, SSHClientConnection, SFTPSoftChannelPool] | None = None
        self._opening: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def get(self) -> AsyncIterator[Any]:
        """A channel, which others may use at the same time. Many who wait for a connection wait for the same one."""
        while self._live is None or self._live[1].is_closed():
            if self._opening is None:
                self._opening = asyncio.ensure_future(self._open())
                self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
            await asyncio.shield(self._opening)
        _, connection, pool = live = self._live
        try:
            async with AsyncExitStack() as stack:
                try:
                    channel = await stack.enter_async_context(pool.get())
                except (ValueError, asyncssh.SFTPError) as exc:
                    if connection.is_closed():
                        raise ConnectionError("the connection was lost") from exc
                    hint = "its administrator must allow the subsystem sftp"
                    raise Refused(f"{self._door.name} lets us in, but offers no SFTP", hint) from exc
                yield channel
        except _LOST:
            if self._live is live:
                self._live = None
                connection.abort()
            raise

    async def close(self) -> None:
        """Ends the connection."""
        live, self._live = self._live, None
        if live is not None:
            await live[0].aclose()

    async def _open(self) -> None:
        _silence(asyncio.get_running_loop())
        try:
            await self.close()
            stack = AsyncExitStack()
            connection = await _connected(self._door, stack)
            options = {"path_errors": "surrogateescape"}
            pool = SFTPSoftChannelPool(connection, max_channels=CHANNELS, sftp_client_kwargs=options)
            self._live, self.was_there = (stack, connection, pool), True
        finally:
            self._opening = None


async def _connected(door: Door, stack: AsyncExitStack) -> SSHClientConnection:
    """Logged in there; `stack` ends it. Nothing but the exchange of keys happens before the host's is found good."""
    known = _known(door)
    tunnel = await _connected(door.via, stack) if door.via else None
    try:
        agent = await _agent(door)
        try:
            connection = await asyncssh.connect(
                door.host,
                door.port,
                config=None,
                tunnel=tunnel or (),
                proxy_command=list(door.proxy_command) or None,
                known_hosts=lambda *_: known,
                host_key_alias=door.known_as,
                username=door.user,
                client_keys=await _keys(door, agent) or None,
                preferred_auth="publickey",
                password_auth=False,
                kbdint_auth=False,
                gss_auth=False,
                gss_kex=False,
                agent_path=None,
                compression_algs=["none"],
                encryption_algs="^aes128-gcm@openssh.com",
                connect_timeout=door.connect_timeout,
                keepalive_interval=KEEPALIVE,
                keepalive_count_max=MISSED,
            )
        finally:
            if agent is not None:
                agent.close()
    except Exception as exc:
        await stack.aclose()
        raise _why(door, exc) from exc
    stack.callback(connection.abort)
    return connection


async def _agent(door: Door) -> asyncssh.SSHAgentClient | None:
    try:
        return await asyncssh.connect_agent(door.agent) if door.agent else None
    except (OSError, asyncssh.Error):
        return None


async def _keys(door: Door, agent: asyncssh.SSHAgentClient | None) -> list[asyncssh.SSHKeyPair]:
    """Those of the files that need no passphrase, then the agent's."""
    found: list[asyncssh.SSHKeyPair] = []
    named = set()
    for path in door.keys:
        with suppress(OSError, ValueError, asyncssh.KeyImportError):
            found += asyncssh.load_keypairs([path], ignore_encrypted=True)
        with suppress(OSError, ValueError, asyncssh.KeyImportError):
            named.add(asyncssh.read_public_key(path + ".pub").public_data)
    there = {pair.public_data for pair in found}
    if agent is not None:
        with suppress(OSError, ValueError, asyncssh.Error):
            held = [pair for pair in await agent.get_keys() if pair.public_data not in there]
            found += [pair for pair in held if not door.only_keys or pair.public_data in named]
    return found


def _why(door: Door, exc: Exception) -> GuildsyncError:
    name = door.name
    if isinstance(exc, GuildsyncError):
        return exc
    if isinstance(exc, asyncssh.HostKeyNotVerifiable):
        place = next((f"{path}:{number}" for path, number, keys in _lines(door) if any(keys[:2])), "known_hosts")
        hint = f"if the host was set up anew, remove {place} after asking whoever runs it; guildsync never goes on"
        return Refused(f"{name} shows another host key than the one in {place}: nothing was sent", hint)
    if isinstance(exc, asyncssh.PermissionDenied):
        hint = "check user and key; a key with a passphrase must be in your agent (`ssh-add`)"
        return Refused(f"{name} refused to let us in as {door.user}: {exc.reason}", hint)
    if isinstance(exc, asyncssh.KeyExchangeFailed):
        return Refused(f"{name} and we have no method in common: {exc.reason}", "compare with `ssh -v` to the host")
    text = str(exc) or ("no answer in time" if isinstance(exc, TimeoutError) else type(exc).__name__)
    return Unreachable(f"{name} cannot be reached: {text}", "check the network; then try again")


def _known(door: Door) -> _Known:
    """What known_hosts says of the host, under no other name or address of it. Raises Refused where it says nothing."""
    hosts: list[SSHKey] = []
    authorities: list[SSHKey] = []
    revoked: list[SSHKey] = []
    for _, _, entry in _lines(door):
        hosts += entry[0]
        authorities += entry[1]
        revoked += entry[2]
    if not hosts and not authorities:
        bare = door.name.removesuffix(f":{door.port}")
        by_hand = f"sftp {bare}" if bare == door.name else f"sftp -P {door.port} {bare}"
        hint = f"connect once by hand (`{by_hand}`), compare the fingerprint, then try again"
        raise Refused(f"{door.name} is not a known host: its key is in no known_hosts file", hint)
    return hosts, authorities, revoked


def _lines(door: Door) -> list[tuple[str, int, _Known]]:
    """The lines that speak of the host: of its port, else, as OpenSSH does, of the host alone."""
    found: list[tuple[str, int, _Known]] = []
    names = [f"[{door.known_as}]:{door.port}"] if door.port != SSH_PORT else []
    for name in [*names, door.known_as]:
        for path in door.known_hosts:
            with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
                for number, line in enumerate(file, 1):
                    with suppress(ValueError):  # a line that nobody can read says nothing
                        keys = SSHKnownHosts(line).match(name, "", None)[:3]
                        if any(keys):
                            found.append((path, number, tuple(map(list, keys))))  # type: ignore[arg-type]
        if any(keys[0] or keys[1] for _, _, keys in found):
            break
    return found
