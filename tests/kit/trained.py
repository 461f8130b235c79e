"""A run directory in which real processes are started, and what they leave there."""

from __future__ import annotations

import os
import signal
import struct
import sys
from pathlib import Path
from typing import Any

from guildsync.attributes import summary
from guildsync.compute.claim import started_in
from guildsync.compute.local import Launched, launch
from guildsync.compute.process import stop
from guildsync.compute.spec import Spec
from guildsync.procinfo import Started
from guildsync.tree.attrs import alive, read_attributes
from guildsync.tree.dirs import open_directory
from tests.kit.waiting import until

PYTHON = sys.executable


class Trained:
    """One run directory; `program` is Python text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / ".guild").mkdir(parents=True)

    def spec(self, program: str, *words: str, **more: Any) -> Spec:
        (self.path / "train.py").write_text(program)
        return Spec(str(self.path), (PYTHON, "train.py", *words), **more)

    def start(self, program: str, *words: str, **more: Any) -> Launched:
        return launch(self.spec(program, *words, **more))

    def run(self, program: str, *words: str, **more: Any) -> int:
        """Its exit status, when it has ended."""
        self.start(program, *words, **more)
        return self.wait()

    def execute(self, *argv: str, **more: Any) -> int:
        launch(Spec(str(self.path), argv, **more))
        return self.wait()

    def wait(self) -> int:
        until(lambda: not self.is_alive, f"the end of {self.path}")
        return int(self.attr("exit_status"))

    def wait_for(self, name: str) -> None:
        until((self.path / name).exists, f"{name} in {self.path}")

    def sync(self, name: str) -> Path:
        return self.path / ".guild/sync" / name

    def attr(self, name: str) -> str:
        return (self.path / ".guild/attrs" / name).read_text()

    @property
    def output(self) -> bytes:
        return (self.path / ".guild/output").read_bytes()

    @property
    def index(self) -> list[tuple[int, int]]:
        """(milliseconds, stream) of each line."""
        return list(struct.iter_unpack(">QB", (self.path / ".guild/output.index").read_bytes()))

    @property
    def log(self) -> str:
        return self.sync("supervisor.log").read_text()

    @property
    def started(self) -> Started | None:
        return started_in(str(self.path))

    @property
    def is_alive(self) -> bool:
        fd = open_directory(os.fsencode(self.path))
        try:
            return alive(fd)
        finally:
            os.close(fd)

    @property
    def status(self) -> str:
        """As a listing has it."""
        fd = open_directory(os.fsencode(self.path))
        try:
            return summary(read_attributes(fd, False)).status
        finally:
            os.close(fd)

    def end(self) -> None:
        """Nothing of it is left, whatever the test did."""
        started = self.started
        if started is not None:
            stop(started.process, 0.0)
            try:
                until(lambda: not started.is_alive, "the end of the supervisor", 10)
            except AssertionError:
                os.kill(started.supervisor.pid, signal.SIGKILL)
