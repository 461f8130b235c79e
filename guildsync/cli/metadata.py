"""label, tag, comment and mark: what people write on runs, where these lie."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Optional

import typer

import guildsync
from guildsync.cli.options import DryRun, Runs, Settings, expanded
from guildsync.cli.rows import Row, comment_lines, table
from guildsync.cli.words import SHORT_ID, number, shown
from guildsync.compute.local import user_name
from guildsync.errors import Usage
from guildsync.model import edits
from guildsync.model.edits import MetadataEdit
from guildsync.model.run import Comment

if TYPE_CHECKING:
    from guildsync.api import Record

    Show = Callable[[Record], list[str]]

Text = Optional[str]  # noqa: UP045 -- typer
Texts = Optional[list[str]]  # noqa: UP045
Clear = Annotated[bool, typer.Option("-c", "--clear", help="Take away what is there.")]


def label(  # noqa: PLR0913 -- one for each option
    ctx: typer.Context,
    runs: Runs = None,
    *,
    set_: Annotated[Text, typer.Option("-s", "--set", metavar="TEXT", help="The label from now on.")] = None,
    append: Annotated[Text, typer.Option("-a", "--append", metavar="TEXT", help="Goes behind the label.")] = None,
    prepend: Annotated[Text, typer.Option("-p", "--prepend", metavar="TEXT", help="Goes before the label.")] = None,
    remove: Annotated[Text, typer.Option("-rm", "--remove", metavar="TEXT", help="Is taken out of it.")] = None,
    clear: Clear = False,
    dry_run: DryRun = False,
) -> int:
    """Label runs where they lie; the newest, where none is named. Without an option, show the label."""
    changes = [
        *([edits.set_label(_text(set_))] if set_ is not None else []),
        *([edits.append_label(_text(append))] if append is not None else []),
        *([edits.prepend_label(_text(prepend))] if prepend is not None else []),
        *([edits.remove_label(_text(remove))] if remove is not None else []),
        *([edits.set_label(None)] if clear else []),
    ]
    return _edited(ctx.obj, runs, changes, dry_run, lambda record: [shown(record.metadata.label or "")])


def tag(
    ctx: typer.Context,
    runs: Runs = None,
    *,
    add: Annotated[Texts, typer.Option("-a", "--add", metavar="TAG", help="Add a tag; several times: several.")] = None,
    delete: Annotated[Texts, typer.Option("-d", "--delete", metavar="TAG", help="Take a tag away.")] = None,
    clear: Clear = False,
    dry_run: DryRun = False,
) -> int:
    """Tag runs where they lie; the newest, where none is named. Without an option, show the tags."""
    added, removed = list(map(_tag, add or ())), list(map(_tag, delete or ()))
    changes = [edits.change_tags(added, removed, clear)] if added or removed or clear else []
    return _edited(ctx.obj, runs, changes, dry_run, _tags)


def comment(
    ctx: typer.Context,
    runs: Runs = None,
    *,
    add: Annotated[Text, typer.Option("-a", "--add", metavar="TEXT", help="Add a comment.")] = None,
    delete: Annotated[
        Optional[int],  # noqa: UP045 -- typer
        typer.Option("-d", "--delete", metavar="N", help="Take the Nth comment away."),
    ] = None,
    clear: Clear = False,
    dry_run: DryRun = False,
) -> int:
    """Comment on runs where they lie; on the newest, where none is named. Without an option, show the comments."""
    changes: list[MetadataEdit] = [
        *([edits.add_comment(_comment(add))] if add is not None else []),
        *([edits.remove_comment(delete)] if delete is not None else []),
        *([edits.clear_comments] if clear else []),
    ]
    return _edited(ctx.obj, runs, changes, dry_run, lambda record: comment_lines(record.metadata))


def mark(ctx: typer.Context, runs: Runs = None, *, clear: Clear = False, dry_run: DryRun = False) -> int:
    """Mark runs where they lie; the newest, where none is named."""
    return _edited(ctx.obj, runs, [edits.set_marked(not clear)], dry_run, lambda _: [])


def _edited(
    settings: Settings,
    runs: Sequence[str] | None,
    changes: Sequence[MetadataEdit],
    dry_run: bool,
    show: Show,
) -> int:
    """Make the one change that is asked for, or show what is there."""
    if len(changes) > 1:
        raise Usage("these options exclude each other", "say one of them")
    remote, terminal, context = settings.one_remote(), settings.terminal, settings.context()
    choice = guildsync.Choice(expanded(runs or ["@latest"]), settings.filters)
    if not changes:
        _show(settings, context.runs(remote, choice), remote, show)
        return 0
    acted = context.edit(remote, guildsync.Request(choice, None, dry_run, choice.needs_details), changes[0])
    terminal.problems(acted.problems)
    if settings.json:
        terminal.document({**acted.to_json(), "dry_run": dry_run})
    elif acted.runs:
        failed = len({problem.run for problem in acted.problems})
        head = f"{'Would change' if dry_run else 'Changed'} {number(len(acted.runs), 'run')} on {remote}"
        terminal.done(f"{head}; {number(failed, 'run')} failed" if failed else head)
    else:
        terminal.done("Nothing was changed" if acted.problems else f"Nothing to change on {remote}")
    return int(acted.exit_code)


def _show(settings: Settings, records: Sequence[Record], remote: str, show: Show) -> None:
    if settings.json:
        settings.terminal.document([Row(n, remote, record).to_json() for n, record in enumerate(records, 1)])
        return
    cells = [[record.run[:SHORT_ID], line] for record in records for line in show(record) or [""]]
    if cells:
        settings.terminal.data(table(cells, None))


def _tags(record: Record) -> list[str]:
    return [" ".join(f"#{shown(each)}" for each in sorted(record.metadata.tags))]


def _comment(body: str) -> Comment:
    if not _text(body).strip():
        raise Usage("a comment needs words", "--add 'diverged after step 3000'")
    return Comment(body, time.time_ns() // 1000, user_name(), socket.gethostname())


def _tag(word: str) -> str:
    if not _text(word).strip():
        raise Usage("a tag needs words", "--add best")
    return word


def _text(word: str) -> str:
    """What a YAML file can hold; raises Usage for bytes of the command line that are no text."""
    try:
        word.encode()
    except UnicodeEncodeError as exc:
        raise Usage(f"{shown(word)[:80]} is not valid UTF-8", "give it as text") from exc
    return word
