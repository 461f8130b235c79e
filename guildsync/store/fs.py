"""Open a filesystem; every fsspec, s3fs and sshfs quirk lives here and nowhere else."""

from __future__ import annotations

import errno
import os
import re
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import TimeoutError as StillRunning
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from typing import Any

from guildsync.errors import GuildsyncError, NoRoom, NotFound, Refused, Unreachable, Usage, without_secrets
from guildsync.model.ports import NO_TRAFFIC, Traffic

_CODE_OF_S3 = re.compile(r"<Code>([^<]*)</Code>(?:.*?<Message>([^<]*)</Message>)?", re.DOTALL)
_ASKED = re.compile(r"""^.*Error performing \w+ \S+ in .*? - |: "https?://[^"]*"\.?$""")
_OF_SSH = re.compile(r"""(?:['"]|::)(?:sftp|ssh)(?:://|::|['"])""", re.IGNORECASE)
_ENDINGS_OF_AUTHENTICATION = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")


@dataclass(frozen=True)
class Patience:
    """Seconds: to connect, without a byte until a read is tried anew, and for one call with all that is tried anew."""

    connect: float = 10
    read: float = 30
    total: float = 150


PATIENCE = Patience()


@dataclass(frozen=True)
class Provider:
    """What a kind of filesystem guarantees. `whole_put`: a put shows all of a file or nothing; else a file is put
    under a temporary name and renamed. `ascending`: one LIST in ascending order is a valid reading (rule N3)."""

    whole_put: bool = False
    ascending: bool = False
    local: bool = False


_BEYOND_OBSTORE = ("AWS_ENDPOINT", "AWS_CA_BUNDLE", "AWS_USE_", "AWS_SKIP_", "AWS_S3_")
"""Beginnings of variables of the environment that change what s3fs does, but not in the same way what obstore does."""

_OBJECT_STORE = Provider(whole_put=True, ascending=True)
_PROVIDERS = {
    "s3": _OBJECT_STORE,
    "gs": _OBJECT_STORE,
    "abfs": _OBJECT_STORE,
    "memory": Provider(whole_put=True),
    "file": Provider(local=True),
}
"""What is not listed here is taken to guarantee nothing: a rename, and no order."""


_PAGE = 1000
"""Files that one request lists, where a listing is made of several."""
_TIMES = ("LastModified", "last_modified", "modified", "updated", "mtime", "created")


class Size(int):
    """Bytes of a file, and when it got them by the store's clock, in seconds since the epoch; None: it does not say."""

    modified: float | None

    def __new__(cls, size: int, modified: float | None = None) -> Size:
        made = super().__new__(cls, size)
        made.modified = modified
        return made


class Absent(Exception):
    """No object of that name is there."""


