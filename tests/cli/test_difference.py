"""diff: what it says of two runs, where they lie."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.conftest import new_bucket
from tests.kit.servers import S3Server, bucket_file
from tests.kit.trees import put, run_ids

FIRST, SECOND, THIRD = run_ids(3)

Diff = Callable[..., object]


@pytest.fixture
def changed(home: Path) -> Path:
    """The second run: it differs from the first in every way there is."""
    first, second = home / "runs" / FIRST, home / "runs" / SECOND
    put(first, "checkpoints/model.pt", b"\0" * 10)
    put(second, "checkpoints/model.pt", b"\0" * 20)
    put(second, ".guild/attrs/flags", b"lr: 0.01\nepochs: 3\nnew: a b\n")
    put(second, "train.py", b"print('hello')\n\tprint('\x1b[2J\xe2\x80\xae')\n")
    put(second, "added/one", b"1\n")
    put(first, "gone", b"")
    put(first, "mode", b"m", mode=0o644)
    put(second, "mode", b"m", mode=0o755)
    put(first, "both", b"m\n", mode=0o644)
    put(second, "both", b"n\n", mode=0o600)
    put(first, "kind", b"")
    os.symlink("elsewhere", second / "kind")
    os.symlink("a", first / "link")
    os.symlink("b\n", second / "link")
    (second / "empty").mkdir()
    return second


@pytest.fixture(params=["local", "folder", *(pytest.param(k, marks=pytest.mark.servers) for k in ("s3", "ssh"))])
def place(
    request: pytest.FixtureRequest, cli: Cli, changed: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, ...]:
    """The words that say where the runs lie."""
    if request.param == "local":
        return ()
    if request.param == "folder":
        assert cli("push", store).code == 0
        return ("-r", store)
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("seaweed")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        file = bucket_file(tmp_path, server.endpoint, new_bucket(server))
    else:
        request.getfixturevalue("ssh_user")
        file = tmp_path / "c.yml"
        file.write_text(f"remotes:\n  bucket: {{type: ssh, host: far, guild-home: {tmp_path}/far}}\n")
    assert cli("--config", str(file), "push", "bucket").code == 0
    return ("--config", str(file), "-r", "bucket")


def test_flags_and_paths(cli: Cli, place: tuple[str, ...]) -> None:
    said = cli("diff", FIRST, SECOND, *place)
    assert said.code == 0
    assert said.out.splitlines() == [
        "lr: 0.1 -> 0.01",
        "new: (none) -> a b",
        "A added/one",
        "M both (mode 644 -> 600)",
        "M checkpoints/model.pt",
        "A empty/",
        "D gone",
        "M kind (file -> link)",
        r"M link (a -> b\n)",
        "M mode (only mode 644 -> 755)",
        "M train.py",
    ]
    assert said.err == f"{FIRST[:8]} and {SECOND[:8]} differ in 2 flags and 9 paths\n"
    assert cli("diff", "3", "2", *place).out == said.out


def test_the_other_way_round(cli: Cli, changed: Path) -> None:
    lines = cli("diff", SECOND, FIRST).out.splitlines()
    assert lines[:3] == ["lr: 0.01 -> 0.1", "new: a b -> (none)", "D added/one"]
    assert "A gone" in lines


def test_line_by_line(cli: Cli, place: tuple[str, ...]) -> None:
    """Text of others harms no terminal; tabs stay as they are."""
    said = cli("diff", FIRST, SECOND, "train.py", *place)
    assert said.code == 0
    assert said.out.splitlines() == [
        "M train.py",
        "--- a/train.py",
        "+++ b/train.py",
        "@@ -1 +1,2 @@",
        " print('hello')",
        "+\tprint('\\x1b[2J\\u202e')",
    ]
    assert said.err == f"{FIRST[:8]} and {SECOND[:8]} differ in 1 path\n"
    everything = cli("diff", "-p", FIRST, SECOND, *place).out
    assert everything.splitlines()[0] == "lr: 0.1 -> 0.01"
    assert said.out in everything
    assert "M checkpoints/model.pt\nbinary, 10 bytes -> 20 bytes\n" in everything
    assert "M both (mode 644 -> 600)\n--- a/both\n" in everything
    assert "M mode (only mode 644 -> 755)\n" in everything
    assert "D gone\nM kind (file -> link)\nM link" in everything
    assert "--- /dev/null\n+++ b/added/one\n@@ -0,0 +1 @@\n+1\n" in everything


def test_a_file_that_is_too_large_for_lines(cli: Cli, home: Path) -> None:
    put(home / "runs" / SECOND, "log", b"line\n" * 300_000)
    assert cli("diff", FIRST, SECOND, "log").out == "A log\nlarge, nothing -> 1500000 bytes\n"


def test_what_guild_notes(cli: Cli, changed: Path) -> None:
    assert ".guild" not in cli("diff", FIRST, SECOND).out
    assert "M .guild/attrs/flags\n" in cli("diff", FIRST, SECOND, "--all").out
    assert cli("diff", FIRST, SECOND, "./.guild//attrs/id").out.startswith("M .guild/attrs/id\n--- a/.guild")


def test_runs_that_do_not_differ(cli: Cli, home: Path) -> None:
    for argv in ((FIRST, FIRST), (FIRST, FIRST, "--all", "-p"), (FIRST, SECOND, "train.py")):
        said = cli("diff", *argv)
        assert (said.code, said.out) == (0, "")
        assert "do not differ" in said.err


def test_what_is_not_there(cli: Cli, home: Path) -> None:
    assert cli("diff", FIRST, "f" * 32).code == 3
    assert cli("diff", FIRST, "9").code == 3
    said = cli("diff", FIRST, SECOND, "trian.py")
    assert said.code == 3
    assert "did you mean 'train.py'" in said.err
    assert cli("diff", FIRST).code == 2
    assert cli("diff", "1:2", FIRST).code == 2
    assert cli("diff", FIRST, SECOND, "-r", "a", "-r", "b").code == 2
    assert cli("diff", FIRST, SECOND, "-r", "none").code == 3


def test_as_json(cli: Cli, place: tuple[str, ...]) -> None:
    plain = cli("diff", FIRST, SECOND, "--json", *place).json
    assert plain["runs"] == [FIRST, SECOND]
    assert plain["flags"] == [
        {"flag": "lr", "from": 0.1, "to": 0.01},
        {"flag": "new", "from": None, "to": "a b"},
    ]
    by_path = {row["path"]: row for row in plain["paths"]}
    assert {path: row["change"] for path, row in by_path.items()} == {
        "added/one": "A",
        "both": "M",
        "checkpoints/model.pt": "M",
        "empty": "A",
        "gone": "D",
        "kind": "M",
        "link": "M",
        "mode": "M",
        "train.py": "M",
    }
    assert {row["patch"] for row in by_path.values()} == {None}
    assert (by_path["mode"]["from"]["mode"], by_path["mode"]["to"]["mode"]) == ("644", "755")
    assert by_path["mode"]["from"]["digest"] == by_path["mode"]["to"]["digest"]
    assert by_path["link"]["to"]["target"] == "b\n"
    assert plain["problems"] == []
    (row,) = cli("diff", FIRST, SECOND, "train.py", "--json", *place).json["paths"]
    assert row["patch"].endswith("+\tprint('\x1b[2J\u202e')\n")


def test_filters_hold_for_both(cli: Cli, home: Path) -> None:
    assert cli("diff", "1", "2", "-Sc").err.startswith(f"{THIRD[:8]} and {SECOND[:8]} ")
    assert cli("diff", "1", "2", "-F", "loss < 1").err.startswith(f"{THIRD[:8]} and {SECOND[:8]} ")
    put(home / "runs" / SECOND, ".guild/attrs/exit_status", b"1\n")
    assert cli("diff", "1", "2", "-Sc").err.startswith(f"{THIRD[:8]} and {FIRST[:8]} ")
