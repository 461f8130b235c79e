"""runs, info and remotes: which rows, in which form."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.kit.trees import EPOCH_US, put, run_ids, write_run

ROW = {
    *("id", "operation", "status", "exit_status", "started", "stopped", "label", "tags", "flags", "remote"),
    *("size", "files", "deleted"),
}


def short_ids(out: str) -> list[str]:
    return [line.split()[1] for line in out.splitlines()]


def test_newest_first_and_the_ways_to_name_runs(cli: Cli, home: Path) -> None:
    newest_first = [run[:8] for run in reversed(run_ids(3))]
    assert short_ids(cli("runs").out) == newest_first
    assert short_ids(cli("runs", "list").out) == newest_first
    assert short_ids(cli("runs", "2").out) == newest_first[1:2]
    assert short_ids(cli("runs", "2:").out) == newest_first[1:]
    assert short_ids(cli("runs", ":2").out) == newest_first[:2]
    assert short_ids(cli("runs", "@latest:2").out) == newest_first[:2]
    assert short_ids(cli("runs", newest_first[2], "1").out) == [newest_first[0], newest_first[2]]
    assert short_ids(cli("runs", "-", stdin=run_ids(1)[0]).out) == newest_first[2:]
    assert cli("runs", "9").code == 3
    assert cli("runs", "what?").code == 2


def test_an_ambiguous_id_lists_the_matches(cli: Cli, home: Path) -> None:
    for end in "ab":
        write_run(home, "abcd" * 7 + "abc" + end)
    said = cli("runs", "abcdabcd")
    assert said.code == 2
    assert "abcd" * 7 + "abca" in said.err
    assert "abcd" * 7 + "abcb" in said.err


@pytest.mark.parametrize(
    ("filters", "labels"),
    [
        (["-Fl", "run 2"], ["run 2"]),
        (["--label", "RUN 3"], ["run 3"]),
        (["-Fo", "train"], ["run 3", "run 2", "run 1"]),
        (["-Fo", "nothing"], []),
        (["-Sc"], ["run 3", "run 1"]),
        (["-Se"], ["run 2"]),
        (["-Se", "-Sc"], ["run 3", "run 2", "run 1"]),
        (["-Sr"], []),
        (["-Fu"], []),
        (["-Fl", "-"], []),
        (["-Ft", "good"], ["run 1"]),
        (["-Fm"], ["run 3"]),
        (["-Sc", "-Fm"], ["run 3"]),
    ],
)
def test_filters(cli: Cli, home: Path, filters: list[str], labels: list[str]) -> None:
    first, second, third = (home / "runs" / run for run in run_ids(3))
    put(first, ".guild/attrs/tags", b"- good\n")
    put(second, ".guild/attrs/exit_status", b"1\n")
    put(third, ".guild/attrs/marked", b"true\n")
    before, after = cli(*filters[:0], "runs", "--json", *filters), cli("--json", "runs", *filters)
    assert [row["label"] for row in after.json] == labels
    assert before.out == after.out
    assert after.code == 0


def test_twenty_rows_unless_more_are_asked_for(cli: Cli, home: Path) -> None:
    for run in run_ids(25)[3:]:
        write_run(home, run)
    said = cli("runs")
    assert len(said.out.splitlines()) == 20
    assert "20 of 25 runs are shown" in said.err
    assert len(cli("runs", "-a").out.splitlines()) == 25
    assert len(cli("runs", "-n", "2").out.splitlines()) == 2
    assert len(cli("runs", "-n22").out.splitlines()) == 22
    assert len(cli("runs", "--json").json) == 25
    assert cli("runs", "-a", "-n", "2").code == 2


def test_rows_as_json(cli: Cli, home: Path) -> None:
    run = home / "runs" / run_ids(3)[2]
    put(run, ".guild/attrs/flags", b"lr: .inf\nname: x\n")
    row = cli("runs", "1", "--json").json[0]
    assert row.keys() >= ROW
    assert row["id"] == run.name
    assert row["flags"] == {"lr": "inf", "name": "x"}
    assert row["remote"] == "local"
    assert row["deleted"] is False
    assert datetime.fromisoformat(row["started"]).timestamp() == pytest.approx(EPOCH_US / 1e6 + 2)
    assert datetime.fromisoformat(row["started"]).tzinfo is not None
    assert row["size"] > 40_000
    assert row["files"] > 10


def test_deleted_runs(cli: Cli, home: Path) -> None:
    run = run_ids(3)[0]
    (home / "trash/runs").mkdir(parents=True)
    (home / "runs" / run).rename(home / "trash/runs" / run)
    assert len(cli("runs").out.splitlines()) == 2
    assert short_ids(cli("runs", "-d").out) == [run[:8]]
    assert cli("runs", "-d", "--json").json[0]["deleted"] is True


def test_several_remotes_have_a_column(cli: Cli, home: Path, store: str) -> None:
    cli("push", store, "1")
    said = cli("-r", "local", "runs", "-r", store)
    assert said.code == 0
    assert [line.split()[2] for line in said.out.splitlines()] == ["local", store, "local", "local"]
    assert {row["remote"] for row in cli("runs", "-r", "local", "-r", store, "--json").json} == {"local", store}


def test_a_home_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    assert cli("runs", "-H", str(tmp_path / "none")).code == 3
    assert cli("runs", "-r", "none").code == 3
    assert cli("runs", "-r", "all", "-r", "none").code == 3


def test_hostile_labels_are_shown_harmlessly_and_exact_in_json(cli: Cli, home: Path) -> None:
    label = "a\x1b]0;owned\x07\n\u202etxt\x9b"
    run = home / "runs" / run_ids(3)[2]
    put(run, ".guild/attrs/label", json.dumps(label).encode() + b"\n")
    put(run, ".guild/opref", b"script:/x y z 'op\x1b[2J'")
    for argv in (["runs"], ["info"], ["info", "1"], ["runs", "info", "1"]):
        said = cli(*argv)
        assert said.code == 0
        assert r"a\x1b]0;owned\x07\n\u202etxt\x9b" in said.out
        assert r"op\x1b[2J" in said.out
        assert not set("\x1b\x07\x9b\u202e") & set(said.out)
    assert cli("runs", "1", "--json").json[0]["label"] == label
    assert cli("runs", "1", "--json").out.isascii()


def test_info_of_the_newest_and_of_one(cli: Cli, home: Path, store: str) -> None:
    newest, oldest = run_ids(3)[2], run_ids(3)[0]
    lines = cli("info").out.splitlines()
    assert lines[0] == f"id: {newest}"
    assert "status: completed (exit 0)" in lines
    assert "  lr: 0.1" in lines
    assert lines[-1] == f"where: {home}/runs/{newest}"
    assert cli("runs", "info", oldest[:6]).out.startswith(f"id: {oldest}\n")
    assert cli("runs", "-H", str(home), "info", "3").out.startswith(f"id: {oldest}\n")
    assert cli("info", "-Fl", "run 2").out.startswith(f"id: {run_ids(3)[1]}\n")
    assert cli("info", "1:2").code == 2
    assert cli("info", "7").code == 3
    assert cli("info", "-r", "a", "-r", "b").code == 2
    assert cli("info", "-r", "all").code == 2
    cli("push", store)
    assert f"where: {store}" in cli("info", "-r", store).out
    document = cli("info", "--json").json
    assert document.keys() >= {*ROW, "scalars", "command", "comments", "where"}
    assert document["command"][0] == "/usr/bin/python"


def test_remotes(cli: Cli, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = cli("remotes")
    assert (said.code, said.out) == (0, "")
    assert "no remotes are configured" in said.err
    config = tmp_path / "mine.yml"
    config.write_text(
        "remotes:\n"
        "  bucket: {type: s3, bucket: b, root: team}\n"
        "  disk: {type: local, path: /disk}\n"
        "  web: {type: fsspec, url: 'ftp://me:secret@host/x'}\n"
    )
    said = cli("--config", str(config), "remotes")
    assert said.code == 0
    assert [line.split()[:3] for line in said.out.splitlines()] == [
        ["bucket", "s3", "s3:b/team"],
        ["disk", "local", "/disk"],
        ["web", "fsspec", "ftp://***@host/x"],
    ]
    rows = cli("remotes", "--config", str(config), "--json")
    assert "secret" not in rows.out
    assert [row["name"] for row in rows.json] == ["bucket", "disk", "web"]
    assert [row["can"] for row in rows.json] == [["sync"], ["sync", "run"], ["sync"]]
