"""What is moved: homes full of runs, and the changes made to them, all from fixed seeds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.kit.workloads import code, noise, run_id, w1, w3

_BLOCK = 16 << 20
_TENSORS = 40
_ATTRIBUTE_FILES = 9


@dataclass(frozen=True)
class Sizes:
    """How large the workloads are: counts of runs, and bytes."""

    w1_runs: int = 200
    w2_checkpoint: int = 1 << 30
    w2_third: int = 256 << 20
    w3_runs: int = 20
    w3_log: int = 20_000_000
    w3_checkpoint: int = 50_000_000
    w6_log: int = 20 << 20
    w9_checkpoint: int = 256 << 20
    w10_runs: int = 1000
    w11_runs: int = 2000


QUICK = Sizes(4, 3 << 20, 1 << 20, 3, 1_500_000, 2_500_000, 2 << 20, 8 << 20, 20, 20)
W11_FILES = 50
"""Files in a run of W11."""

W6_GROWTH = 64 << 10


def make(workload: str, home: Path, sizes: Sizes) -> None:
    """Fills `home/runs`."""
    (home / "runs").mkdir(parents=True)
    _MAKERS[workload](home, sizes)


def _make_w1(home: Path, sizes: Sizes) -> None:
    w1(home, sizes.w1_runs)


def _make_w3(home: Path, sizes: Sizes) -> None:
    w3(home, sizes.w3_runs, sizes.w3_log, sizes.w3_checkpoint)


def _make_w2(home: Path, sizes: Sizes) -> None:
    run = _run(home, "w2", 0)
    for number in range(2):
        _random_file(run / f"checkpoint-{number}.pt", 77 + number, sizes.w2_checkpoint)


def _make_w6(home: Path, sizes: Sizes) -> None:
    with (_run(home, "w6", 0) / "train.log").open("wb") as file:
        file.write(_log(6, sizes.w6_log))


def _make_w9(home: Path, sizes: Sizes) -> None:
    run = _run(home, "w9", 0)
    tensor = sizes.w9_checkpoint // _TENSORS
    with (run / "model.safetensors").open("wb") as file:
        file.write(_header(0, tensor))
        for index in range(_TENSORS):
            file.write(noise(90_000 + index, tensor))


def _make_w10(home: Path, sizes: Sizes) -> None:
    for index in range(sizes.w10_runs):
        (_run(home, "w10", index) / "train.py").write_bytes(code(10, 3000))


def _make_w11(home: Path, sizes: Sizes) -> None:
    for index in range(sizes.w11_runs):
        run = _run(home, "w11", index)
        for number in range(W11_FILES - _ATTRIBUTE_FILES):
            (run / f"step-{number:02d}.json").write_text(f'{{"run": {index}, "step": {number}}}\n' * 4)


_MAKERS: dict[str, Callable[[Path, Sizes], None]] = {
    "W1": _make_w1,
    "W2": _make_w2,
    "W3": _make_w3,
    "W6": _make_w6,
    "W9": _make_w9,
    "W10": _make_w10,
    "W11": _make_w11,
}


@dataclass(frozen=True)
class Change:
    """What was done to a home: in which run, and how many bytes are new."""

    run: str
    size: int


def edit_file(home: Path, number: int, sizes: Sizes) -> Change:
    """W5: one array of one run has other contents of the same size."""
    run = run_id("w1", number % sizes.w1_runs)
    path = home / "runs" / run / "artifacts" / "w0.npy"
    size = path.stat().st_size
    path.write_bytes(noise(500_000 + number, size))
    return Change(run, size)


def grow_log(home: Path, number: int, sizes: Sizes) -> Change:  # noqa: ARG001 (as all changes)
    """W6: the log has 64 KiB more."""
    run = run_id("w6", 0)
    with (home / "runs" / run / "train.log").open("ab") as file:
        file.write(_log(600 + number, W6_GROWTH))
    return Change(run, W6_GROWTH)


def add_checkpoint(home: Path, number: int, sizes: Sizes) -> Change:
    """W2: the run has one checkpoint more."""
    run = run_id("w2", 0)
    _random_file(home / "runs" / run / f"later-{number}.pt", 2000 + number, sizes.w2_third)
    return Change(run, sizes.w2_third)


def copy_run(home: Path, number: int, sizes: Sizes) -> Change:  # noqa: ARG001
    """W8: a run, copied under a new id."""
    run = run_id("w3-copy", number)
    shutil.copytree(home / "runs" / run_id("w3", 0), home / "runs" / run)
    return Change(run, 0)


def fine_tune(home: Path, number: int, sizes: Sizes) -> Change:
    """W9: a new run whose checkpoint has a longer header than the first one's, and every tenth tensor changed."""
    target = _run(home, "w9", number + 1)
    tensor = sizes.w9_checkpoint // _TENSORS
    first = home / "runs" / run_id("w9", 0) / "model.safetensors"
    with first.open("rb") as old, (target / "model.safetensors").open("wb") as new:
        old.seek(len(_header(0, tensor)))
        new.write(_header(number + 1, tensor))
        for index in range(_TENSORS):
            data = old.read(tensor)
            new.write(noise(900_000 + 100 * number + index, tensor) if index % 10 == 9 else data)
    return Change(target.name, sizes.w9_checkpoint)


def _run(home: Path, tag: str, index: int) -> Path:
    """A new run with the attributes of a finished one."""
    run = home / "runs" / run_id(tag, index)
    attributes = run / ".guild" / "attrs"
    attributes.mkdir(parents=True)
    start = 1_700_000_000_000_000 + index * 61_000_000
    texts = {
        "id": run.name,
        "initialized": str(start),
        "started": str(start + 5),
        "stopped": str(start + 60_000_000),
        "exit_status": "0",
        "flags": f"lr: {1 / (index + 1):g}\nbatch-size: 32",
        "label": f"run {index}",
        "cmd": "- python\n- -um\n- guild.op_main\n- train",
    }
    for name, text in texts.items():
        (attributes / name).write_text(text + "\n")
    (run / ".guild" / "opref").write_text(f"guildfile:/home/u/proj {run_id('op', 0)} train train\n")
    return run


def _random_file(path: Path, seed: int, size: int) -> None:
    random = np.random.Generator(np.random.PCG64(seed))
    with path.open("wb") as file:
        for start in range(0, size, _BLOCK):
            file.write(random.bytes(min(_BLOCK, size - start)))


def _log(seed: int, size: int) -> bytes:
    values = np.random.Generator(np.random.PCG64(seed)).random((size // 30 + 1, 2))
    lines = (f"{step:08d} loss={one:.6f} acc={other:.6f}\n" for step, (one, other) in enumerate(values))
    return "".join(lines).encode()[:size]


def _header(number: int, tensor: int) -> bytes:
    rows = {f"layer.{i}": {"dtype": "BF16", "offsets": [i * tensor, (i + 1) * tensor]} for i in range(_TENSORS)}
    text = json.dumps({"__metadata__": {"tuned": "x" * 137 * number}, **rows}).encode()
    return len(text).to_bytes(8, "little") + text
