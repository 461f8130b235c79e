"""One multiplexed OpenSSH connection; the only place that quotes for a shell."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import select
import shlex
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import IO

from guildsync.errors import GuildsyncError, NotFound, Refused, Unreachable, Usage

PERSIST = 60
"""Seconds that a connection of ours is kept for the next command."""
BATCH_PATIENCE, ASKING_PATIENCE = 25.0, 150.0
"""Seconds beyond the connecting that log-in may take: without, and with somebody who is asked for a passphrase."""
_LONGEST_SOCKET = 100 - len("/") - 40 - len(".0123456789abcdef")
"""Of the directory's name, lest the socket's be too long for the system: 40 of %C, and a suffix while it is made."""
_SYSTEM_CONFIG = "/etc/ssh/ssh_config"
_UNSAFE_IN_HOST = frozenset(" '`\"$\\;&<>|(){}[]*?,!#")
_UNSAFE_IN_USER = frozenset("'`\";&<>|(){}$")
_SAID = 4000

_OFFENDING = re.compile(r"Offending .*? key in ([^\n\r]*:\d+)")
_AUTHENTICATION = ("Permission denied", "Too many authentication failures", "no mutual signature")
_NO_SESSION = ("open failed", "refused by peer", "administratively prohibited", "disabling multiplexing")
_CONNECTION = (
    "Could not resolve", "Connection refused", "timed out", "No route to host", "Network is unreachable",
    "Connection closed", "Connection reset", "kex_exchange_identification", "not responding", "Broken pipe",
)  # fmt: skip


class UnknownKey(Refused):
    """The host did not show a key that it is known by: nothing was sent, and it was not asked to let us in."""


@dataclass(frozen=True)
class Host:
    """How to reach a host; what is None is left to the user's own configuration of ssh. `connect_timeout`: seconds.
    `known_hosts`: the path of the one file that says what key the host shows, under the name `alias` (else `host`)."""

    host: str
    user: str | None = None
    port: int | None = None
    private_key: str | None = None
    proxy: str | None = None
    connect_timeout: float = 10.0
    known_hosts: str | None = None
    alias: str | None = None

    def __post_init__(self) -> None:
        for jump in (self.proxy or "").split(",") if self.proxy else ():
            user, _, host = jump.rpartition("@")
            _check_words(host.rpartition(":")[0] if host.count(":") == 1 else host, user or None)
        _check_words(self.host, self.user)

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"{user}{self.host}{f':{self.port}' if self.port else ''}"


def _check_words(host: str, user: str | None) -> None:
    """ssh may hand both to a shell (ProxyCommand, Match exec): nothing that means something there goes in."""
    if (
        not host.strip("[]")
        or host.startswith("-")
        or not host.isprintable()
        or _UNSAFE_IN_HOST & set(host)
        or " " in host
    ):
        raise Usage(
            f"{host[:80]!r} cannot be the name of a host", "say a name, an address, or an alias of ~/.ssh/config"
        )
    if user is not None and (
        not user or user.startswith("-") or not user.isprintable() or _UNSAFE_IN_USER & set(user) or user.endswith("\\")
    ):
        raise Usage(f"{user[:80]!r} cannot be the name of a user", "say the name that you log in with")


def has_terminal() -> bool:
    """Is there somebody whom ssh can ask?"""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY))
    except OSError:
        return False
    return True


def quoted(argv: Sequence[str]) -> str:
    """The words as one line for whatever shell logs in there; raises Usage for one that no shell takes."""
    for word in argv:
        if "\0" in word or "\n" in word:
            raise Usage(f"{word[:80]!r} cannot be a word of a command", "leave out line breaks")
    return " ".join(shlex.quote(word) for word in argv)


def _options(host: Host) -> list[str]:
    """Of the host alone: ssh does not pass them on to the one it starts for a jump."""
    options = ["-l", host.user] if host.user else []
    options += ["-p", str(host.port)] if host.port else []
    options += ["-i", host.private_key, "-oIdentitiesOnly=yes"] if host.private_key else []
    options += ["-J", host.proxy] if host.proxy else []
    options += [f"-oHostKeyAlias={host.alias}"] if host.alias else []
    return [*options, *_pinned(host.known_hosts)] if host.known_hosts else options


def _pinned(known_hosts: str) -> list[str]:
    """Nobody is asked, nothing is learnt, and no other file makes the host known."""
    file = known_hosts.replace("%", "%%")
    files = [f'-oUserKnownHostsFile="{file}"', "-oGlobalKnownHostsFile=/dev/null", "-oVerifyHostKeyDNS=no"]
    return [*files, "-oStrictHostKeyChecking=yes", "-oCheckHostIP=no", "-oUpdateHostKeys=no"]


def _socket(host: Host) -> list[str]:
    """What was let in by another key, or by the user's own judgement, does not serve a host whose key is pinned."""
    if not host.known_hosts:
        return []
    name = hashlib.sha1("\0".join(map(str, astuple(host))).encode(), usedforsecurity=False).hexdigest()
    path = os.path.join(_runtime_directory(), name)
    return [f'-oControlPath="{path.replace("%", "%%")}"' if _fits(os.path.dirname(path)) else "-oControlPath=none"]


