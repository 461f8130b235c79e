"""push, pull and copy, and what they say at the end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, NamedTuple, Optional

import typer

import guildsync
from guildsync.cli import words
from guildsync.cli.options import LOCAL, Runs, Settings
from guildsync.cli.progress import told
from guildsync.cli.words import number, size
from guildsync.errors import CONFLICT, Usage

if TYPE_CHECKING:
    from guildsync.api import Options, Outcome, Policy

SIDES = ("source", "target")

_PLACE = "A configured remote, s3:bucket, or a URL."
Place = Annotated[str, typer.Argument(metavar="REMOTE", show_default=False, help=_PLACE)]
From = Annotated[str, typer.Argument(metavar="SRC", show_default=False, help=f"{_PLACE} `local` is this home.")]
To = Annotated[str, typer.Argument(metavar="DST", show_default=False, help="The same.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Resolve = Annotated[
    Optional[str],  # noqa: UP045 -- typer
    typer.Option("--resolve", metavar="source|target", help="Whose side to take in conflicts."),
]
Rehash = Annotated[bool, typer.Option("--rehash", help="Read all files: do not trust the times of unchanged ones.")]
Include = Annotated[
    Optional[list[str]],  # noqa: UP045 -- typer
    typer.Option(
        "--include",
        metavar="PATTERN",
        help="Only paths in the runs that match, such as '*.pt', 'checkpoints/' or '/logs/**'; several times: what any "
        "of them matches. .guild/opref and .guild/attrs always go along: they make a run a run.",
    ),
]
Exclude = Annotated[
    Optional[list[str]],  # noqa: UP045 -- typer
    typer.Option(
        "--exclude",
        metavar="PATTERN",
        help="No paths in the runs that match, whatever --include says. What is left out is neither sent nor removed.",
    ),
]


class _Verb(NamedTuple):
    now: str
    going: str
    done: str


class _Way(NamedTuple):
    """From where to where, and in words: `along` (to bucket), `at` the target (on bucket), and what `target` is."""

    verb: _Verb
    ends: tuple[str, str]
    along: str
    at: str
    target: str


PUSH, PULL = _Verb("push", "Pushing", "Pushed"), _Verb("pull", "Pulling", "Pulled")
COPY = _Verb("copy", "Copying", "Copied")


def push(  # noqa: PLR0913 -- one for each option
    ctx: typer.Context,
    remote: Place,
    runs: Runs = None,
    *,
    dry_run: DryRun = False,
    resolve: Resolve = None,
    rehash: Rehash = False,
    include: Include = None,
    exclude: Exclude = None,
) -> int:
    """Deliver runs of this home to a remote. All of them, where none is named."""
    way = _Way(PUSH, (LOCAL, remote), f"to {remote}", f"on {remote}", "the remote")
    options = _options(ctx.obj, way, runs, dry_run, _policy(resolve, include, exclude))
    return _carried_out(ctx.obj, way, options, rehash)


def pull(  # noqa: PLR0913 -- one for each option
    ctx: typer.Context,
    remote: Place,
    runs: Runs = None,
    *,
    dry_run: DryRun = False,
    resolve: Resolve = None,
    rehash: Rehash = False,
    include: Include = None,
    exclude: Exclude = None,
) -> int:
    """Deliver runs of a remote to this home. All of them, where none is named."""
    way = _Way(PULL, (remote, LOCAL), f"from {remote}", "here", "this home")
    options = _options(ctx.obj, way, runs, dry_run, _policy(resolve, include, exclude))
    return _carried_out(ctx.obj, way, options, rehash)


def copy(  # noqa: PLR0913 -- one for each option
    ctx: typer.Context,
    source: From,
    target: To,
    runs: Runs = None,
    *,
    dry_run: DryRun = False,
    resolve: Resolve = None,
    rehash: Rehash = False,
    include: Include = None,
    exclude: Exclude = None,
) -> int:
    """Deliver runs of one remote to another, through this machine. All of them, where none is named."""
    at = "here" if target == LOCAL else f"on {target}"
    way = _Way(COPY, (source, target), f"from {source} to {target}", at, target)
    options = _options(ctx.obj, way, runs, dry_run, _policy(resolve, include, exclude))
    return _carried_out(ctx.obj, way, options, rehash)


def _carried_out(settings: Settings, way: _Way, options: Options, rehash: bool) -> int:
    context = settings.context()
    with told(settings.terminal, way.verb.going, not (settings.json or options.dry_run)) as (progress, warn):
        outcome = replace(context, warn=warn).copy(*way.ends, options, progress, rehash=rehash)
    return _told(settings, outcome, way, options)


def _policy(resolve: str | None, include: Sequence[str] | None, exclude: Sequence[str] | None) -> Policy:
    if resolve is not None and resolve not in SIDES:
        raise Usage(f"--resolve cannot be {resolve!r}", f"say one of {', '.join(SIDES)}")
    paths = guildsync.Paths(tuple(map(os.fsencode, include or ())), tuple(map(os.fsencode, exclude or ())))
    policy: Policy = guildsync.Policy(resolve=resolve, paths=paths)
    return policy


def _options(settings: Settings, way: _Way, runs: Sequence[str] | None, dry_run: bool, policy: Policy) -> Options:
    names = "SRC DST" if way.verb is COPY else "NAME"
    settings.no_remote(way.verb.now, f"say `guildsync {way.verb.now} {names}`")
    options: Options = guildsync.Options(choose=settings.choice(runs), policy=policy, dry_run=dry_run)
    return options


def _told(settings: Settings, outcome: Outcome, way: _Way, options: Options) -> int:
    terminal = settings.terminal
    for note in outcome.notes:
        terminal.note(f"note: {note}")
    if outcome.bytes_resumed:
        terminal.note(f"note: took over {size(outcome.bytes_resumed)} that an interrupted {way.verb.now} had sent")
    terminal.problems(outcome.problems)
    if any(problem.reason == CONFLICT for problem in outcome.problems):
        terminal.hint(_way_out(way, options.policy))
    if settings.json:
        terminal.document(outcome.to_json())
    else:
        terminal.done(last_line(outcome, way, options.dry_run))
    return outcome.exit_code


def _way_out(way: _Way, policy: Policy) -> str:
    """Of a conflict."""
    if policy.resolve is not None and policy.paths.leave_out:
        return "what --include and --exclude leave out is never replaced; say --resolve without them"
    return (
        "--resolve source takes the versions of the source, --resolve target keeps those of the target "
        f"({way.target} is the target)"
    )


def last_line(outcome: Outcome, way: _Way, dry_run: bool) -> str:
    """What was done, also where that was nothing."""
    verb, failed = way.verb, words.failures(outcome.problems)
    if not outcome.runs:
        head = f"Nothing was {verb.done.lower()} {way.along}" if failed else f"Nothing to {verb.now}"
        return _tail(head, [failed, _same(outcome, way, bool(failed))])
    files = [number(outcome.files, "file"), size(outcome.bytes_total)]
    head = f"Would {verb.now}" if dry_run else verb.done
    sent = "to send" if dry_run else "sent"
    there = "there already" if dry_run else "were there already"
    amount = ", ".join(files)
    if outcome.bytes_reused:
        amount += f"; {size(outcome.bytes_total - outcome.bytes_reused)} {sent}, {size(outcome.bytes_reused)} {there}"
    if outcome.removed:
        amount += f"; {outcome.removed} removed"
    said = f"{head} {number(outcome.runs, 'run')} ({amount}) {way.along}"
    if not dry_run:
        said += f" in {words.seconds(outcome.seconds)}"
    return f"{said}; {failed}" if failed else said


def _same(outcome: Outcome, way: _Way, failed: bool) -> str:
    if not outcome.same:
        return "" if failed or outcome.notes else "no runs are chosen"
    return f"{number(outcome.same, 'run')} {'is' if outcome.same == 1 else 'are'} already {way.at}"


def _tail(head: str, parts: Sequence[str]) -> str:
    said = [part for part in parts if part]
    return f"{head}: {', '.join(said)}" if said else head
