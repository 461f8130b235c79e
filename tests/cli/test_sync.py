"""push, pull, verify and check: what they say, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guildsync.tree import scan, statcache
from tests.cli.conftest import Cli
from tests.kit.trees import EPOCH_US, assert_same, put, run_ids, write_run

COUNTERS = {
    "runs",
    "files",
    "bytes_total",
    "bytes_sent",
    "bytes_reused",
    "bytes_resumed",
    "requests",
    "seconds",
    "problems",
}


def test_push_then_nothing_to_push_then_pull(cli: Cli, home: Path, store: str, tmp_path: Path) -> None:
    said = cli("push", store)
    assert (said.code, said.err) == (0, "")
    assert said.last.startswith("Pushed 3 runs (")
    assert "were there already" in said.last
    assert f") to {store} in " in said.last
    assert cli("push", store).last == f"Nothing to push: 3 runs are already on {store}"
    assert cli("push", store, "1").last == f"Nothing to push: 1 run is already on {store}"
    other = tmp_path / "other"
    said = cli("-H", str(other), "pull", store)
    assert said.code == 0
    assert said.last.startswith("Pulled 3 runs (")
    assert cli("pull", store, "-H", str(other)).last == "Nothing to pull: 3 runs are already here"
    for run in run_ids(3):
        assert_same(home / "runs" / run, other / "runs" / run)


def test_json_is_one_document_with_all_counters(cli: Cli, home: Path, store: str) -> None:
    planned = cli("push", store, "--dry-run", "--json")
    assert planned.code == 0
    assert planned.json.keys() == COUNTERS
    assert planned.json["runs"] == 3
    said = cli("push", store, "--json")
    assert said.code == 0
    assert said.err == ""
    differ = {"seconds": 0, "bytes_sent": 0, "requests": 0}
    assert {**said.json, **differ} == {**planned.json, **differ}
    assert 0 < planned.json["requests"] < said.json["requests"]
    assert said.json["bytes_sent"] + said.json["bytes_reused"] == said.json["bytes_total"]
    assert cli("push", store, "--json").json["runs"] == 0


def test_dry_run_changes_nothing(cli: Cli, home: Path, store: str, tmp_path: Path) -> None:
    said = cli("push", store, "--dry-run")
    assert said.code == 0
    assert said.last.startswith("Would push 3 runs (")
    assert cli("runs", "-r", store).code == 3
    assert not list((tmp_path / "store").glob("*/*"))


def test_quiet_says_nothing_when_all_is_well(cli: Cli, home: Path, store: str) -> None:
    said = cli("-q", "push", store)
    assert (said.code, said.out, said.err) == (0, "", "")
    assert cli("push", "nowhere", "-q").err != ""


def test_selectors_and_ids_from_stdin(cli: Cli, home: Path, store: str) -> None:
    first, second, third = run_ids(3)
    assert cli("push", store, "-", stdin=f"{first}\n{third}\n").last.startswith("Pushed 2 runs")
    assert cli("push", store, second[:6]).last.startswith("Pushed 1 run ")
    assert cli("push", store, "-Fl", "nothing like it").last == "Nothing to push: no runs are chosen"


def test_no_ids_on_stdin_is_not_all_runs(cli: Cli, home: Path, store: str, tmp_path: Path) -> None:
    said = cli("push", store, "-", stdin="\n")
    assert said.code == 3
    assert "no ids" in said.err
    assert not (tmp_path / "store").exists()
    assert cli("push", store, "-", stdin="1\n").code == 2


def test_a_selector_that_matches_nothing_acts_on_nothing(cli: Cli, home: Path, store: str, tmp_path: Path) -> None:
    assert cli("push", store, "1", "ffffffff").code == 3
    assert not list((tmp_path / "store").glob("*/*"))


@pytest.fixture
def conflict(cli: Cli, home: Path, store: str, tmp_path: Path) -> str:
    """A run that changed here and at the store, differently; answers its id."""
    run = run_ids(3)[2]
    other = tmp_path / "other"
    assert cli("push", store).code == 0
    assert cli("-H", str(other), "pull", store).code == 0
    put(other / "runs" / run, "train.py", b"one\n", mtime_ns=1)
    put(home / "runs" / run, "train.py", b"other\n", mtime_ns=2)
    assert cli("-H", str(other), "push", store).code == 0
    return run


def test_a_conflict_is_listed_with_both_versions_and_the_way_out(cli: Cli, store: str, conflict: str) -> None:
    said = cli("push", store)
    assert said.code == 6
    assert f"conflict: run {conflict[:8]}: train.py: at the source 6 bytes" in said.err
    assert "at the target 4 bytes" in said.err
    assert "--resolve source" in said.err
    assert said.last == f"Nothing was pushed to {store}: 1 run is in conflict, 2 runs are already on {store}"
    (row,) = cli("push", store, "--json").json["problems"]
    assert (row["run"], row["path"], row["reason"]) == (conflict, "train.py", "conflict")


def test_all_but_the_conflict_is_delivered(cli: Cli, home: Path, store: str, conflict: str) -> None:
    write_run(home, run_ids(4)[3])
    said = cli("push", store)
    assert said.code == 7
    assert said.last.startswith("Pushed 1 run (")
    assert said.last.endswith("; 1 run is in conflict")


def test_resolve_takes_a_side(cli: Cli, home: Path, store: str, conflict: str) -> None:
    assert cli("pull", store, "--resolve", "target").code == 0
    assert (home / "runs" / conflict / "train.py").read_bytes() == b"other\n"
    assert cli("push", store, "--resolve", "source").code == 0
    assert cli("push", store).last.startswith("Nothing to push")


def test_resolve_must_be_a_side(cli: Cli, home: Path, store: str) -> None:
    said = cli("push", store, "--resolve", "mine")
    assert said.code == 2
    assert "source, target" in said.err


def test_patterns_say_what_of_the_runs_goes(cli: Cli, home: Path, store: str, tmp_path: Path) -> None:
    model = ("--include", "*.pt", "--exclude", "/tmp/")
    planned = cli("push", store, *model, "--dry-run", "--json").json
    said = cli("push", store, *model)
    assert (said.code, said.err) == (0, "")
    assert said.last.startswith(f"Pushed 3 runs ({planned['files']} files, ")
    assert cli("push", store, *model).last == f"Nothing to push: 3 runs are already on {store}"
    assert len(cli("runs", "-r", store, "--json").json) == 3
    other = tmp_path / "other"
    assert cli("-H", str(other), "pull", store).last.startswith(f"Pulled 3 runs ({planned['files']} files, ")
    for run in run_ids(3):
        assert (other / "runs" / run / ".guild/opref").exists()
        assert {path.name for path in (other / "runs" / run).iterdir()} == {".guild", "checkpoints"}
        assert {path.name for path in (other / "runs" / run / ".guild").iterdir()} == {"attrs", "opref"}
    rest = cli("push", store, "--json").json
    assert rest["problems"] == []
    assert rest["bytes_total"] + planned["bytes_total"] == sum(
        row["size"] for row in cli("runs", "-r", store, "--json").json
    )
    said = cli("-H", str(other), "pull", store, "--exclude", "*.py", "--exclude", ".guild/events*")
    assert said.last.startswith("Pulled 3 runs (9 files, ")
    for run in run_ids(3):
        assert not (other / "runs" / run / "train.py").exists()


def test_configured_patterns_hold_where_none_are_said(cli: Cli, home: Path, store: str, tmp_path: Path) -> None:
    (tmp_path / "guildsync.yml").write_text("include: ['*.pt', '*.py']\nexclude: ['/tmp/', '*.py']\n")
    planned = cli("push", store, "--dry-run", "--json").json
    assert planned == cli("push", store, "--include", "*.pt", "--dry-run", "--json").json | {
        "seconds": planned["seconds"]
    }
    assert cli("push", store).code == 0
    other = tmp_path / "other"
    assert cli("-H", str(other), "pull", store, "--include", "/none/").code == 0
    for run in run_ids(3):
        assert not (other / "runs" / run / "train.py").exists()
        assert not (other / "runs" / run / "checkpoints").exists()
    assert cli("-H", str(other), "pull", store).code == 0
    for run in run_ids(3):
        assert {path.name for path in (other / "runs" / run).iterdir()} == {".guild", "checkpoints"}


def test_what_is_in_conflict_may_be_left_out(cli: Cli, home: Path, store: str, conflict: str) -> None:
    put(home / "runs" / conflict, "notes", b"mine\n")
    assert cli("push", store).code == 6
    said = cli("push", store, "--exclude", "/train.py")
    assert (said.code, said.err) == (0, "")
    assert said.last.startswith("Pushed 1 run (1 file, 5 B) ")
    assert cli("pull", store, "--exclude", "train.py").last == "Nothing to pull: 3 runs are already here"
    assert (home / "runs" / conflict / "train.py").read_bytes() == b"other\n"
    assert cli("push", store).code == 6


def test_resolve_replaces_nothing_that_is_left_out(cli: Cli, home: Path, store: str, tmp_path: Path) -> None:
    run = run_ids(3)[2]
    assert cli("push", store).code == 0
    write_run(tmp_path / "other", run, {"notes": b"a file\n"}, label="run 3", started=EPOCH_US + 2_000_000)
    assert cli("-H", str(tmp_path / "other"), "push", store).code == 0
    put(home / "runs" / run, "notes/best.pt", b"below a directory\n")
    for resolve in ((), ("--resolve", "source")):
        said = cli("push", store, "--include", "*.pt", *resolve)
        assert said.code == 6
        assert f"conflict: run {run[:8]}: notes: at the source a directory" in said.err
    assert "say --resolve without them" in said.err
    assert cli("push", store, "--resolve", "source").code == 0


@pytest.mark.parametrize("option", ["--include", "--exclude"])
@pytest.mark.parametrize("pattern", ["", "/", "a[b", "[z-a]", "../x", "a\\", "a\0b"])
def test_a_malformed_pattern_is_refused(
    cli: Cli, home: Path, store: str, tmp_path: Path, option: str, pattern: str
) -> None:
    for verb in ("push", "pull"):
        said = cli(verb, store, option, "*.pt", option, pattern)
        assert said.code == 2
        assert said.err.startswith("error: the pattern '")
        assert "\nhint: " in said.err
    assert not (tmp_path / "store").exists()


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stat cache keeps rows at once, on whatever filesystem, and no change of a file shows in its stat data."""
    monkeypatch.setattr(scan, "SETTLED_NS", -(1 << 62))
    monkeypatch.setattr(statcache, "BLIND", frozenset())
    monkeypatch.setattr(scan, "fingerprint", lambda found: "always the same")


