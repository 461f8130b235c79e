"""runs of several places: the column that compares, what is unreachable, and other forms of the list."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.kit.sshd import Client
from tests.kit.trees import EPOCH_US, put, run_ids, write_run

FIRST, SECOND, THIRD = run_ids(3)
HOSTILE = "a|b `c` *d* _e_ [f](http://g) <h> ~i~ &j; \x1b[2J\n\u202e\\"


@pytest.fixture
def everywhere(cli: Cli, home: Path, tmp_path: Path) -> str:
    """A configuration with a home `disk`, a store `store`, and a host that nobody reaches; the first run was pushed to
    both, and changed here; the second is on `disk` alone, as it is here; one run is on `store` alone."""
    config = tmp_path / "c.yml"
    config.write_text(
        "remotes:\n"
        f"  disk: {{type: local, path: {tmp_path}/disk}}\n"
        f"  store: {{type: fsspec, url: 'file://{tmp_path}/store'}}\n"
        "  gone: {type: ssh, host: 127.0.0.1, port: 1, connect-timeout: 2}\n"
    )
    write_run(tmp_path / "colleague", run_ids(4)[3], label="theirs", started=EPOCH_US - 1)
    for argv in (
        ["push", "store", "-H", str(tmp_path / "colleague")],
        ["push", "store", FIRST],
        ["push", "disk", FIRST, SECOND],
    ):
        assert cli("--config", str(config), *argv).code == 0
    put(home / "runs" / FIRST, "train.py", b"changed\n")
    return str(config)


def columns(out: str) -> list[tuple[str, str, str]]:
    """The id, the place, and what stands between status and label."""
    rows = []
    for line in out.splitlines():
        words = line.split()
        between = line.partition("completed")[2].partition("run ")[0].partition("theirs")[0].strip()
        rows.append((words[1], words[2], between))
    return rows


def test_each_run_is_compared_with_the_one_here(cli: Cli, everywhere: str) -> None:
    said = cli("--config", everywhere, "runs", "-r", "local", "-r", "disk", "-r", "store")
    assert (said.code, said.err) == (0, "")
    assert columns(said.out) == [
        (THIRD[:8], "local", "only here"),
        (SECOND[:8], "local", ""),
        (SECOND[:8], "disk", "same"),
        (FIRST[:8], "local", ""),
        (FIRST[:8], "disk", "local newer"),
        (FIRST[:8], "store", "local newer"),
        (run_ids(4)[3][:8], "store", "only there"),
    ]
    rows = cli("--config", everywhere, "runs", "-r", "disk", "-r", "store", "--json").json
    assert [(row["id"], row["remote"], row["standing"]) for row in rows] == [
        (SECOND, "disk", "same"),
        (FIRST, "disk", "local newer"),
        (FIRST, "store", "local newer"),
        (run_ids(4)[3], "store", "only there"),
    ]


def test_one_place_is_compared_with_none(cli: Cli, everywhere: str) -> None:
    for remote in ("local", "disk"):
        said = cli("--config", everywhere, "runs", "-r", remote)
        assert "same" not in said.out
        assert "newer" not in said.out
        rows = cli("--config", everywhere, "runs", "-r", remote, "--json").json
        assert {row["standing"] for row in rows} == {None}


def test_one_that_cannot_be_reached_is_a_warning(cli: Cli, everywhere: str) -> None:
    said = cli("--config", everywhere, "runs", "-r", "all")
    assert said.code == 7
    assert "warning: gone: " in said.err
    assert said.err.count("warning:") == 1
    assert [row[1:] for row in columns(said.out)] == [
        ("local", ""),  # it may be there
        ("local", ""),
        ("disk", "same"),
        ("local", ""),
        ("disk", "local newer"),
        ("store", "local newer"),
        ("store", "only there"),
    ]
    said = cli("--config", everywhere, "runs", "-r", "all", "--json")
    assert (said.code, len(said.json)) == (7, 7)
    assert cli("--config", everywhere, "runs", "-r", "gone", "-r", "gone").code == 5


def test_the_trash_is_not_compared(cli: Cli, home: Path, everywhere: str) -> None:
    (home / "trash/runs").mkdir(parents=True, exist_ok=True)
    (home / "runs" / FIRST).rename(home / "trash/runs" / FIRST)
    said = cli("--config", everywhere, "runs", "-d", "-r", "local", "-r", "store")
    assert [line.split()[1:3] for line in said.out.splitlines()] == [[FIRST[:8], "local"]]
    assert "only" not in said.out


def test_selectors_and_filters_as_before(cli: Cli, everywhere: str) -> None:
    places = ("--config", everywhere, "runs", "-r", "local", "-r", "disk", "-r", "store")
    assert [row[:2] for row in columns(cli(*places, "1").out)] == [
        (THIRD[:8], "local"),
        (SECOND[:8], "disk"),
        (FIRST[:8], "store"),
    ]
    assert [row[:2] for row in columns(cli(*places, SECOND).out)] == [(SECOND[:8], "local"), (SECOND[:8], "disk")]
    assert {row[1] for row in columns(cli(*places, "-Fl", "run 1").out)} == {"local", "disk", "store"}
    assert cli(*places, "9").code == 3
    assert cli(*places, "what?").code == 2
    said = cli(*places, "-Fl", "nothing")
    assert (said.code, said.out) == (0, "")
    assert "no run matches" in said.err


@pytest.mark.servers
def test_a_host_beside_a_folder(cli: Cli, home: Path, tmp_path: Path, ssh_user: Client) -> None:
    config = tmp_path / "c.yml"
    config.write_text(
        f"remotes:\n  gpu: {{type: ssh, host: far, guild-home: {tmp_path}/far}}\n"
        f"  store: {{type: fsspec, url: 'file://{tmp_path}/store'}}\n"
    )
    assert cli("--config", str(config), "push", "gpu", FIRST).code == 0
    put(tmp_path / "far/runs" / FIRST, "more.txt", b"written there\n")
    said = cli("--config", str(config), "runs", "-r", "all")
    assert said.code == 0
    assert "there is nothing at" in said.err
    assert [row[1:] for row in columns(said.out)] == [
        ("local", "only here"),
        ("local", "only here"),
        ("local", ""),
        ("gpu", "remote newer"),
    ]


# -- forms


def test_ids_are_whole_and_each_there_once(cli: Cli, everywhere: str) -> None:
    said = cli("--config", everywhere, "runs", "-r", "local", "-r", "disk", "--format", "ids")
    assert said.out.splitlines() == [THIRD, SECOND, FIRST]
    assert cli("runs", "--format", "ids", "-n", "2").out.splitlines() == [THIRD, SECOND]
    assert cli("runs", "-", "--format=ids", stdin=said.out).out == said.out
    assert cli("runs", "-Fl", "nothing", "--format", "ids").out == ""


def test_ids_and_csv_have_all_and_a_table_for_people_has_twenty(cli: Cli, home: Path) -> None:
    for run in run_ids(25)[3:]:
        write_run(home, run)
    assert len(cli("runs", "--format", "ids").out.splitlines()) == 25
    assert len(cli("runs", "--format", "csv").out.splitlines()) == 26
    said = cli("runs", "--format", "md")
    assert len(said.out.splitlines()) == 22
    assert "20 of 25 runs are shown" in said.err
    assert len(cli("runs", "--format", "md", "-a").out.splitlines()) == 27
    assert len(cli("runs", "--format", "md", "-n", "3").out.splitlines()) == 5
    assert len(cli("runs", "--format", "csv", "-n", "3").out.splitlines()) == 4
    assert cli("runs", "--format", "csv", "-n", "3").err == ""


def test_csv_is_exact(cli: Cli, home: Path) -> None:
    label = 'x, "y"\r\n=1+1\u202e\x1b'
    put(home / "runs" / THIRD, ".guild/attrs/label", json.dumps(label).encode() + b"\n")
    put(home / "runs" / THIRD, ".guild/attrs/tags", b"- b c\n- a\n")
    put(home / "runs" / THIRD, ".guild/attrs/flags", b"lr: 1e-5\nname: 'a,b'\nuse: true\nnone: null\nlist: [1, x]\n")
    said = cli("runs", "--format", "csv")
    assert (said.code, said.err) == (0, "")
    assert said.out.count("\r\n") == 4 + 1  # four records, and the one in the label
    rows = list(csv.DictReader(io.StringIO(said.out, newline="")))
    exact = cli("runs", "--json").json
    assert [row["id"] for row in rows] == [row["id"] for row in exact]
    assert [key for key in rows[0] if not key.startswith("flag:")] == [key for key in exact[0] if key != "flags"]
    first = rows[0]
    assert first["label"] == label
    assert first["tags"] == "a b c"
    assert (first["started"], first["size"], first["marked"]) == (exact[0]["started"], str(exact[0]["size"]), "false")
    assert (first["standing"], first["remote"]) == ("", "local")
    flags = {key: value for key, value in first.items() if key.startswith("flag:")}
    assert flags == {
        "flag:epochs": "",
        "flag:list": '[1, "x"]',
        "flag:lr": "1e-05",
        "flag:name": "a,b",
        "flag:none": "",
        "flag:use": "true",
    }
    assert rows[1]["flag:epochs"] == "3"


def test_csv_without_rows_has_its_header(cli: Cli, home: Path) -> None:
    said = cli("runs", "-Fl", "nothing", "--format", "csv")
    assert said.out.startswith("id,operation,status,")
    assert len(said.out.splitlines()) == 1


def test_markdown_has_no_markup_of_others(cli: Cli, home: Path) -> None:
    put(home / "runs" / THIRD, ".guild/attrs/label", json.dumps(HOSTILE).encode() + b"\n")
    put(home / "runs" / SECOND, ".guild/opref", b"script:/x y z 'a|b'")
    lines = cli("runs", "--format", "md").out.splitlines()
    assert lines[:2] == [
        "| # | id | operation | started | status | label |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    assert lines[2].endswith(r"a\|b \`c\` \*d\* \_e\_ \[f\](http://g) \<h\> \~i\~ \&j; \\x1b\[2J\\n\\u202e\\ |")
    assert r"| z:a\|b |" in lines[3]
    for line in lines:
        unescaped = line.replace(r"\\", "").replace(r"\|", "")
        assert unescaped.count("|") == 7, line
    assert all(char.isprintable() for line in lines for char in line)


def test_markdown_of_several_places(cli: Cli, everywhere: str) -> None:
    said = cli("--config", everywhere, "runs", "-r", "local", "-r", "disk", "--format", "md")
    assert said.out.splitlines()[0] == "| # | id | where | operation | started | status | compared | label |"
    assert "| completed | local newer | run 1 |" in said.out


def test_what_is_no_form_is_refused(cli: Cli, home: Path) -> None:
    said = cli("runs", "--format", "cvs")
    assert said.code == 2
    assert "did you mean 'csv'" in said.err
    assert cli("runs", "--format", "csv", "--json").code == 2
    assert cli("runs", "--format", "md", "-a", "-n", "1").code == 2
