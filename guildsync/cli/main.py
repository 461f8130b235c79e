"""From the words on the command line to an exit code."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import typer
from typer.main import get_command

from guildsync.cli import (
    completion,
    configured,
    difference,
    files,
    health,
    lifecycle,
    listing,
    machine,
    metadata,
    syncing,
    training,
)
from guildsync.cli.options import Command, Group, RunsCommand, RunsGroup, Settings, nearest
from guildsync.cli.terminal import Terminal, finish, prepare
from guildsync.errors import GuildsyncError, Interrupted, Usage

_USAGE: type[Exception] = typer.BadParameter.__mro__[1]
"""What the parser raises; typer exports only one kind of it."""
_STYLE: Any = {"rich_markup_mode": None, "add_completion": False, "pretty_exceptions_enable": False}
_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _program() -> Any:
    app = typer.Typer(cls=Group, help="Move runs between places, and never lose one.", context_settings=_HELP, **_STYLE)
    runs = typer.Typer(cls=RunsGroup, help="List runs, or show one.", **_STYLE)
    remote = typer.Typer(cls=Group, help="Whether remotes are available; their machines.", **_STYLE)
    config = typer.Typer(cls=Group, help="What is configured, and where.", **_STYLE)
    app.callback()(_nothing)
    app.command("push", cls=RunsCommand)(syncing.push)
    app.command("pull", cls=RunsCommand)(syncing.pull)
    app.command("copy", cls=RunsCommand)(syncing.copy)
    app.add_typer(runs, name="runs")
    runs.command("list", cls=RunsCommand)(listing.list_runs)
    runs.command("info", cls=RunsCommand)(listing.info)
    app.command("info", cls=RunsCommand)(listing.info)
    for group in (runs, app):
        for name, command in _OF_RUNS.items():
            group.command(name, cls=RunsCommand)(command)
    app.command("gc", cls=Command)(lifecycle.gc)
    app.command("ls", cls=RunsCommand)(files.ls)
    app.command("cat", cls=RunsCommand)(files.cat)
    app.command("diff", cls=RunsCommand)(difference.diff)
    app.command("run", cls=training.RunCommand)(training.run)
    app.command("watch", cls=RunsCommand)(training.watch)
    app.command("stop", cls=RunsCommand)(training.stop)
    runs.command("stop", cls=RunsCommand)(training.stop)
    app.command("remotes", cls=Command)(listing.remotes)
    app.command("check", cls=Command)(health.check)
    app.command("verify", cls=RunsCommand)(health.verify)
    app.add_typer(remote, name="remote")
    remote.command("status", cls=Command)(health.status)
    remote.command("start", cls=Command)(machine.start)
    remote.command("stop", cls=Command)(machine.stop)
    app.add_typer(config, name="config")
    config.command("show", cls=Command)(configured.show)
    config.command("path", cls=Command)(configured.path)
    app.command("completion", cls=Command)(completion.completion)
    return get_command(app)


_OF_RUNS: Mapping[str, Callable[..., int]] = {
    "label": metadata.label,
    "tag": metadata.tag,
    "comment": metadata.comment,
    "mark": metadata.mark,
    "delete": lifecycle.delete,
    "rm": lifecycle.delete,
    "restore": lifecycle.restore,
    "purge": lifecycle.purge,
}
"""Commands that are there as `runs NAME` and as `NAME`, as in Guild AI."""


def _nothing() -> None:
    pass


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code."""
    code = run(sys.argv[1:] if argv is None else argv)
    finish()
    os._exit(code)  # no waiting for threads that still send, nor for a million values to be freed one by one


def run(argv: Sequence[str]) -> int:
    """The exit code of a command line, which is carried out."""
    settings = Settings()
    prepare()
    if not argv and (instruction := os.environ.get(completion.VARIABLE)):
        return completion.complete(_program(), settings, instruction)
    gc.set_threshold(100_000, 20, 50)  # what a sync holds has no rings; looking for them took a tenth of its time
    try:
        with _program().make_context("guildsync", list(argv) or ["--help"], obj=settings) as context:
            code = context.command.invoke(context)
        return code if isinstance(code, int) else 0
    except typer.Exit as exc:
        return exc.exit_code
    except _USAGE as exc:
        error = _usage(exc)
        settings.terminal.error(error.message, error.hint)
        return error.exit_code
    except GuildsyncError as exc:
        settings.terminal.error(exc.message, exc.hint)
        _trace(settings, exc)
        return exc.exit_code
    except KeyboardInterrupt:
        settings.terminal.error("interrupted", "the same command goes on where it stopped")
        return Interrupted.exit_code
    except Exception as exc:  # noqa: BLE001 -- people get one line, whatever it is
        hint = None if settings.verbose > 1 else "this should not happen; -vv shows where it did"
        settings.terminal.error(f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__, hint)
        _trace(settings, exc)
        return 1


def _trace(settings: Settings, exc: Exception) -> None:
    if settings.verbose > 1:
        Terminal().trace("".join(traceback.format_exception(exc)))


def _usage(exc: Any) -> Usage:
    """The parser's words as ours, with an option that is meant perhaps."""
    context = getattr(exc, "ctx", None)
    message = str(exc.format_message()).rstrip(".")
    unknown = getattr(exc, "option_name", None)
    if unknown and context is not None and "such option" in message:
        options = [name for param in context.command.params for name in param.opts if name.startswith("-")]
        message = f"there is no option {unknown}{nearest(unknown, options)}"
    hint = f"`{context.command_path if context is not None else 'guildsync'} --help` shows how"
    return Usage(message[:1].lower() + message[1:], hint)
