"""Guild AI itself, in a virtual environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = "0.9.0"

TRAIN = """\
import os
lr = 0.1
epochs = 3
for step in range(epochs):
    print(f"step: {step}")
    print(f"loss: {lr / (step + 1)}")
os.makedirs("checkpoints/empty")
with open("checkpoints/model.pt", "wb") as file:
    file.write(bytes(range(256)) * epochs * 100)
os.chmod("checkpoints/model.pt", 0o600)
os.symlink("checkpoints/model.pt", "latest")
"""
FAIL = "print('loss: 1.5')\nraise SystemExit(3)\n"


@dataclass(frozen=True)
class Guild:
    """The program, and a project whose operations are `train.py`, which has flags and scalars, and `fail.py`."""

    program: Path
    project: Path

    def __call__(self, home: Path, *words: str) -> str:
        """What a command says to a home; raises where it fails. Nothing is asked."""
        home.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "GUILD_HOME": str(home), "PATH": f"{self.program.parent}:{os.environ['PATH']}"}
        ran = subprocess.run(
            [self.program, "-H", home, *words],
            cwd=self.project,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )
        assert "Traceback" not in ran.stderr, ran.stderr
        assert ran.returncode == 0 or words[0] == "run", f"{words}: {ran.stdout}{ran.stderr}"
        return ran.stdout

    def run(self, home: Path, operation: str, *words: str) -> str:
        """Run an operation; answers the id of the new run."""
        before = self.rows(home).keys()
        self(home, "run", operation, "-y", *words)
        (new,) = self.rows(home).keys() - before
        return new

    def rows(self, home: Path, *words: str) -> dict[str, dict[str, Any]]:
        """What it lists, by id, without where that lies. To us the order of tags says nothing, and no label is an
        empty one."""
        rows = json.loads(self(home, "runs", "list", "--all", "--json", *words))
        for row in rows:
            del row["run_dir"]
            row.get("batch_proto", {}).pop("run_dir", None)
            row["tags"] = sorted(row["tags"] or [])
            row["label"] = row["label"] or None
        return {row["id"]: row for row in rows}


def install(directory: Path) -> Guild:
    """From the package index, which takes half a minute."""
    subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True, timeout=120)
    python, project = directory / "venv/bin/python", directory / "project"
    packages = [f"guildai=={VERSION}", "setuptools<80"]
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True, timeout=600)
    project.mkdir()
    (project / "train.py").write_text(TRAIN)
    (project / "fail.py").write_text(FAIL)
    return Guild(python.with_name("guild"), project)
