"""What differs between two runs: flags, paths, lines; and that nothing else is fetched."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guildsync.api import Choice, Options, open_context
from guildsync.errors import DAMAGED, UNREADABLE, NotFound, Problem, Usage
from guildsync.model.manifest import Manifest, digest_of, directory_entry, file_entry, link_entry
from guildsync.model.ports import Lost, Piece, Replica, Scan, Want
from guildsync.model.run import RunId
from guildsync.remotes import Home, bases, opened_home
from guildsync.verbs import difference as verb
from guildsync.verbs.difference import FlagChange, PathChange, Scope, difference, flag_changes, path_changes, unified
from guildsync.verbs.sync import Sync
from tests.kit.replicas import ALL, new_site
from tests.kit.trees import put, run_ids, write_run

ONE, OTHER = run_ids(2)
WHOLE = Scope(every=True, patch=True)


# -- flags


def test_flags_are_the_same_where_json_says_them_the_same() -> None:
    was = {"a": 1, "b": 0.1, "c": "x", "d": True, "e": [1, 2], "f": None, "g": float("nan")}
    now = {"a": 1.0, "b": 0.1, "c": "y", "d": 1, "e": [1, 2], "g": float("nan"), "h": 3}
    assert flag_changes(was, now) == (
        FlagChange("a", 1, 1.0),
        FlagChange("c", "x", "y"),
        FlagChange("d", True, 1),
        FlagChange("h", None, 3),
    )
    assert flag_changes(was, was) == ()


# -- paths


def entries(*paths: bytes, word: bytes = b"", mode: int = 0o644) -> dict[bytes, Any]:
    found: dict[bytes, Any] = {}
    for path in paths:
        parts = path.rstrip(b"/").split(b"/")
        for depth in range(1, len(parts)):
            top = b"/".join(parts[:depth])
            found[top] = directory_entry(top, 0o755, 0)
        if path.endswith(b"/"):
            found[path[:-1]] = directory_entry(path[:-1], 0o755, 0)
        else:
            found[path] = file_entry(path, mode, len(word), digest_of(word), 0)
    return found


def letters(changes: Iterable[PathChange]) -> list[tuple[str, bytes]]:
    return [(change.letter, change.path) for change in changes]


def test_a_directory_is_told_by_what_lies_in_it() -> None:
    was = entries(b"both/a", b"gone/deep/file", b"hollow/", b"x")
    now = entries(b"both/a", b"both/b", b"new/empty/", b"x")
    assert letters(path_changes(was, now)) == [
        ("A", b"both/b"),
        ("D", b"gone/deep/file"),
        ("D", b"hollow"),
        ("A", b"new/empty"),
    ]


def test_kinds_modes_and_targets_differ_and_times_do_not() -> None:
    was = {**entries(b"a", b"k", b"m"), b"l": link_entry(b"l", b"one", 0), b"s": link_entry(b"s", b"same", 0)}
    now = {**entries(b"a", b"k/x"), **entries(b"m", mode=0o755)}
    now |= {b"l": link_entry(b"l", b"two", 0), b"s": link_entry(b"s", b"same", 7)}
    assert letters(path_changes(was, now)) == [("M", b"k"), ("A", b"k/x"), ("M", b"l"), ("M", b"m")]


def test_what_is_in_scope() -> None:
    paths = [b"a", b"a/b", b"ab", b".guild", b".guild/x", b".guilded"]

    def held(scope: Scope) -> list[bytes]:
        return [path for path in paths if scope.holds(path)]

    assert held(Scope()) == [b"a", b"a/b", b"ab", b".guilded"]
    assert held(Scope(every=True)) == paths
    assert held(Scope(b"a")) == [b"a", b"a/b"]
    assert held(Scope(b".guild")) == [b".guild", b".guild/x"]


# -- lines


def test_lines_and_what_is_none() -> None:
    assert unified(b"a\nb\nc\n", b"a\nB\nc\n", "x") == (
        *("--- a/x", "+++ b/x", "@@ -1,3 +1,3 @@"),
        *(" a", "-b", "+B", " c"),
    )
    assert unified(None, b"a\n", "x") == ("--- /dev/null", "+++ b/x", "@@ -0,0 +1 @@", "+a")
    assert unified(b"a", None, "x") == (
        *("--- a/x", "+++ /dev/null", "@@ -1 +0,0 @@", "-a"),
        "\\ No newline at end of file",
    )
    assert unified(b"@@\x0c\r\n", b"@@\x0c\r", "x") == (
        *("--- a/x", "+++ b/x", "@@ -1 +1 @@"),
        *("-@@\x0c\r", "+@@\x0c\r", "\\ No newline at end of file"),
    )
    assert unified(None, b"", "x") == ()
    assert unified(b"a\0", b"a", "x") is None
    assert unified(b"a", b"\xff", "x") is None


lines = st.lists(st.sampled_from(["a\n", "b\n", "c\n", "@@ x\n", "--- y\n", "\n"]), max_size=12).map("".join)


@pytest.mark.skipif(shutil.which("patch") is None, reason="there is no program `patch`")
@pytest.mark.parametrize("most_pairs", [30_000_000, 0])
@given(one=lines, other=lines, ends=st.tuples(st.booleans(), st.booleans()))
def test_patch_makes_one_of_the_other(
    tmp_path_factory: pytest.TempPathFactory, most_pairs: int, one: str, other: str, ends: tuple[bool, bool]
) -> None:
    was, now = ((text if whole else text.rstrip("\n")).encode() for text, whole in zip((one, other), ends, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "_MOST_PAIRS", most_pairs)
        said = unified(was, now, "file")
    assert said is not None
    assert bool(said) == (was != now)
    directory = tmp_path_factory.mktemp("patched")
    (directory / "file").write_bytes(was)
    subprocess.run(
        ["patch", "--posix", "-s", "-p1"],
        input="".join(f"{line}\n" for line in said).encode(),
        cwd=directory,
        check=bool(said),
    )
    assert (directory / "file").read_bytes() == now


def test_a_large_change_is_told_in_one_piece_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second line of very many: looking for what they share would take minutes."""
    head, tail = [f"head {n}" for n in range(10)], [f"tail {n}" for n in range(10)]
    was = [*head, *(f"line {n}" for n in range(30_000)), *tail]
    now = [*head, *(f"line {n} changed" if n % 2 == 0 else f"line {n}" for n in range(30_000)), *tail]
    began = time.monotonic()
    said = unified(*("".join(f"{line}\n" for line in side).encode() for side in (was, now)), "x")
    assert said is not None
    assert time.monotonic() - began < 60
    assert said[2] == "@@ -8,30005 +8,30005 @@"
    assert {"-line 0", "-line 1", "+line 0 changed", "+line 1"} <= set(said)
    assert said[3:6] == (" head 7", " head 8", " head 9")
    assert said[-3:] == (" line 29999", " tail 0", " tail 1")