class Files:
    """The objects of a store as files of an fsspec filesystem, by literal names below one root.

    Names are relative and hold only `[0-9a-z/._-]`. Whatever the filesystem raises leaves here as Absent or as a
    GuildsyncError. All methods may be called from several threads. `traffic` counts them, and the bytes of files.
    """

    def __init__(self, fs: Any, root: str, where: str, provider: Provider, total: float = PATIENCE.total) -> None:
        """`where` is the store's place in words for people, `total` the seconds that a call may take at most."""
        self.fs = fs
        self._under_way: set[Any] = set()
        self._given_up = False
        self._counting = threading.Lock()
        self.traffic = NO_TRAFFIC
        self._total = total
        self.root = root.rstrip("/") or root
        self.where = where
        self.provider = provider

    def list(self, directory: str, deep: bool = False) -> dict[str, Size]:
        """The sizes in bytes of all files in a directory (`deep`: below it) by name relative to the root; empty
        where there is no such directory."""
        path = self._path(directory).rstrip("/")
        with self._translated(directory):
            self.fs.invalidate_cache(path)
            try:
                found = self._call("find", path, detail=True).values() if deep else self._call("ls", path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                found = ()
            self._count(1 + len(found) // _PAGE)
            top, marker = self.root.lstrip("/") + "/", path.strip("/")
            return {
                info["name"].lstrip("/").removeprefix(top): Size(info["size"] or 0, _modified(info))
                for info in found
                # Buckets mark a folder by an object of its name, some clients show it without the slash at its end.
                if info["type"] == "file" and info["name"].strip("/") != marker and not info["name"].endswith("/")
            }

    def get(self, name: str) -> bytes:
        """All of a file; raises Absent."""
        with self._translated(name):
            return self._came(self._call("cat_file", self._path(name)))

    def read(self, name: str, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of a file, fewer at its end; raises Absent."""
        with self._translated(name):
            return self._came(self._call("cat_file", self._path(name), start=start, end=stop))

    def put(self, name: str, data: bytes) -> None:
        """Make a file whole and durable, or leave nothing under its name. Putting the same bytes again is harmless."""
        path = self._path(name)
        self._count(sent=len(data))
        with self._translated(name):
            if self.provider.whole_put:
                try:
                    self._call("pipe_file", path, data, seconds=self._total / 3)
                except TimeoutError:  # the connection may have died without a word: once more, by another one
                    self._call("pipe_file", path, data, seconds=self._total * 2 / 3)
                return
            directory = path.rpartition("/")[0]
            self.fs.makedirs(directory, exist_ok=True)
            temporary = f"{directory}/.{uuid.uuid4().hex}.tmp"
            self._write(temporary, data)
            self._rename(temporary, path)

    def remove(self, name: str) -> None:
        """Remove one file; one that is not there is no error."""
        self._count()
        try:
            with self._translated(name):
                self._call("rm_file", self._path(name))
        except Absent:
            pass

    def require_root(self) -> None:
        """Raises NotFound where the bucket, or whatever holds the root, is not there: an empty listing of it would
        prove nothing. A folder that is not there yet is no error."""
        if self.provider.local or not self.provider.ascending:
            return
        bucket = self.root.partition("/")[0]
        self._count()
        with self._translated(bucket):
            try:
                self._call("ls", bucket, detail=False)
            except FileNotFoundError as exc:
                hint = "guildsync never makes a bucket: check the name, or make it first"
                raise NotFound(f"there is no bucket {bucket!r} ({self.where})", hint) from exc

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _count(self, requests: int = 1, sent: int = 0, received: int = 0) -> None:
        with self._counting:
            self.traffic = self.traffic.plus(Traffic(requests, sent, received))

    def _came(self, found: Any) -> bytes:
        data = bytes(found)
        self._count(received=len(data))
        return data

    def _call(self, method: str, *args: Any, seconds: float | None = None, **options: Any) -> Any:
        """One call of the filesystem. Where it can be given up it is, when its time is over or on Ctrl-C; what then
        became of a put nobody knows."""
        if not getattr(self.fs, "async_impl", False):
            return getattr(self.fs, method)(*args, **options)
        import asyncio  # the filesystem has it already; what is local starts without

        call = asyncio.run_coroutine_threadsafe(getattr(self.fs, f"_{method}")(*args, **options), self.fs.loop)
        seconds = seconds or self._total
        self._under_way.add(call)
        if self._given_up:
            call.cancel()
        try:
            return call.result(seconds)
        except StillRunning as exc:
            if call.done():
                raise
            raise TimeoutError(f"no answer within {seconds:.0f} s") from exc
        finally:
            self._under_way.discard(call)
            call.cancel()

    def give_up(self) -> None:
        """Nobody wants to know any more what becomes of the calls that other threads have made."""
        self._given_up = True
        for call in tuple(self._under_way):
            call.cancel()

    def _write(self, path: str, data: bytes) -> None:
        with self.fs.open(path, "wb") as file:
            file.write(data)
            if self.provider.local:
                file.flush()
                os.fsync(file.fileno())

    def _rename(self, old: str, new: str) -> None:
        if not self.provider.local:
            self.fs.mv(old, new)
            return
        os.replace(old, new)
        for directory in (os.path.dirname(new), os.path.dirname(os.path.dirname(new))):
            fd = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except (GuildsyncError, Absent):
            raise
        except FileNotFoundError as exc:
            raise Absent(name) from exc
        except Exception as exc:
            raise _translation(self.where, exc) from exc


def _modified(info: Mapping[str, Any]) -> float | None:
    """The latest time that a filesystem gives: a rename leaves one of them what it was before the file was there."""
    times = [info[key] for key in _TIMES if key in info]
    seconds = [
        time.timestamp() if isinstance(time, datetime) else float(time)
        for time in times
        if isinstance(time, (int, float)) or (isinstance(time, datetime) and time.tzinfo is not None)
    ]
    return max(seconds, default=None)


def _translation(where: str, exc: Exception) -> GuildsyncError:
    kind = type(exc).__name__
    text = _words(exc)
    denied = isinstance(exc, PermissionError) or kind in ("PermissionDeniedError", "UnauthenticatedError")
    if denied or any(code in text for code in _ENDINGS_OF_AUTHENTICATION):
        return Refused(f"{where} refused: {text}", "check the credentials and what they allow")
    if "Credential" in kind or kind in ("ProfileNotFound", "TokenRetrievalError"):
        return Refused(f"{where}: {text}", "set AWS_PROFILE or the remote's `profile`, or log in first")
    if isinstance(exc, (ConnectionError, TimeoutError)) or "Timeout" in kind or "Connect" in kind or "Endpoint" in kind:
        return Unreachable(f"{where} cannot be reached: {text}", "check the network and the address; then try again")
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom(f"{where}: {text}", "make room there; then the same command goes on")
    if isinstance(exc, OSError) or kind == "GenericError":  # obstore's, for whatever HTTP brought
        return Unreachable(f"{where}: {text}")
    return GuildsyncError(f"{where}: {kind}: {text}")


def _words(exc: Exception) -> str:
    """What an exception says, without the addresses, the times and the XML that engines add: the same each time."""
    text = str(exc).strip() or type(exc).__name__
    found = _CODE_OF_S3.search(text)
    if found:
        return ": ".join(word for word in found.groups() if word)
    return _ASKED.sub("", text.partition("\n")[0]).rstrip(": ")


@dataclass(frozen=True)
class S3:
    """How to reach an S3 bucket; None leaves it to the usual AWS chain. `engine` is auto, obstore or s3fs."""

    bucket: str
    root: str = ""
    region: str | None = None
    profile: str | None = None
    endpoint_url: str | None = None
    storage_class: str | None = None
    sse: str | None = None
    environment: Mapping[str, str] | None = None
    engine: str = "auto"


@dataclass(frozen=True)
class Keys:
    """Credentials that hold as they are, and the region that goes with them."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    region: str | None = None


_PLAIN_KEYS = {"aws_access_key_id", "aws_secret_access_key", "aws_session_token", "region", "output", "cli_pager"}
"""A profile that says more than this is boto's to understand: roles, SSO, processes, endpoints, `s3 = ...`."""


def keys_at_hand(profile: str | None, env: Mapping[str, str]) -> Keys | None:
    """The keys that boto would find, where it would find them in the environment or in a profile of keys alone."""
    region = env.get("AWS_DEFAULT_REGION")
    if profile is None:
        access_key, secret_key = env.get("AWS_ACCESS_KEY_ID"), env.get("AWS_SECRET_ACCESS_KEY")
        if access_key and secret_key:
            return Keys(access_key, secret_key, env.get("AWS_SESSION_TOKEN") or env.get("AWS_SECURITY_TOKEN"), region)
        if access_key or secret_key or "AWS_WEB_IDENTITY_TOKEN_FILE" in env:
            return None
        profile = env.get("AWS_DEFAULT_PROFILE") or env.get("AWS_PROFILE") or "default"
    config = _section(env.get("AWS_CONFIG_FILE", "~/.aws/config"), f"profile {profile}", profile)
    credentials = _section(env.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), profile)
    if config is None or credentials is None or not (config.keys() | credentials.keys()) <= _PLAIN_KEYS:
        return None
    for section in (credentials, config):  # boto never mixes the two
        access_key, secret_key = section.get("aws_access_key_id"), section.get("aws_secret_access_key")
        if access_key and secret_key:
            token = section.get("aws_session_token")
            return Keys(access_key, secret_key, token or None, region or config.get("region"))
    return None


def _section(path: str, *names: str) -> Mapping[str, str] | None:
    """The first of these sections, empty where there is none; None where the file cannot be read."""
    import configparser

    parser = configparser.RawConfigParser(default_section="")
    try:
        parser.read(os.path.expanduser(path), encoding="utf-8")
    except (OSError, ValueError, configparser.Error):
        return None
    return next((dict(parser[name]) for name in names if parser.has_section(name)), {})


def open_s3(where: S3, patience: Patience = PATIENCE) -> Files:
    """Files of a bucket. Asks nothing of the server yet.

    obstore starts several times faster than s3fs, but of credentials it knows keys alone and asks the machine's
    metadata for all others; so `auto` takes it where the keys are at hand and nothing else is asked for that
    only s3fs can.
    """
    root = f"{where.bucket}/{where.root.strip('/')}".rstrip("/")
    with _environment(where.environment or {}):
        keys = None if where.engine == "s3fs" else keys_at_hand(where.profile, os.environ)
        lacking = "the remote's `engine`" if where.engine == "s3fs" else _lacking(where, keys)
        if where.engine == "obstore" and (keys is None or not _plain(where.root) or find_spec("obstore") is None):
            raise Usage(f"s3:{root}: obstore cannot open this: {lacking}", "set `engine: auto`")
        if keys is not None and (where.engine == "obstore" or lacking is None):
            fs = _obstore(where, keys, patience)
        else:
            fs = _s3fs(where, patience)
    return Files(fs, root, f"s3:{root}", _PROVIDERS["s3"], patience.total)


def _lacking(where: S3, keys: Keys | None) -> str | None:
    """Why obstore would not do what s3fs does for this bucket; None where it would."""
    if find_spec("obstore") is None:
        return "it is not installed (it needs Python 3.11)"
    if keys is None:
        return "there are no keys in the environment, nor in a profile of keys alone"
    if not _plain(where.root):
        return "it would write names below this root in another way"
    if not where.region and not where.endpoint_url:
        return "it does not look for the bucket's region"
    foreign = {name for name in os.environ if name.startswith(_BEYOND_OBSTORE)}
    if (where.endpoint_url or "").startswith("http://"):
        foreign.discard("AWS_CA_BUNDLE")  # nothing there has a certificate
    return f"it does not heed {min(foreign)}" if foreign else None


def _plain(root: str) -> bool:
    parts = root.strip("/").split("/")
    return not root.strip("/") or all(re.fullmatch(r"[0-9A-Za-z._-]+", part) and part.strip(".") for part in parts)


def _obstore(where: S3, keys: Keys, patience: Patience) -> Any:
    from guildsync.store.engines import ObstoreFileSystem

    config = {"region": where.region or keys.region or "us-east-1"}
    if where.endpoint_url:
        config["endpoint"] = where.endpoint_url
    if where.sse:
        config["server_side_encryption"] = where.sse
    return ObstoreFileSystem(
        keys,
        config,
        patience=patience,
        storage_class=where.storage_class,
        spare=partial(_s3fs_with, where, keys, patience),
    )


def _s3fs_with(where: S3, keys: Keys, patience: Patience) -> Any:
    return _s3fs(where, patience, key=keys.access_key, secret=keys.secret_key, token=keys.token)


def _s3fs(where: S3, patience: Patience, **keys: str | None) -> Any:
    from s3fs import S3FileSystem

    config: dict[str, Any] = {
        "connect_timeout": patience.connect,
        "read_timeout": patience.read,
        "retries": {"mode": "standard", "total_max_attempts": 5},
    }
    if where.endpoint_url:
        config |= {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    extra = {"StorageClass": where.storage_class, "ServerSideEncryption": where.sse}
    fs = S3FileSystem(
        profile=None if keys else where.profile,
        endpoint_url=where.endpoint_url,
        client_kwargs={"region_name": where.region} if where.region else {},
        config_kwargs=config,
        s3_additional_kwargs={name: value for name, value in extra.items() if value},
        use_listings_cache=False,
        skip_instance_cache=True,
        max_concurrency=1,  # else every whole get asks for the size first
        **keys,
    )
    if keys:
        return fs  # made where waiting for `connect` would be waiting for itself
    try:
        fs.connect()
    except Exception as exc:
        raise _translation(f"s3:{where.bucket}", exc) from exc
    return fs


def open_url(url: str, options: Mapping[str, Any] | None = None, patience: Patience = PATIENCE) -> Files:
    """Files below any fsspec URL; `options` are the filesystem's own (its `storage_options`)."""
    from fsspec.core import url_to_fs

    where = without_secrets(url)
    if _OF_SSH.search(f"{url!r} {options!r}"):
        hint = "configure a remote of `type: ssh` with `layout: store`"
        raise Usage(f"{where}: fsspec would take any host for the one that is meant: it checks no host key", hint)
    try:
        fs, root = url_to_fs(url, **{"use_listings_cache": False, **(options or {})})
    except ImportError as exc:
        raise Usage(f"{where}: {exc}", "install the package that it names") from exc
    except (ValueError, TypeError) as exc:
        raise Usage(f"{where}: {exc}") from exc
    except Exception as exc:
        raise _translation(where, exc) from exc
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
    provider = next((_PROVIDERS[name] for name in protocols if name in _PROVIDERS), Provider())
    return Files(fs, root, where, provider, patience.total)


@contextmanager
def _environment(extra: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in extra}
    os.environ.update(extra)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
