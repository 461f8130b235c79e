"""What git says of a work tree, without anything that the repository's own configuration names being executed."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from guildsync.errors import GuildsyncError, NotFound

DEADLINE = 60.0
_SAFE = ("-c", "core.fsmonitor=", "-c", "core.hooksPath=/dev/null")
_KEPT_VARIABLES = frozenset(
    {
        *("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_EXEC_PATH"),
        *("GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM"),
    }
)
_VARIABLES = {
    "LC_ALL": "C",
    "GIT_ALLOW_PROTOCOL": "none",  # a partial clone would fetch what is missing, by commands of its configuration
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}
_NO_REPOSITORY = "not a git repository (or any"
_OF_THE_USER = frozenset({"system", "global", "command"})


@dataclass(frozen=True)
class WorkTree:
    """`files`: what is tracked, or neither tracked nor ignored, relative to the directory that was asked about; what of
    it is not there any more included, what lies in submodules and nested repositories too. `commit` is None before the
    first one. `dirty`: below the directory something differs from the commit, or nothing safe could tell."""

    files: frozenset[bytes]
    commit: str | None
    dirty: bool


def work_tree(directory: bytes) -> WorkTree | None:
    """What git says of a directory, whose path has no links. None where it lies in no work tree, or where git ignores
    all of it. Raises NotFound, GuildsyncError: whatever git does not tell, its ignored files must not go out."""
    if not _may_be_git(directory):
        return None
    code, said, why = _run(directory, ["rev-parse", "--is-inside-work-tree"])
    if code and _NO_REPOSITORY in why:
        return None
    if code:
        raise _failed(directory, why)
    if said.strip() != b"true":
        return None
    nested: list[bytes] = []
    files = frozenset(_files(directory, b"", nested))
    if not files and _run(directory, ["check-ignore", "-q", "."])[0] == 0:
        return None
    code, said, _ = _run(directory, ["rev-parse", "--verify", "-q", "HEAD"])
    commit = None if code else said.strip().decode("ascii", "replace")
    return WorkTree(files, commit, any(_is_dirty(each) for each in (directory, *nested)))


def _may_be_git(directory: bytes) -> bool:
    while not os.path.lexists(os.path.join(directory, b".git")):
        above = os.path.dirname(directory)
        if above == directory:
            return False
        directory = above
    return True


def _files(directory: bytes, prefix: bytes, nested: list[bytes]) -> Iterator[bytes]:
    listed = _said(directory, ["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    for name in set(listed.split(b"\0")) - {b""}:
        name = name.rstrip(b"/")
        path = os.path.join(directory, name)
        if not _is_directory(path):
            yield prefix + name
        elif os.path.realpath(path) == path and os.path.lexists(os.path.join(path, b".git")):
            nested.append(path)
            yield from _files(path, prefix + name + b"/", nested)


def _is_directory(path: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _is_dirty(directory: bytes) -> bool:
    options = _disarmed(directory)
    if options is None:
        return True
    status = ["status", "--porcelain", "-z", "--untracked-files=normal", "--no-renames", "--ignore-submodules=dirty"]
    return bool(_said(directory, [*options, *status, "--", "."]))


def _disarmed(directory: bytes) -> list[str] | None:
    """Options that turn off the filters which the repository itself configures: comparing a file would run them. None
    where they cannot be turned off."""
    code, said, _ = _run(directory, ["config", "-z", "--show-scope", "--get-regexp", r"^filter\."])
    if code:
        return [] if code == 1 else None
    words = said.decode("utf-8", "surrogateescape").split("\0")
    names = set()
    for scope, setting in zip(words[::2], words[1::2], strict=False):
        if scope not in _OF_THE_USER:
            names.add(setting.partition("\n")[0].rpartition(".")[0])
    if any("=" in name for name in names):
        return None
    settings = [
        f"{name}.{key}" for name in sorted(names) for key in ("clean=", "smudge=", "process=", "required=false")
    ]
    return [word for setting in settings for word in ("-c", setting)]


def _said(directory: bytes, words: Sequence[str]) -> bytes:
    code, said, why = _run(directory, words)
    if code:
        raise _failed(directory, why)
    return said


def _run(directory: bytes, words: Sequence[str]) -> tuple[int, bytes, str]:
    kept = {name: value for name, value in os.environ.items() if name[:4] != "GIT_" or name in _KEPT_VARIABLES}
    argv = ["git", *_SAFE, *words]
    try:
        ran = subprocess.run(
            argv,
            cwd=directory,
            env={**kept, **_VARIABLES},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
    except FileNotFoundError as exc:
        raise NotFound(
            f"{_text(directory)} is a git work tree, and there is no program `git` here", "install git"
        ) from exc
    except subprocess.TimeoutExpired as exc:
        raise GuildsyncError(
            f"git did not answer within {DEADLINE:.0f} s in {_text(directory)}", "try `git status` there"
        ) from exc
    return ran.returncode, ran.stdout, ran.stderr.decode(errors="replace")


def _failed(directory: bytes, why: str) -> GuildsyncError:
    lines = [line.removeprefix("fatal: ") for line in why.splitlines() if line.strip()]
    return GuildsyncError(
        f"git cannot read {_text(directory)}: {lines[0][:300] if lines else 'it does not say why'}",
        "`git status` there must work first",
    )


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