def _fits(sockets: str) -> bool:
    return len(os.fsencode(sockets)) <= _LONGEST_SOCKET


class Ssh:
    """Starts processes on a host. All share one connection: a live one of the user's own where their configuration
    names it, else one of ours, kept for a minute after its last use."""

    def __init__(self, host: Host, interactive: bool) -> None:
        """`interactive`: there is a terminal where ssh may ask for a passphrase, a code, or about an unknown host."""
        self.host, self._interactive = host, interactive
        self._config: str | None = None

    @property
    def patience(self) -> float:
        """Seconds until a process there must have said something."""
        return self.host.connect_timeout + (ASKING_PATIENCE if self._interactive else BATCH_PATIENCE)

    def argv(self, command: Sequence[str], quietly: bool = False) -> list[str]:
        """What is executed here to execute `command` there, by the shell that logs in. `quietly`: ssh asks nothing."""
        self._config = self._config or _write_config(self._lines())
        options = ["-F", self._config, "-T", *_options(self.host), *_socket(self.host)]
        options += ["-oBatchMode=yes"] if quietly else []
        return ["ssh", *options, "-oRemoteCommand=none", "--", self.host.host, quoted(command)]

    def open(self, command: Sequence[str], quietly: bool = False) -> Process:
        """Start `command` there, with its stdin and stdout at this end."""
        errors = tempfile.TemporaryFile()  # noqa: SIM115 -- the process owns it
        try:
            child = subprocess.Popen(
                self.argv(command, quietly), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0
            )
        except FileNotFoundError as exc:
            errors.close()
            raise NotFound("there is no program `ssh` here", "install OpenSSH's client") from exc
        return Process(child, errors, self.host)

    def run(self, command: Sequence[str], given: bytes = b"", timeout: float | None = None) -> bytes:
        """What a short command there prints. Raises what `Process.why` says where it fails."""
        process = self.open(command)
        try:
            out, _ = process.child.communicate(given, timeout or self.patience)
        except subprocess.TimeoutExpired as exc:
            process.kill()
            raise Unreachable(f"{self.host} did not answer in time", "check the network; then try again") from exc
        finally:
            code = process.wait()
        if code:
            raise process.why()
        return out

    def sessions(self, most: int) -> int:
        """How many of `most` processes at a time the host starts over the connection that there is."""
        processes = [self.open(["cat"]) for _ in range(most)]
        try:
            for process in processes:
                process.writer.write(b".")
            for process in processes:
                select.select([process.reader], [], [], self.patience)
            for process in processes:
                process.writer.close()
                process.wait(self.patience)
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise Unreachable(f"{self.host} did not answer in time", "check the network; then try again") from exc
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return sum(1 for process in processes if not any(words in process.said for words in _NO_SESSION))

    def _lines(self) -> list[str]:
        """Ours come first where they must hold, for hosts jumped through too, and last where they are mere defaults."""
        sockets = _runtime_directory()
        strict = ["StrictHostKeyChecking ask"] if self._interactive else ["StrictHostKeyChecking yes", "BatchMode yes"]
        shared = ["ControlMaster auto", f'ControlPath "{sockets}/%C"', f"ControlPersist {PERSIST}"]
        return [
            *strict,
            f'Include "{os.path.expanduser("~/.ssh/config")}"',
            f'Include "{_SYSTEM_CONFIG}"',
            "Host *",
            "Ciphers ^aes128-gcm@openssh.com",
            *(shared if _fits(sockets) else []),
            f"ConnectTimeout {max(1, round(self.host.connect_timeout))}",
            "ServerAliveInterval 15",
            "ServerAliveCountMax 2",
            "ClearAllForwardings yes",
        ]