def test_rehash_reads_what_the_stat_cache_calls_unchanged(
    cli: Cli, home: Path, store: str, tmp_path: Path, trusting: None
) -> None:
    assert cli("push", store).code == 0
    assert cli("push", store).last.startswith("Nothing to push: 3 runs")
    run = home / "runs" / run_ids(3)[2]
    put(run, "train.py", b"other\n")
    assert cli("push", store).last.startswith("Nothing to push: 3 runs")
    assert cli("push", store, "--rehash", "--dry-run").last.startswith("Would push 1 run (1 file, 6 B) ")
    put(run, "train.py", b"another\n")
    assert cli("push", store, "--rehash").last.startswith("Pushed 1 run (1 file, 8 B) ")
    assert cli("push", store).last.startswith("Nothing to push: 3 runs")  # what was read is known now
    assert cli("push", store, "--rehash").last.startswith("Nothing to push: 3 runs")


def test_rehash_on_pull_and_on_another_home(cli: Cli, home: Path, tmp_path: Path, trusting: None) -> None:
    config = tmp_path / "c.yml"
    config.write_text(f"remotes: {{disk: {{type: local, path: {home}}}}}")
    pull = ("--config", str(config), "-H", str(tmp_path / "other"), "pull", "disk")
    for _ in range(2):
        assert cli(*pull).code == 0
    put(home / "runs" / run_ids(3)[2], "train.py", b"other\n")
    assert cli(*pull).last.startswith("Nothing to pull: 3 runs")
    assert cli(*pull, "--rehash").last.startswith("Pulled 1 run (1 file, 6 B) ")
    put(tmp_path / "other/runs" / run_ids(3)[2], "train.py", b"mine\n")
    put(home / "runs" / run_ids(3)[2], "train.py", b"theirs\n")
    assert cli(*pull).code == 0
    assert cli(*pull, "--rehash").code == 6


