"""runs, info and remotes: what is where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from guildsync.cli import completion
from guildsync.cli.formats import CLIPPED, CSV, FORMATS, IDS, MARKDOWN, TABLE, csv_text, ids, markdown
from guildsync.cli.history import history_lines, history_rows
from guildsync.cli.options import ALL, LOCAL, Runs, Settings, nearest
from guildsync.cli.rows import Row, detail_lines, details, table
from guildsync.cli.words import number, shown
from guildsync.errors import GuildsyncError, NotFound, Stopped, Usage

if TYPE_CHECKING:
    from guildsync.api import Context, Remote

SHOWN = 20
PARTIAL = 7

RunOrLatest = Annotated[
    Optional[str],  # noqa: UP045 -- typer
    typer.Argument(
        metavar="[RUN]", show_default=False, help="Which: 1, an id, @latest", autocompletion=completion.runs
    ),
]

Deleted = Annotated[bool, typer.Option("-d", "--deleted", help="Runs in the trash.")]


def list_runs(
    ctx: typer.Context,
    runs: Runs = None,
    every: Annotated[bool, typer.Option("-a", "--all", help="All runs.")] = False,
    limit: Annotated[
        Optional[int],  # noqa: UP045 -- typer
        typer.Option(
            "-n", "--limit", metavar="N", min=0, help=f"At most so many runs, else {SHOWN}; JSON, ids and csv have all."
        ),
    ] = None,
    deleted: Deleted = False,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="|".join(FORMATS),
            help="A table, or whole ids, CSV, Markdown.",
            autocompletion=completion.one_of(FORMATS),
        ),
    ] = TABLE,
) -> int:
    """List runs, the newest first. -r may stand several times; `-r all` is every configured remote and this home.

    Of several places, each run is compared with the one in this home. `runs info RUN` shows one of them.
    """
    settings: Settings = ctx.obj
    _check(settings, every, limit, form)
    choice, context, terminal = settings.choice(runs), settings.context(), settings.terminal
    names = _named(context, settings)
    clipped = form in CLIPPED and not settings.json
    found = context.survey(
        names,
        choice,
        deleted=deleted,
        sizes=settings.json or form == CSV,
        limit=SHOWN if limit is None and clipped and not every else limit,
        compare=form != IDS,
    )
    for trouble in found.troubles:
        if not (trouble.answered and isinstance(trouble.error, NotFound)):
            terminal.warning(f"{trouble.place}: {trouble.error.message}")
            if isinstance(trouble.error, Stopped) and trouble.error.hint:
                terminal.hint(trouble.error.hint)
    rows = [Row(each.index, each.place, each.record, each.standing) for each in found.found]
    _write(settings, rows, form, (len(names) > 1, len(names) > 1 and not deleted))
    if not found.total and not found.exit_code and not settings.json:
        terminal.note("no run matches" if runs or settings.is_filtered else "there are no runs")
    elif clipped and len(rows) < found.total:
        terminal.note(f"{len(rows)} of {number(found.total, 'run')} are shown; -a shows all")
    return found.exit_code


def _check(settings: Settings, every: bool, limit: int | None, form: str) -> None:
    if every and limit is not None:
        raise Usage("-a and -n exclude each other", "say one of them")
    if form not in FORMATS:
        raise Usage(f"--format cannot be {form!r}{nearest(form, FORMATS)}", f"say one of {', '.join(FORMATS)}")
    if settings.json and form != TABLE:
        raise Usage("--json and --format exclude each other", "say one of them")


def info(
    ctx: typer.Context,
    run: RunOrLatest = None,
    history: Annotated[bool, typer.Option("--history", help="Also what was done to it, as far as is known.")] = False,
    deleted: Deleted = False,
) -> int:
    """Show one run. The newest, where none is named."""
    settings: Settings = ctx.obj
    context, terminal = settings.context(), settings.terminal
    remote = context.remote(settings.one_remote())
    record, moments = context.info(remote.name, settings.choice([run or "@latest"]), deleted=deleted)
    row = Row(1, remote.name, record)
    directory = "trash/runs" if deleted else "runs"
    where = f"{remote.where}/{directory}/{record.run}" if remote.layout == "tree" else remote.where
    if settings.json:
        terminal.document(details(row, where) | ({"history": history_rows(moments)} if history else {}))
        return 0
    terminal.data(detail_lines(row, where))
    if history and moments:
        terminal.data(history_lines(moments))
    elif history:
        terminal.note("no history is kept there: only stores, such as buckets, keep one")
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
        "can": _can(opened) if opened else [],
        "description": config.description,
    }


def _can(remote: Remote) -> list[str]:
    return [
        "sync",
        *(["run"] if remote.can_execute else []),
        *(["start", "stop"] if remote.machine is not None else []),
    ]


def _named(context: Context, settings: Settings) -> list[str]:
    """The remotes to ask; raises NotFound for a name that means nothing, before any is asked."""
    names: dict[str, None] = {}
    for name in settings.remotes or [LOCAL]:
        names |= dict.fromkeys([LOCAL, *context.remotes()] if name == ALL else [context.remote(name).name])
    return list(names)


def _write(settings: Settings, rows: list[Row], form: str, columns: tuple[bool, bool]) -> None:
    """`columns`: with where the runs are, and how they compare."""
    terminal = settings.terminal
    if settings.json:
        terminal.document([row.to_json() for row in rows])
    elif form == CSV:
        terminal.raw(csv_text(rows).encode("utf-8", "backslashreplace"))
    elif form == MARKDOWN:
        terminal.data(markdown(rows, *columns))
    elif form == IDS and rows:
        terminal.data("\n".join(ids(rows)))
    elif rows:
        terminal.data(table([row.cells(*columns) for row in rows], terminal.columns))