# -- from where the runs lie


class Counted:
    """A replica, and which objects of which path were fetched from it, call by call."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.fetched: list[set[bytes]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replica, name)

    def fetch(self, wanted: Iterable[Want]) -> Iterator[Piece | Lost]:
        listed = list(wanted)
        self.fetched.append({want.path for want in listed})
        return self._replica.fetch(listed)


def choose(run: str) -> Choice:
    return Choice((run,))


@pytest.mark.parametrize("kind", ALL)
def test_only_what_is_shown_and_differs_is_fetched(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    site = new_site(kind, tmp_path, request)
    home = tmp_path / "writer" if site.is_store else site.home
    common = {"same.txt": b"s\n", "same/deep.bin": b"\0" * 5000, "huge.txt": b"line\n" * 300_000}
    write_run(home, ONE, {**common, "a.txt": b"1\n", "gone.txt": b"g\n", "b.bin": b"\0", "sub/x": b"x\n"})
    write_run(
        home,
        OTHER,
        {
            **common,
            "huge.txt": b"LINE\n" * 300_000,
            "a.txt": b"2\n",
            "new.txt": b"n\n",
            "b.bin": b"\1\0",
            "sub/x": b"X\n",
        },
        flags={"lr": 0.2},
    )
    (home / "runs" / OTHER / "same.txt").chmod(0o600)
    if site.is_store:
        with site.opened() as replica:
            push(home, replica)
    with site.opened() as opened:
        replica = Counted(opened)
        plain = difference(replica, choose(ONE), choose(OTHER))  # type: ignore[arg-type]
        assert letters(plain.paths) == [
            *(("M", b"a.txt"), ("M", b"b.bin"), ("M", b"checkpoints/model.pt"), ("D", b"gone.txt")),
            *(("M", b"huge.txt"), ("A", b"new.txt"), ("M", b"same.txt"), ("M", b"sub/x")),
        ]
        assert plain.flags == (FlagChange("epochs", 3, None), FlagChange("lr", 0.1, 0.2))
        assert {change.patch for change in plain.paths} == {None}
        assert (plain.problems, plain.exit_code, replica.fetched) == ((), 0, [])
        patched = difference(replica, choose(ONE), choose(OTHER), Scope(patch=True))  # type: ignore[arg-type]
        assert replica.fetched == [{b"a.txt", b"b.bin", b"checkpoints/model.pt", b"gone.txt", b"new.txt", b"sub/x"}]
        by_path = {change.path: change for change in patched.paths}
        assert by_path[b"a.txt"].patch == ("--- a/a.txt", "+++ b/a.txt", "@@ -1 +1 @@", "-1", "+2")
        assert (by_path[b"gone.txt"].patch or ())[-1] == "-g"
        assert [(c.path, c.binary, c.large) for c in patched.paths if c.patch is None] == [
            *((b"b.bin", True, False), (b"checkpoints/model.pt", True, False)),
            *((b"huge.txt", False, True), (b"same.txt", False, False)),
        ]
        below = difference(replica, choose(ONE), choose(OTHER), Scope(b"sub", patch=True))  # type: ignore[arg-type]
        assert letters(below.paths) == [("M", b"sub/x")]
        assert replica.fetched[1:] == [{b"sub/x"}]
        same = difference(replica, choose(ONE), choose(ONE), WHOLE)  # type: ignore[arg-type]
        assert (same.paths, same.flags, len(replica.fetched)) == ((), (), 2)


def push(home: Path, replica: Replica) -> None:
    with opened_home(Home(str(home))) as source:
        outcome = Sync(source, replica, bases(Home(str(home)), source, replica), Options()).run()
    assert outcome.problems == []


def test_what_guild_notes_is_left_out_unless_it_is_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path, ONE)
    write_run(tmp_path, OTHER, host="node2")
    context = open_context(str(tmp_path), cwd=str(tmp_path))

    def paths(scope: Scope) -> list[bytes]:
        return [change.path for change in context.diff("local", choose(ONE), choose(OTHER), scope).paths]

    noted = [b".guild/attrs/host", b".guild/attrs/id"]
    assert paths(Scope()) == [b"checkpoints/model.pt"]
    assert paths(Scope(every=True)) == [*noted, b"checkpoints/model.pt"]
    assert paths(Scope(b".guild")) == noted
    assert paths(Scope(b".guild/attrs/host")) == [b".guild/attrs/host"]
    assert paths(Scope(b"train.py")) == []
    assert paths(Scope(b"checkpoints")) == [b"checkpoints/model.pt"]
    with pytest.raises(NotFound, match=r"did you mean 'train\.py'"):
        paths(Scope(b"trian.py"))
    with pytest.raises(NotFound):
        paths(Scope(b"check"))


def test_which_runs(tmp_path: Path) -> None:
    write_run(tmp_path, ONE)
    write_run(tmp_path, OTHER)
    context = open_context(str(tmp_path), cwd=str(tmp_path))
    assert context.diff("local", choose(OTHER[:6]), choose(ONE)).runs == (OTHER, ONE)
    with pytest.raises(NotFound):
        context.diff("local", choose(ONE), choose("f" * 32))
    with pytest.raises(Usage):
        context.diff("local", choose("1:2"), choose(ONE))


def test_texts_are_read_so_many_at_a_time_as_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "_BYTES_AT_A_TIME", 2500)
    site_home = tmp_path / "home"
    for run, letter in ((ONE, b"a"), (OTHER, b"b")):
        write_run(site_home, run, {f"{n}.txt": letter * 500 + b"%d\n" % n for n in range(5)})
        shutil.rmtree(site_home / "runs" / run / "checkpoints")
    with opened_home(Home(str(site_home))) as opened:
        replica = Counted(opened)
        found = difference(replica, choose(ONE), choose(OTHER), Scope(patch=True))  # type: ignore[arg-type]
    assert [len(change.patch or ()) for change in found.paths] == [5] * 5
    assert replica.fetched == [{b"0.txt", b"1.txt"}, {b"2.txt", b"3.txt"}, {b"4.txt"}]


class Broken(Counted):
    """Some of what it has cannot be read: a path of a scan, an object of a fetch."""

    def manifests(self, known: Any) -> Iterator[Scan]:
        for scan in self._replica.manifests(known):
            assert scan.manifest is not None
            if scan.run != OTHER:
                yield scan
                continue
            entries = [entry for entry in scan.manifest.entries if entry.path != b"locked"]
            problem = Problem(OTHER, b"locked", UNREADABLE, "Permission denied")
            yield Scan(scan.run, scan.content, Manifest(entries), problems=(problem,))

    def fetch(self, wanted: Iterable[Want]) -> Iterator[Piece | Lost]:
        for answer in self._replica.fetch(wanted):
            damaged = answer.want.path == b"damaged"
            problem = Problem(RunId(answer.want.run), answer.want.path, DAMAGED, "no")
            yield Lost(answer.want, problem) if damaged else answer


def test_what_cannot_be_read_is_a_problem_and_no_difference(tmp_path: Path) -> None:
    for run, letter in ((ONE, b"a"), (OTHER, b"b")):
        write_run(tmp_path, run, {name: letter + name.encode() for name in ("locked", "damaged", "fine")})
    with opened_home(Home(str(tmp_path))) as opened:
        found = difference(Broken(opened), choose(ONE), choose(OTHER), Scope(patch=True))  # type: ignore[arg-type]
    assert letters(found.paths) == [("M", b"checkpoints/model.pt"), ("M", b"damaged"), ("M", b"fine")]
    by_path = {change.path: change for change in found.paths}
    assert (by_path[b"damaged"].patch, by_path[b"damaged"].binary, by_path[b"damaged"].large) == (None, False, False)
    assert by_path[b"fine"].patch
    assert [(p.path, p.reason) for p in found.problems if p.run == OTHER] == [
        (b"locked", UNREADABLE),
        (b"damaged", DAMAGED),
    ]
    assert found.exit_code == 8


def test_names_that_are_no_text_in_json(tmp_path: Path) -> None:
    write_run(tmp_path, ONE)
    run = write_run(tmp_path, OTHER)
    put(run, b"\xff", b"x")
    os.symlink(b"\xfe", os.path.join(os.fsencode(run), b"link"))
    context = open_context(str(tmp_path), cwd=str(tmp_path))
    rows = context.diff("local", choose(ONE), choose(OTHER)).to_json()["paths"]
    assert [(row["change"], row["path"], row.get("path_encoding")) for row in rows] == [
        ("M", "checkpoints/model.pt", None),
        ("A", "link", None),
        ("A", "%FF", "percent"),
    ]
    assert rows[1]["to"] == {
        "kind": "link",
        "mode": None,
        "size": 0,
        "digest": None,
        "target": "%FE",
        "target_encoding": "percent",
    }
    assert (rows[2]["from"], rows[2]["to"]["mode"], rows[2]["patch"]) == (None, "644", None)
