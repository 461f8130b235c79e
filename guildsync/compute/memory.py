"""What a client remembers of a machine between commands: what it is about to make, and the keys the host may show."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from guildsync.errors import Damaged, Refused, Unreachable

FORMAT = 1
KNOWN_HOSTS, FIRST_HOSTS = "known_hosts", "first_hosts"
LOCKED = 1800.0
"""Seconds that another command of this home may take with the machine."""


@dataclass(frozen=True)
class Intent:
    """A machine that is about to be made, and may have been: by `token` the provider makes it once. `begun`: seconds
    since the epoch. `request` says all there is to say of it; what is secret in it counts for its first boot alone."""

    token: str
    begun: float
    request: Mapping[str, Any]


class Memory:
    """One directory of this user alone, made when something is to be kept. What is kept is durable, and old or new
    after a crash."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.known_hosts = os.path.join(directory, KNOWN_HOSTS)
        self.first_hosts = os.path.join(directory, FIRST_HOSTS)

    @contextmanager
    def locked(self, clock: Callable[[], float], sleep: Callable[[float], None]) -> Iterator[None]:
        """One command of this home at a time starts or stops the machine."""
        self._make()
        fd = os.open(os.path.join(self.directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            end = clock() + LOCKED
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if clock() >= end:
                        hint = "look for it, or try again later"
                        raise Unreachable("another command goes on with this machine", hint) from None
                    sleep(0.5)
            yield
        finally:
            os.close(fd)

    def client(self) -> str:
        """A name that tells this home from others."""
        found = self._read("client")
        if not found:
            found = uuid.uuid4().hex[:12].encode()
            self._write("client", found)
        return found.decode("ascii", "replace")

    # -- a machine that is being made

    def intent(self) -> Intent | None:
        """Raises Damaged for one that cannot be understood: a machine may have been made of it."""
        data = self._read("intent")
        if data is None:
            return None
        try:
            value = json.loads(data)
            if value["format"] != FORMAT:
                raise ValueError("another format")
            return Intent(str(value["token"]), float(value["begun"]), dict(value["request"]))
        except (ValueError, KeyError, TypeError) as exc:
            hint = "`guildsync remote status --orphans` shows what was made; then remove it"
            raise Damaged(f"{self.directory}/intent cannot be read", hint) from exc

    def intend(self, intent: Intent) -> None:
        """Before anything is made of it."""
        value = {"format": FORMAT, "token": intent.token, "begun": intent.begun, "request": dict(intent.request)}
        self._write("intent", json.dumps(value, sort_keys=True).encode() + b"\n")

    def forget_intent(self) -> None:
        """Once others can find what was made of it, or it is certain that nothing was."""
        self._remove("intent")

    # -- keys, by the id of the machine

    def expect(self, machine: str, keys: Sequence[str]) -> None:
        """While its own key is not proved, one of these is shown."""
        self._write(FIRST_HOSTS, _lines(machine, keys))

    def expected(self, machine: str) -> list[str]:
        return _keys(self._read(FIRST_HOSTS), machine)

    def pin(self, machine: str, key: str) -> None:
        """Its own key, and no other."""
        self._write(KNOWN_HOSTS, _lines(machine, [key]))

    def pinned(self, machine: str) -> str | None:
        return next(iter(_keys(self._read(KNOWN_HOSTS), machine)), None)

    def forget_first(self, token: str) -> None:
        """The own key is proved, and others can learn it: nothing of how the machine was made is needed any more."""
        self._remove(FIRST_HOSTS)
        intent = self.intent()
        if intent and intent.token == token:
            self.forget_intent()

    def forget(self) -> None:
        """The machine is gone."""
        for name in (FIRST_HOSTS, KNOWN_HOSTS, "intent"):
            self._remove(name)

    # -- files

    def _make(self) -> None:
        if os.path.isdir(self.directory):
            return
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            # makedirs gives the mode to the last one alone
            os.chmod(os.path.dirname(self.directory), 0o700)
            for _, path in zip(range(3), _upwards(self.directory), strict=False):
                _sync(path)
        except OSError as exc:
            raise Refused(f"cannot write to {self.directory}: {exc.strerror}") from exc

    def _read(self, name: str) -> bytes | None:
        try:
            with open(os.path.join(self.directory, name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise Refused(f"cannot read {self.directory}/{name}: {exc.strerror}") from exc

    def _write(self, name: str, data: bytes) -> None:
        self._make()
        temporary = os.path.join(self.directory, f"{name}.{os.getpid()}.tmp")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            os.replace(temporary, os.path.join(self.directory, name))
            _sync(self.directory)
        except OSError as exc:
            raise Refused(f"cannot write to {self.directory}: {exc.strerror}") from exc

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self.directory, name))
            _sync(self.directory)


def _upwards(path: str) -> Iterator[str]:
    while True:
        yield path
        path = os.path.dirname(path)


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _lines(machine: str, keys: Sequence[str]) -> bytes:
    return "".join(f"{machine} {key}\n" for key in keys).encode()


def _keys(data: bytes | None, machine: str) -> list[str]:
    rows = [line.split(" ", 1) for line in (data or b"").decode("ascii", "replace").splitlines()]
    return [row[1] for row in rows if len(row) == 2 and row[0] == machine]
