"""ls and cat: the files of a run, where it lies."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

import guildsync
from guildsync.cli import completion
from guildsync.cli.listing import RunOrLatest
from guildsync.cli.options import Settings, expanded
from guildsync.cli.rows import table
from guildsync.cli.words import iso_time, octal, path_shown, size
from guildsync.errors import Usage, exit_code_of
from guildsync.model.manifest import FILE, LINK, Entry, text

if TYPE_CHECKING:
    from guildsync.api import Choice

Run = Annotated[
    str,
    typer.Argument(metavar="RUN", show_default=False, help="Which: 1, an id, @latest", autocompletion=completion.runs),
]
Path = Annotated[str, typer.Argument(metavar="PATH", show_default=False, help="A file of the run.")]
Below = Annotated[
    Optional[str],  # noqa: UP045 -- typer
    typer.Argument(metavar="[PATH]", show_default=False, help="A directory of the run, or a file."),
]


def ls(ctx: typer.Context, run: RunOrLatest = None, path: Below = None) -> int:
    """List the files of one run, where it lies. Those of the newest, where none is named."""
    settings: Settings = ctx.obj
    terminal = settings.terminal
    with settings.context().look(settings.one_remote(), _choice(settings, run)) as files:
        entries, problems = files.below(path_of(path)), files.problems
    if settings.json:
        terminal.document([_row(entry) for entry in entries])
    elif entries:
        terminal.data(table([_cells(entry) for entry in entries], None))
    else:
        terminal.note("there is nothing in it")
    terminal.problems(problems)
    return exit_code_of(problems)


def cat(ctx: typer.Context, run: Run, path: Path) -> int:
    """Write the bytes of a file of one run to standard output, verified."""
    settings: Settings = ctx.obj
    terminal = settings.terminal
    if settings.json:
        raise Usage("`cat` has no JSON: it writes the bytes of the file", "`guildsync ls --json` describes files")
    with settings.context().look(settings.one_remote(), _choice(settings, run)) as files:
        for data in files.read(path_of(path)):
            if not terminal.raw(data):
                return 0
        problems = [problem for problem in files.problems if not problem.run]
    terminal.problems(problems)
    return exit_code_of(problems)


def _choice(settings: Settings, run: str | None) -> Choice:
    chosen: Choice = guildsync.Choice(expanded([run or "@latest"]), settings.filters)
    return chosen


def path_of(path: str | None) -> bytes:
    """A path as manifests have it; `./a//b/` is `a/b`."""
    names = os.fsencode(path or "").split(b"/")
    return b"/".join(name for name in names if name not in (b"", b"."))


def _cells(entry: Entry) -> list[str]:
    name = path_shown(entry.path)
    if entry.kind == LINK:
        name += f" -> {path_shown(entry.target or b'')}"
    return [
        entry.kind,
        octal(entry.mode) if entry.kind != LINK else "",
        size(entry.size) if entry.kind == FILE else "",
        name,
    ]


def _row(entry: Entry) -> dict[str, Any]:
    return {
        **_name("path", entry.path),
        "kind": entry.kind,
        "mode": octal(entry.mode) if entry.kind != LINK else None,
        "size": entry.size,
        "digest": entry.digest,
        **_name("target", entry.target),
        "mtime": iso_time(entry.mtime_ns // 1000),
    }


def _name(key: str, name: bytes | None) -> dict[str, Any]:
    """A name that is not UTF-8 is percent-encoded, and says so."""
    said = text(name) if name is not None else None
    if isinstance(said, dict):
        return {key: said["percent"], f"{key}_encoding": "percent"}
    return {key: said}
