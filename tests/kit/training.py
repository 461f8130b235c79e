"""A project, and the places where its runs are started: here, in another home, on a host."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from guildsync.attributes import summary
from guildsync.compute.claim import started_in
from guildsync.compute.process import stop
from guildsync.tree.attrs import read_attributes
from guildsync.tree.dirs import open_directory
from tests.kit.waiting import until

TRAIN = """\
lr = 0.5
name = "none"
print(f"lr: {lr}")
print("loss: 0.25")
with open("model.pt", "wb") as file:
    file.write(bytes(range(256)) * 20)
"""
OPTIONS = """\
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.5)
parser.add_argument("rest", nargs="*")
args = parser.parse_args()
print(f"lr is {args.lr}, rest is {args.rest}")
"""
WAITING = """\
import os, time
with open("pids", "a") as file:
    file.write(f"{os.getpid()}\\n")
print("begun", flush=True)
while not os.path.exists("go"):
    time.sleep(0.02)
print("done", end="", flush=True)
"""
"""Says that it runs, and waits for a file."""


@dataclass(frozen=True)
class Site:
    """`words` say on a command line where it is; `home` is where runs lie there."""

    words: tuple[str, ...]
    home: Path

    @property
    def runs(self) -> list[Path]:
        place = self.home / "runs"
        return sorted(place.iterdir()) if place.is_dir() else []

    @property
    def run(self) -> Path:
        """The only one."""
        (run,) = self.runs
        return run

    def began(self) -> Path:
        """The only run, once its script has written `pids`."""
        until(lambda: self.runs and (self.run / "pids").exists(), f"the start of a run in {self.home}")
        return self.run

    def end(self) -> None:
        """No process of any run is left."""
        for run in self.runs:
            started = started_in(str(run))
            if started is not None:
                stop(started.process, 0.0)
                try:
                    until(lambda: not started.is_alive, "the end of a supervisor", 10)  # noqa: B023 -- called at once
                except AssertionError:
                    os.kill(started.supervisor.pid, signal.SIGKILL)


def status_of(run: Path) -> str:
    """As a listing has it."""
    fd = open_directory(os.fsencode(run))
    try:
        return summary(read_attributes(fd, False)).status
    finally:
        os.close(fd)


def make_project(directory: Path) -> Path:
    """In git: something committed, something changed since, something untracked, something ignored."""
    directory.mkdir(parents=True)
    files = {"train.py": "print('old')\n", "options.py": OPTIONS, "waiting.py": WAITING, ".gitignore": "*.log\n"}
    for name, text in files.items():
        (directory / name).write_text(text)
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=u", "-c", "user.email=u@x", "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=directory, check=True, timeout=60)
    (directory / "train.py").write_text(TRAIN)
    (directory / "package").mkdir()
    (directory / "package" / "__init__.py").write_text("")
    (directory / "package" / "part.py").write_text("lr = 0.5\nprint(f'part: {lr}')\n")
    (directory / "debug.log").write_text("ignored\n")
    return directory


@contextmanager
def ended(site: Site) -> Iterator[Site]:
    try:
        yield site
    finally:
        site.end()
