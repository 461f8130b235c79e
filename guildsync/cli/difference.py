"""diff: what differs between two runs, where they lie."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

import guildsync
from guildsync.cli.files import Below, Run, path_of
from guildsync.cli.options import Settings
from guildsync.cli.words import SHORT_ID, number, octal, path_shown, shown
from guildsync.model.manifest import DIRECTORY, LINK

if TYPE_CHECKING:
    from guildsync.api import Difference, FlagChange, PathChange


def diff(
    ctx: typer.Context,
    one: Run,
    other: Run,
    path: Below = None,
    *,
    every: Annotated[bool, typer.Option("-a", "--all", help="Also what Guild notes, .guild/.")] = False,
    patch: Annotated[bool, typer.Option("-p", "--patch", help="Line by line, for text files up to 1 MiB.")] = False,
) -> int:
    """Show what differs from one run to another: flags, then files. With a PATH, what differs in it, line by line."""
    settings: Settings = ctx.obj
    terminal = settings.terminal
    scope = guildsync.Scope(path_of(path), every, patch or path is not None)
    found = settings.context().diff(settings.one_remote(), settings.choice([one]), settings.choice([other]), scope)
    if settings.json:
        terminal.document(found.to_json())
    else:
        flags = [] if scope.path else [_flag_line(change) for change in found.flags]
        lines = [*flags, *(line for change in found.paths for line in _lines(change, scope.patch))]
        if lines:
            terminal.data("\n".join(lines))
        terminal.note(_last_line(found, bool(scope.path)))
    terminal.problems(found.problems)
    return found.exit_code


def _flag_line(change: FlagChange) -> str:
    return f"{shown(change.name)}: {_value(change.was)} -> {_value(change.now)}"


def _value(value: Any) -> str:
    if value is None:
        return "(none)"
    return shown(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _lines(change: PathChange, patch: bool) -> list[str]:
    lines = [f"{change.letter} {path_shown(change.path)}{_remark(change)}"]
    if not patch:
        return lines
    sizes = (f"{entry.size} bytes" if entry else "nothing" for entry in (change.was, change.now))
    if change.binary or change.large:
        return [*lines, f"{'binary' if change.binary else 'large'}, {' -> '.join(sizes)}"]
    return [*lines, *(_line_shown(line) for line in change.patch or ())]


def _line_shown(line: str) -> str:
    """A line of a file, whose tabs harm nobody."""
    return "\t".join(shown(part) for part in line.split("\t"))


def _remark(change: PathChange) -> str:
    """What the letter does not say."""
    was, now = change.was, change.now
    if was is None or now is None:
        return "/" if DIRECTORY in {entry.kind for entry in (was, now) if entry is not None} else ""
    if was.kind != now.kind:
        return f" ({was.kind} -> {now.kind})"
    if now.kind == LINK:
        return f" ({path_shown(was.target or b'')} -> {path_shown(now.target or b'')})"
    if was.mode == now.mode:
        return ""
    modes = f"mode {octal(was.mode)} -> {octal(now.mode)}"
    return f" ({modes})" if was.digest != now.digest else f" (only {modes})"


def _last_line(found: Difference, one_path: bool) -> str:
    runs = " and ".join(run[:SHORT_ID] for run in found.runs)
    amounts = [number(len(found.flags), "flag")] if found.flags and not one_path else []
    amounts += [number(len(found.paths), "path")] if found.paths else []
    if not amounts:
        return f"{runs} do not differ{' there' if one_path else ''}"
    return f"{runs} differ in {' and '.join(amounts)}"
