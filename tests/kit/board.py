"""TensorBoard itself, in a virtual environment of its own, read back through its HTTP API."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.kit.servers import answers, free_ports, process, wait_until

VERSION = "2.21.0"


@dataclass(frozen=True)
class Board:
    """A server that has been started with nothing but a directory and a port."""

    url: str

    def runs(self) -> dict[str, list[str]]:
        """The tags of scalars by run, as it shows them now."""
        found = self._ask("tags")
        return {run: sorted(tags) for run, tags in found.items()}

    def points(self, run: str, tag: str) -> dict[int, float]:
        """What it shows of a scalar, by step; empty where it knows none."""
        try:
            rows = self._ask("scalars?" + urlencode({"run": run, "tag": tag}))
        except HTTPError as error:
            if error.code in (400, 404):
                return {}
            raise
        return {step: value for _, step, value in rows}

    def _ask(self, question: str) -> Any:
        with urlopen(f"{self.url}/data/plugin/scalars/{question}", timeout=30) as answer:
            return json.load(answer)


def install(directory: Path) -> Path:
    """The program, from the package index, which takes a minute."""
    subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True, timeout=120)
    python = directory / "venv/bin/python"
    packages = [f"tensorboard=={VERSION}", "setuptools<80"]
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True, timeout=600)
    return python.with_name("tensorboard")


@contextmanager
def board(program: Path, logs: Path, directory: Path) -> Iterator[Board]:
    """It looks at `logs` with default flags, until it is killed; `directory` takes what it says."""
    (port,) = free_ports(1)
    directory.mkdir()
    with process([str(program), "--logdir", str(logs), "--port", str(port)], directory) as child:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/data/plugins_listing"), child, directory / "log", 120)
        yield Board(url)
