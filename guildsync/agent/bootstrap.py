"""Bring the modules that travel to the far side once, and start them there by one exec."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

TRAVELS = (
    "__init__.py",
    "version.py",
    "errors.py",
    "procinfo.py",
    "model/__init__.py",
    "model/crc32c.py",
    "model/run.py",
    "model/manifest.py",
    "model/paths.py",
    "model/plan.py",
    "model/ports.py",
    "tree/__init__.py",
    "tree/attrs.py",
    "tree/dirs.py",
    "tree/durable.py",
    "tree/events.py",
    "tree/folder.py",
    "tree/hashing.py",
    "tree/here.py",
    "tree/home.py",
    "tree/lane.py",
    "tree/listing.py",
    "tree/measure.py",
    "tree/moves.py",
    "tree/publish.py",
    "tree/reader.py",
    "tree/recent.py",
    "tree/redact.py",
    "tree/scalars.py",
    "tree/scan.py",
    "tree/settling.py",
    "tree/staged.py",
    "tree/statcache.py",
    "tree/trash.py",
    "tree/tree.py",
    "agent/__init__.py",
    "agent/buffers.py",
    "agent/frames.py",
    "agent/loader.py",
    "agent/server.py",
    "agent/tails.py",
    "agent/values.py",
    "compute/__init__.py",
    "compute/capture.py",
    "compute/claim.py",
    "compute/executor.py",
    "compute/local.py",
    "compute/process.py",
    "compute/runner.py",
    "compute/scalars_out.py",
    "compute/spec.py",
    "compute/supervisor.py",
)
"""The modules that run on hosts, below the package: standard library and Python 3.8 alone."""

_STUB = 'import os;exec(b"".join(iter(lambda:os.read(0,1)or bytes(1),bytes(1))))'
"""Executes what comes over stdin before the first zero byte. Every shell takes it in single quotes."""


def command(python: str) -> list[str]:
    """What is to be executed on the host: isolated from its user's packages, variables and working directory."""
    return [python, "-I", "-S", "-c", _STUB]


def first_words(home: str, arguments: Mapping[str, Any], bundled: bool) -> bytes:
    """What is to be written to the command's stdin before the first frame. `bundled`: the modules come along; else a
    host that does not have them says so (`agent.client.NeedsModules`)."""
    packed = bundle() if bundled else b""
    wanted = {**arguments, "home": home, "digest": digest(), "bundle": len(packed)}
    data = json.dumps(wanted).encode()
    code = _text("agent/loader.py") + "\nload()\n"
    return code.encode() + b"\0" + struct.pack(">I", len(data)) + data + packed


@functools.lru_cache(maxsize=1)
def digest() -> str:
    """Names the modules as they are in this version."""
    whole = hashlib.sha256()
    for name in TRAVELS:
        whole.update(f"{name}\0{_text(name)}\0".encode())
    return whole.hexdigest()


def bundle() -> bytes:
    """The modules, packed as `agent.loader` unpacks them."""
    return zlib.compress(json.dumps({f"guildsync/{name}": _text(name) for name in TRAVELS}).encode(), 9)


@functools.cache
def _text(name: str) -> str:
    return importlib.resources.files("guildsync").joinpath(name).read_text("utf-8")
