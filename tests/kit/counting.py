"""What a store asks of its filesystem, counted (calls, names, bytes), and what it keeps at home."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from guildsync.store.fs import Files


@dataclass
class Counts:
    """`calls` are (what, name) in order; what is one of list, get, read, put, remove, root."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    bytes_in: int = 0
    bytes_out: int = 0

    def __getitem__(self, what: str) -> int:
        return len(self.names(what))

    def names(self, what: str, prefix: str = "") -> list[str]:
        return [name for call, name in self.calls if call == what and name.startswith(prefix)]

    def summary(self) -> dict[str, int]:
        """How often each kind of call was made, those never made left out."""
        return {what: self[what] for what in sorted({call for call, _ in self.calls})}

    def reset(self) -> None:
        self.calls.clear()
        self.bytes_in = self.bytes_out = 0


class CountingFiles:
    """`Files` around which every call is counted; may be used by several threads."""

    def __init__(self, files: Files, counts: Counts) -> None:
        self._files, self._counts, self._lock = files, counts, threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def list(self, directory: str, deep: bool = False) -> dict[str, int]:
        self._count("list", directory)
        return self._files.list(directory, deep)

    def get(self, name: str) -> bytes:
        self._count("get", name)
        return self._came(self._files.get(name))

    def read(self, name: str, start: int, stop: int) -> bytes:
        self._count("read", name)
        return self._came(self._files.read(name, start, stop))

    def put(self, name: str, data: bytes) -> None:
        self._count("put", name, len(data))
        self._files.put(name, data)

    def remove(self, name: str) -> None:
        self._count("remove", name)
        self._files.remove(name)

    def require_root(self) -> None:
        self._count("root", "")
        self._files.require_root()

    def _count(self, what: str, name: str, out: int = 0) -> None:
        with self._lock:
            self._counts.calls.append((what, name))
            self._counts.bytes_out += out

    def _came(self, data: bytes) -> bytes:
        with self._lock:
            self._counts.bytes_in += len(data)
        return data


class Kept:
    """A cache in memory."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], bytes] = {}

    def load(self, kind: str, name: str) -> bytes | None:
        return self.kept.get((kind, name))

    def keep(self, kind: str, name: str, data: bytes) -> None:
        self.kept[kind, name] = data

    def names(self, kind: str) -> list[str]:
        return [name for of, name in self.kept if of == kind]

    def drop(self, kind: str, name: str) -> None:
        self.kept.pop((kind, name), None)
