"""config show and config path: what is configured, and where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from guildsync.cli.options import Settings
from guildsync.cli.rows import table
from guildsync.cli.words import shown
from guildsync.model.run import plain

if TYPE_CHECKING:
    from guildsync.api import Context


def show(ctx: typer.Context) -> int:
    """Show the merged configuration, and where each value comes from. Secrets are masked."""
    settings: Settings = ctx.obj
    settings.no_remote("config show", "it shows all of them")
    context, terminal = settings.context(), settings.terminal
    rows = list(_rows(context))
    if settings.json:
        terminal.document({"home": context.home.text, "files": list(context.config.files), "values": rows})
        return 0
    cells = [["home", shown(context.home.text), ""]]
    for row in rows:
        name = f"remotes.{row['remote']}.{row['key']}" if row["remote"] is not None else row["key"]
        cells.append([shown(name), _value(row["value"]), shown(row["source"] or "")])
    terminal.data(table(cells, None))
    return 0


def path(ctx: typer.Context) -> int:
    """Print the configuration files that are read, in order: later ones win."""
    settings: Settings = ctx.obj
    settings.no_remote("config path", "the configuration is the same for all remotes")
    context, terminal = settings.context(), settings.terminal
    files = list(context.config.files)
    if settings.json:
        terminal.document(files)
    elif files:
        terminal.data("\n".join(shown(file) for file in files))
    else:
        terminal.note("there is none; yours would be ~/.config/guildsync/config.yml")
    return 0


def _rows(context: Context) -> Iterator[dict[str, Any]]:
    """Remote by remote, then what holds for all runs. The type of a remote has no place of its own."""
    given = list(context.config.masked())
    for name, remote in context.config.remotes.items():
        yield {"remote": name, "key": "type", "value": remote.type, "source": None}
        yield from (_row(*each) for each in given if each[0] == name)
    yield from (_row(*each) for each in given if not each[0])


def _row(remote: str, key: str, value: Any, source: str) -> dict[str, Any]:
    return {"remote": remote or None, "key": key, "value": plain(value), "source": source}


def _value(value: Any) -> str:
    return shown(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
