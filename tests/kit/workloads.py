"""Deterministic workloads to measure with: many small files (W1), few large ones of which some are shared (W3)."""

from __future__ import annotations

import functools
import hashlib
import os
import random
from pathlib import Path

import numpy as np

_LETTERS = "abcdefghijklmnopqrstuvwxyz_"
_LINES = ("%s = %s(%s, %s)", "def %s(%s, %s=%s):", "return %s + %s[%s] %% %s", "if %s.%s(%s): %s()")


def noise(seed: int, size: int) -> bytes:
    """`size` bytes that do not compress."""
    return np.random.Generator(np.random.PCG64(seed)).bytes(size)


@functools.cache
def code(seed: int, size: int) -> bytes:
    """`size` bytes that compress as source code does."""
    r = random.Random(seed)
    words = ["".join(r.choice(_LETTERS) for _ in range(r.randint(3, 11))) for _ in range(900)]
    out: list[str] = []
    total = 0
    while total < size:
        indent = " " * (4 * r.randint(0, 3))
        line = indent + r.choice(_LINES) % tuple(r.choice(words) for _ in range(4)) + "\n"
        out.append(line)
        total += len(line)
    return "".join(out).encode()[:size]


def run_id(tag: str, index: int) -> str:
    return hashlib.md5(f"{tag}{index}".encode()).hexdigest()


def w1(home: str | os.PathLike[str], runs: int = 200) -> list[str]:
    """`runs` runs of about 50 files and 200 KB: 20 source files the same in all, 15 attributes and opref, output,
    6 tables, 7 arrays. Answers their ids."""
    sources = {f".guild/sourcecode/pkg{j % 4}/mod_{j:02d}.py": code(1000 + j, 3000 + 150 * j) for j in range(20)}
    for i in range(runs):
        run, r = Path(home) / "runs" / run_id("w1", i), random.Random(i)
        for name, text in _attributes(i, r).items():
            _put(run / ".guild/attrs" / name, text.encode())
        for name, data in sources.items():
            _put(run / name, data)
        lines = (f"step {s} loss {r.random():.6f} acc {r.random():.4f} {r.getrandbits(64):016x}\n" for s in range(160))
        _put(run / ".guild/output", "".join(lines).encode())
        _put(run / ".guild/output.index", noise(50_000 + i, 1600))
        for k in range(6):
            rows = (f"{s},{r.random():.6f},{r.random():.6f}\n" for s in range(110))
            _put(run / f"metrics/m{k}.csv", "".join(rows).encode())
        for k in range(7):
            _put(run / f"artifacts/w{k}.npy", noise(1_000_000 + i * 10 + k, 9000 + 300 * k))
        _put(run / ".guild/opref", f"guildfile:/home/u/proj 'train' {run_id('op', 0)} train\n".encode())
    return [run_id("w1", i) for i in range(runs)]


def w3(
    home: str | os.PathLike[str], runs: int = 20, log_size: int = 20_000_000, checkpoint_size: int = 50_000_000
) -> list[str]:
    """`runs` runs of 30 source files the same in all, an event log of `log_size` bytes each, and a checkpoint of
    `checkpoint_size` bytes that the first half of them share. Answers their ids."""
    sources = {f".guild/sourcecode/mod_{j:02d}.py": code(2000 + j, 4000 + 100 * j) for j in range(30)}
    shared = noise(4242, checkpoint_size)
    for i in range(runs):
        name, r = run_id("w3", i), random.Random(i)
        run = Path(home) / "runs" / name
        for path, data in sources.items():
            _put(run / path, data)
        # records of 60 bytes: 28 the same in all, 32 that do not compress
        records = np.full((max(1, log_size // 60), 60), 7, np.uint8)
        records[:, 28:] = np.frombuffer(noise(9000 + i, len(records) * 32), np.uint8).reshape(-1, 32)
        _put(run / "events.out.tfevents.1.node", records.tobytes())
        _put(run / "ckpt.pt", shared if i < (runs + 1) // 2 else noise(6000 + i, checkpoint_size))
        for attribute, text in _attributes(i, r, "w3").items():
            _put(run / ".guild/attrs" / attribute, text.encode())
        _put(run / ".guild/opref", f"guildfile:/home/u/proj 'train' {run_id('op', 0)} train\n".encode())
    return [run_id("w3", i) for i in range(runs)]


def _attributes(i: int, r: random.Random, tag: str = "w1") -> dict[str, str]:
    start = 1_700_000_000_000_000 + i * 61_000_000
    return {
        "cmd": f"- /usr/bin/python\n- -um\n- guild.op_main\n- train\n- --lr\n- '{r.random():g}'\n",
        "deps": "{}\n",
        "env": "".join(f"K{k}: {run_id('env', k)}\n" for k in range(40)),
        "exit_status": "0\n",
        "flags": f"lr: {r.random():g}\nbatch-size: {r.choice([16, 32, 64])}\nseed: {r.getrandbits(31)}\n",
        "host": f"node{i % 8}\n",
        "id": run_id(tag, i) + "\n",
        "initialized": f"{start}\n",
        "label": f"lr={r.random():g}\n",
        "op": "compare:\n- flags\nflag-map: {}\n",
        "run_params": "{}\n",
        "started": f"{start + 5}\n",
        "stopped": f"{start + 60_000_000}\n",
        "user": "u\n",
    }


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
