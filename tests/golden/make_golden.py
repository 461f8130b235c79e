"""Makes the golden store and home of the format that this guildsync writes: once for every format, then checked in.

python -m tests.golden.make_golden tests/golden/format-1
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from guildsync import api
from guildsync.model.manifest import NOTHING, Digest, text
from guildsync.model.run import Record, RunId
from guildsync.store.cache import NoCache
from guildsync.store.checkpoint import Checkpointer
from guildsync.store.fs import open_url
from guildsync.store.journal import HIDDEN, Claim, Commit, Facts, Mark, Version, decode, encode, join
from guildsync.store.objects import Objects
from guildsync.store.reading import Journal
from guildsync.store.view import View
from guildsync.tree.home import Home
from tests.kit.trees import EPOCH_NS, Name, noise, put, run_ids, snapshot, write_run

GROWN, ODD, TRASHED, UNFINISHED = map(RunId, run_ids(4))
"""A run of three versions; one of odd names and sizes whose newest version is void; two that their names describe."""
FOREIGN = "00000007-0000-4000-8000-000000000000"
"""The commit that no push made."""


def make(top: Path) -> None:
    """`top/store`, `top/home`, and `top/expected.json` which says what is in them."""
    with tempfile.TemporaryDirectory() as work:
        maker, where = Path(work) / "maker", (top / "store").absolute().as_uri()
        make_runs(maker)
        context = api.open_context(str(maker), environ={}, cwd=work)
        context.push(where)
        put(maker / "runs" / GROWN, ".guild/output", b"step\n" * 300)
        put(maker / "runs" / GROWN, ".guild/attrs/label", b"second")
        context.push(where)
        sum_up(top / "store")
        put(maker / "runs" / GROWN, ".guild/output", b"step\n" * 400)
        context.push(where)
        commit_by_hand(top / "store" / "journal")
        records = context.runs(where) + context.runs(where, deleted=True)
        expected = {
            "store": {record.run: said(record) for record in records},
            "trees": {run: rows(maker / "runs" / run) for run in (GROWN, ODD)},
            "identity": context.home.identity,
        }
        (top / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
        make_home(maker, top / "home")


def make_runs(home: Path) -> None:
    small_run(home, GROWN, label="first", tags=["a", "b"])
    odd = small_run(home, ODD, {"zeros": bytes((1 << 20) + 5), b"caf\xe9 \n": b"odd", "nothing": b""})
    os.symlink("../no/such", odd / "link")
    os.utime(odd / "link", ns=(EPOCH_NS + 7, EPOCH_NS + 7), follow_symlinks=False)
    put(odd, "tool", b"#!/bin/sh\n", mode=0o750)
    (odd / "empty").mkdir()
    small_run(home, TRASHED)


def small_run(home: Path, run: RunId, files: Mapping[Name, bytes] | None = None, **attrs: Any) -> Path:
    """A few small files, and none that a tool for source code would touch."""
    directory = write_run(home, run, {"checkpoints/model.pt": noise(1, 700), **(files or {})}, **attrs)
    (directory / "train.py").unlink()
    return directory


def sum_up(store: Path) -> None:
    """A checkpoint with an index object; of what it sums up the first entry is deleted, the second not yet."""
    files = open_url(store.absolute().as_uri())
    with ThreadPoolExecutor() as pool:
        journal = Journal(files, NoCache(), pool, lambda _: None)
        reading = journal.read()
        Checkpointer(files, journal, Objects(files, NoCache(), pool, 4)).sum_up(reading)
        journal.remove([min(reading.names)])


def commit_by_hand(journal: Path) -> None:
    """A run goes into the trash; and a version becomes void: its writer relied on a pack that a collector dropped."""
    states = [decode(path.name, path.read_bytes()).state for path in journal.iterdir()]
    view, sequence = View(join(states)), 1 + max(int(path.name[:16]) for path in journal.iterdir())
    replaced = tuple(head.id for head in view.heads(ODD))
    void = Version(f"{FOREIGN}/{ODD}", ODD, Digest("e" * 64), Digest("e" * 64), "{}", replaced)
    dropped = Digest("d" * 64)
    facts = Facts(
        versions=frozenset([void]),
        claims=frozenset([Claim(void.id, (dropped,))]),
        condemned=frozenset([dropped]),
        dropped=frozenset([dropped]),
        marks=frozenset([Mark(TRASHED, HIDDEN, sequence, FOREIGN)]),
    )
    commit = Commit("f" * 32, sequence, FOREIGN, facts)
    (journal / commit.name).write_bytes(encode(commit))


def make_home(maker: Path, home: Path) -> None:
    """The maker's home after a sync of GROWN, with a run in the trash and one whose sync never ended."""
    shutil.copytree(maker, home, symlinks=True)
    (home / "trash/runs").mkdir(parents=True, exist_ok=True)
    (home / "runs" / TRASHED).rename(home / "trash/runs" / TRASHED)
    shutil.rmtree(home / "runs" / ODD)
    small_run(home, UNFINISHED)
    Home(str(home)).begin(UNFINISHED, NOTHING, NOTHING)
    for name in ("remotes", "staging"):
        shutil.rmtree(home / ".guildsync" / name, ignore_errors=True)
    (home / ".guildsync/lock").unlink(missing_ok=True)


def said(record: Record) -> dict[str, Any]:
    """What a listing says of a run, for JSON."""
    return {
        "operation": record.summary.operation,
        "status": record.summary.status,
        "started": record.summary.started,
        "flags": dict(record.summary.flags),
        "size": record.summary.size,
        "files": record.summary.files,
        "label": record.metadata.label,
        "tags": sorted(record.metadata.tags),
        "content": record.content,
        "manifest": record.manifest,
        "heads": list(record.heads),
        "deleted": record.deleted,
    }


def rows(run: Path) -> list[list[Any]]:
    """The digest list of a run: path, kind, mode, size, SHA-256, link target, mtime in nanoseconds."""
    found = snapshot(run).items()
    return [[text(path), *(text(field) if isinstance(field, bytes) else field for field in row)] for path, row in found]


def usual_modes(home: Path) -> None:
    """What a version control system does not keep: 755 for directories, 644 for files, and 700 for our own state."""
    for path in [home, *home.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if stat.S_ISDIR(path.stat().st_mode) else 0o644)
    (home / ".guildsync").chmod(0o700)


if __name__ == "__main__":
    os.umask(0o022)
    make(Path(sys.argv[1]))