class Process:
    """A process at the other end of ssh: `reader` is its stdout, `writer` its stdin."""

    def __init__(self, child: subprocess.Popen[bytes], errors: IO[bytes], host: Host) -> None:
        self.child, self._errors, self._host = child, errors, host
        self._said: str | None = None

    @property
    def reader(self) -> IO[bytes]:
        assert self.child.stdout is not None
        return self.child.stdout

    @property
    def writer(self) -> IO[bytes]:
        assert self.child.stdin is not None
        return self.child.stdin

    def poll(self) -> int | None:
        return self.child.poll()

    def kill(self) -> None:
        self.child.kill()

    def wait(self, timeout: float | None = None) -> int:
        code = self.child.wait(timeout)
        self._read()
        return code

    @property
    def said(self) -> str:
        """The last of what ssh and the process wrote to stderr."""
        return self._read() if self._said is None else self._said

    def why(self) -> GuildsyncError:
        """What the end of the process means."""
        code = self.child.poll()
        if code == 255 or code is None or code < 0:
            return _failed_connection(self._host, self.said)
        return _failed_command(str(self._host), code, self.said)

    def broke(self, error: GuildsyncError) -> GuildsyncError:
        """What it means that the process, once it had started well, was given up with `error`."""
        if self.child.poll() == 255 and self.said:
            return _failed_connection(self._host, self.said)
        return Unreachable(f"{self._host}: {error.message}", "try again: the same command goes on where it stopped")

    def _read(self) -> str:
        if not self._errors.closed:
            end = self._errors.seek(0, os.SEEK_END)
            self._errors.seek(max(0, end - _SAID))
            text = self._errors.read().decode(errors="replace").replace("\r", "")
            if self.child.poll() is None:
                return text
            self._errors.close()
            self._said = text
        return self._said or ""


def _failed_connection(host: Host, said: str) -> GuildsyncError:
    last = _last_line(said)
    pinned = f"it must be the one in {host.known_hosts}; guildsync never goes on" if host.known_hosts else None
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said or ("host key for" in said and "has changed" in said):
        found = _OFFENDING.search(said)
        where = found[1] if found else "known_hosts"
        hint = f"if the host was set up anew, remove {where} after asking whoever runs it; guildsync never goes on"
        return UnknownKey(f"{host} shows another host key than the one in {where}: nothing was sent", pinned or hint)
    if "Host key verification failed" in said or "host key is known for" in said:
        by_hand = str(host).partition(":")[0]
        hint = f"connect once by hand (`ssh {by_hand}`), compare the fingerprint, then try again"
        return UnknownKey(f"{host} is not a known host: its key is in no known_hosts file", pinned or hint)
    if any(words in said for words in _AUTHENTICATION):
        return Refused(
            f"{host} refused to let us in: {last}", "check user, key and agent: `ssh -v` to the host shows more"
        )
    if any(words in said for words in _CONNECTION) or not last:
        return Unreachable(
            f"{host} cannot be reached: {last or 'the connection ended'}", "check the network; then try again"
        )
    return Unreachable(f"the connection to {host} failed: {last}", "`ssh -v` to the host shows more")


