"""The script that docs/formats.md prints restores a run without guildsync."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from guildsync import api
from guildsync.model.manifest import Digest
from guildsync.model.run import RunId
from guildsync.store.journal import Claim, Commit, Facts, Version, decode, encode, join
from guildsync.store.view import View
from tests.kit.trees import assert_same, put, run_ids, ugly_run, write_run

FORMATS = Path(__file__).parents[2] / "docs" / "formats.md"
UGLY, OTHER = map(RunId, run_ids(2))


@pytest.fixture(scope="module")
def script() -> str:
    (found,) = re.findall(r"^```python\n(.*?)^```$", FORMATS.read_text(), re.M | re.S)
    return found


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two versions of an ugly run in several packs, and another run."""
    home, where = tmp_path / "home", (tmp_path / "store").as_uri()
    ugly_run(home, UGLY)
    write_run(home, OTHER)
    context = api.open_context(str(home), environ={}, cwd=str(tmp_path))
    assert context.push(where).problems == []
    put(home / "runs" / UGLY, "text", b"the same line again and again\n" * 200_000)
    put(home / "runs" / UGLY, ".guild/output", b"more\n" * 1000)
    assert context.push(where).problems == []
    return tmp_path / "store"


def restore(script: str, store: Path, run: str, into: Path) -> subprocess.CompletedProcess[str]:
    """Runs the script where nothing but the standard library and zstandard can be imported."""
    only = into.parent / "only-zstandard"
    only.mkdir(exist_ok=True)
    if not (only / "zstandard").is_symlink():
        (only / "zstandard").symlink_to(Path(zstandard.__file__).parent)
    into.mkdir()
    (into.parent / "restore.py").write_text(script)
    return subprocess.run(
        [sys.executable, "-S", "-s", str(into.parent / "restore.py"), str(store), run],
        cwd=into,
        env={"PYTHONPATH": str(only)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_short_and_needs_nothing_of_ours(script: str) -> None:
    assert len(script.splitlines()) <= 30
    imported = {
        name.name.partition(".")[0]
        for node in ast.walk(ast.parse(script, feature_version=(3, 8)))
        for name in (node.names if isinstance(node, ast.Import) else ())
    }
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(ast.parse(script)))
    assert imported - sys.stdlib_module_names == {"zstandard"}


def test_guildsync_cannot_be_imported_there(tmp_path: Path) -> None:
    assert "No module named 'guildsync'" in restore("import guildsync", tmp_path, UGLY, tmp_path / "out").stderr


@pytest.mark.parametrize("run", [UGLY, OTHER])
def test_it_restores_the_current_version(script: str, store: Path, run: str, tmp_path: Path) -> None:
    assert len(list((store / "packs").glob("*/*"))) > 1
    done = restore(script, store, run, tmp_path / "out")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_same(tmp_path / "home/runs" / run, tmp_path / "out")
    pulled = api.open_context(str(tmp_path / "pulled"), environ={}, cwd=str(tmp_path))
    assert pulled.pull(store.as_uri()).problems == []
    assert_same(tmp_path / "pulled/runs" / run, tmp_path / "out")


def test_it_passes_over_what_is_void_and_what_was_summed_up(script: str, store: Path, tmp_path: Path) -> None:
    """All entries become one checkpoint; on top comes a version that relied on a dropped pack."""
    entries = sorted((store / "journal").iterdir())
    commits = [decode(path.name, path.read_bytes()) for path in entries]
    facts = join(commit.state for commit in commits)
    commit = "0000000f-0000-4000-8000-000000000000"
    (head,) = View(facts).heads(UGLY)
    void = Version(f"{commit}/{UGLY}", UGLY, Digest("e" * 64), Digest("e" * 64), "{}", (head.id,))
    lost = Digest("d" * 64)
    more = Facts(
        versions=frozenset([void]),
        claims=frozenset([Claim(void.id, (lost,))]),
        condemned=frozenset([lost]),
        dropped=frozenset([lost]),
    )
    for path in entries:
        path.unlink()
    checkpoint = Commit(commits[0].store, len(commits) + 1, commit, join([facts, more]))
    (store / "journal" / checkpoint.name).write_bytes(encode(checkpoint))
    (store / "journal" / ".leftover.tmp").write_bytes(b"half")
    assert restore(script, store, UGLY, tmp_path / "out").returncode == 0
    assert_same(tmp_path / "home/runs" / UGLY, tmp_path / "out")


def test_it_notices_damage(script: str, store: Path, tmp_path: Path) -> None:
    newest = max((store / "journal").iterdir())
    data = newest.read_bytes()
    newest.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "AssertionError" in restore(script, store, UGLY, tmp_path / "out").stderr
    newest.write_bytes(data)
    for pack in (store / "packs").glob("*/*"):
        pack.write_bytes(pack.read_bytes()[:200] + b"damaged" + pack.read_bytes()[207:])
    assert restore(script, store, UGLY, tmp_path / "other").returncode == 1