def test_verify_a_whole_store_and_a_home(cli: Cli, home: Path, store: str) -> None:
    cli("push", store)
    for argv in (["verify", "-r", store], ["--remote", store, "verify"], ["verify"]):
        said = cli(*argv)
        assert said.code == 0
        assert said.last.startswith("Verified 3 runs (")
        assert said.last.endswith("all bytes match their digests")
    assert cli("verify", "1", "-r", store).last.startswith("Verified 1 run (")
    assert cli("verify", "--quick", "-r", store).last == "Looked over 3 runs: nothing is missing"
    document = cli("verify", "-r", store, "--json").json
    assert document["damaged"] == document["missing"] == []
    assert document["objects"] > 0
    assert document["bytes"] > 0


def test_damage_is_named_and_ends_with_8(cli: Cli, home: Path, store: str, tmp_path: Path) -> None:
    cli("push", store)
    pack = max((tmp_path / "store/packs").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    said = cli("verify", "-r", store)
    assert said.code == 8
    assert "damaged: run " in said.err
    assert " damaged" in said.last
    assert cli("verify", "-r", store, "--json").json["damaged"][0]["reason"] == "damaged"
    pulled = cli("-H", str(tmp_path / "other"), "pull", store)
    assert pulled.code == 8
    assert "damaged: run " in pulled.err


def test_check_says_each_step(cli: Cli, home: Path, store: str) -> None:
    for argv in (["check", "-r", store], ["-r", store, "check"], ["check"]):
        said = cli(*argv)
        assert said.code == 0
        assert "ok      reachable: " in said.out
        assert said.last.endswith("can be used")
    document = cli("check", "--json").json
    assert document["ok"]
    assert {"name", "ok", "detail", "hint"} == document["steps"][0].keys()


def test_check_of_a_place_that_cannot_be_written_fails(cli: Cli, home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    said = cli("check", "-r", f"file://{tmp_path}/file")
    assert said.code != 0
    assert "Traceback" not in said.err


def test_an_unreachable_endpoint_ends_with_5(
    cli: Cli, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = "http://127.0.0.1:1"
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    remote = {"type": "s3", "bucket": "b", "region": "us-east-1", "endpoint-url": closed, "local-env": keys}
    config = tmp_path / "config.yml"
    config.write_text(json.dumps({"remotes": {"bucket": remote}}))
    monkeypatch.setenv("GUILDSYNC_CONFIG", str(config))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    said = cli("push", "bucket")
    assert said.code == 5
    assert said.out == ""
    assert said.err.startswith("error: ")
    listed = cli("runs", "-r", "all")
    assert listed.code == 7
    assert "warning: bucket: " in listed.err
    assert len(listed.out.splitlines()) == 3


def test_the_number_of_jobs_may_be_chosen(cli: Cli, home: Path, store: str) -> None:
    assert cli("push", store, "-j", "1").code == 0
    assert cli("-j", "64", "push", store).code == 0


@pytest.mark.parametrize("jobs", ["0", "65", "-1", "many", "1.5"])
def test_a_number_of_jobs_that_cannot_be_is_refused(cli: Cli, home: Path, store: str, jobs: str) -> None:
    said = cli("push", store, f"--jobs={jobs}")
    assert said.code == 2
    assert f"-j/--jobs cannot be {jobs!r}" in said.err
