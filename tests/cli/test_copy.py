"""copy: what it says, how it ends, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

import guildsync
from guildsync.errors import Usage
from guildsync.tree import scan, statcache
from tests.cli.conftest import Cli
from tests.kit.trees import assert_same, put, run_ids, write_run

FIRST, SECOND, THIRD = run_ids(3)
CAPTURED = b"HOME: /home/u\nSECRET_TOKEN: hunter2\n"
ENV = ".guild/attrs/env"


@pytest.fixture
def places(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`disk` is a home with three runs, `folder`, `second` and `tree` are places where nothing is yet; the home that
    commands use is another one, that is not there."""
    config = tmp_path / "c.yml"
    config.write_text(
        "remotes:\n"
        f"  disk: {{type: local, path: {home}}}\n"
        f"  again: {{type: local, path: {home}/../{home.name}}}\n"
        f"  folder: {{type: fsspec, url: 'file://{tmp_path}/folder'}}\n"
        f"  second: {{type: local, path: {tmp_path}/second, layout: store}}\n"
        f"  tree: {{type: local, path: {tmp_path}/tree}}\n"
        f"  open-disk: {{type: local, path: {home}, keep-env: true}}\n"
        f"  open-folder: {{type: fsspec, url: 'file://{tmp_path}/open', keep-env: true}}\n"
        f"  open-second: {{type: fsspec, url: 'file://{tmp_path}/second', keep-env: true}}\n"
        f"  open-tree: {{type: local, path: {tmp_path}/tree, keep-env: true}}\n"
    )
    monkeypatch.setenv("GUILDSYNC_CONFIG", str(config))
    monkeypatch.setenv("GUILDSYNC_HOME", str(tmp_path / "own"))
    return home


def test_copy_then_nothing_to_copy(cli: Cli, places: Path, tmp_path: Path) -> None:
    said = cli("copy", "disk", "folder")
    assert (said.code, said.err) == (0, "")
    assert said.last.startswith("Copied 3 runs (")
    assert ") from disk to folder in " in said.last
    assert cli("copy", "disk", "folder").last == "Nothing to copy: 3 runs are already on folder"
    assert cli("copy", "folder", "disk", "1").last == "Nothing to copy: 1 run is already on disk"
    assert cli("copy", "folder", "second").last.startswith("Copied 3 runs (")
    assert cli("copy", "second", "tree").last.startswith("Copied 3 runs (")
    for run in run_ids(3):
        assert_same(places / "runs" / run, tmp_path / "tree/runs" / run)
    assert not (tmp_path / "own/runs").exists()


def test_local_is_this_home(cli: Cli, places: Path, tmp_path: Path) -> None:
    said = cli("copy", "disk", "local")
    assert said.last.startswith("Copied 3 runs (")
    assert " from disk to local in " in said.last
    assert cli("copy", "disk", "local").last == cli("pull", "disk").last.replace("pull", "copy")
    assert cli("copy", "disk", "local").last == "Nothing to copy: 3 runs are already here"
    assert cli("copy", "local", "folder", "1").last.startswith("Copied 1 run (")
    assert cli("push", "folder").last.startswith("Pushed 2 runs (")
    assert cli("copy", "local", "folder").last == cli("push", "folder").last.replace("push", "copy")


def test_places_may_be_named_inline(cli: Cli, home: Path, store: str, tmp_path: Path) -> None:
    assert cli("push", store).code == 0
    other = f"file://{tmp_path}/other"
    assert f"from {store} to {other} in " in cli("copy", store, other).last
    assert cli("pull", other).last == "Nothing to pull: 3 runs are already here"


