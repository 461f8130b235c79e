"""What an earlier guildsync wrote is read for ever; what a newer one wrote is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from guildsync import api
from guildsync.api import Context
from guildsync.errors import CONFLICT, DAMAGED, Damaged, Usage
from guildsync.store.checkpoint import decode_table, table_path
from guildsync.store.fs import open_url
from guildsync.store.journal import decode
from guildsync.store.pack import read_index
from guildsync.store.store import Store
from tests.golden.make_golden import GROWN, ODD, TRASHED, UNFINISHED, rows, said, usual_modes
from tests.kit.trees import put, write_run

FORMATS = sorted(Path(__file__).parent.glob("format-*"))


@pytest.fixture(params=FORMATS, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of everything of one format."""
    shutil.copytree(request.param, tmp_path / "golden", symlinks=True)
    usual_modes(tmp_path / "golden" / "home")
    return tmp_path / "golden"


@pytest.fixture
def expected(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "expected.json").read_text())


def context(home: Path) -> Context:
    return api.open_context(str(home), environ={}, cwd=str(home.parent))


def url(golden: Path) -> str:
    return (golden / "store").as_uri()


def test_there_is_a_golden_store_of_every_format() -> None:
    from guildsync.store import journal, store

    assert [path.name for path in FORMATS] == [f"format-{number}" for number in range(1, journal.FORMAT + 1)]
    assert store.FORMAT == journal.FORMAT


def test_the_store_lists_what_it_did(golden: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    here = context(tmp_path / "home")
    found = here.runs(url(golden)) + here.runs(url(golden), deleted=True)
    assert {record.run: said(record) for record in found} == expected["store"]
    assert {record.run for record in found if record.deleted} == {TRASHED}


def test_a_pull_gives_the_known_trees(golden: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    here = context(tmp_path / "home")
    outcome = here.pull(url(golden))
    assert (outcome.problems, outcome.exit_code, outcome.runs) == ([], 0, 2)
    assert {run: rows(tmp_path / "home/runs" / run) for run in (GROWN, ODD)} == expected["trees"]
    assert (tmp_path / "home/runs" / GROWN / ".guild/attrs/label").read_bytes().strip() == b"second"


def test_the_store_is_sound(golden: Path, tmp_path: Path) -> None:
    found = context(tmp_path / "home").verify(url(golden))
    assert (found.problems, found.exit_code, found.runs) == ([], 0, 2)


def test_the_store_has_a_checkpoint_and_lacks_what_it_sums_up(golden: Path, tmp_path: Path) -> None:
    store = golden / "store"
    entries = [decode(path.name, path.read_bytes()) for path in (store / "journal").iterdir()]
    (made,) = [entry for entry in entries if entry.sums]
    assert len(set(made.sums) - {entry.name for entry in entries}) == 1
    (table,) = made.tables
    held = decode_table(table, (store / table_path(table)).read_bytes())
    assert held.keys() == {fact.name for fact in made.facts.adds}
    for fact in made.facts.adds:
        assert read_index(fact, held[fact.name])


def test_the_store_takes_a_push_of_today(golden: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "home", "ab" * 16, {"checkpoints/model.pt": b"new"})
    here = context(tmp_path / "home")
    assert here.push(url(golden)).exit_code == 0
    assert here.verify(url(golden)).runs == 3


def test_the_home_lists_what_it_did(golden: Path, expected: dict[str, Any]) -> None:
    here = context(golden / "home")
    status = {record.run: record.summary.status for record in here.runs()}
    assert status == {GROWN: "completed", UNFINISHED: "incomplete"}
    assert [record.run for record in here.runs(deleted=True)] == [TRASHED]
    assert here.home.identity == expected["identity"]


def test_the_home_remembers_what_both_sides_had(golden: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    """Without its base a path that differs is a conflict."""
    here = context(golden / "home")
    chosen = api.Options(choose=api.Choice((GROWN,)))
    put(golden / "home/runs" / GROWN, "checkpoints/model.pt", b"changed here\n")
    pulled = here.pull(url(golden), chosen)
    assert (pulled.problems, pulled.runs, pulled.same) == ([], 0, 1)
    pushed = here.push(url(golden), chosen)
    assert (pushed.problems, pushed.runs) == ([], 1)
    shutil.rmtree(golden / "home/.guildsync/bases")
    put(golden / "home/runs" / GROWN, "checkpoints/model.pt", b"changed again\n")
    assert [problem.reason for problem in here.push(url(golden), chosen).problems] == [CONFLICT]


def test_the_content_is_the_same_today(golden: Path, expected: dict[str, Any]) -> None:
    here = context(golden / "home")
    today = (golden / "today").as_uri()
    here.push(today, api.Options(choose=api.Choice((GROWN,))))
    (record,) = here.runs(today)
    assert record.content == expected["store"][GROWN]["content"]


# What a newer guildsync wrote.


def _of_format_2(golden: Path) -> str:
    """The newest journal entry becomes one of format 2; answers its name."""
    path = max((golden / "store/journal").iterdir())
    line, _, frame = path.read_bytes().partition(b"\n")
    assert line.startswith(b"guildsync-journal 1 ")
    path.write_bytes(line.replace(b"journal 1 ", b"journal 2 ") + b"\n" + frame)
    return path.name


def test_a_journal_entry_of_a_newer_format_is_named_and_nothing_is_written(golden: Path, tmp_path: Path) -> None:
    name = _of_format_2(golden)
    before = sorted((golden / "store").rglob("*"))
    write_run(tmp_path / "home", "ab" * 16)
    here = context(tmp_path / "home")
    with pytest.raises(Damaged, match="newer guildsync"):
        here.push(url(golden))
    assert sorted((golden / "store").rglob("*")) == before
    outcome = here.pull(url(golden))
    assert outcome.exit_code == 8
    (problem,) = {problem for problem in outcome.problems if problem.path == f"journal/{name}".encode()}
    assert problem.reason == DAMAGED
    assert "a newer guildsync wrote it (format 2)" in problem.detail


def test_a_fact_of_a_kind_that_is_not_known_is_refused(golden: Path, tmp_path: Path) -> None:
    import zstandard

    path = max((golden / "store/journal").iterdir())
    value = json.loads(zstandard.decompress(path.read_bytes().partition(b"\n")[2]))
    value["facts"]["leases"] = []
    frame = zstandard.compress(json.dumps(value).encode())
    path.write_bytes(b"guildsync-journal 1 " + hashlib.sha256(frame).hexdigest().encode() + b"\n" + frame)
    assert "newer guildsync" in context(tmp_path / "home").verify(url(golden)).problems[0].detail


def test_a_home_of_a_newer_format_is_refused(golden: Path) -> None:
    path = golden / "home/.guildsync/identity"
    path.write_bytes(json.dumps({**json.loads(path.read_bytes()), "format": 2}).encode())
    with pytest.raises(Usage, match="another guildsync") as caught:
        context(golden / "home").push(url(golden))
    assert caught.value.hint == "update guildsync"


def test_a_store_of_a_newer_format_is_refused(golden: Path) -> None:
    """The journal says it, entry by entry; `guildsync.json` is for people."""
    for path in (golden / "store/journal").iterdir():
        line, _, frame = path.read_bytes().partition(b"\n")
        path.write_bytes(line.replace(b"journal 1 ", b"journal 2 ") + b"\n" + frame)
    store = Store(open_url(url(golden)))
    try:
        assert list(store.runs()) == []
        assert store.is_there
        assert all("newer guildsync" in problem.detail for problem in store.problems)
        with pytest.raises(Damaged, match="newer guildsync"):
            store.stage([])
    finally:
        store.close()
