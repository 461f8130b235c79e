"""delete, restore, purge and gc: what nobody wants any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple, Optional

import typer

import guildsync
from guildsync.cli.options import DryRun, Runs, Settings
from guildsync.cli.rows import Row, table
from guildsync.cli.words import number, size
from guildsync.errors import Usage
from guildsync.model.run import RUNNING
from guildsync.schema import duration

if TYPE_CHECKING:
    from guildsync.api import Acted, Collected, Record, Request

_MANY = 10
"""So many of the runs that something is to be done to are shown."""

Every = Annotated[bool, typer.Option("-a", "--all", help="All runs.")]
Permanent = Annotated[bool, typer.Option("--permanent", help="For good: nothing brings them back.")]
Grace = Annotated[
    Optional[str],  # noqa: UP045 -- typer
    typer.Option("--grace", metavar="DURATION", help="Free nothing that is younger, such as 24h (what is usual) or 0."),
]


class _Verb(NamedTuple):
    now: str
    done: str
    question: str


_DELETE = _Verb("delete", "Deleted", "Move {} to the trash of {}?")
_PERMANENTLY = _Verb("delete", "Deleted for good", "Delete {} on {} for good? Nothing brings them back.")
_RESTORE = _Verb("restore", "Restored", "")
_PURGE = _Verb("purge", "Purged", "Delete {} from the trash of {} for good? Nothing brings them back.")


def delete(
    ctx: typer.Context,
    runs: Runs = None,
    *,
    every: Every = False,
    permanent: Permanent = False,
    dry_run: DryRun = False,
) -> int:
    """Move runs to the trash, here or on a remote. `runs restore` brings them back."""
    context = ctx.obj.context()
    return _carried_out(
        ctx.obj,
        _PERMANENTLY if permanent else _DELETE,
        lambda remote, request: context.delete(remote, request, permanent=permanent),
        _request(ctx.obj, _PERMANENTLY if permanent else _DELETE, runs, every, dry_run),
    )


def restore(ctx: typer.Context, runs: Runs = None, *, every: Every = False, dry_run: DryRun = False) -> int:
    """Move runs back from the trash. `runs list --deleted` shows what lies there, with the numbers to use here."""
    return _carried_out(ctx.obj, _RESTORE, ctx.obj.context().restore, _request(ctx.obj, _RESTORE, runs, every, dry_run))


def purge(ctx: typer.Context, runs: Runs = None, *, every: Every = False, dry_run: DryRun = False) -> int:
    """Delete runs of the trash for good. On a store, `gc` frees their space once its grace time is over."""
    return _carried_out(ctx.obj, _PURGE, ctx.obj.context().purge, _request(ctx.obj, _PURGE, runs, every, dry_run))


def gc(ctx: typer.Context, grace: Grace = None, *, dry_run: DryRun = False) -> int:
    """Free space that nothing refers to any more, on a remote or in this home."""
    settings: Settings = ctx.obj
    try:
        seconds = None if grace is None else duration(grace)
    except ValueError as exc:
        raise Usage(f"--grace {exc}", "--grace 12h") from exc
    remote, terminal = settings.one_remote(), settings.terminal

    def agree(found: Collected) -> None:
        if found.files or found.waiting or found.versions:
            terminal.note(_of_collected(found, f"on {remote}", "will be"))
            settings.agreed("Go on?")

    found = settings.context().collect(remote, seconds, None if settings.yes else agree, dry_run=dry_run)
    if settings.json:
        terminal.document({**found._asdict(), "dry_run": dry_run})
    else:
        terminal.done(_of_collected(found, f"on {remote}", "would be" if dry_run else "was"))
    return 0


def _of_collected(found: Collected, where: str, was: str) -> str:
    said = []
    if found.files:
        said.append(f"{size(found.bytes)} in {number(found.files, 'file')} {was} freed")
    if found.waiting:
        waiting = f"{size(found.waiting_bytes)} in {number(found.waiting, 'file')}"
        said.append(f"{waiting} can be freed when the grace time is over")
    if found.versions:
        said.append(f"{number(found.versions, 'replaced version')} {was} given up")
    return f"{', '.join(said) if said else 'Nothing to free'} {where}"


def _request(settings: Settings, verb: _Verb, runs: Sequence[str] | None, every: bool, dry_run: bool) -> Request:
    if bool(runs) == every:
        hint = f"say which, as in `guildsync runs {verb.now} 1`, or --all"
        raise Usage("runs are named, and --all is said, too" if every else "no runs are named", hint)
    remote = settings.one_remote()

    def agree(records: Sequence[Record]) -> None:
        for line in shown_runs(remote, records):
            settings.terminal.note(line)
        settings.agreed(verb.question.format(_amount(records), remote))

    asked = None if settings.yes or not verb.question else agree
    choice = settings.choice(runs)
    request: Request = guildsync.Request(choice, asked, dry_run, choice.needs_details)
    return request


def _carried_out(settings: Settings, verb: _Verb, act: Callable[[str, Request], Acted], request: Request) -> int:
    remote, terminal = settings.one_remote(), settings.terminal
    acted = act(remote, request)
    terminal.problems(acted.problems)
    if settings.json:
        terminal.document({**acted.to_json(), "dry_run": request.dry_run})
        return acted.exit_code
    if request.dry_run and acted.runs:
        terminal.data("\n".join(shown_runs(remote, acted.runs)))
    terminal.done(_last_line(acted, verb, remote, request.dry_run))
    return acted.exit_code


def _last_line(acted: Acted, verb: _Verb, remote: str, dry_run: bool) -> str:
    if not acted.runs:
        return f"Nothing to {verb.now} on {remote}" if not acted.problems else f"No run was {verb.done.lower()}"
    head = f"Would {verb.now}" if dry_run else verb.done
    failed = len({problem.run for problem in acted.problems})
    said = f"{head} {number(len(acted.runs), 'run')} on {remote}"
    return f"{said}; {number(failed, 'run')} failed" if failed else said


def _amount(records: Sequence[Record]) -> str:
    """2 runs (24 files, 3.1 MB)"""
    files = [record.summary.files for record in records]
    sizes = [record.summary.size for record in records]
    known = f" ({number(sum(filter(None, files)), 'file')}, {size(sum(filter(None, sizes)))})"
    running = sum(record.summary.status == RUNNING for record in records)
    warning = f", {running} of which ran when last seen," if running else ""
    return f"{number(len(records), 'run')}{known if None not in files else ''}{warning}"


def shown_runs(remote: str, records: Sequence[Record]) -> list[str]:
    """A line each, of the first of them."""
    rows = [Row(n, remote, record).cells(False)[1:] for n, record in enumerate(records[:_MANY], 1)]
    more = len(records) - len(rows)
    return [*table(rows, None).split("\n"), *([f"and {more} more"] if more else [])]
