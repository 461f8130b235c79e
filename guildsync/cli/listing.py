"""runs, info and remotes: what is where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

import guildsync
from guildsync.cli.options import ALL, LOCAL, Runs, Settings, expanded
from guildsync.cli.rows import Row, detail_lines, details, table
from guildsync.cli.words import number, shown
from guildsync.errors import GuildsyncError, NotFound, Usage
from guildsync.model.select import select

if TYPE_CHECKING:
    from guildsync.api import Context, Remote

SHOWN = 20
PARTIAL = 7

RunOrLatest = Annotated[
    Optional[str],  # noqa: UP045 -- typer
    typer.Argument(metavar="[RUN]", show_default=False, help="Which: 1, an id, @latest"),
]


def list_runs(
    ctx: typer.Context,
    runs: Runs = None,
    every: Annotated[bool, typer.Option("-a", "--all", help="All runs.")] = False,
    limit: Annotated[
        Optional[int],  # noqa: UP045 -- typer
        typer.Option("-n", "--limit", metavar="N", min=0, help=f"At most so many runs, else {SHOWN}; JSON has all."),
    ] = None,
    deleted: Annotated[bool, typer.Option("-d", "--deleted", help="Runs in the trash.")] = False,
) -> int:
    """List runs, the newest first. -r may stand several times; `-r all` is every configured remote and this home.

    `runs info RUN` shows one of them.
    """
    settings: Settings = ctx.obj
    if every and limit is not None:
        raise Usage("-a and -n exclude each other", "say one of them")
    context, terminal = settings.context(), settings.terminal
    names = _named(context, settings)
    rows, code = _rows(settings, context, names, expanded(runs or ()), deleted)
    if limit is None and not every and not settings.json:
        limit = SHOWN
    some = rows if limit is None or every else rows[:limit]
    if settings.json:
        terminal.document([row.to_json() for row in some])
        return code
    if some:
        terminal.data(table([row.cells(len(names) > 1) for row in some], terminal.columns))
    if len(some) < len(rows):
        terminal.note(f"{len(some)} of {number(len(rows), 'run')} are shown; -a shows all")
    elif not rows and not code:
        terminal.note("no run matches" if runs or settings.is_filtered else "there are no runs")
    return code


def info(ctx: typer.Context, run: RunOrLatest = None) -> int:
    """Show one run. The newest, where none is named."""
    settings: Settings = ctx.obj
    context = settings.context()
    remote = context.remote(settings.one_remote())
    found = context.runs(remote.name, guildsync.Choice(expanded([run or "@latest"]), settings.filters), sizes=True)
    if len(found) > 1:
        raise Usage(f"{run!r} names {len(found)} runs", "name one")
    row = Row(1, remote.name, found[0])
    where = f"{remote.where}/runs/{found[0].run}" if remote.layout == "tree" else remote.where
    if settings.json:
        settings.terminal.document(details(row, where))
    else:
        settings.terminal.data(detail_lines(row, where))
    return 0


def remotes(ctx: typer.Context) -> int:
    """List the configured remotes: name, type, where, what it can do."""
    settings: Settings = ctx.obj
    settings.no_remote("remotes", "it lists all of them")
    context, terminal = settings.context(), settings.terminal
    found = context.remotes()
    if settings.json:
        terminal.document([_remote_row(context, name, remote) for name, remote in found.items()])
    elif found:
        cells = []
        for name, remote in found.items():
            row = _remote_row(context, name, remote)
            can = ", ".join(row["can"]) or "nothing in this version"
            cells.append([shown(name), row["type"], row["where"] or "", can])
        terminal.data(table(cells, terminal.columns))
    else:
        terminal.note("no remotes are configured; s3:bucket and URLs such as file:///path need no configuration")
    return 0


def _remote_row(context: Context, name: str, remote: Remote | GuildsyncError) -> dict[str, Any]:
    config = context.config.remotes[name]
    opened = None if isinstance(remote, GuildsyncError) else remote
    return {
        "name": name,
        "type": config.type,
        "where": shown(opened.where) if opened else None,
        "layout": opened.layout if opened else None,
        "can": ["sync"] if opened else [],
        "description": config.description,
    }


def _named(context: Context, settings: Settings) -> list[str]:
    """The remotes to ask; raises NotFound for a name that means nothing, before any is asked."""
    names: dict[str, None] = {}
    for name in settings.remotes or [LOCAL]:
        names |= dict.fromkeys([LOCAL, *context.remotes()] if name == ALL else [context.remote(name).name])
    return list(names)


def _rows(
    settings: Settings, context: Context, names: list[str], selectors: list[str], deleted: bool
) -> tuple[list[Row], int]:
    """The rows of all remotes and the exit code. Of several remotes, one that cannot be asked is a warning."""
    choice = settings.choice(())
    rows: list[Row] = []
    failed: list[GuildsyncError] = []
    for name in names:
        answered = False
        try:
            listed = context.runs(name, choice, deleted=deleted, sizes=settings.json)
            answered = True
            index = {record.run: n for n, record in enumerate(listed, 1)}
            chosen = select(listed, selectors) if selectors else listed
        except GuildsyncError as exc:
            if len(names) == 1:
                raise
            failed.append(exc)
            if not (answered and isinstance(exc, NotFound)):
                settings.terminal.warning(f"{name}: {exc.message}")
            continue
        rows += [Row(index[record.run], name, record) for record in chosen]
    if failed and not rows and (selectors or len(failed) == len(names)):
        raise failed[0]
    rows.sort(key=_newest_first)
    return rows, PARTIAL if any(not isinstance(exc, NotFound) for exc in failed) else 0


def _newest_first(row: Row) -> tuple[bool, int, str]:
    started = row.record.summary.started
    return started is None, -(started or 0), row.record.run
