"""Hypothesis strategies for facts: few names, so that they meet each other, honest and hostile alike."""

from __future__ import annotations

from hypothesis import strategies as st

from guildsync.model.manifest import Digest
from guildsync.model.run import RunId
from guildsync.store.journal import Claim, Commit, Edit, Facts, Mark, PackFact, Version

RUNS = [RunId(digit * 32) for digit in "ab"]
COMMITS = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(4)]
PACKS = [Digest(digit * 64) for digit in "1234"]
CONTENTS = [Digest(digit * 64) for digit in "cd"]
STORES = ["0" * 32, "f" * 32]
FIELDS = ["label", "marked", "tag:x"]
VALUES = ["null", "false", "true", '"one"', "1"]

commit_ids = st.sampled_from(COMMITS)
runs = st.sampled_from(RUNS)
packs = st.sampled_from(PACKS)
sequences = st.integers(1, 3)
version_ids = st.builds("{}/{}".format, commit_ids, runs)
edit_ids = st.builds("{}/{}".format, commit_ids, st.integers(0, 1))


def _sorted(element: st.SearchStrategy, most: int = 3) -> st.SearchStrategy:
    return st.frozensets(element, max_size=most).map(sorted).map(tuple)


versions = st.builds(
    lambda version, manifest, content, summary, replaces: Version(
        version, RunId(version[37:]), manifest, content, summary, replaces
    ),
    version_ids,
    st.sampled_from(CONTENTS),
    st.sampled_from(CONTENTS),
    st.sampled_from(["{}", '{"operation":"ä"}', '{"mirrored":true}']),
    _sorted(version_ids),
)
claims = st.builds(Claim, version_ids, _sorted(packs))
marks = st.builds(Mark, runs, st.sampled_from(["hidden", "live"]), sequences, commit_ids)
edits = st.builds(
    lambda edit, run, field, value, replaces, sequence: Edit(edit, run, field, value, replaces, sequence, edit[:36]),
    edit_ids,
    runs,
    st.sampled_from(FIELDS),
    st.sampled_from(VALUES),
    _sorted(edit_ids, 2),
    sequences,
)
adds = st.builds(lambda name, offset: PackFact(name, offset + 100, offset, name), packs, st.integers(1, 2))


def _some(element: st.SearchStrategy, most: int = 6) -> st.SearchStrategy:
    return st.frozensets(element, max_size=most)


facts = st.builds(
    Facts,
    stores=_some(st.sampled_from(STORES)),
    adds=_some(adds),
    versions=_some(versions),
    claims=_some(claims, 8),
    condemned=_some(packs, 2),
    dropped=_some(packs, 2),
    purged=_some(version_ids, 2),
    marks=_some(marks),
    edits=_some(edits),
)
commits = st.builds(Commit, st.sampled_from(STORES), st.integers(1, 10**16 - 1), commit_ids, facts)
