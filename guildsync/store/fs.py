"""Open a filesystem; every fsspec, s3fs and sshfs quirk lives here and nowhere else."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from guildsync.errors import GuildsyncError, NotFound, Refused, Unreachable, Usage, without_secrets

CONNECT_TIMEOUT = 10
READ_TIMEOUT = 30

_ENDINGS_OF_AUTHENTICATION = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")


@dataclass(frozen=True)
class Provider:
    """What a kind of filesystem guarantees. `whole_put`: a put shows all of a file or nothing; else a file is put
    under a temporary name and renamed. `ascending`: one LIST in ascending order is a valid reading (rule N3)."""

    whole_put: bool = False
    ascending: bool = False
    local: bool = False


_OBJECT_STORE = Provider(whole_put=True, ascending=True)
_PROVIDERS = {
    "s3": _OBJECT_STORE,
    "gs": _OBJECT_STORE,
    "abfs": _OBJECT_STORE,
    "memory": Provider(whole_put=True),
    "file": Provider(local=True),
}
"""What is not listed here is taken to guarantee nothing: a rename, and no order."""


class Absent(Exception):
    """No object of that name is there."""


class Files:
    """The objects of a store as files of an fsspec filesystem, by literal names below one root.

    Names are relative and hold only `[0-9a-z/._-]`. Whatever the filesystem raises leaves here as Absent or as a
    GuildsyncError. All methods may be called from several threads.
    """

    def __init__(self, fs: Any, root: str, where: str, provider: Provider) -> None:
        """`where` is the store's place in words for people."""
        self.fs = fs
        self.root = root.rstrip("/") or root
        self.where = where
        self.provider = provider

    def list(self, directory: str, deep: bool = False) -> dict[str, int]:
        """The sizes in bytes of all files in a directory (`deep`: below it) by name relative to the root; empty
        where there is no such directory."""
        path = self._path(directory).rstrip("/")
        with self._translated(directory):
            self.fs.invalidate_cache(path)
            try:
                found = self.fs.find(path, detail=True).values() if deep else self.fs.ls(path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
            top = self.root.lstrip("/") + "/"
            return {
                info["name"].lstrip("/").removeprefix(top): info["size"]
                for info in found
                if info["type"] == "file" and not info["name"].endswith("/")  # that is how buckets mark a folder
            }

    def get(self, name: str) -> bytes:
        """All of a file; raises Absent."""
        with self._translated(name):
            return bytes(self.fs.cat_file(self._path(name)))

    def read(self, name: str, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of a file, fewer at its end; raises Absent."""
        with self._translated(name):
            return bytes(self.fs.cat_file(self._path(name), start=start, end=stop))

    def put(self, name: str, data: bytes) -> None:
        """Make a file whole and durable, or leave nothing under its name. Putting the same bytes again is harmless."""
        path = self._path(name)
        with self._translated(name):
            if self.provider.whole_put:
                self.fs.pipe_file(path, data)
                return
            directory = path.rpartition("/")[0]
            self.fs.makedirs(directory, exist_ok=True)
            temporary = f"{directory}/.{uuid.uuid4().hex}.tmp"
            self._write(temporary, data)
            self._rename(temporary, path)

    def remove(self, name: str) -> None:
        """Remove one file; one that is not there is no error."""
        try:
            with self._translated(name):
                self.fs.rm_file(self._path(name))
        except Absent:
            pass

    def require_root(self) -> None:
        """Raises NotFound where the bucket, or whatever holds the root, is not there: an empty listing of it would
        prove nothing. A folder that is not there yet is no error."""
        if self.provider.local or not self.provider.ascending:
            return
        bucket = self.root.partition("/")[0]
        with self._translated(bucket):
            try:
                self.fs.ls(bucket, detail=False)
            except FileNotFoundError as exc:
                hint = "guildsync never makes a bucket: check the name, or make it first"
                raise NotFound(f"there is no bucket {bucket!r} ({self.where})", hint) from exc

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

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


def _translation(where: str, exc: Exception) -> GuildsyncError:
    text = str(exc).strip() or type(exc).__name__
    kind = type(exc).__name__
    if isinstance(exc, PermissionError) or any(code in text for code in _ENDINGS_OF_AUTHENTICATION):
        return Refused(f"{where} refused: {text}", "check the credentials and what they allow")
    if "Credential" in kind or kind in ("ProfileNotFound", "TokenRetrievalError"):
        return Refused(f"{where}: {text}", "set AWS_PROFILE or the remote's `profile`, or log in first")
    if isinstance(exc, (ConnectionError, TimeoutError)) or "Timeout" in kind or "Connect" in kind or "Endpoint" in kind:
        return Unreachable(f"{where} cannot be reached: {text}", "check the network and the address; then try again")
    if isinstance(exc, OSError):
        return Unreachable(f"{where}: {text}")
    return GuildsyncError(f"{where}: {kind}: {text}")


@dataclass(frozen=True)
class S3:
    """How to reach an S3 bucket; None leaves it to the usual AWS chain."""

    bucket: str
    root: str = ""
    region: str | None = None
    profile: str | None = None
    endpoint_url: str | None = None
    storage_class: str | None = None
    sse: str | None = None
    environment: Mapping[str, str] | None = None


def open_s3(where: S3) -> Files:
    """Files of a bucket, by s3fs. Asks nothing of the server yet."""
    from s3fs import S3FileSystem

    config: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": READ_TIMEOUT,
        "retries": {"mode": "standard", "total_max_attempts": 5},
    }
    if where.endpoint_url:
        config |= {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    extra = {"StorageClass": where.storage_class, "ServerSideEncryption": where.sse}
    with _environment(where.environment or {}):
        fs = S3FileSystem(
            profile=where.profile,
            endpoint_url=where.endpoint_url,
            client_kwargs={"region_name": where.region} if where.region else {},
            config_kwargs=config,
            s3_additional_kwargs={name: value for name, value in extra.items() if value},
            use_listings_cache=False,
            skip_instance_cache=True,
            max_concurrency=1,  # else every whole get asks for the size first
        )
        try:
            fs.connect()
        except Exception as exc:
            raise _translation(f"s3:{where.bucket}", exc) from exc
    root = f"{where.bucket}/{where.root.strip('/')}".rstrip("/")
    return Files(fs, root, f"s3:{root}", _PROVIDERS["s3"])


def open_url(url: str, options: Mapping[str, Any] | None = None) -> Files:
    """Files below any fsspec URL; `options` are the filesystem's own (its `storage_options`)."""
    from fsspec.core import url_to_fs

    where = without_secrets(url)
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
    return Files(fs, root, where, provider)


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
