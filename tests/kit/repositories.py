"""Git repositories of a user who has no configuration but a name."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def make_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, in no repository; git has no variables but those that keep it so."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    (tmp_path / "gitconfig").write_text("[user]\nname = n\nemail = e@example.com\n[init]\ndefaultBranch = main\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    path = tmp_path / "project"
    path.mkdir()
    return path


def git(directory: Path, *words: str) -> str:
    argv = ["git", "-c", "protocol.file.allow=always", *words]
    return subprocess.run(argv, cwd=directory, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def repository(directory: Path, files: dict[str, str]) -> str:
    directory.mkdir(exist_ok=True)
    git(directory, "init", "-q")
    write(directory, files)
    git(directory, "add", "-A")
    git(directory, "commit", "-qm", "first")
    return git(directory, "rev-parse", "HEAD")
