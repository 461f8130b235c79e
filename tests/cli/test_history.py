"""info --history: what was done to a run, in words and as JSON, where somebody keeps it."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import pytest

from guildsync.model.run import RunId
from tests.cli.conftest import Cli, Said
from tests.conftest import new_bucket
from tests.kit.replicas import TREES, new_site
from tests.kit.servers import S3Server, bucket_file
from tests.kit.trees import put, run_ids, write_run

FIRST, _, NEWEST = run_ids(3)


def told(said: Said) -> list[tuple[str, str]]:
    """The mark of what holds now, and the words, without times."""
    assert said.code == 0, said.err
    lines = said.out.partition("history (* holds now):\n")[2].splitlines()
    assert lines
    for line in lines:
        datetime.strptime(line[2:21], "%Y-%m-%d %H:%M:%S")
    return [(line[21:26].strip(), line[26:]) for line in lines]


def version(said: Said, number: int) -> str:
    found = [row for row in said.json["history"] if row["what"] == "version"]
    return str(found[number]["value"]["content"][:8])


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.servers)])
def remote(
    request: pytest.FixtureRequest, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, ...]:
    """The words that name a store."""
    if request.param == "folder":
        return ("-r", store)
    server: S3Server = request.getfixturevalue("seaweed")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    file = bucket_file(tmp_path, server.endpoint, new_bucket(server))
    return ("--config", str(file), "-r", "bucket")


def push(cli: Cli, remote: tuple[str, ...], *more: str) -> None:
    assert cli(*remote[:-2], "push", remote[-1], *more).code == 0


def test_everything_that_was_done_to_a_run(cli: Cli, home: Path, remote: tuple[str, ...]) -> None:
    run = home / "runs" / NEWEST
    push(cli, remote, NEWEST)
    put(run, "train.py", b"a longer program\n")
    put(run, ".guild/attrs/tags", b"- good\n")
    push(cli, remote, NEWEST)
    assert cli(*remote, "label", "--set", "best", NEWEST).code == 0
    assert cli(*remote, "runs", "delete", NEWEST, "-y").code == 0
    assert cli(*remote, "info", NEWEST, "--history").code == 3
    deleted = cli(*remote, "info", "1", "--deleted", "--history")
    assert told(deleted)[-1] == ("*", "deleted")
    assert cli(*remote, "runs", "restore", NEWEST).code == 0
    exact = cli(*remote, "info", "--history", "--json")
    assert told(cli(*remote, "info", "--history")) == [
        ("", f"version {version(exact, 0)}: completed, 18 files, 42 kB"),
        ("", "label: run 3"),
        ("*", f"version {version(exact, 1)}: completed, 18 files, 42 kB"),
        ("*", "tag good added"),
        ("*", "label: best"),
        ("", "deleted"),
        ("*", "restored"),
    ]
    rows = exact.json["history"]
    assert [row["what"] for row in rows] == ["version", "label", "version", "tag:good", "label", "delete", "restore"]
    assert [row["current"] for row in rows] == [False, False, True, True, True, False, True]
    now = datetime.now(timezone.utc)
    for row in rows:
        assert abs((datetime.fromisoformat(row["stored"]) - now).total_seconds()) < 300
    assert exact.json["id"] == NEWEST


def test_a_purged_run_that_came_again(cli: Cli, home: Path, store: str) -> None:
    remote = ("-r", store)
    push(cli, remote, NEWEST)
    assert cli(*remote, "runs", "delete", NEWEST, "-y").code == 0
    assert cli(*remote, "runs", "purge", NEWEST, "-y").code == 0
    assert cli(*remote, "info", NEWEST, "--history").code == 3
    push(cli, remote, NEWEST, "--undelete")
    exact = cli(*remote, "info", NEWEST, "--history", "--json")
    content = version(exact, 0)
    assert told(cli(*remote, "info", NEWEST, "--history")) == [
        ("", f"version {content}: completed, 18 files, 42 kB (given up)"),
        ("", "label: run 3"),
        ("", "deleted"),
        ("", "purged 1 version"),
        ("*", "restored"),
        ("*", f"version {content}: completed, 18 files, 42 kB"),
        ("*", "label: run 3"),
    ]


def test_edits_of_two_people_and_foreign_text(cli: Cli, home: Path, store: str, tmp_path: Path) -> None:
    """The label that lost is still told."""
    colleague = ("-H", str(tmp_path / "colleague"))
    push(cli, ("-r", store), NEWEST)
    assert cli(*colleague, "pull", store).code == 0
    for where, label in ((tmp_path / "colleague", "theirs\x1b[2J\n"), (home, "mine")):
        put(where / "runs" / NEWEST, ".guild/attrs/label", json.dumps(label).encode() + b"\n")
    assert cli(*colleague, "push", store).code == 0
    assert cli("push", store).code == 0
    found = [each for each in told(cli("-r", store, "info", NEWEST, "--history")) if each[1].startswith("label")]
    assert found == [("", "label: run 3"), ("", r"label: theirs\x1b[2J\n"), ("*", "label: mine")]


def test_where_no_history_is_kept(cli: Cli, home: Path, tmp_path: Path) -> None:
    said = cli("info", "--history")
    assert said.code == 0
    assert "history (" not in said.out
    assert "no history is kept there" in said.err
    assert cli("info", "--history", "--json").json["history"] == []
    assert "history" not in cli("info", "--json").json


def test_info_says_nothing_of_history_unasked(cli: Cli, home: Path, store: str) -> None:
    push(cli, ("-r", store))
    assert "history (" not in cli("-r", store, "info").out


def test_info_of_a_run_in_the_trash(cli: Cli, home: Path) -> None:
    assert cli("runs", "delete", FIRST, "-y").code == 0
    said = cli("info", "-d", "1")
    assert said.out.startswith(f"id: {FIRST}\n")
    assert said.out.rstrip().endswith(f"{home}/trash/runs/{FIRST}")
    assert cli("info", "-d", NEWEST).code == 3


@pytest.mark.parametrize("kind", TREES)
def test_a_tree_keeps_none_and_a_far_one_is_not_asked(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    site = new_site(kind, tmp_path, request)
    write_run(site.home, FIRST)
    with site.opened() as replica:
        assert len(list(replica.runs())) == 1
        asked = site.far.round_trips if site.far is not None else 0
        assert tuple(replica.history(RunId(FIRST))) == ()
        assert (site.far.round_trips if site.far is not None else 0) == asked
