"""The far ends: a server behind a proxy, with room for what each tool pushes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from scripts.benchmarks.proxy import Proxy, proxied
from scripts.benchmarks.tools import Place
from scripts.benchmarks.trees import LARGE, census
from tests.kit.servers import ACCESS_KEY, REGION, SECRET_KEY, S3Server, seaweedfs
from tests.kit.sshd import Client, Sshd, client, sshd

ALIAS = "bench"
"""The host, in the configuration of ssh."""

KEPT = "10m"
"""How long an unused connection lives; it is opened anew where it ended."""

_SESSION = b"Starting session: "
_MASTER = re.compile(r"pid=(\d+)")


class Site(Protocol):
    def place(self, home: Path, state: Path) -> Place:
        """Here, and nothing at the far end yet."""

    def renew(self) -> None:
        """To be called before each row."""

    def ready(self) -> None:
        """To be called before each run of a tool that is measured, without delay."""

    def fresh(self, place: Place) -> Place:
        """The same with an empty far end; what was there goes, or will with the directory of `state`."""

    def drop(self, place: Place) -> None:
        """Removes what lies at the far end; harmless where nothing does."""

    def delay(self, rtt_ms: float) -> None: ...

    def take(self) -> dict[str, Any]:
        """What passed since the last time, as the fields of a Sample."""


class S3Site:
    """Buckets of an S3 server."""

    def __init__(self, server: S3Server, proxy: Proxy) -> None:
        self._client = server.client()
        self._proxy = proxy

    def place(self, home: Path, state: Path) -> Place:
        keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        region = {"AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true"}
        return Place(home, state, "", self._proxy.endpoint, {**keys, **region})

    def renew(self) -> None:
        pass

    def ready(self) -> None:
        pass

    def fresh(self, place: Place) -> Place:
        self.drop(place)
        bucket = f"bench-{uuid.uuid4().hex[:16]}"
        self._client.create_bucket(Bucket=bucket)
        # the server makes room for a bucket when the first object comes; nobody is to wait for that
        self._client.put_object(Bucket=bucket, Key="probe", Body=b"x")
        self._client.delete_object(Bucket=bucket, Key="probe")
        return replace(place, far=bucket)

    def drop(self, place: Place) -> None:
        if place.far:
            self._client.delete_bucket(Bucket=place.far)

    def delay(self, rtt_ms: float) -> None:
        self._proxy.delay(rtt_ms)

    def count(self, bucket: str, prefix: str) -> int:
        """How many objects a bucket has below a prefix; 1,000 at most."""
        return int(self._client.list_objects_v2(Bucket=bucket, Prefix=prefix)["KeyCount"])

    def take(self) -> dict[str, Any]:
        return _fields(self._proxy.take())


class SshSite:
    """Directories behind an SSH server, and one live connection to it for every tool that can use it."""

    def __init__(self, server: Sshd, user: Client, proxy: Proxy) -> None:
        self._log = server.directory / "log"
        self._user = user
        self._proxy = proxy
        self._read = 0
        self._cpu = 0.0
        self._master = 0
        socket = str(user.runtime / "live")
        through = replace(server, port=proxy.port)
        user.add(ALIAS, through, ControlMaster="auto", ControlPath=socket, ControlPersist=KEPT)

    def place(self, home: Path, state: Path) -> Place:
        return Place(home, state, "", str(self._user.config), self._user.environment())

    def renew(self) -> None:
        self._ssh("-O", "exit", ALIAS)
        self._master = 0

    def ready(self) -> None:
        """A connection that lives."""
        found = _MASTER.search(self._ssh("-O", "check", ALIAS))
        if found is None:
            opened = self._ssh(ALIAS, "true")
            found = _MASTER.search(self._ssh("-O", "check", ALIAS))
            if found is None:
                raise RuntimeError(f"no connection can be opened: {opened.strip()}")
        self._master = int(found[1])

    def fresh(self, place: Place) -> Place:
        self.drop(place)
        far = place.state.parent / f"far-{uuid.uuid4().hex}"
        far.mkdir()
        return replace(place, far=str(far))

    def drop(self, place: Place) -> None:
        if place.far and census(Path(place.far))[1] > LARGE:
            shutil.rmtree(place.far)  # small files stay, as those that were pulled do

    def delay(self, rtt_ms: float) -> None:
        self._proxy.delay(rtt_ms)

    def take(self) -> dict[str, Any]:
        with self._log.open("rb") as log:
            log.seek(self._read)
            data = log.read()
        self._read += len(data)
        before, self._cpu = self._cpu, _processor_seconds(self._master)
        fields = _fields(self._proxy.take())
        return {**fields, "requests": {"session": data.count(_SESSION)}, "link_cpu": self._cpu - before}

    def _ssh(self, *words: str) -> str:
        """What it says."""
        # what stays in the background must not hold a pipe open: its output goes to a file
        path = self._user.home / "said"
        with path.open("w+") as said:
            argv = ["ssh", "-F", str(self._user.config), *words]
            subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=60, check=False)
        return path.read_text(errors="replace")


def _fields(passed: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in passed.items() if name != "cpu"}, "proxy_cpu": passed["cpu"]}


def _processor_seconds(pid: int) -> float:
    """What a process has used; 0 where the system does not say."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def s3_site(directory: Path) -> Iterator[Site]:  # noqa: ARG001 (as all sites)
    with seaweedfs(volume_mb=1024, growth=4) as server, proxied(server.endpoint) as proxy:
        yield S3Site(server, proxy)


@contextmanager
def ssh_site(directory: Path) -> Iterator[Site]:
    with (
        sshd() as server,
        proxied(f"tcp://127.0.0.1:{server.port}") as proxy,
        client(directory / "user") as user,
    ):
        yield SshSite(server, user, proxy)
