"""Run directories as Guild lays them out, ordinary and ugly, and what lies in a directory, to compare."""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from guildsync.model.manifest import is_entry_path

EPOCH_US = 1_700_000_000_000_000
EPOCH_NS = EPOCH_US * 1000
MIB = 1 << 20

Name = str | bytes
Row = tuple[str, int, int, str | None, bytes | None, int | None]
"""kind, mode, size, SHA-256, link target, mtime_ns (None for directories)."""


def run_ids(n: int) -> list[str]:
    """The same `n` run ids each time; a longer list begins with the shorter one."""
    return [hashlib.md5(b"run %d" % index).hexdigest() for index in range(n)]


def noise(seed: int, size: int) -> bytes:
    """`size` bytes that do not compress, the same for the same seed."""
    return hashlib.shake_128(b"%d" % seed).digest(size)


def yaml_bytes(value: Any) -> bytes:
    """An attribute file as Guild writes it."""
    text: str = yaml.safe_dump(value, indent=2, default_flow_style=False)
    return text.removesuffix("...\n").encode()


def opref(op: str = "train.py") -> bytes:
    return " ".join(shlex.quote(word) for word in (f"script:/proj/{op}", "abc", "", op)).encode()


def output_index(output: bytes, start_ms: int = EPOCH_US // 1000) -> bytes:
    """`.guild/output.index` of an output: nine bytes a line."""
    return b"".join(struct.pack(">QB", start_ms + n, 0) for n, _ in enumerate(output.splitlines()))


def event_file(points: Iterable[tuple[str, int, float]], start: float = EPOCH_US / 1e6) -> bytes:
    """A TensorBoard event file, with true check sums, of (tag, step, value)."""
    out = [_record(_field(1, 1, struct.pack("<d", start)) + _field(3, 2, b"brain.Event:2"))]
    for n, (tag, step, value) in enumerate(points):
        scalar = _field(1, 2, tag.encode()) + _field(2, 5, struct.pack("<f", value))
        event = _field(1, 1, struct.pack("<d", start + n)) + _field(2, 0, _varint(step))
        out.append(_record(event + _field(5, 2, _field(1, 2, scalar))))
    return b"".join(out)


def write_run(
    home: str | os.PathLike[str], run_id: str, files: Mapping[Name, bytes] | None = None, **attrs: Any
) -> Path:
    """A completed run in `home/runs/<run_id>`; answers its directory.

    `files` come on top (paths relative to the run). `attrs` are attributes to add or replace, as values or as raw
    bytes; None leaves one out. Every path has a fixed mtime; `.guild/opref` is written last.
    """
    run = Path(home) / "runs" / run_id
    seed = int(run_id[:6], 16) if all(c in "0123456789abcdef" for c in run_id[:6]) else 0
    output = b"".join(b"step %d loss %.4f\n" % (step, 1 / (step + 1)) for step in range(20))
    content: dict[Name, bytes] = {
        "train.py": b"print('hello')\n",
        ".guild/output": output,
        ".guild/output.index": output_index(output),
        ".guild/manifest": b"s train.py 9e1a1b1a8d8fbd7e5e3a6b1a3d33a6b3ba1e0c1d train.py\n",
        ".guild/events.out.tfevents.1700000000.host.1": event_file(("loss", s, 1 / (s + 1)) for s in range(20)),
        "checkpoints/model.pt": noise(seed, 40_000),
        **(files or {}),
    }
    values: dict[str, Any] = {
        "id": run_id,
        "initialized": EPOCH_US,
        "started": EPOCH_US + 5,
        "stopped": EPOCH_US + 60_000_000,
        "exit_status": 0,
        "flags": {"lr": 0.1, "epochs": 3},
        "cmd": ["/usr/bin/python", "-um", "guild.op_main", "train"],
        "op": {"flag-map": {}},
        "run_params": {},
        "host": "node1",
        "user": "u",
        **attrs,
    }
    for name, value in values.items():
        if value is not None:
            content[f".guild/attrs/{name}"] = value if isinstance(value, bytes) else yaml_bytes(value)
    content[".guild/opref"] = content.pop(".guild/opref", opref())
    for name, data in content.items():
        put(run, name, data)
    return run


def put(root: str | os.PathLike[str], name: Name, data: bytes, mode: int = 0o644, mtime_ns: int = EPOCH_NS) -> bytes:
    """A file below `root`, with the directories it needs; answers its whole path."""
    path = os.path.join(os.fsencode(root), os.fsencode(name))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


UGLY_NAMES = (
    b"new\nline",
    b"back\\slash",
    b"-leading-dash",
    b"--delete",
    b"[abc]",
    b"star*",
    b"what?",
    b"{a,b}",
    b"not-utf8-\xff\xfe",
    b"\x80",
    b" space at start",
    b"space at end ",
    b" ",
    b"percent%41",
    b"%",
    b"quote'\"`$(x);&|",
    b"tab\tcr\r bell\x07 esc\x1b[31m",
    b"~",
    b"#hash",
    b"...",
    b".hidden",
    b"C:colon",
    b"@at",
    b"caf\xc3\xa9 composed",
    b"cafe\xcc\x81 decomposed",
    b"\xe2\x80\xae right to left",
    b"a" * 255,
    b"\xff" * 255,
)


def ugly_run(home: str | os.PathLike[str], run_id: str) -> Path:
    """A run with every ugly name, kind, mode, time and size that a file system lets through."""
    run = write_run(home, run_id)
    root = os.fsencode(run)
    for n, name in enumerate(UGLY_NAMES):
        put(run, b"names/" + name, b"content of %d" % n, mtime_ns=EPOCH_NS + n * 1_000_000_007 + 1)
        put(run, b"dirs/" + name + b"/x", b"below %d" % n)
    put(run, b"/".join([b"deep"] * 60) + b"/file", b"deep down")
    put(run, b"empty file", b"")
    os.makedirs(os.path.join(root, b"empty directory"))
    os.makedirs(os.path.join(root, b"only/directories/here"))
    links = {
        b"links/dangling": b"no/such/file",
        b"links/to directory": b"../names",
        b"links/absolute": b"/etc/passwd",
        b"links/not utf8": b"\xff\xfe/\x80",
        b"links/outside": b"../../../..",
        b"links/itself": b"itself",
        b"links/new\nline": b"a\nb",
        b"links/\xff": b"%FF",
    }
    os.makedirs(os.path.join(root, b"links"))
    for n, (name, target) in enumerate(links.items()):
        path = os.path.join(root, name)
        os.symlink(target, path)
        when = EPOCH_NS + n * 1_000_000_011 + 3
        os.utime(path, ns=(when, when), follow_symlinks=False)
    for mode in (0o600, 0o755, 0o444, 0o640, 0o777):
        put(run, b"modes/%o" % mode, b"mode %o" % mode, mode=mode)
    put(run, b"times/nanoseconds", b"t", mtime_ns=EPOCH_NS + 123_456_789)
    put(run, b"times/before the epoch", b"t", mtime_ns=-1_500_000_000)
    put(run, b"times/far", b"t", mtime_ns=4_000_000_000_123_456_789)
    for name, size in ((b"1MiB", MIB), (b"1MiB+1", MIB + 1), (b"3.5MiB", 7 * MIB // 2)):
        put(run, b"sizes/" + name, noise(size, size))
    for mode in (0o700, 0o755, 0o500):  # what cannot be written comes last
        put(run, b"directory modes/%o/file" % mode, b"inside")
        os.chmod(os.path.join(root, b"directory modes/%o" % mode), mode)
    return run


def snapshot(directory: str | bytes | os.PathLike[str]) -> dict[bytes, Row]:
    """What lies below a run's directory, by relative path; what never is synced (markers, metadata) left out."""
    out: dict[bytes, Row] = {}
    _look(os.fsencode(directory), b"", out)
    return out


def _look(directory: bytes, prefix: bytes, out: dict[bytes, Row]) -> None:
    for name in sorted(os.listdir(directory)):
        path, full = prefix + name, os.path.join(directory, name)
        if not is_entry_path(path):
            continue
        info = os.lstat(full)
        mode = stat.S_IMODE(info.st_mode)
        if stat.S_ISDIR(info.st_mode):
            out[path] = ("dir", mode, 0, None, None, None)
            _look(full, path + b"/", out)
        elif stat.S_ISLNK(info.st_mode):
            out[path] = ("link", 0, 0, None, os.readlink(full), info.st_mtime_ns)
        elif stat.S_ISREG(info.st_mode):
            with open(full, "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
            out[path] = ("file", mode, info.st_size, digest, None, info.st_mtime_ns)
        else:
            out[path] = ("other", mode, 0, None, None, info.st_mtime_ns)


_FIELDS = ("kind", "mode", "size", "sha256", "target", "mtime_ns")


def differences(one: Mapping[bytes, Row], other: Mapping[bytes, Row]) -> list[str]:
    """A line for every path and field in which two snapshots differ."""
    lines = []
    for path in sorted(one.keys() | other.keys()):
        a, b = one.get(path), other.get(path)
        if a is None:
            lines.append(f"only in second: {path!r} {b}")
        elif b is None:
            lines.append(f"only in first:  {path!r} {a}")
        else:
            lines += [
                f"{path!r}: {field} {oct(x) if field == 'mode' else x} != {oct(y) if field == 'mode' else y}"
                for field, x, y in zip(_FIELDS, a, b, strict=True)
                if x != y
            ]
    return lines


def assert_same(dir_a: str | os.PathLike[str], dir_b: str | os.PathLike[str]) -> None:
    """Fails, and says where, unless both directories hold the same; times of directories do not count."""
    __tracebackhide__ = True
    lines = differences(snapshot(dir_a), snapshot(dir_b))
    if lines:
        more = [f"… and {len(lines) - 40} more"] if len(lines) > 40 else []
        raise AssertionError("\n".join([f"{dir_a} and {dir_b} differ:", *lines[:40], *more]))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, wire: int, payload: bytes) -> bytes:
    return _varint(number << 3 | wire) + (_varint(len(payload)) if wire == 2 else b"") + payload


def _crc_table() -> list[int]:
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        table.append(n)
    return table


_CRC = _crc_table()


def _masked_crc32c(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked_crc32c(length) + data + _masked_crc32c(data)


def make_flood(run: Path, files: int) -> None:
    """So many small files, in fifty directories, as fast as they can be written."""
    for number in range(files):
        path = run / f"flood/{number % 50}/{number}"
        if number < 50:
            path.parent.mkdir(parents=True)
        path.write_bytes(b"%d" % number)
