"""Places of every type that a command line can name, and what lies there, byte by byte."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import new_bucket
from tests.kit.servers import REGION, S3Server

THERE = "there"
"""What the remote is called in the configuration."""
TREES = ("local", "disk", "ssh")
STORES = ("folder", "disk-store", "s3", "sftp")
_PASSING = (b"agent", b"bases", b"identity", b"lock", b"remotes", b"scalars", b"staging", b"stat")
"""What looking at a home may leave in its `.guildsync`."""
_FRAME = (b".guildsync", b".guildsync/tombstones", b"trash", b"trash/runs")
"""Directories that say nothing when they are empty."""

State = Mapping[str, tuple[object, ...]]


def kinds(*names: str) -> list[object]:
    """Parameters of a fixture, marked. What an account that only speaks SFTP adds to a folder is little and slow."""
    marks = {"ssh": [pytest.mark.servers], "s3": [pytest.mark.servers], "sftp": [pytest.mark.servers, pytest.mark.soak]}
    return [pytest.param(name, marks=marks.get(name, ())) for name in names]


ALL = kinds(*TREES, *STORES)
REMOTE = kinds("disk", "ssh", "folder", "s3", "sftp")
FEW = kinds("disk", "ssh", "folder")
"""One of each kind that differs to a sync."""
in_trees = pytest.mark.parametrize("place", kinds(*TREES), indirect=True)
in_every_remote = pytest.mark.parametrize("place", REMOTE, indirect=True)
in_stores = pytest.mark.parametrize("place", kinds(*STORES), indirect=True)


@dataclass(frozen=True)
class Place:
    """Where runs lie. Iterating gives the words that name it on a command line; none for the local home. `top` is the
    directory there, as far as there is one; `bucket` is of `server`."""

    kind: str
    top: Path | None = None
    server: S3Server | None = None
    bucket: str = ""

    def __iter__(self) -> Iterator[str]:
        return iter(("-r", THERE) if self.kind != "local" else ())

    @property
    def name(self) -> str:
        return THERE if self.kind != "local" else "local"

    @property
    def is_tree(self) -> bool:
        return self.kind in TREES

    @property
    def home(self) -> Path:
        """The home there, of a tree."""
        assert self.top is not None
        assert self.is_tree
        return self.top

    def state(self) -> State:
        """All that lies there: of directories names, kinds, modes, times and bytes, of buckets what they tell."""
        if self.server is not None:
            pages = self.server.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
            rows = [row for page in pages for row in page.get("Contents", ())]
            return {row["Key"]: (row["Size"], row["ETag"], row["LastModified"]) for row in rows}
        assert self.top is not None
        return dict(_lying(os.fsencode(self.top), b""))

    def packs(self) -> list[str]:
        """The packs of a store, in order."""
        return [name for name, row in sorted(self.state().items()) if "packs/" in name and row[2:]]

    def put(self, name: str, data: bytes) -> None:
        """A file that somebody else keeps there, or beside it (`../name`)."""
        if self.server is not None:
            key = os.path.normpath(f"team/runs/{name}")
            self.server.client().put_object(Bucket=self.bucket, Key=key, Body=data)
            return
        assert self.top is not None
        path = self.top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def get(self, name: str) -> bytes:
        if self.server is not None:
            key = os.path.normpath(f"team/runs/{name}")
            data: bytes = self.server.client().get_object(Bucket=self.bucket, Key=key)["Body"].read()
            return data
        assert self.top is not None
        return (self.top / name).read_bytes()


def _lying(top: bytes, prefix: bytes) -> Iterator[tuple[str, tuple[object, ...]]]:
    try:
        names = sorted(os.listdir(os.path.join(top, prefix)))
    except FileNotFoundError:
        return
    for name in names:
        path = os.path.join(prefix, name)
        if prefix == b".guildsync" and name in _PASSING:
            continue
        info = os.lstat(os.path.join(top, path))
        if stat.S_ISDIR(info.st_mode):
            if path not in _FRAME:
                yield os.fsdecode(path), (info.st_mode, info.st_mtime_ns)
            yield from _lying(top, path)
        elif stat.S_ISREG(info.st_mode):
            with open(os.path.join(top, path), "rb") as file:
                yield os.fsdecode(path), (info.st_mode, info.st_mtime_ns, info.st_ino, file.read())
        else:
            yield os.fsdecode(path), (info.st_mode, info.st_mtime_ns, info.st_ino)


def new_place(kind: str, directory: Path, home: Path, request: pytest.FixtureRequest) -> Place:
    """A place where nothing lies yet (`local`: `home`), and the configuration that every command of the test finds."""
    if kind == "local":
        return Place(kind, home)
    patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    server, bucket, top = None, "", directory / f"place {uuid.uuid4().hex[:4]}"
    keys: dict[str, str] = {"type": "local", "path": f"'{top}'"}
    if kind == "folder":
        keys = {"type": "fsspec", "url": f"'file://{top}'"}
    elif kind == "disk-store":
        keys["layout"] = "store"
    elif kind == "s3":
        server = request.getfixturevalue("seaweed")
        assert server is not None
        bucket, top = new_bucket(server), None
        patch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        keys = {
            "type": "s3",
            "bucket": bucket,
            "root": "team/runs",
            "region": REGION,
            "endpoint-url": f"'{server.endpoint}'",
        }
    elif kind in ("ssh", "sftp"):
        request.getfixturevalue("ssh_user")
        keys = {"type": "ssh", "host": "far", "guild-home": f"'{top}'"}
        if kind == "sftp":
            keys["layout"] = "store"
    file = directory / "config.yml"
    line = ", ".join(f"{key}: {value}" for key, value in keys.items())
    old = file.read_text() if file.exists() else "remotes:\n"
    file.write_text(f"{old}  {THERE}: {{{line}}}\n")
    patch.setenv("GUILDSYNC_CONFIG", str(file))
    return Place(kind, top, server, bucket)
