"""Files over filesystems that are really there: what is put is whole, what fails is told in our words."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guildsync.errors import GuildsyncError, NotFound, Refused, Unreachable, Usage
from guildsync.store import fs
from guildsync.store.fs import S3, Absent, Files, Patience, open_s3, open_url
from tests.conftest import new_bucket
from tests.kit.proxy import proxied
from tests.kit.servers import S3Server, free_ports

KEY = "packs/ab/" + "ab" * 32
ENGINES = ("obstore", "s3fs")
KINDS = [
    "file",
    "memory",
    *(
        pytest.param(f"{server} {engine}", marks=pytest.mark.servers)
        for server in ("seaweed", "moto_server", "rclone_server")
        for engine in ENGINES
    ),
]
QUICK = Patience(1, 1, 20)


def login(patch: pytest.MonkeyPatch, access_key: str, secret_key: str) -> None:
    patch.setenv("AWS_ACCESS_KEY_ID", access_key)
    patch.setenv("AWS_SECRET_ACCESS_KEY", secret_key)


def s3_files(
    server: S3Server, bucket: str, root: str = "team/runs", patience: Patience = fs.PATIENCE, **more: Any
) -> Files:
    return open_s3(S3(bucket, root, region="us-east-1", endpoint_url=server.endpoint, **more), patience)


@pytest.fixture(params=KINDS)
def files(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """An empty place on each kind of filesystem."""
    if request.param == "file":
        return open_url(f"file://{tmp_path}/store")
    if request.param == "memory":
        return open_url(f"memory://{uuid.uuid4().hex}/store")
    name, engine = request.param.split()
    server: S3Server = request.getfixturevalue(name)
    login(monkeypatch, server.access_key, server.secret_key)
    return s3_files(server, new_bucket(server), engine=engine)


def engine_of(files: Files) -> str:
    return {"ObstoreFileSystem": "obstore", "S3FileSystem": "s3fs"}[type(files.fs).__name__]


# What is put


def test_what_is_put_is_read(files: Files) -> None:
    data = os.urandom(100_000)
    files.put(KEY, data)
    files.put(KEY, data)
    assert files.get(KEY) == data
    assert type(files.get(KEY)) is bytes


def test_an_empty_file_is_one(files: Files) -> None:
    files.put(KEY, b"")
    assert files.get(KEY) == b""
    assert files.list("packs", deep=True) == {KEY: 0}


def test_ranges(files: Files) -> None:
    data = bytes(range(256)) * 10
    files.put(KEY, data)
    for start, stop in ((0, 1), (0, len(data)), (100, 200), (len(data) - 1, len(data)), (len(data) - 5, len(data) + 9)):
        assert files.read(KEY, start, stop) == data[start:stop]


def test_what_is_not_there_is_absent(files: Files) -> None:
    for name in (KEY, "journal/none"):
        with pytest.raises(Absent):
            files.get(name)
        with pytest.raises(Absent):
            files.read(name, 0, 10)


def test_remove(files: Files) -> None:
    files.put(KEY, b"x")
    files.put(KEY + "0", b"y")
    files.remove(KEY)
    files.remove(KEY)
    files.remove("never/was")
    assert files.list("packs", deep=True) == {KEY + "0": 1}


# Listings


def test_listings_shallow_and_deep(files: Files) -> None:
    for name in ("journal/1", "journal/2", "packs/ab/abc", "packs/cd/cde", "top.json"):
        files.put(name, name.encode())
    assert files.list("journal") == {"journal/1": 9, "journal/2": 9}
    assert files.list("packs") == {}
    assert files.list("packs", deep=True) == {"packs/ab/abc": 12, "packs/cd/cde": 12}


def test_a_listing_of_what_is_not_there_is_empty(files: Files) -> None:
    files.require_root()
    assert files.list("journal") == {}
    assert files.list("packs", deep=True) == {}
    files.put("other/x", b"x")
    assert files.list("journal") == {}
    assert files.list("oth") == {}  # not a directory, but the beginning of its name


def test_a_listing_is_never_an_old_one(files: Files) -> None:
    assert files.list("journal") == {}
    for n in range(3):
        files.put(f"journal/{n}", b"x")
        assert len(files.list("journal")) == n + 1
    files.remove("journal/1")
    assert set(files.list("journal")) == {"journal/0", "journal/2"}


def test_what_another_client_put_is_listed(tmp_path: Path) -> None:
    one, other = (open_url(f"file://{tmp_path}/store") for _ in range(2))
    assert one.list("journal") == {}
    other.put("journal/1", b"x")
    assert one.list("journal") == {"journal/1": 1}


def test_names_are_literal(files: Files) -> None:
    """No character of a name is a pattern, not even where the place itself is called like one."""
    for name in ("a.b-c_d", "a.b-c_e"):
        files.put("journal/" + name, b"x")
    assert set(files.list("journal")) == {"journal/a.b-c_d", "journal/a.b-c_e"}
    files.remove("journal/a.b-c_d")
    assert set(files.list("journal")) == {"journal/a.b-c_e"}


def test_the_place_may_have_an_ugly_name(tmp_path: Path) -> None:
    for name in ("star*", "what?", "[abc]", "with space", "percent%41", "{a,b}"):
        files = Files(open_url(f"file://{tmp_path}").fs, f"{tmp_path}/{name}", name, fs._PROVIDERS["file"])
        files.put("journal/1", name.encode())
        assert files.get("journal/1") == name.encode()
        assert files.list("journal") == {"journal/1": len(name)}
        files.remove("journal/1")
    assert sorted(os.listdir(tmp_path)) == sorted(["star*", "what?", "[abc]", "with space", "percent%41", "{a,b}"])


@pytest.mark.servers
@pytest.mark.parametrize("engine", ENGINES)
def test_a_listing_of_more_than_one_page(engine: str, seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    login(monkeypatch, seaweed.access_key, seaweed.secret_key)
    files = s3_files(seaweed, new_bucket(seaweed), engine=engine)
    client = seaweed.client()
    for n in range(1005):
        client.put_object(Bucket=files.root.partition("/")[0], Key=f"team/runs/journal/{n:04d}", Body=b"x")
    assert sorted(files.list("journal")) == [f"journal/{n:04d}" for n in range(1005)]
    assert sorted(files.list("journal", deep=True)) == [f"journal/{n:04d}" for n in range(1005)]


@pytest.mark.servers
@pytest.mark.parametrize("engine", ENGINES)
def test_the_marker_of_a_folder_is_no_file(
    engine: str, moto_server: S3Server, seaweed: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for server in (moto_server, seaweed):
        login(monkeypatch, server.access_key, server.secret_key)
        files = s3_files(server, new_bucket(server), engine=engine)
        bucket = files.root.partition("/")[0]
        server.client().put_object(Bucket=bucket, Key="team/runs/journal/", Body=b"")
        assert files.list("journal") == files.list("journal", deep=True) == {}
        files.put("journal/one", b"x")
        assert files.list("journal") == files.list("journal", deep=True) == {"journal/one": 1}


@pytest.mark.servers
@pytest.mark.parametrize("engine", ENGINES)
def test_each_call_is_one_request(engine: str, seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    login(monkeypatch, seaweed.access_key, seaweed.secret_key)
    with proxied(seaweed.endpoint) as proxy:
        files = s3_files(replace(seaweed, endpoint=proxy.endpoint), new_bucket(seaweed), engine=engine)
        acts = (
            (files.put, "packs/ab/abc", bytes(6 << 20)),
            (files.put, "journal/1", b"x"),
            (files.get, "packs/ab/abc"),
            (files.read, "packs/ab/abc", 5, 10),
            (files.list, "journal"),
            (files.list, "packs", True),
            (files.remove, "journal/1"),
        )
        for act, *given in acts:
            proxy.forget()
            act(*given)
            assert len(proxy.requests) == 1, proxy.requests


# A put is whole


class Crash(BaseException):
    """The end of the process."""


@pytest.mark.parametrize("local", [True, False])
def test_a_crash_before_the_rename_leaves_nothing_under_the_name(
    local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = open_url(f"file://{tmp_path}/store")
    files.provider = fs.Provider(local=local)

    def crash(*_: Any) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(files, "_rename", crash)
        with pytest.raises(Crash):
            files.put("journal/1", b"all of it")
    with pytest.raises(Absent):
        files.get("journal/1")
    (left,) = files.list("journal")
    assert left.startswith("journal/.")
    files.put("journal/1", b"all of it")
    assert files.get("journal/1") == b"all of it"


def test_a_crash_while_writing_leaves_nothing_under_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = open_url(f"file://{tmp_path}/store")

    def crash(fd: int) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crash)
        with pytest.raises(Crash):
            files.put("journal/1", b"all of it")
    with pytest.raises(Absent):
        files.get("journal/1")


def test_a_local_put_is_durable_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = open_url(f"file://{tmp_path}/store")
    said: list[str] = []
    sync, rename = os.fsync, os.replace

    def logged_sync(fd: int) -> None:
        said.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        sync(fd)

    def logged_rename(old: str, new: str) -> None:
        said.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", logged_sync)
    monkeypatch.setattr(os, "replace", logged_rename)
    files.put("packs/ab/abc", b"x")
    assert [name if not name.endswith(".tmp") else "the file" for name in said] == ["the file", "rename", "ab", "packs"]


# Errors in our words


@pytest.mark.servers
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("server", ["seaweed", "rclone_server"])
def test_wrong_credentials_are_refused(
    server: str, engine: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: S3Server = request.getfixturevalue(server)
    bucket = new_bucket(there)
    for keys in (("wrong", there.secret_key), (there.access_key, "wrong")):
        login(monkeypatch, *keys)
        files = s3_files(there, bucket, engine=engine)
        acts = (
            (files.list, "journal"),
            (files.get, "guildsync.json"),
            (files.put, "x", b"x"),
            (files.require_root,),
        )
        for act, *given in acts:
            with pytest.raises(Refused) as caught:
                act(*given)
            assert caught.value.exit_code == 4
            assert files.where in caught.value.message
            assert "secret" not in caught.value.message


def test_no_credentials_at_all_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused):
        s3_files(S3Server("nobody", f"http://127.0.0.1:{free_ports(1)[0]}"), "bucket", profile="no-such-profile")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_closed_port_is_unreachable_and_soon_so(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    login(monkeypatch, "a", "b")
    nobody = S3Server("nobody", f"http://127.0.0.1:{free_ports(1)[0]}")
    files = s3_files(nobody, "bucket", patience=QUICK, engine=engine)
    with pytest.raises(Unreachable) as caught:
        files.list("journal")
    assert caught.value.exit_code == 5
    assert "bucket" in caught.value.message


@pytest.mark.servers
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("server", ["seaweed", "moto_server"])
def test_no_bucket_is_not_found(
    server: str, engine: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: S3Server = request.getfixturevalue(server)
    login(monkeypatch, there.access_key, there.secret_key)
    files = s3_files(there, f"no-{uuid.uuid4().hex[:20]}", engine=engine)
    assert files.list("journal") == {}
    assert files.list("journal", deep=True) == {}
    with pytest.raises(NotFound) as caught:
        files.require_root()
    assert caught.value.exit_code == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o500)
    with pytest.raises(Refused) as caught:
        open_url(f"file://{tmp_path}/store").put("journal/1", b"x")
    assert caught.value.exit_code == 4


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"")
    files = open_url(f"file://{tmp_path}/store")
    assert files.list("journal") == {}
    with pytest.raises(GuildsyncError):
        files.put("journal/1", b"x")


def test_a_url_that_nothing_understands() -> None:
    with pytest.raises(Usage):
        open_url("nosuchscheme://x/y")


def test_the_environment_of_a_remote_ends_with_the_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUILDSYNC_TEST_KEPT", "before")
    there = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "GUILDSYNC_TEST_KEPT": "meanwhile"}
    open_s3(S3("bucket", environment=there))
    assert os.environ["GUILDSYNC_TEST_KEPT"] == "before"
    assert "AWS_ACCESS_KEY_ID" not in os.environ


# Which engine

STATIC = "[default]\naws_access_key_id = a\naws_secret_access_key = b\n"
HERE = "http://127.0.0.1:1"


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("env", "files", "more", "engine"),
    [
        ({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, ("", ""), {}, "obstore"),
        ({}, (STATIC, ""), {}, "obstore"),
        ({}, ("", STATIC), {}, "obstore"),
        ({}, (STATIC, "[default]\nregion = eu-west-1\noutput = json\n"), {}, "obstore"),
        ({"AWS_PROFILE": "p"}, (STATIC.replace("default", "p"), ""), {}, "obstore"),
        ({}, ("", STATIC.replace("default", "profile p")), {"profile": "p"}, "obstore"),
        ({}, (STATIC, ""), {"endpoint_url": None, "region": "eu-west-1"}, "obstore"),
        ({}, ("", ""), {"environment": {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}}, "obstore"),
        ({}, (STATIC, ""), {"engine": "s3fs"}, "s3fs"),
        ({}, (STATIC, ""), {"endpoint_url": None}, "s3fs"),
        ({}, (STATIC, ""), {"root": "of the team"}, "s3fs"),
        ({}, (STATIC, ""), {"root": "a/../b"}, "s3fs"),
        ({}, (STATIC, "[default]\ns3 =\n  addressing_style = path\n"), {}, "s3fs"),
        ({}, (STATIC, "[default]\nrole_arn = x\nsource_profile = default\n"), {}, "s3fs"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:2"}, (STATIC, ""), {}, "s3fs"),
        ({"AWS_CA_BUNDLE": "/x"}, (STATIC, ""), {"endpoint_url": None, "region": "eu-west-1"}, "s3fs"),
        ({"AWS_CA_BUNDLE": "/x"}, (STATIC, ""), {}, "obstore"),
    ],
)
def test_auto_takes_obstore_where_the_keys_are_at_hand(
    env: Mapping[str, str],
    files: tuple[str, str],
    more: Mapping[str, Any],
    engine: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    credentials, config = files
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", written(tmp_path / "credentials", credentials))
    monkeypatch.setenv("AWS_CONFIG_FILE", written(tmp_path / "config", config))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert engine_of(open_s3(S3("bucket", **{"endpoint_url": HERE, **more}))) == engine


def test_keys_are_those_that_boto_finds(tmp_path: Path) -> None:
    text = STATIC + "aws_session_token = t\nregion = r\n[p]\naws_access_key_id = c\naws_secret_access_key = d\n"
    files = {
        "AWS_SHARED_CREDENTIALS_FILE": written(tmp_path / "credentials", text),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }
    own = {"AWS_ACCESS_KEY_ID": "e", "AWS_SECRET_ACCESS_KEY": "f", "AWS_SESSION_TOKEN": "u"}
    assert fs.keys_at_hand(None, files) == fs.Keys("a", "b", "t")
    assert fs.keys_at_hand("p", files | own) == fs.Keys("c", "d")
    assert fs.keys_at_hand(None, files | own | {"AWS_PROFILE": "p"}) == fs.Keys("e", "f", "u")
    assert fs.keys_at_hand("none", files) is None
    assert fs.keys_at_hand(None, files | {"AWS_ACCESS_KEY_ID": "e"}) is None
    assert fs.keys_at_hand(None, files | {"AWS_WEB_IDENTITY_TOKEN_FILE": "/x"}) is None
    assert "f" not in repr(fs.Keys("e", "f"))[4:]


def test_obstore_without_keys_is_a_mistake_of_the_configuration() -> None:
    with pytest.raises(Usage, match="no keys"):
        open_s3(S3("bucket", endpoint_url=HERE, engine="obstore"))


def test_obstore_never_asks_the_metadata_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    login(monkeypatch, "a", "b")
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    with proxied(HERE) as metadata:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", metadata.endpoint)
        files = open_s3(S3("bucket", endpoint_url=HERE, engine="obstore"), Patience(1, 1, 2))
        with pytest.raises(Unreachable):
            files.list("journal")
        assert metadata.connections == 0


@pytest.mark.servers
@pytest.mark.parametrize("engine", ENGINES)
def test_the_class_of_storage_and_encryption_reach_the_server(
    engine: str, moto_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    login(monkeypatch, moto_server.access_key, moto_server.secret_key)
    bucket = new_bucket(moto_server)
    for sse in ("AES256", "aws:kms"):
        files = s3_files(moto_server, bucket, storage_class="STANDARD_IA", sse=sse, engine=engine)
        for size in (10, 6 << 20):
            files.put(KEY, bytes(size))
            head = moto_server.client().head_object(Bucket=bucket, Key=f"team/runs/{KEY}")
            assert (head["StorageClass"], head["ServerSideEncryption"]) == ("STANDARD_IA", sse)
