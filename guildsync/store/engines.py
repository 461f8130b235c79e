"""obstore as an fsspec filesystem for one bucket, with the traps of its own fsspec class mended."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, cast

from obstore.exceptions import GenericError
from obstore.fsspec import FsspecStore
from obstore.store import S3Store

LARGE = 1 << 20
"""Bytes from which a put has no limit on the time until an answer comes: obstore counts the upload to it."""


class Keys(Protocol):
    """Credentials that hold as they are."""

    @property
    def access_key(self) -> str: ...
    @property
    def secret_key(self) -> str: ...
    @property
    def token(self) -> str | None: ...


class Patience(Protocol):
    """Seconds: to connect, without a byte until a read is tried anew, and for one call in all."""

    @property
    def connect(self) -> float: ...
    @property
    def read(self) -> float: ...
    @property
    def total(self) -> float: ...


class ObstoreFileSystem(FsspecStore):
    """An S3 filesystem that asks nobody but S3.

    FsspecStore is not used as it is: its `find` asks once a folder instead of once, its `pipe_file` makes a multipart
    upload of all above 5 MiB (left behind by a crash), a bucket that is not there is a GenericError of its lists and
    an empty one a FileNotFoundError, and its time for a whole request ends after 30 s, however much still moves.
    """

    cachable = False

    def __init__(
        self,
        keys: Keys,
        config: dict[str, Any],
        *,
        patience: Patience,
        storage_class: str | None,
        spare: Callable[[], Any],
    ) -> None:
        """`spare` makes another filesystem for the same bucket; servers that call a part of a file the whole of it
        (`rclone serve s3` answers 200) are read by it."""
        found = {"access_key_id": keys.access_key, "secret_access_key": keys.secret_key, "token": keys.token}
        # A provider and not configuration: obstore would mix that with a token that it finds in the environment.
        provider = lambda: {**found, "expires_at": None}  # noqa: E731
        client = {
            "allow_http": True,
            "connect_timeout": timedelta(seconds=patience.connect),
            "timeout": timedelta(days=1),  # of a whole request; who calls has a deadline of his own
        }
        retry = {
            "max_retries": 8,
            "retry_timeout": timedelta(seconds=patience.total),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
        }
        store: Any = partial(
            S3Store,
            config=cast("Any", {**config, "virtual_hosted_style_request": False}),
            retry_config=cast("Any", retry),
            credential_provider=cast("Any", provider),
        )
        self._quick = partial(store, client_options={**client, "read_timeout": timedelta(seconds=patience.read)})
        self._slow = partial(store, client_options=client)
        self._slow_stores: dict[str, Any] = {}
        self._attributes = {"Storage-Class": storage_class} if storage_class else None
        self._make_spare = spare
        self._spare: Any = None
        super().__init__("s3")

    def _construct_store(self, bucket: str) -> Any:  # FsspecStore keeps what this makes
        return self._quick(bucket)

    async def _pipe_file(self, path: str, value: Any, mode: str = "overwrite", **_: Any) -> None:
        bucket, name = self._split_path(path)
        if len(value) < LARGE:
            store = self._construct_store(bucket)
        else:
            if bucket not in self._slow_stores:
                self._slow_stores[bucket] = self._slow(bucket)
            store = self._slow_stores[bucket]
        how = "create" if mode == "create" else "overwrite"
        await store.put_async(name, value, attributes=self._attributes, use_multipart=False, mode=how)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        if start is None and end is None:
            return bytes(await super()._cat_file(path))
        if self._spare is None:
            try:
                return bytes(await super()._cat_file(path, start=start, end=end))
            except GenericError as exc:
                if "NotPartial" not in str(exc):
                    raise
            self._spare = self._make_spare()
        return bytes(await self._spare._cat_file(path, start=start, end=end))  # noqa: SLF001 (both run in fsspec's loop)

    async def _ls(self, path: str, detail: bool = False, **_: Any) -> Any:
        bucket, name = self._split_path(self._strip_protocol(path))
        try:
            found = await _again(lambda: self._construct_store(bucket).list_with_delimiter_async(name or None))
        except GenericError as exc:
            raise _absent(bucket, exc) from exc
        rows = [_file(bucket, row) for row in found["objects"]]
        rows += [{"name": f"{bucket}/{top}", "size": 0, "type": "directory"} for top in found["common_prefixes"]]
        if not rows and name:
            raise FileNotFoundError(path)  # a bucket with nothing in it is there
        return rows if detail else sorted(row["name"] for row in rows)

    async def _find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, **options: Any) -> Any:
        """All files below, by one listing in ascending order."""
        if maxdepth is not None or withdirs:
            return await super()._find(path, maxdepth=maxdepth, withdirs=withdirs, **options)
        bucket, name = self._split_path(self._strip_protocol(path))
        found = {}
        try:
            for row in await _again(lambda: self._construct_store(bucket).list(name or None).collect_async()):
                found[f"{bucket}/{row['path']}"] = _file(bucket, row)
        except GenericError as exc:
            raise _absent(bucket, exc) from exc
        return found if options.get("detail") else sorted(found)


def _file(bucket: str, row: Any) -> dict[str, Any]:
    """What fsspec wants of a file; FsspecStore leaves out since when it is there."""
    return {
        "name": f"{bucket}/{row['path']}",
        "size": row["size"],
        "type": "file",
        "e_tag": row["e_tag"],
        "last_modified": row["last_modified"],
    }


async def _again(act: Callable[[], Any]) -> Any:
    """Of its lists, obstore tries anew what got no answer, not one whose body was broken off."""
    for _ in range(3):
        try:
            return await act()
        except GenericError as exc:
            if "response body" not in str(exc).partition("\n")[0]:
                raise
    return await act()


def _absent(path: str, exc: GenericError) -> Exception:
    return FileNotFoundError(path) if "NoSuchBucket" in str(exc) else exc
