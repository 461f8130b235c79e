"""The tools that are measured: which commands each needs to send, fetch and list runs, with its best options."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).resolve().parents[2]
Steps = Sequence[Sequence[str]]
"""Commands that are carried out one after the other and measured as one."""


@dataclass(frozen=True)
class Place:
    """Where a tool works: `home/runs` holds the runs, `state` what the tool keeps for itself, `far` is the bucket, or
    the directory at the far end. `endpoint`: the URL of the server, or the configuration of ssh. `variables`: what the
    environment holds beside. Commands are carried out in `home`."""

    home: Path
    state: Path
    far: str
    endpoint: str
    variables: Mapping[str, str] = field(default_factory=dict)

    def make(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        for name in ("user", "cache", "tmp"):
            (self.state / name).mkdir(parents=True, exist_ok=True)

    def environment(self) -> dict[str, str]:
        """PATH, `variables`, and nothing of the user's."""
        return {
            "PATH": os.environ.get("PATH", ""),
            "LC_ALL": "C.UTF-8",
            "HOME": str(self.state / "user"),
            "XDG_CACHE_HOME": str(self.state / "cache"),
            "TMPDIR": str(self.state / "tmp"),
            **self.variables,
        }


@dataclass(frozen=True)
class Tool:
    """One program; `program` is its path. What it cannot do is an empty list of commands."""

    program: str

    name: ClassVar[str] = ""
    files_are_objects: ClassVar[bool] = False
    """Whether every file becomes an object of its own."""
    version: ClassVar[Sequence[str]] = ("--version",)
    own: ClassVar[Sequence[str]] = ()
    """What it keeps in a home beside `runs`."""
    needs: ClassVar[Sequence[str]] = ()
    """Programs without which it does nothing, else `name`; the first is `program` where it has no venv of its own."""
    option: ClassVar[str] = ""
    """What `program --help` must name."""
    whole: ClassVar[bool] = False
    """It sends everything anew, whatever is there: nothing for rows that push again."""
    plain: ClassVar[bool] = False
    """What it pushed lies in `far/runs` as it does here."""
    bound: ClassVar[bool] = False
    """No tool but a measure, for the rows that name it; what it leaves is not looked at."""

    def environment(self, place: Place) -> dict[str, str]:
        return place.environment()

    def forget(self, place: Place) -> None:
        """Removes all that the tool keeps on this side."""
        for path in (place.state, *(place.home / name for name in self.own)):
            shutil.rmtree(path, ignore_errors=True)
        place.make()

    def configure(self, place: Place, origin: Place | None = None) -> None:
        """Writes what a person would have written; `origin` is the place that pushed to the bucket before."""

    def create(self, place: Place) -> Steps:  # noqa: ARG002 (most need nothing)
        """What an empty bucket or directory needs once."""
        return ()

    def push(self, place: Place) -> Steps:
        raise NotImplementedError

    def pull(self, place: Place) -> Steps:  # noqa: ARG002
        return ()

    def list(self, place: Place) -> Steps:  # noqa: ARG002
        return ()

    def verify(self, place: Place) -> Steps:  # noqa: ARG002
        """Proves that what was pushed can be read."""
        return ()


class Guildsync(Tool):
    """This project, as it lies here."""

    name = "guildsync"
    own = (".guildsync",)

    def environment(self, place: Place) -> dict[str, str]:
        return {**place.environment(), "PYTHONPATH": str(ROOT)}

    def configure(self, place: Place, origin: Place | None = None) -> None:  # noqa: ARG002
        keys = {"type": "s3", "bucket": place.far, "root": "store", "endpoint-url": place.endpoint}
        self.write(place, keys)

    def write(self, place: Place, keys: Mapping[str, str]) -> None:
        """The configuration, of one remote."""
        lines = ("remotes:", "  bench:", *(f"    {key}: {value}" for key, value in keys.items()))
        (place.state / "config.yml").write_text("\n".join(lines) + "\n")

    def push(self, place: Place) -> Steps:
        return (self._do(place, "push", "bench"),)

    def pull(self, place: Place) -> Steps:
        return (self._do(place, "pull", "bench"),)

    def list(self, place: Place) -> Steps:
        return (self._do(place, "runs", "list", "-r", "bench"),)

    def watch(self, place: Place, verb: str) -> Steps:
        """It goes on until it is interrupted."""
        return (self._do(place, verb, "bench", "--watch"),)

    def verify(self, place: Place) -> Steps:
        return (self._do(place, "verify", "-r", "bench"),)

    def _do(self, place: Place, *words: str) -> Sequence[str]:
        start = (self.program,) if Path(self.program).name == "guildsync" else (self.program, "-m", "guildsync")
        return (*start, "--config", str(place.state / "config.yml"), "--home", str(place.home), *words)


def manifest_size(home: Path, run: str) -> int:
    """Bytes of the manifest of a run as guildsync last saw it: the third line of its stat cache."""
    found = list((home / ".guildsync" / "stat").glob(f"*/{run}"))
    return max((len(path.read_bytes().split(b"\n", 2)[-1]) for path in found), default=0)


