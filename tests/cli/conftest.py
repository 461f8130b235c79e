"""The command line, in this process (`cli`, quick) and as a process of its own (`shell`, as people have it)."""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guildsync.cli import main
from tests.kit.places import ALL, Place, new_place
from tests.kit.sshd import Client, Sshd
from tests.kit.training import Site, ended, make_project
from tests.kit.trees import EPOCH_US, run_ids, write_run

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.out.rstrip("\n").rpartition("\n")[2]

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Said]
_program = functools.cache(main._program)
"""Building it takes longer than most commands."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with three runs, the third the newest; it is the one that commands use."""
    home = tmp_path / "guild"
    for n, run in enumerate(run_ids(3)):
        write_run(home, run, label=f"run {n + 1}", started=EPOCH_US + n * 1_000_000)
    monkeypatch.setenv("GUILDSYNC_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return home


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    def run(*argv: str, stdin: str = "") -> Said:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        monkeypatch.setattr(main, "_program", _program)
        capsys.readouterr()
        code = main.run(argv)
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture(params=ALL)
def place(request: pytest.FixtureRequest, cli: Cli, home: Path, tmp_path: Path) -> Place:
    """Where the three runs of the home lie: every type of place in turn, or those that a test names."""
    place = new_place(request.param, tmp_path, home, request)
    assert place.kind == "local" or cli("push", place.name).code == 0
    return place


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def shell(tmp_path: Path) -> Cli:
    def run(*argv: str, stdin: str = "", **env: str) -> Said:
        ran = subprocess.run(
            [sys.executable, "-m", "guildsync", *argv],
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            env={**environment(), **env},
            cwd=tmp_path,
            timeout=60,
            check=False,
        )
        return Said(ran.returncode, ran.stdout, ran.stderr)

    return run


# -- training

SITES = ["here", "disk", pytest.param("gpu", marks=pytest.mark.servers)]


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


@pytest.fixture(params=SITES)
def site(request: pytest.FixtureRequest, project: Path, tmp_path: Path) -> Iterator[Site]:
    if request.param == "gpu":
        yield request.getfixturevalue("gpu")
        return
    words, home = ((), "guild") if request.param == "here" else (("-r", "disk"), "disk")
    with ended(Site(words, tmp_path / home)) as made:
        yield made


@pytest.fixture(params=["disk", pytest.param("gpu", marks=pytest.mark.servers)])
def elsewhere(request: pytest.FixtureRequest, project: Path, tmp_path: Path) -> Iterator[Site]:
    if request.param == "gpu":
        yield request.getfixturevalue("gpu")
        return
    with ended(Site(("-r", "disk"), tmp_path / "disk")) as made:
        yield made
