"""Fixtures of all tests: a clean environment, and real S3 servers that start when first asked for."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from guildsync import hosts
from guildsync.store.fs import open_url
from tests.kit import servers
from tests.kit.guild import Guild, install
from tests.kit.servers import SERVERS, S3Server
from tests.kit.sshd import Client, Sshd, client, sshd

# No deadlines: a busy machine is no bug. HYPOTHESIS_PROFILE=thorough looks longer.
settings.register_profile("quick", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

_PRIVATE = ("AWS_", "GUILD", "BOTO")


@pytest.fixture(autouse=True, scope="session")
def _no_personal_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        _clean(patch, tmp_path_factory.mktemp("home"))
        yield


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing of the person's own configuration reaches a test; answers the HOME that this test alone sees."""
    home = tmp_path_factory.mktemp("home")
    _clean(monkeypatch, home)
    return home


@pytest.fixture
def memory_store() -> Iterator[str]:
    """The URL of a store of this test alone."""
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    files = open_url(url)
    if files.fs.exists(files.root):
        files.fs.rm(files.root, recursive=True)


def _clean(patch: pytest.MonkeyPatch, home: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith(_PRIVATE):
            patch.delenv(name)
    patch.setenv("HOME", str(home))
    for name in ("CONFIG", "CACHE", "DATA", "STATE"):
        patch.setenv(f"XDG_{name}_HOME", str(home / f".{name.lower()}"))
    # without these boto asks an address of the cloud for credentials
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_CONFIG_FILE", str(home / "no-aws-config"))
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "no-aws-credentials"))


# One server a worker of pytest-xdist: nobody waits for, or outlives, another worker's server.


@pytest.fixture(scope="session")
def seaweed() -> Iterator[S3Server]:
    with servers.seaweedfs() as server:
        yield server


@pytest.fixture(scope="session")
def rclone_server() -> Iterator[S3Server]:
    with servers.rclone_s3() as server:
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    with servers.moto() as server:
        yield server


def new_bucket(server: S3Server) -> str:
    return server.make_bucket(f"t-{uuid.uuid4().hex[:20]}")


@pytest.fixture
def s3_bucket(seaweed: S3Server) -> str:
    """The name of a fresh bucket on `seaweed`."""
    return new_bucket(seaweed)


@pytest.fixture(params=SERVERS)
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Every kind of server in turn; `servers.s3_servers("seaweed", …)` chooses some of them."""
    server: S3Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture(scope="session")
def guild(tmp_path_factory: pytest.TempPathFactory) -> Guild:
    """Guild AI, for tests that are marked `soak`."""
    return install(tmp_path_factory.mktemp("guild"))


@pytest.fixture(scope="session")
def ssh_host() -> Iterator[Sshd]:
    """A host that takes the user `ssh_user`."""
    with sshd() as server:
        yield server


@pytest.fixture
def ssh_user(ssh_host: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Somebody who knows `ssh_host` as `far`, and is nobody whom ssh could ask anything."""
    with client(tmp_path / "user") as user:
        user.home.mkdir(exist_ok=True)
        user.add("far", ssh_host)
        for name, value in user.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(hosts, "has_terminal", lambda: False)
        yield user


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Of so many KiB as the test says, or 256."""
    place, size = tmp_path / "small", getattr(request, "param", 256)
    place.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)]
    if subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode:
        pytest.skip("a file system of its own needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], timeout=60, check=True)
