"""Small objects that were just seen are kept within a budget, until somebody takes them or begins anew."""

from __future__ import annotations

from pathlib import Path

from guildsync.model.manifest import Digest, digest_of
from guildsync.tree.home import Home
from guildsync.tree.recent import SMALL, Recent
from guildsync.tree.tree import Tree
from tests.kit.trees import run_ids, write_run

(RUN,) = run_ids(1)


def kept(recent: Recent, *data: bytes) -> list[Digest]:
    for each in data:
        recent.keep(digest_of(each), each)
    return [digest_of(each) for each in data]


def test_the_oldest_go_first() -> None:
    recent = Recent(10)
    one, two, three = kept(recent, b"one.", b"two.", b"three.")
    assert (recent.get(one), recent.get(two), recent.get(three)) == (None, b"two.", b"three.")


def test_what_is_taken_or_cleared_leaves_its_room() -> None:
    recent = Recent(10)
    for _ in range(3):
        one, two = kept(recent, b"one.", b"other.")
        assert (recent.take(one), recent.take(one)) == (b"one.", None)
        assert recent.get(two) == b"other."
        recent.clear()
        assert recent.get(two) is None


def test_what_is_large_is_not_kept() -> None:
    recent = Recent()
    (large,) = kept(recent, bytes(SMALL + 1))
    assert recent.get(large) is None


def test_a_tree_keeps_what_one_look_read_until_the_next_one(tmp_path: Path) -> None:
    run = write_run(tmp_path, RUN)
    tree = Tree(Home(str(tmp_path)))
    digest = digest_of((run / "train.py").read_bytes())
    try:
        assert len(list(tree.manifests({RUN: ()}))) == 1
        assert tree._view.recent.get(digest) is not None
        assert [record.run for record in tree.runs()] == [RUN]
        assert tree._view.recent.get(digest) is None
    finally:
        tree.close()
