"""run, watch and stop: here, in another home, and on a host behind a real sshd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, Said, environment
from tests.kit.sshd import Client, Sshd
from tests.kit.training import WAITING, Site, ended, make_project, status_of
from tests.kit.trees import assert_same, run_ids, write_run
from tests.kit.waiting import until

PLACES = ["here", "disk", pytest.param("gpu", marks=pytest.mark.servers)]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Is the current directory; the homes are elsewhere."""
    directory = make_project(tmp_path / "project")
    monkeypatch.setenv("GUILDSYNC_HOME", str(tmp_path / "guild"))
    monkeypatch.setenv("GUILDSYNC_CONFIG", str(tmp_path / "c.yml"))
    (tmp_path / "c.yml").write_text(
        f"remotes:\n  disk: {{type: local, path: {tmp_path}/disk}}\n"
        f"  bucket: {{type: fsspec, url: 'file://{tmp_path}/bucket'}}\n"
    )
    monkeypatch.chdir(directory)
    return directory


def configure(tmp_path: Path, **keys: Any) -> None:
    lines = "".join(f"    {name.replace('_', '-')}: {value}\n" for name, value in keys.items())
    with (tmp_path / "c.yml").open("a") as file:
        file.write(f"  gpu:\n    type: ssh\n    host: far\n    guild-home: {tmp_path}/far\n{lines}")


@pytest.fixture
def gpu(project: Path, tmp_path: Path, ssh_user: Client, ssh_host: Sshd) -> Iterator[Site]:
    configure(tmp_path)
    with ended(Site(("-r", "gpu"), tmp_path / "far")) as site:
        yield site


@pytest.fixture(params=PLACES)
def site(request: pytest.FixtureRequest, project: Path, tmp_path: Path) -> Iterator[Site]:
    if request.param == "gpu":
        yield request.getfixturevalue("gpu")
        return
    words, home = ((), "guild") if request.param == "here" else (("-r", "disk"), "disk")
    with ended(Site(words, tmp_path / home)) as made:
        yield made


def test_a_script_with_globals(cli: Cli, site: Site, project: Path) -> None:
    words = ["run", "train.py", "lr=0.1", "-l", "the label", "-t", "one", "-t", "two", *site.words, "--", "a", "-b"]
    said = cli(*words)
    assert (said.code, said.out) == (0, "lr: 0.1\nloss: 0.25\nargs: ['a', '-b']\n"), said.err
    assert said.err == f"run {site.run.name} on {site.words[1] if site.words else 'local'}\n"
    (row,) = cli("runs", "--json", *site.words).json
    assert row["id"] == site.run.name
    assert row["operation"] == "train.py"
    assert (row["status"], row["exit_status"], row["label"]) == ("completed", 0, "the label")
    assert row["tags"] == ["one", "two"]
    assert row["flags"] == {"lr": 0.1, "name": "none"}
    assert row["scalars"]["loss"] == 0.25
    assert (site.run / "model.pt").stat().st_size == 5120
    assert (site.run / "train.py").read_bytes() == (project / "train.py").read_bytes()
    assert (site.run / "package/part.py").exists()
    assert not (site.run / "debug.log").exists()
    assert not (site.run / ".git").exists()
    assert (site.run / ".guild/attrs/vcs_commit").read_text().strip().endswith("*")