def _failed_command(host: str, code: int, said: str) -> GuildsyncError:
    last = _last_line(said) or f"it ended with {code}"
    if code in (126, 127) or "not found" in last:
        hint = "set the remote's `python`; for an account without any, `layout: store` needs only SFTP"
        return NotFound(f"there is no Python to be started on {host}: {last}", hint)
    hint = "an account that allows only SFTP needs `layout: store`"
    return GuildsyncError(f"what was started on {host} failed: {last}", hint)


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _runtime_directory() -> str:
    """A directory of this user alone, made where it is not there: for sockets, and the configuration that names them.
    Raises Refused where somebody else could write there."""
    top = os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = os.path.join(top, "guildsync")
    os.makedirs(path, mode=0o700, exist_ok=True)
    info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o077:
        raise Refused(f"{path} must be a directory that only you can use", f"remove it, or `chmod 700 {path}`")
    return path


def _write_config(lines: Sequence[str]) -> str:
    data = "".join(line + "\n" for line in lines).encode()
    path = os.path.join(_runtime_directory(), f"ssh-{hashlib.sha256(data).hexdigest()[:16]}")
    try:
        with open(path, "rb") as file:
            if file.read() == data:
                return path
    except FileNotFoundError:
        pass
    fd, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    with open(fd, "wb") as file:
        file.write(data)
    os.replace(temporary, path)
    return path


_OF_HOME = ("identityfile", "userknownhostsfile")


def effective(host: Host) -> dict[str, list[str]]:
    """What OpenSSH would do for a host, from its own configuration: values by lower-case keyword, those of one line as
    words; `proxycommand` is one. Paths are expanded, and `~` is HOME. Raises NotFound, Usage, Unreachable."""
    config = _write_config([f'Include "{os.path.expanduser("~/.ssh/config")}"', f'Include "{_SYSTEM_CONFIG}"'])
    argv = ["ssh", "-F", config, "-T", "-G", *_options(host)]
    try:
        done = subprocess.run(
            [*argv, "--", host.host], stdin=subprocess.DEVNULL, capture_output=True, timeout=BATCH_PATIENCE, check=False
        )
    except FileNotFoundError as exc:
        raise NotFound("there is no program `ssh` here", "install OpenSSH's client") from exc
    except subprocess.TimeoutExpired as exc:
        raise Unreachable(f"`ssh -G {host.host}` did not end", "look at what `Match exec` runs") from exc
    if done.returncode:
        said = _last_line(done.stderr.decode(errors="replace"))
        raise Usage(f"ssh cannot read its configuration for {host.host}: {said}", "mend ~/.ssh/config")
    found: dict[str, list[str]] = {}
    for line in done.stdout.decode(errors="surrogateescape").splitlines():
        key, _, value = line.partition(" ")
        one = key in ("proxycommand", "identityfile", "identityagent") or os.path.exists(value)
        found.setdefault(key, []).extend([value] if one else value.split())
    return _expanded(host, found)


def _expanded(host: Host, found: dict[str, list[str]]) -> dict[str, list[str]]:
    """ssh expands `~` by the home in passwd, and some tokens only when it connects."""
    home, name = os.path.expanduser("~"), found.get("hostname", [host.host])[0]
    account = pwd.getpwuid(os.getuid())
    tokens = {
        "%": "%", "d": home, "h": name, "n": host.host, "p": found["port"][0], "r": found["user"][0],
        "u": account.pw_name, "i": str(os.getuid()), "k": found.get("hostkeyalias", [host.host])[0],
    }  # fmt: skip

    def expanded(text: str) -> str:
        return re.sub(r"%(.)", lambda match: tokens.get(match[1], match[0]), text)

    theirs = account.pw_dir.rstrip("/") + "/.ssh/"
    for key in _OF_HOME:
        paths = [os.path.expanduser(expanded(path)) for path in found.get(key, ())]
        found[key] = [f"{home}/.ssh/{path[len(theirs) :]}" if path.startswith(theirs) else path for path in paths]
    for key in ("proxycommand", "identityagent"):
        found[key] = [os.path.expanduser(expanded(value)) for value in found.get(key, ())]
    return found
