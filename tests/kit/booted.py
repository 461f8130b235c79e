"""A machine of ours on loopback: an sshd with the key and script of some user data, as cloud-init would have it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.kit.sshd import Sshd, new_key, sshd

_SHOWN = "etc/ssh/ssh_host_ed25519_key"
_SUDO = """#!/bin/sh
[ "$1" = -n ] && shift
script=$GUILDSYNC_ROOT$1
shift
exec "$script" "$@"
"""
_SYSTEMCTL = """#!/bin/sh
[ "$1" = restart ] && [ "$2" = ssh ] && kill -HUP "$(cat "$GUILDSYNC_ROOT/pid")"
"""


@dataclass(frozen=True)
class Booted:
    """`root` is what the machine has for `/`. Until `boot`, it shows a key that nobody vouches for."""

    root: Path
    server: Sshd

    @property
    def shown_key(self) -> str:
        """The public half of the key that it shows."""
        return " ".join((self.root / f"{_SHOWN}.pub").read_text().split()[:2])

    def boot(self, user_data: str) -> None:
        """As a new machine, that never did anything before."""
        shutil.rmtree(self.root / "var", ignore_errors=True)
        told = json.loads(user_data.partition("\n")[2])
        for file in told["write_files"]:
            path = self.root / file["path"].lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file["content"])
            path.chmod(int(file["permissions"], 8))
        self._show(told["ssh_keys"]["ed25519_private"], told["ssh_keys"]["ed25519_public"])

    def _show(self, private: str, public: str) -> None:
        for name, text in ((_SHOWN, private), (f"{_SHOWN}.pub", public)):
            (self.root / name).write_text(text.rstrip("\n") + "\n")
        os.kill(self.server.pid, signal.SIGHUP)


@contextmanager
def booted(root: Path) -> Iterator[Booted]:
    """Its commands for root are for whoever logs in; those that would touch this computer do something like it."""
    for directory in ("etc/ssh", "bin", "dev"):
        (root / directory).mkdir(parents=True)
    new_key(root / _SHOWN)
    for name, text in (("sudo", _SUDO), ("systemctl", _SYSTEMCTL)):
        (root / "bin" / name).write_text(text)
        (root / "bin" / name).chmod(0o755)
    environment = {"PATH": f"{root}/bin:{os.environ['PATH']}", "GUILDSYNC_ROOT": str(root)}
    with sshd({"HostKey": str(root / _SHOWN)}, environment) as server:
        (root / "pid").write_text(str(server.pid))
        yield Booted(root, server)
