"""Summaries and metadata: their JSON, and how metadata merges."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guildsync.errors import Damaged
from guildsync.model.manifest import canonical
from guildsync.model.run import (
    Comment,
    Metadata,
    Summary,
    agreed_metadata,
    checked_run_id,
    merge_metadata,
    plain,
)
from tests.kit import strategies as some
from tests.kit.trees import run_ids

NAMES = st.sampled_from(["label", "marked", "tag:a", "tag:b"])


@given(some.summaries())
def test_summary_survives_json(summary: Summary) -> None:
    once = summary.to_json()
    read = Summary.from_json(json.loads(canonical(once)))
    assert read.to_json() == once
    assert canonical(read.to_json()) == canonical(once)
    same = ("operation", "status", "started", "stopped", "exit_status", "command", "source", "size", "files")
    assert [getattr(read, name) for name in same] == [getattr(summary, name) for name in same]


@pytest.mark.parametrize(("value", "said"), [(math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan")])
def test_numbers_that_are_not_finite_are_strings(value: float, said: str) -> None:
    summary = Summary(flags={"lr": value, "deep": [{"x": value}]}, scalars={"loss": {"last": value, "step": 1}})
    read = Summary.from_json(json.loads(canonical(summary.to_json())))
    assert read.flags == {"lr": said, "deep": [{"x": said}]}
    assert read.scalars == {"loss": {"last": said, "step": 1}}
    assert float(read.scalars["loss"]["last"]) == value or math.isnan(value)


@given(some.flag_values())
def test_plain_is_idempotent_and_json(value: object) -> None:
    once = plain(value)
    assert plain(once) == once
    assert json.loads(canonical(once)) == once


@pytest.mark.parametrize("value", [None, [], "x", 1, True])
def test_a_summary_that_is_none_is_damaged(value: object) -> None:
    with pytest.raises(Damaged):
        Summary.from_json(value)


def test_a_summary_takes_what_it_understands() -> None:
    odd = {
        "operation": 7,
        "status": "dancing",
        "started": True,
        "stopped": 1.5,
        "exit_status": "0",
        "flags": [],
        "scalars": 3,
        "command": "rm -rf /",
        "source": 1,
        "size": None,
        "later": "field",
    }
    assert Summary.from_json(odd) == Summary()


@pytest.mark.parametrize("value", [None, 3, "", "A" * 32, "0" * 31, "0" * 33, "0" * 32 + "\n", "../" + "0" * 29])
def test_what_is_no_run_id(value: object) -> None:
    with pytest.raises(Damaged):
        checked_run_id(value)


def test_what_is_a_run_id() -> None:
    assert [checked_run_id(name) for name in run_ids(3)] == run_ids(3)


@given(some.metadata())
def test_metadata_fields_round_trip(metadata: Metadata) -> None:
    assert Metadata.from_fields(metadata.fields()) == metadata
    assert Metadata.from_fields(json.loads(canonical(metadata.fields()))) == metadata


@pytest.mark.parametrize("value", [None, "body", [], {}, {"body": 1}, {"time": 1}])
def test_what_is_no_comment(value: object) -> None:
    with pytest.raises(Damaged):
        Comment.from_json(value)


def test_odd_fields_of_a_comment_are_passed_over() -> None:
    assert Comment.from_json({"body": "x", "time": True, "user": 1, "host": []}) == Comment("x")


@given(some.metadata(), some.metadata())
def test_what_only_one_side_changed_counts(base: Metadata, edited: Metadata) -> None:
    assert merge_metadata(base, edited, base) == (edited, [])
    assert merge_metadata(base, base, edited) == (edited, [])


@given(some.metadata(), some.metadata())
def test_what_both_changed_alike_is_no_conflict(base: Metadata, edited: Metadata) -> None:
    assert merge_metadata(base, edited, edited) == (edited, [])


@given(some.metadata(), some.metadata(), some.metadata())
def test_where_both_changed_the_source_wins_and_the_field_is_reported(b: Metadata, h: Metadata, w: Metadata) -> None:
    merged, reported = merge_metadata(b, h, w)
    base, have, want, result = b.fields(), h.fields(), w.fields(), merged.fields()
    for name in base.keys() | have.keys() | want.keys():
        was, mine, theirs = base.get(name), have.get(name), want.get(name)
        assert result.get(name) == (mine if theirs == was else theirs)
        assert (name in reported) == (mine != was and theirs not in (was, mine))
    assert result.keys() <= have.keys() | want.keys()


@given(some.metadata(), some.metadata(), some.metadata())
def test_merging_again_changes_nothing(base: Metadata, have: Metadata, want: Metadata) -> None:
    merged, _ = merge_metadata(base, have, want)
    assert merge_metadata(agreed_metadata(base, merged, want), merged, want) == (merged, [])
    assert merge_metadata(merged, merged, merged) == (merged, [])


@given(some.metadata(), some.metadata(), some.metadata())
def test_no_comment_is_lost_unless_somebody_removed_it(base: Metadata, have: Metadata, want: Metadata) -> None:
    merged, _ = merge_metadata(base, have, want)
    for comment in {*have.comments, *want.comments}:
        if comment not in base.comments:
            assert comment in merged.comments
