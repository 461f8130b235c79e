"""Kill a command at one of its storage calls: a fork server whose children send themselves SIGKILL."""

from __future__ import annotations

import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from guildsync.errors import GuildsyncError
from guildsync.store.fs import Files
from tests.kit.model import Person

CHILD_SECONDS = 60.0
"""A command that takes longer hangs."""

FILES = ("list", "get", "read", "put", "remove", "_write", "_rename")
"""What a store asks of its filesystem; the last two are the steps of a put where no put is whole by itself."""
PATHS = ("mkdir", "open", "rmdir", "symlink", "unlink", "link", "rename", "replace")
DESCRIPTORS = ("fchmod", "fsync", "ftruncate", "pwrite", "utime", "write")
"""What a Tree changes a disk with. `os.makedirs` is made of `os.mkdir`; `os.open` counts where it may make a file."""

_TO_SECOND = ("symlink", "link", "rename", "replace")


class Call(NamedTuple):
    """A storage call. `where` is the name in the store, or the path that is changed; of a path `inode` is what it names
    before the call (0: nothing), for a rename what is renamed; `directory` is the inode of the directory it lies in."""

    what: str
    where: str
    inode: int = 0
    directory: int = 0


@dataclass(frozen=True)
class Command:
    """What a person is to do (a method, and what JSON can say of its arguments) by a process of its own. Only paths
    below `below` count as storage."""

    person: Person
    verb: str
    below: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> Any:
        """Carried out by this process."""
        return getattr(self.person, self.verb)(**self.arguments)

    def encode(self, at: int | None, after: bool) -> bytes:
        values = {**asdict(self), "person": {**asdict(self.person), "home": str(self.person.home)}}
        return json.dumps({**values, "at": at, "after": after}).encode() + b"\n"

    @classmethod
    def decode(cls, value: dict[str, Any]) -> Command:
        person = value["person"]
        person = Person(Path(person["home"]), person["remote"], person["config_file"])
        return cls(person, value["verb"], value["below"], value["arguments"])


@dataclass(frozen=True)
class End:
    """How a child ended: what it asked of storage, and whether it was killed; else its exit code, or a traceback."""

    calls: tuple[Call, ...]
    killed: bool
    exit_code: int | None
    text: str


class Server:
    """Runs commands in children forked from a process that has imported everything and has no threads."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def run(self, command: Command, at: int | None = None, after: bool = False) -> End:
        """Carry a command out; with `at`, it is killed before (or just after) that call, counted from 0."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command.encode(at, after))
        self._process.stdin.flush()
        value = json.loads(self._process.stdout.readline())
        assert not value["hung"], f"it did not end after {CHILD_SECONDS} s, at {value['calls'][-1:]}"
        calls = tuple(Call(*call) for call in value["calls"])
        return End(calls, value["signal"] == signal.SIGKILL, value["exit_code"], value["text"])


@contextmanager
def server() -> Iterator[Server]:
    """Ends when its standard input does, so it never outlives this process."""
    with subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


# -- the server's side


def _serve() -> None:
    import s3fs  # noqa: F401 - whoever forks has it already
    import yaml  # noqa: F401
    import zstandard  # noqa: F401

    import guildsync.store.store  # noqa: F401

    for line in sys.stdin.buffer:
        assert threading.active_count() == 1
        request = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _child(request, writer)
        os.close(writer)
        rows, hung = _rows(reader, pid)
        os.close(reader)
        _, status = os.waitpid(pid, 0)
        end = rows.pop() if rows and isinstance(rows[-1], dict) else {"exit_code": None, "text": ""}
        answer = {
            **end,
            "calls": rows,
            "hung": hung,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        }
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def _rows(reader: int, pid: int) -> tuple[list[Any], bool]:
    """What the child says until it ends."""
    deadline = time.monotonic() + CHILD_SECONDS
    data, hung = bytearray(), False
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while True:
            if not hung and not selector.select(max(0.0, deadline - time.monotonic())):
                hung = True
                os.kill(pid, signal.SIGKILL)
            block = os.read(reader, 1 << 16)
            if not block:
                return [json.loads(line) for line in data.splitlines()], hung
            data += block


def _child(request: dict[str, Any], writer: int) -> None:
    say = _teller(writer)
    try:
        _install(_Counter(say, request["at"], request["after"]), request["below"])
        outcome = Command.decode(request)()
        end = {"exit_code": getattr(outcome, "exit_code", 0), "text": repr(outcome)}
    except GuildsyncError as exc:
        end = {"exit_code": exc.exit_code, "text": traceback.format_exc()}
    except BaseException:  # noqa: BLE001 (the parent tells)
        end = {"exit_code": None, "text": traceback.format_exc()}
    say(end)
    os._exit(0)


def _teller(writer: int) -> Callable[[Any], None]:
    write, lock = os.write, threading.Lock()

    def say(row: Any) -> None:
        data = json.dumps(row).encode() + b"\n"
        with lock:
            while data:
                data = data[write(writer, data) :]

    return say


class _Counter:
    def __init__(self, say: Callable[[Any], None], at: int | None, after: bool) -> None:
        self._say, self._at, self._after = say, at, after
        self._numbers, self._lock = itertools.count(), threading.Lock()

    def around(self, call: Call, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Perform a call, and perhaps die."""
        with self._lock:
            mine = next(self._numbers) == self._at
            self._say(call)
            if mine and not self._after:
                self._die()
        try:
            return original(*args, **kwargs)
        finally:
            if mine:
                self._die()

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        while True:
            signal.pause()


def _install(counter: _Counter, below: str) -> None:
    for name in FILES:
        setattr(Files, name, _of_files(counter, name))
    for name in (*PATHS, *DESCRIPTORS):
        setattr(os, name, _of_os(counter, name, os.path.join(below, "")))


def _of_files(counter: _Counter, name: str) -> Callable[..., Any]:
    original = getattr(Files, name)

    def call(self: Files, *args: Any, **kwargs: Any) -> Any:
        return counter.around(
            Call(f"Files.{name}", str(args[-1 if name == "_rename" else 0])), original, self, *args, **kwargs
        )

    return call


def _of_os(counter: _Counter, name: str, below: str) -> Callable[..., Any]:
    original, stat, lstat = getattr(os, name), os.stat, os.lstat

    def inode(look: Callable[[str], os.stat_result], path: str) -> int:
        try:
            return look(path).st_ino
        except OSError:
            return 0

    def call(*args: Any, **kwargs: Any) -> Any:
        if name == "open" and not args[1] & os.O_CREAT:
            return original(*args, **kwargs)
        where = _path(args[1 if name in _TO_SECOND else 0], kwargs.get("dst_dir_fd", kwargs.get("dir_fd")))
        if not where.startswith(below):
            return original(*args, **kwargs)
        moved = _path(args[0], kwargs.get("src_dir_fd")) if name in ("link", "rename", "replace") else where
        found = Call(f"os.{name}", where[len(below) :], inode(lstat, moved), inode(stat, os.path.dirname(where)))
        return counter.around(found, original, *args, **kwargs)

    return call


def _path(path: Any, dir_fd: int | None) -> str:
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    text = os.fsdecode(path)
    return text if dir_fd is None else os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)


if __name__ == "__main__":
    _serve()
