"""config show and config path: every value with its place, no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli

USER = """\
remotes:
  base:
    type: s3
    bucket: team
    local-env: {AWS_SECRET_ACCESS_KEY: sesame}
  bucket:
    extends: base
    root: "vision\\e[2J"
    keep-env: true
  web:
    type: fsspec
    url: ftp://me:sesame@host/x
    options: {password: sesame}
exclude: ["*.tmp"]
"""


@pytest.fixture
def files(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    user, project = tmp_path / "mine.yml", tmp_path / "guildsync.yml"
    user.write_text(USER)
    project.write_text("include: ['*.pt', '*.csv']\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GUILDSYNC_CONFIG", str(user))
    return str(user), str(project)


def test_show_says_each_value_and_its_place(cli: Cli, home: Path, files: tuple[str, str]) -> None:
    user, project = files
    said = cli("config", "show")
    assert (said.code, said.err) == (0, "")
    assert "sesame" not in said.out
    assert "\x1b" not in said.out
    rows = [line.split() for line in said.out.splitlines()]
    assert rows[0] == ["home", str(home)]
    assert ["remotes.bucket.type", "s3"] in rows
    assert ["remotes.bucket.bucket", "team", f"{user}:4"] in rows
    assert ["remotes.bucket.root", r"vision\x1b[2J", f"{user}:8"] in rows
    assert ["remotes.bucket.keep-env", "true", f"{user}:9"] in rows
    assert ["remotes.web.url", "ftp://***@host/x", f"{user}:12"] in rows
    assert ["exclude", '["*.tmp"]', f"{user}:14"] in rows
    assert ["include", '["*.pt",', '"*.csv"]', f"{project}:1"] in rows


def test_show_as_json(cli: Cli, home: Path, files: tuple[str, str]) -> None:
    user, project = files
    said = cli("config", "show", "--json")
    assert "sesame" not in said.out
    assert said.json["home"] == str(home)
    assert said.json["files"] == [user, project]
    values = {(row["remote"], row["key"]): (row["value"], row["source"]) for row in said.json["values"]}
    assert values["bucket", "type"] == ("s3", None)
    assert values["bucket", "root"] == ("vision\x1b[2J", f"{user}:8")
    assert values["base", "local-env"] == ({"AWS_SECRET_ACCESS_KEY": "***"}, f"{user}:5")
    assert values["web", "options"] == ({"password": "***"}, f"{user}:13")
    assert values[None, "include"] == (["*.pt", "*.csv"], f"{project}:1")


def test_a_variable_is_a_place_too(cli: Cli, files: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUILDSYNC_INCLUDE", "*.bin")
    rows = [line.split() for line in cli("config", "show").out.splitlines()]
    assert ["include", '["*.bin"]', "GUILDSYNC_INCLUDE"] in rows


def test_path_is_the_files_in_order(cli: Cli, files: tuple[str, str], tmp_path: Path) -> None:
    assert cli("config", "path").out.splitlines() == list(files)
    assert cli("config", "path", "--json").json == list(files)
    guild = tmp_path / ".guild/config.yml"
    guild.parent.mkdir()
    guild.write_text("remotes: {}\n")
    assert cli("config", "path").out.splitlines() == [str(guild), *files]


def test_nothing_is_configured(cli: Cli, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    said = cli("config", "path")
    assert (said.code, said.out) == (0, "")
    assert "~/.config/guildsync/config.yml" in said.err
    assert cli("config", "path", "--json").json == []
    assert cli("config", "show").out == f"home  {home}\n"
    assert cli("config", "show", "--json").json == {"home": str(home), "files": [], "values": []}


def test_usage(cli: Cli, files: tuple[str, str]) -> None:
    assert cli("config", "show", "-r", "bucket").code == 2
    assert cli("config", "path", "-r", "bucket").code == 2
    assert cli("config").code == 2
    assert "did you mean 'show'?" in cli("config", "shw").err
