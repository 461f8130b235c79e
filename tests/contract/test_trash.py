"""The laws of the trash, whatever kind of replica it is of."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from guildsync.errors import ALIVE, CHANGED, MISSING, PURGED, TRASHED, Problem
from guildsync.model.ports import Replica, Update
from guildsync.model.run import COMPLETED, NO_METADATA, Metadata, Record, RunId, Summary
from tests.contract.test_laws import ONE, OTHER, RUN, TWO, assert_holds, deliver, listed, scan_of, stage, update_to
from tests.kit.replicas import ALL, STORES, TREES, Site, new_site
from tests.kit.trees import run_ids

NOBODY = RunId(run_ids(3)[2])


@pytest.fixture(params=ALL)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return _with_two_runs(new_site(request.param, tmp_path, request))


@pytest.fixture(params=TREES)
def tree_site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return _with_two_runs(new_site(request.param, tmp_path, request))


@pytest.fixture(params=STORES)
def store_site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return _with_two_runs(new_site(request.param, tmp_path, request))


def _with_two_runs(site: Site) -> Site:
    with site.opened() as replica:
        assert deliver(replica, ONE) == []
        assert deliver(replica, TWO, OTHER) == []
    return site


def do(site: Site, act: Callable[[Replica], list[Problem]]) -> list[Problem]:
    """As whoever was told what is there does: by a client of its own."""
    with site.opened() as replica:
        list(replica.runs(deleted=None))
        return act(replica)


def states(site: Site) -> dict[RunId, str]:
    """Where each run is: every one in one place."""
    with site.opened() as replica:
        records = list(replica.runs(deleted=None))
        alone: dict[bool, set[RunId]] = {}
        for deleted in (False, True):
            alone[deleted] = {record.run for record in replica.runs(deleted=deleted)}
    assert len({record.run for record in records}) == len(records)
    found = {record.run: _state(record) for record in records}
    assert alone[False] == {run for run, state in found.items() if state == "live"}
    assert alone[True] == {run for run, state in found.items() if state == "trash"}
    return found


def _state(record: Record) -> str:
    return "purged" if record.purged else "trash" if record.deleted else "live"


def test_a_run_goes_to_the_trash_and_comes_back_as_it_was(site: Site) -> None:
    assert do(site, lambda replica: replica.hide([RUN])) == []
    assert states(site) == {RUN: "trash", OTHER: "live"}
    assert_holds(site, TWO, OTHER)
    assert do(site, lambda replica: replica.reveal([RUN])) == []
    assert states(site) == {RUN: "live", OTHER: "live"}
    assert_holds(site, ONE, RUN)


def test_everything_may_be_asked_for_twice(site: Site) -> None:
    for act, state in (("hide", "trash"), ("reveal", "live"), ("hide", "trash"), ("purge", "purged")):
        for _ in range(2):
            assert do(site, lambda replica, act=act: getattr(replica, act)([RUN])) == []
            assert states(site) == {RUN: state, OTHER: "live"}


def test_a_run_of_the_trash_keeps_what_is_written_on_it(site: Site) -> None:
    said = Metadata("a label", frozenset(["x"]))
    do(site, lambda replica: replica.commit([Update(RUN, None, None, None, said, NO_METADATA)]))
    do(site, lambda replica: replica.hide([RUN]))
    with site.opened() as replica:
        (record,) = replica.runs(deleted=True)
    assert (record.metadata, record.deleted, record.purged) == (said, True, False)
    assert (record.summary.operation, record.summary.status) == ("train.py", COMPLETED)


def test_what_is_purged_is_gone_and_remembered_until_it_may_come_again(site: Site) -> None:
    do(site, lambda replica: replica.hide([RUN]))
    assert do(site, lambda replica: replica.purge([RUN])) == []
    assert states(site) == {RUN: "purged", OTHER: "live"}
    with site.opened() as replica:
        assert scan_of(replica, RUN) is None
    assert do(site, lambda replica: replica.reveal([RUN])) == []
    assert states(site) == {OTHER: "live"}
    with site.opened() as replica:
        assert deliver(replica, TWO) == []
    assert states(site) == {RUN: "live", OTHER: "live"}
    assert_holds(site, TWO, RUN)


def test_a_run_that_was_never_there_is_said(site: Site) -> None:
    (problem,) = do(site, lambda replica: replica.hide([NOBODY, RUN]))
    assert (problem.run, problem.path, problem.reason) == (NOBODY, None, MISSING)
    assert states(site) == {RUN: "trash", OTHER: "live"}
    assert do(site, lambda replica: replica.reveal([NOBODY])) == []
    assert do(site, lambda replica: replica.purge([NOBODY])) == []
    assert states(site) == {RUN: "trash", OTHER: "live"}


def test_who_planned_before_it_was_deleted_brings_nothing_back(site: Site) -> None:
    """Rule R6: a push never makes a run live."""
    with site.opened() as late:
        have = scan_of(late, RUN)
        stage(late, TWO)
        do(site, lambda replica: replica.hide([RUN]))
        (problem,) = late.commit([update_to(TWO, have)])
    assert (problem.run, problem.reason) == (RUN, TRASHED if site.is_store else CHANGED)
    assert states(site) == {RUN: "trash", OTHER: "live"}


def test_metadata_is_edited_without_status_or_content(site: Site) -> None:
    said = Metadata("l", frozenset(["t"]), marked=True)
    with site.opened() as replica:
        before = listed(replica)[RUN]
        assert replica.commit([Update(RUN, None, None, None, said, before.metadata)]) == []
    with site.opened() as replica:
        after = listed(replica)[RUN]
    assert (after.metadata, after.summary) == (said, before.summary)
    assert_holds(site, ONE, RUN)


# -- stores


def test_a_purge_names_versions_not_the_run(store_site: Site) -> None:
    """Rules U1 and R7: what nobody had seen when it was purged survives, in the trash."""
    with store_site.opened() as purger:
        list(purger.runs(deleted=None))
        with store_site.opened() as pusher:
            assert deliver(pusher, TWO) == []
        assert purger.purge([RUN]) == []
    assert states(store_site)[RUN] == "trash"
    do(store_site, lambda replica: replica.reveal([RUN]))
    assert_holds(store_site, TWO, RUN)


def test_a_purge_meanwhile_is_told_to_who_pushes(store_site: Site) -> None:
    with store_site.opened() as late:
        have = scan_of(late, RUN)
        stage(late, TWO)
        draft = update_to(TWO, have)
        do(store_site, lambda replica: [*replica.hide([RUN]), *replica.purge([RUN])])
        (problem,) = late.commit([draft])
    assert (problem.run, problem.reason) == (RUN, TRASHED)  # its version is another one, which nobody purged
    assert states(store_site)[RUN] == "trash"


def test_delete_and_label_are_one_object_each(store_site: Site) -> None:
    with store_site.opened(fresh=False) as replica:
        list(replica.runs())
    for act in (
        lambda replica: replica.hide([RUN, OTHER]),
        lambda replica: replica.reveal([RUN, OTHER]),
        lambda replica: replica.commit([Update(RUN, None, None, None, Metadata("x"), NO_METADATA)]),
    ):
        store_site.counts.reset()
        with store_site.opened(fresh=False) as replica:
            list(replica.runs())
            assert act(replica) == []
        assert store_site.counts["put"] == 1


# -- trees


def test_a_run_that_runs_here_stays(tree_site: Site) -> None:
    lock = tree_site.home / "runs" / RUN / ".guild" / "LOCK"
    lock.write_text(str(os.getpid()))
    (problem,) = do(tree_site, lambda replica: replica.hide([RUN, OTHER]))
    assert (problem.run, problem.reason) == (RUN, ALIVE)
    assert states(tree_site) == {RUN: "live", OTHER: "trash"}


def test_an_edit_of_metadata_leaves_markers_alone(tree_site: Site) -> None:
    marker = tree_site.home / "runs" / RUN / ".guild" / "LOCK.remote"
    marker.write_text("gpu")
    do(tree_site, lambda replica: replica.commit([Update(RUN, None, None, None, Metadata("x"), NO_METADATA)]))
    assert marker.read_text() == "gpu"
    do(tree_site, lambda replica: replica.commit([Update(RUN, None, None, Summary(), Metadata("y"), Metadata("x"))]))
    assert not marker.exists()


def test_one_id_in_both_places_lives_and_loses_nothing(tree_site: Site) -> None:
    """As Guild AI leaves it: a run was deleted, and pulled again."""
    do(tree_site, lambda replica: replica.hide([RUN]))
    tree_site.home.joinpath("runs", RUN).mkdir()
    (tree_site.home / "runs" / RUN / "new").write_bytes(b"new")
    with tree_site.opened() as replica:
        assert {record.run: record.deleted for record in replica.runs(deleted=None)} == {RUN: False, OTHER: False}
        assert [record.run for record in replica.runs(deleted=True)] == [RUN]
    for act in ("hide", "reveal"):
        (problem,) = do(tree_site, lambda replica, act=act: getattr(replica, act)([RUN]))
        assert (problem.run, problem.reason) == (RUN, CHANGED)
    assert do(tree_site, lambda replica: replica.purge([RUN])) == []
    assert states(tree_site) == {RUN: "live", OTHER: "live"}
    assert (tree_site.home / "runs" / RUN / "new").read_bytes() == b"new"


def test_a_purge_frees_space_at_once(tree_site: Site) -> None:
    do(tree_site, lambda replica: replica.hide([RUN]))
    do(tree_site, lambda replica: replica.purge([RUN]))
    left = [name for _, _, names in os.walk(tree_site.home) for name in names if name in ("a", "b", "empty")]
    assert sorted(left) == ["a", "b"]  # those of the other run


def test_who_planned_before_it_was_purged_brings_nothing_back(tree_site: Site) -> None:
    do(tree_site, lambda replica: replica.hide([RUN]))
    do(tree_site, lambda replica: replica.purge([RUN]))
    with tree_site.opened() as late:
        stage(late, TWO)
        (problem,) = late.commit([update_to(TWO)])
    assert (problem.run, problem.reason) == (RUN, PURGED)
    assert states(tree_site) == {RUN: "purged", OTHER: "live"}