class Restic(Tool):
    """Backups of the directory of runs; packs, compression, encryption."""

    name = "restic"
    version = ("version",)

    def environment(self, place: Place) -> dict[str, str]:
        mine = {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(place.state / "cache")}
        return {**place.environment(), **mine, "RESTIC_REPOSITORY": f"s3:{place.endpoint}/{place.far}/restic"}

    def create(self, place: Place) -> Steps:  # noqa: ARG002
        return (self._do("init", "--repository-version", "2"),)

    def push(self, place: Place) -> Steps:  # noqa: ARG002
        return (self._do("backup", "runs"),)

    def pull(self, place: Place) -> Steps:
        return (self._do("restore", "latest", "--target", str(place.home)),)

    def list(self, place: Place) -> Steps:  # noqa: ARG002
        return (self._do("ls", "latest", "/runs"),)

    def _do(self, *words: str) -> Sequence[str]:
        return (self.program, "--quiet", "-o", "s3.connections=16", *words)


class Rclone(Tool):
    """Many transfers at once, whole trees in one listing, no HEAD for the time of an object."""

    name = "rclone"
    files_are_objects = True
    version = ("version",)
    _OPTIONS = ("--transfers=32", "--checkers=64", "--fast-list", "--s3-no-check-bucket")
    _SYNC = (*_OPTIONS, "--update", "--use-server-modtime")

    def environment(self, place: Place) -> dict[str, str]:
        remote = {"TYPE": "s3", "PROVIDER": "SeaweedFS", "ENV_AUTH": "true", "ENDPOINT": place.endpoint}
        mine = {f"RCLONE_CONFIG_BENCH_{key}": value for key, value in remote.items()}
        return {**place.environment(), **mine, "RCLONE_CONFIG": os.devnull}

    def push(self, place: Place) -> Steps:
        return ((self.program, "copy", "runs", f"bench:{place.far}/runs", *self._SYNC),)

    def pull(self, place: Place) -> Steps:
        return ((self.program, "copy", f"bench:{place.far}/runs", "runs", *self._SYNC),)

    def list(self, place: Place) -> Steps:
        return ((self.program, "lsf", f"bench:{place.far}/runs"),)


class S5cmd(Tool):
    """Its 256 workers are its default."""

    name = "s5cmd"
    files_are_objects = True
    version = ("version",)

    def push(self, place: Place) -> Steps:
        return (self._do(place, "sync", "runs/", f"s3://{place.far}/runs/"),)

    def pull(self, place: Place) -> Steps:
        return (self._do(place, "sync", f"s3://{place.far}/runs/*", "runs/"),)

    def list(self, place: Place) -> Steps:
        return (self._do(place, "ls", f"s3://{place.far}/runs/"),)

    def _do(self, place: Place, *words: str) -> Sequence[str]:
        return (self.program, "--log", "error", "--endpoint-url", place.endpoint, *words)


class Aws(Tool):
    """The command line of AWS, with 32 requests at once instead of 10."""

    name = "aws"
    files_are_objects = True

    def environment(self, place: Place) -> dict[str, str]:
        return {**place.environment(), "AWS_CONFIG_FILE": str(place.state / "aws"), "AWS_PAGER": ""}

    def configure(self, place: Place, origin: Place | None = None) -> None:  # noqa: ARG002
        (place.state / "aws").write_text("[default]\ns3 =\n  max_concurrent_requests = 32\n")

    def push(self, place: Place) -> Steps:
        return (self._do(place, "sync", "runs", f"s3://{place.far}/runs", "--only-show-errors"),)

    def pull(self, place: Place) -> Steps:
        return (self._do(place, "sync", f"s3://{place.far}/runs", "runs", "--only-show-errors"),)

    def list(self, place: Place) -> Steps:
        return (self._do(place, "ls", f"s3://{place.far}/runs/"),)

    def _do(self, place: Place, *words: str) -> Sequence[str]:
        return (self.program, "--endpoint-url", place.endpoint, "s3", *words)


class Dvc(Tool):
    """`dvc add` and `dvc push`, as one."""

    name = "dvc"
    files_are_objects = True
    own = (".dvc",)

    def environment(self, place: Place) -> dict[str, str]:
        mine = {"DVC_SITE_CACHE_DIR": str(place.state / "site"), "DVC_NO_ANALYTICS": "1"}
        return {**place.environment(), **mine}

    def configure(self, place: Place, origin: Place | None = None) -> None:
        (place.home / ".dvc").mkdir(exist_ok=True)
        (place.home / "runs.dvc").unlink(missing_ok=True)
        core = ("[core]", "no_scm = True", "remote = bench", "analytics = False")
        remote = ("['remote \"bench\"']", f"url = s3://{place.far}/dvc", f"endpointurl = {place.endpoint}")
        (place.home / ".dvc" / "config").write_text("\n".join((*core, *remote)) + "\n")
        if origin is not None:
            shutil.copy(origin.home / "runs.dvc", place.home)

    def push(self, place: Place) -> Steps:  # noqa: ARG002
        return ((self.program, "add", "--quiet", "runs"), (self.program, "push", "--quiet", "-j", "32"))

    def pull(self, place: Place) -> Steps:  # noqa: ARG002
        return ((self.program, "pull", "--quiet", "-j", "32"),)


_WALK = """
import os, sys
def walk(path):
    for entry in os.scandir(path):
        entry.stat(follow_symlinks=False)
        if entry.is_dir(follow_symlinks=False):
            walk(entry.path)
walk("runs")
"""


class Walk(Tool):
    """No tool: a bare lstat of every file, the least that a scan can cost."""

    name = "lstat walk"
    needs = (sys.executable,)
    bound = True

    def push(self, place: Place) -> Steps:  # noqa: ARG002
        return ((self.program, "-I", "-S", "-c", _WALK),)


PEERS: dict[str, type[Tool]] = {kind.name: kind for kind in (Guildsync, Restic, Rclone, S5cmd, Aws, Dvc)}
