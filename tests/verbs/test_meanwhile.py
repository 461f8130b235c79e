"""What is deleted or purged at the target while a sync is under way is told, and nothing is taken for delivered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guildsync.errors import MOVED
from guildsync.store.journal import Commit
from guildsync.store.reading import Journal
from guildsync.store.store import Store
from guildsync.tree.tree import Tree
from tests.kit.model import Person, opened_store
from tests.kit.trees import run_ids, write_run
from tests.verbs.test_sync import collected

RUN, OTHER = run_ids(2)


def then(monkeypatch: pytest.MonkeyPatch, kind: type, act: Callable[[], object], *, before: bool) -> None:
    """Something happens before the next commit, or just after."""
    real = kind.commit  # type: ignore[attr-defined]

    def commit(self: Any, updates: Any) -> Any:
        monkeypatch.setattr(kind, "commit", real)
        if before:
            act()
        problems = real(self, updates)
        if not before:
            assert {problem.reason for problem in problems} == {MOVED}
            act()
        return problems

    monkeypatch.setattr(kind, "commit", commit)


def condemn_late(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    """A collector that has not seen the next commit condemns the packs that it is about to claim."""
    there = {path.name for path in (store / "packs").rglob("*/*")}
    real = Journal.put

    def put(self: Journal, commit: Commit) -> str:
        monkeypatch.setattr(Journal, "put", real)
        collected(store, condemned={path.name for path in (store / "packs").rglob("*/*")} - there)  # type: ignore[arg-type]
        return real(self, commit)

    monkeypatch.setattr(Journal, "put", put)


@pytest.mark.parametrize("what", ["hide", "purge"])
def test_a_run_that_goes_away_between_two_rounds_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Its version was not acknowledged in the first round: a collector may still drop what it is made of."""
    url = f"file://{tmp_path}/store"
    author, other = Person(tmp_path / "author", url), Person(tmp_path / "other", url)
    write_run(other.home, OTHER)
    assert other.push().exit_code == 0
    write_run(author.home, RUN, {"own": b"nobody else has it"})
    condemn_late(monkeypatch, tmp_path / "store")

    def go() -> None:
        with opened_store(url) as store:
            list(store.runs())
            getattr(store, what)([RUN])

    then(monkeypatch, Store, go, before=False)
    outcome = author.push()
    with opened_store(url) as store:
        view = store._read().view
        stored = any(view.settled(version.id) for version in view.versions(RUN))
    told = {problem.run for problem in outcome.problems}
    assert told == {RUN}, "it was neither stored for good nor said to be left out"
    assert stored or outcome.exit_code == 7


def test_a_run_that_is_deleted_in_a_tree_before_the_commit_is_not_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is restored it is as old as it was: that must not be taken for a change that is newer than ours."""
    config = tmp_path / "config.yml"
    config.write_text(json.dumps({"remotes": {"there": {"type": "local", "path": str(tmp_path / "there")}}}))
    author = Person(tmp_path / "author", "there", str(config))
    owner = Person(tmp_path / "there", "local", str(config))
    write_run(author.home, RUN, {"work": b"old"})
    assert author.push().exit_code == 0
    author.write(RUN, "work", b"newer")
    then(monkeypatch, Tree, lambda: owner.delete([RUN]), before=True)
    outcome = author.push()
    assert owner.restore([RUN]).exit_code == 0
    assert owner.read(RUN, "work") == b"old"
    author.pull()
    assert author.read(RUN, "work") == b"newer", "old bytes took the place of newer ones"
    assert (outcome.exit_code, outcome.runs) == (7, 0)
    assert author.push().exit_code == 0
    assert owner.read(RUN, "work") == b"newer"