def test_json_dry_run_and_quiet(cli: Cli, places: Path, tmp_path: Path) -> None:
    said = cli("copy", "disk", "folder", "--dry-run")
    assert (said.code, said.err) == (0, "")
    assert said.last.startswith("Would copy 3 runs (")
    assert said.last.endswith(") from disk to folder")
    planned = cli("copy", "disk", "folder", "--dry-run", "--json").json
    assert not list((tmp_path / "folder").glob("*/*"))
    done = cli("copy", "disk", "folder", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json.keys() == planned.keys()
    assert (done.json["runs"], done.json["files"]) == (planned["runs"], planned["files"]) == (3, planned["files"])
    said = cli("-q", "copy", "disk", "second")
    assert (said.code, said.out, said.err) == (0, "", "")


def test_selectors_filters_and_patterns(cli: Cli, places: Path, tmp_path: Path) -> None:
    assert cli("copy", "disk", "folder", "-", stdin=f"{FIRST}\n").last.startswith("Copied 1 run (")
    assert cli("copy", "disk", "folder", "-Fl", "run 2").last.startswith("Copied 1 run (")
    assert cli("copy", "disk", "folder", "-Fl", "nothing like it").last == "Nothing to copy: no runs are chosen"
    assert cli("copy", "disk", "folder", "ffffffff").code == 3
    assert cli("copy", "disk", "folder", "-", stdin="\n").code == 3
    assert len(cli("runs", "-r", "folder", "--json").json) == 2
    assert cli("copy", "disk", "tree", THIRD, "--include", "*.pt").code == 0
    run = tmp_path / "tree/runs" / THIRD
    assert {path.name for path in run.iterdir()} == {".guild", "checkpoints"}
    assert cli("copy", "disk", "tree", THIRD, "--exclude", "*.py").last.startswith("Copied 1 run (")
    assert not (run / "train.py").exists()
    assert cli("copy", "disk", "tree", THIRD).last.startswith("Copied 1 run (1 file")
    assert_same(places / "runs" / THIRD, run)


def test_rehash_reads_all_files_of_both_sides(
    cli: Cli, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "SETTLED_NS", -(1 << 62))
    monkeypatch.setattr(statcache, "BLIND", frozenset())
    monkeypatch.setattr(scan, "fingerprint", lambda found: "always the same")
    for _ in range(2):
        assert cli("copy", "disk", "tree").code == 0
    put(places / "runs" / THIRD, "train.py", b"other\n")
    assert cli("copy", "disk", "tree").last.startswith("Nothing to copy: 3 runs")
    assert cli("copy", "disk", "tree", "--rehash").last.startswith("Copied 1 run (1 file, 6 B) ")
    assert cli("copy", "disk", "tree").code == 0  # now what was written is known by its stat data
    put(places / "runs" / THIRD, "train.py", b"one\n")
    put(tmp_path / "tree/runs" / THIRD, "train.py", b"two\n")
    assert cli("copy", "disk", "tree").code == 0
    assert cli("copy", "disk", "tree", "--rehash", "--dry-run").code == 6


@pytest.fixture
def conflict(cli: Cli, places: Path, tmp_path: Path) -> str:
    """A run that changed on `disk` and on `tree`, differently; answers its id."""
    assert cli("copy", "disk", "tree").code == 0
    put(places / "runs" / THIRD, "train.py", b"one\n")
    put(tmp_path / "tree/runs" / THIRD, "train.py", b"other\n")
    return THIRD


def test_a_conflict_names_the_target_and_the_way_out(cli: Cli, places: Path, conflict: str, tmp_path: Path) -> None:
    said = cli("copy", "disk", "tree")
    assert said.code == 6
    assert f"conflict: run {conflict[:8]}: train.py: at the source 4 bytes" in said.err
    assert "--resolve target keeps those of the target (tree is the target)" in said.err
    assert said.last == "Nothing was copied from disk to tree: 1 run is in conflict, 2 runs are already on tree"
    write_run(places, run_ids(4)[3])
    said = cli("copy", "disk", "tree")
    assert said.code == 7
    assert said.last.startswith("Copied 1 run (")
    assert said.last.endswith("; 1 run is in conflict")
    assert cli("copy", "disk", "tree", "--resolve", "mine").code == 2
    assert cli("copy", "disk", "tree", "--resolve", "target").code == 0
    assert (tmp_path / "tree/runs" / conflict / "train.py").read_bytes() == b"other\n"
    assert cli("copy", "tree", "disk").last.startswith("Copied 1 run (1 file, 6 B) ")
    assert cli("copy", "disk", "tree").last == "Nothing to copy: 4 runs are already on tree"


def test_resolve_source_takes_the_sources(cli: Cli, places: Path, conflict: str, tmp_path: Path) -> None:
    assert cli("copy", "tree", "disk", "--resolve", "source").code == 0
    assert (places / "runs" / conflict / "train.py").read_bytes() == b"other\n"


@pytest.mark.parametrize(
    "ends",
    [("disk", "disk"), ("disk", "again"), ("local", "local"), ("disk", "open-disk"), ("folder", "folder")],
    ids=" ".join,
)
def test_one_place_is_not_copied_to_itself(cli: Cli, places: Path, ends: tuple[str, str]) -> None:
    cli("copy", "disk", "folder")
    before = {path: path.stat().st_mtime_ns for path in places.rglob("*")}
    for argv in (["copy", *ends], ["copy", *ends, "--dry-run"]):
        said = cli(*argv)
        assert (said.code, said.out) == (2, "")
        assert said.err.startswith(f"error: {ends[0]} ")
        assert "\nhint: " in said.err
    assert {path: path.stat().st_mtime_ns for path in places.rglob("*")} == before


def test_a_store_is_known_by_its_id(cli: Cli, places: Path, tmp_path: Path) -> None:
    assert cli("copy", "disk", "second").code == 0
    before = sorted((tmp_path / "second").rglob("*"))
    said = cli("copy", f"file://{tmp_path}/second", "second")
    assert said.code == 2
    assert "are the same place, by the id that lies there" in said.err
    assert sorted((tmp_path / "second").rglob("*")) == before


def test_push_and_pull_refuse_the_home_itself_too(cli: Cli, home: Path, tmp_path: Path) -> None:
    config = tmp_path / "me.yml"
    config.write_text(f"remotes: {{me: {{type: local, path: {home}}}}}")
    for verb in ("push", "pull"):
        for name in ("me", "local"):
            said = cli("--config", str(config), verb, name)
            assert (said.code, said.out) == (2, "")


def test_what_is_not_there_is_no_source(cli: Cli, places: Path, tmp_path: Path) -> None:
    for source in ("folder", "tree", "local"):
        said = cli("copy", source, "second")
        assert said.code == 3
        assert "there is nothing at " in said.err
    assert not list((tmp_path / "second").rglob("*.json"))
    said = cli("copy", "disk", "foldr")
    assert said.code == 3
    assert "did you mean 'folder'?" in said.err


def test_two_places_must_be_named(cli: Cli, places: Path) -> None:
    for argv in (["copy"], ["copy", "disk"], ["copy", "disk", "folder", "-r", "tree"]):
        said = cli(*argv)
        assert (said.code, said.out) == (2, "")
    assert "say `guildsync copy SRC DST`" in said.err


def test_help(cli: Cli) -> None:
    said = cli("copy", "--help")
    assert said.code == 0
    for option in ("SRC", "DST", "[RUN]...", "--resolve", "--rehash", "--include", "--exclude", "--dry-run", "--label"):
        assert option in said.out


def test_what_runs_there_is_noted_by_the_sources_name(cli: Cli, places: Path, tmp_path: Path) -> None:
    write_run(places, run_ids(4)[3], {".guild/LOCK.remote": b"gpu"}, exit_status=None, stopped=None)
    assert cli("copy", "disk", "tree").code == 0
    assert (tmp_path / "tree/runs" / run_ids(4)[3] / ".guild/LOCK.remote").read_bytes() == b"disk"


# -- captured environments travel as they are only where every remote says so


def env(home: Path) -> bytes:
    return (home / "runs" / FIRST / ENV).read_bytes()


@pytest.mark.parametrize(
    ("source", "target", "kept"),
    [
        ("disk", "tree", False),
        ("open-disk", "tree", False),
        ("disk", "open-tree", False),
        ("open-disk", "open-tree", True),
        ("open-disk", "second", False),
        ("disk", "open-second", False),
        ("open-disk", "open-second", True),
    ],
)
def test_environments_are_kept_where_both_remotes_say_so(
    cli: Cli, places: Path, tmp_path: Path, source: str, target: str, kept: bool
) -> None:
    put(places / "runs" / FIRST, ENV, CAPTURED)
    assert cli("copy", source, target, FIRST).code == 0
    assert env(places) == CAPTURED
    assert cli("pull", target).code == 0
    assert (env(tmp_path / "own") == CAPTURED) is kept
    assert (b"hunter2" in env(tmp_path / "own")) is kept
    assert cli("copy", source, target, FIRST).last == f"Nothing to copy: 1 run is already on {target}"
    assert cli("copy", "disk", "tree", FIRST).code == 0  # environments that are seen redacted do not differ


def test_no_environment_leaves_a_store_for_a_remote_that_does_not_keep_it(
    cli: Cli, places: Path, tmp_path: Path
) -> None:
    put(places / "runs" / FIRST, ENV, CAPTURED)
    assert cli("copy", "open-disk", "open-folder").code == 0
    for target in ("tree", "second"):
        said = cli("copy", "open-folder", target)
        assert (said.code, said.out) == (2, "")
        assert f"say `keep-env: true` at {target}" in said.err
        assert not (tmp_path / target).exists()
    assert cli("pull", "open-folder").code == 0
    assert env(tmp_path / "own") == CAPTURED
    assert cli("push", "second").code == 0
    for path in (tmp_path / "second").rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes()


def test_the_library_copies_too(places: Path) -> None:
    context = guildsync.open_context()
    assert context.copy("disk", "folder").runs == 3
    assert context.copy("folder", "local").runs == 3
    assert context.push("folder").same == context.pull("folder").same == 3
    with pytest.raises(Usage):
        context.copy("disk", "again")
