"""A real OpenSSH server on 127.0.0.1 with keys of its own, and the configuration of somebody who uses ssh."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path

from tests.kit.servers import free_ports, process, wait_until

SSHD_OPTIONS = {
    "UsePAM": "no",
    "PermitRootLogin": "yes",
    "PasswordAuthentication": "no",
    "KbdInteractiveAuthentication": "no",
    "StrictModes": "no",
    "PidFile": "none",
    "LogLevel": "VERBOSE",
    "MaxStartups": "100",
    "Subsystem": "sftp internal-sftp",
}


@dataclass(frozen=True)
class Sshd:
    """A running server. `home` is HOME of whoever logs in; `pid` the listening process's."""

    port: int
    directory: Path
    home: Path
    host_key: Path
    user_key: Path
    pid: int

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    @property
    def known_hosts_line(self) -> str:
        kind, key = self.host_key.with_suffix(".pub").read_text().split()[:2]
        return f"[127.0.0.1]:{self.port} {kind} {key}\n"


@dataclass
class Client:
    """HOME of somebody who uses ssh: hosts by alias, known by their keys. `runtime` holds control sockets."""

    home: Path
    runtime: Path
    blocks: list[str] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.home / ".ssh" / "config"

    @property
    def known_hosts(self) -> Path:
        return self.home / ".ssh" / "known_hosts"

    def add(self, alias: str, server: Sshd, known: bool = True, **options: str) -> None:
        """A host of that name in the configuration; `options` are further lines of its block."""
        self.config.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        given = {
            "HostName": "127.0.0.1",
            "Port": str(server.port),
            "User": getuser(),
            "IdentityFile": str(server.user_key),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            **options,
        }
        self.blocks.append(f"Host {alias}\n" + "".join(f"    {name} {value}\n" for name, value in given.items()))
        self.config.write_text("".join(self.blocks))
        with self.known_hosts.open("a") as file:
            file.write(server.known_hosts_line if known else "")

    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.runtime)}

    def end_masters(self) -> None:
        """No connection of this client outlives its test."""
        for path in self.runtime.rglob("*"):
            if path.is_socket():
                subprocess.run(
                    ["ssh", "-F", "none", "-O", "exit", "-o", f"ControlPath={path}", "nobody"],
                    capture_output=True, check=False, timeout=10,
                )  # fmt: skip


@contextmanager
def sshd(options: Mapping[str, str] | None = None, environment: Mapping[str, str] | None = None) -> Iterator[Sshd]:
    """A server with `options` beside those every test needs. Whoever logs in gets `environment`."""
    program = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        raise RuntimeError("there is no sshd; these tests need it: apt-get install openssh-server")
    directory = Path(tempfile.mkdtemp(prefix="guildsync-sshd-"))
    try:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        home = directory / "home"
        home.mkdir()
        keys = {name: new_key(directory / name) for name in ("host", "user")}
        (directory / "authorized").write_text(keys["user"].with_suffix(".pub").read_text())
        (port,) = free_ports(1)
        variables = {"HOME": str(home), **(environment or {})}
        lines = {
            **SSHD_OPTIONS,
            "Port": str(port),
            "ListenAddress": "127.0.0.1",
            "HostKey": str(keys["host"]),
            "AuthorizedKeysFile": str(directory / "authorized"),
            "SetEnv": " ".join(f"{name}={value}" for name, value in variables.items()),
            **(options or {}),
        }
        config = directory / "sshd_config"
        config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        with process([program, "-D", "-e", "-f", str(config)], directory) as child:
            wait_until(lambda: _listens(port), child, directory / "log")
            yield Sshd(port, directory, home, keys["host"], keys["user"], child.pid)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def client(directory: Path) -> Iterator[Client]:
    """Somebody's HOME below `directory`."""
    runtime = Path(tempfile.mkdtemp(prefix="gs-run-"))  # names of sockets must be short
    made = Client(directory, runtime)
    try:
        yield made
    finally:
        made.end_masters()
        shutil.rmtree(runtime, ignore_errors=True)


def new_key(path: Path) -> Path:
    """An Ed25519 key without a passphrase; its public half is beside it."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=30)
    return path


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0
