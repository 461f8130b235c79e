"""Files of a store in memory whose clock a test sets, and which die when they are told to."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

from guildsync.store.fs import Size, open_url
from guildsync.store.journal import Commit, decode
from tests.kit.model import Crash


class Bucket:
    """Files of a store whose clock the test sets, and which die at one of their calls, before it or just after."""

    def __init__(self) -> None:
        self._files = open_url(f"memory://{uuid.uuid4().hex}/store")
        self.now = 1_700_000_000.0
        self.since: dict[str, float] = {}
        self.calls: list[tuple[str, str]] = []
        self.die: tuple[int, bool] | None = None
        self.dead = False
        self.tells_time = True
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def list(self, directory: str, deep: bool = False) -> dict[str, Size]:
        found = self._step("list", directory, lambda: self._files.list(directory, deep))
        return {name: Size(size, self.since.get(name) if self.tells_time else None) for name, size in found.items()}

    def get(self, name: str) -> bytes:
        return self._step("get", name, lambda: self._files.get(name))

    def read(self, name: str, start: int, stop: int) -> bytes:
        return self._step("read", name, lambda: self._files.read(name, start, stop))

    def put(self, name: str, data: bytes) -> None:
        def act() -> None:
            self._files.put(name, data)
            self.since[name] = self.now

        self._step("put", name, act)

    def remove(self, name: str) -> None:
        self._step("remove", name, lambda: self._files.remove(name))

    def _step(self, what: str, name: str, act: Callable[[], Any]) -> Any:
        with self._lock:
            if self.dead:
                raise Crash
            mine = self.die is not None and self.die[0] == len(self.calls)
            self.calls.append((what, name))
            if not mine or self.die[1]:
                found = act()
            if mine:
                self.dead = True
                raise Crash
            return found

    def names(self, directory: str = "journal") -> list[str]:
        return sorted(path.rpartition("/")[2] for path in self._files.list(directory))

    def data(self, name: str) -> bytes:
        return self._files.get(f"journal/{name}")

    def write(self, path: str, data: bytes) -> None:
        """By somebody else."""
        self._files.put(path, data)
        self.since[path] = self.now

    def damage(self, name: str) -> None:
        self._files.put(f"journal/{name}", b"damaged")

    def checkpoints(self) -> list[Commit]:
        whole = [name for name in self.names() if self.data(name) != b"damaged"]
        return [commit for commit in (decode(name, self.data(name)) for name in whole) if commit.sums]

    def done(self, what: str, prefix: str = "") -> list[str]:
        return [name for call, name in self.calls if call == what and name.startswith(prefix)]
