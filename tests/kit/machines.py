"""Machines behind the door of `tests.kit.cloud`: what boots there, and the laptops that start and stop them.

A machine is a directory: what the user data brings lies below it, and the script in it is really executed, with real
keys; what is missing is sshd, so the key that one would show is compared here.
"""

from __future__ import annotations

import base64
import functools
import json
import multiprocessing
import os
import subprocess
import traceback
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from guildsync.compute.ec2 import Ec2Machine, Memory, Patience, Settings
from guildsync.compute.firstboot import SCRIPT
from guildsync.compute.ssh import UnknownKey
from guildsync.errors import GuildsyncError, Unreachable
from guildsync.model.machine import Instance
from tests.kit.cloud import IMAGE, Cloud
from tests.kit.servers import REGION

PATIENCE = Patience(listed=20.0, running=20.0, ended=20.0, answered=20.0, console=20.0, every=0.005)
"""For machines that are ready at once, and tests that must not hang."""
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGuildsyncGuildsyncGuildsyncGuildsyncGuilds0 ann"
SETTINGS = Settings("trainer", REGION, IMAGE, "t3.micro", PUBLIC_KEY, user="root")
CHILD_SECONDS = 60.0

_SHOWN = "etc/ssh/ssh_host_ed25519_key.pub"
_SYSTEMCTL = """#!/bin/sh
cp "$GUILDSYNC_ROOT/etc/ssh/ssh_host_ed25519_key.pub" "$GUILDSYNC_ROOT/shown.$$"
mv "$GUILDSYNC_ROOT/shown.$$" "$GUILDSYNC_ROOT/shown.pub"
"""


def booted(directory: Path, user_data: str) -> Path:
    """A machine that did what its user data says, as far as it is files; answers the directory that is its root."""
    head, _, text = user_data.partition("\n")
    assert head == "#cloud-config"
    told = json.loads(text)
    root = directory.with_name(f"{directory.name}.{uuid.uuid4().hex}")
    files = {
        **{file["path"]: file["content"] for file in told["write_files"]},
        "/etc/ssh/ssh_host_ed25519_key": told["ssh_keys"]["ed25519_private"],
        f"/{_SHOWN}": told["ssh_keys"]["ed25519_public"] + "\n",
        "/shown.pub": told["ssh_keys"]["ed25519_public"] + "\n",
        "/dev/console": "",
        "/bin/systemctl": _SYSTEMCTL,
    }
    for path, content in files.items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    (root / "bin/systemctl").chmod(0o755)
    (root / "etc/ssh/ssh_host_ed25519_key").chmod(0o600)
    with suppress(OSError):  # two clients saw it boot: the first one's is the machine
        root.rename(directory)
    return directory


def script(root: Path, verb: str, given: bytes = b"", **more: str) -> subprocess.CompletedProcess[bytes]:
    """The machine's script, executed with its root; the environment of the test, and `more`."""
    path = f"{root / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["sh", str(root / SCRIPT.lstrip("/")), verb],
        input=given, capture_output=True, check=False, timeout=30,
        env={"PATH": path, "HOME": str(root), "GUILDSYNC_ROOT": str(root), **more},
    )  # fmt: skip


@dataclass(frozen=True)
class Laptop:
    """Somebody's client, with a memory of its own. It can be sent to a process that is then killed."""

    memory: Path
    machines: Path
    environment: Mapping[str, str]
    moto: str
    settings: Settings = SETTINGS
    patience: Patience = PATIENCE
    said: list[str] = field(default_factory=list)

    @property
    def machine(self) -> Ec2Machine:
        os.environ.update(self.environment)
        read_models_once()
        return Ec2Machine(self.settings, Memory(str(self.memory)), self.patience)

    def start(self) -> Instance:
        return self.machine.start(self.reach, self.said.append)

    def stop(self) -> Instance | None:
        return self.machine.stop(False, self.said.append)

    def terminate(self) -> Instance | None:
        return self.machine.stop(True, self.said.append)

    def with_settings(self, **changed: Any) -> Laptop:
        return replace(self, settings=replace(self.settings, **changed))

    def root(self, instance: str) -> Path:
        return self.machines / instance

    def reach(self, instance: Instance, known_hosts: str) -> Callable[[Sequence[str], bytes, float | None], bytes]:
        root = self.root(instance.id)

        def run(command: Sequence[str], given: bytes = b"", timeout: float | None = None) -> bytes:
            assert list(command[:-1]) == [SCRIPT]
            self._tell(f"before-{command[-1]}")
            if not root.is_dir():
                self.machines.mkdir(parents=True, exist_ok=True)
                booted(root, self.user_data(instance))
            shown = (root / "shown.pub").read_text().split()[:2]
            lines = [line.split() for line in Path(known_hosts).read_text().splitlines()]
            if [instance.id, *shown] not in lines:
                raise UnknownKey(f"{instance.address} shows another host key")
            done = script(root, command[-1], given)
            if done.returncode:
                raise GuildsyncError(done.stderr.decode())
            self._tell(f"after-{command[-1]}")
            return done.stdout

        return run

    def killed(self, cloud: Cloud, verb: str, at: int, what: str) -> bool:
        """Does it in a process of its own, which `cloud` kills at that call; False where it ended before."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.kit.warm"])
        ours, theirs = context.Pipe()
        process = context.Process(target=_act, args=(self, verb, theirs), daemon=True)
        process.start()
        theirs.close()
        assert process.pid is not None
        cloud.fail(at, what, victim=process.pid)
        ours.send("go")
        process.join(CHILD_SECONDS)
        cloud.heal()
        assert process.exitcode is not None, "it hangs"
        if process.exitcode < 0:
            return True
        error = ours.recv()
        assert not error, error
        return False

    def _tell(self, what: str) -> None:
        url = f"{self.environment['AWS_ENDPOINT_URL']}/ssh/{what}"
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30).close()
        except OSError as exc:
            raise Unreachable("the connection broke") from exc

    def user_data(self, instance: Instance) -> str:
        found = _truth(self.moto, instance.region).describe_instance_attribute(
            InstanceId=instance.id, Attribute="userData"
        )
        return base64.b64decode(found["UserData"]["Value"]).decode()


@functools.lru_cache
def _truth(moto: str, region: str) -> Any:
    import boto3

    keys = {"aws_access_key_id": "TRUTH", "aws_secret_access_key": "secret"}
    return boto3.session.Session().client("ec2", region_name=region, endpoint_url=moto, **keys)


def read_models_once() -> None:
    """What botocore reads of EC2 for every session is large: here all sessions share it."""
    from botocore import session

    if not hasattr(session.create_loader, "cache_info"):
        session.create_loader = functools.lru_cache(session.create_loader)


def laptop(cloud: Cloud, directory: Path, name: str = "ann", number: int = 0) -> Laptop:
    """One of somebody's; those of one directory see the same machines."""
    memory = directory / f"{name}-{number}" / ".guildsync" / "machines" / "trainer"
    return Laptop(memory, directory / "machines", cloud.environment(name), cloud.moto.endpoint)


def _act(who: Laptop, verb: str, told: Connection) -> None:
    told.recv()
    try:
        getattr(who, verb)()
        told.send("")
    except BaseException:  # noqa: BLE001 -- the parent shows it
        told.send(traceback.format_exc())
