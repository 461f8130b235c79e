"""push and pull, and what they say at the end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, NamedTuple, Optional

import typer

import guildsync
from guildsync.cli import words
from guildsync.cli.options import Runs, Settings
from guildsync.cli.progress import told
from guildsync.cli.words import number, size
from guildsync.errors import CONFLICT, Usage

if TYPE_CHECKING:
    from guildsync.api import Options, Outcome, Policy

SIDES = ("source", "target")

Place = Annotated[
    str, typer.Argument(metavar="REMOTE", show_default=False, help="A configured remote, s3:bucket, or a URL.")
]
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
    preposition: str


PUSH, PULL = _Verb("push", "Pushing", "Pushed", "to"), _Verb("pull", "Pulling", "Pulled", "from")


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
    settings: Settings = ctx.obj
    options = _options(settings, PUSH, runs, dry_run, _policy(resolve, include, exclude))
    return _told(settings, _carried(settings, PUSH, remote, options, rehash), PUSH, remote, options)


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
    settings: Settings = ctx.obj
    options = _options(settings, PULL, runs, dry_run, _policy(resolve, include, exclude))
    return _told(settings, _carried(settings, PULL, remote, options, rehash), PULL, remote, options)


def _carried(settings: Settings, verb: _Verb, remote: str, options: Options, rehash: bool) -> Outcome:
    terminal, context = settings.terminal, settings.context()
    with told(terminal, verb.going, not (settings.json or options.dry_run)) as (progress, warn):
        context = replace(context, warn=warn)
        return (context.push if verb is PUSH else context.pull)(remote, options, progress, rehash=rehash)


def _policy(resolve: str | None, include: Sequence[str] | None, exclude: Sequence[str] | None) -> Policy:
    if resolve is not None and resolve not in SIDES:
        raise Usage(f"--resolve cannot be {resolve!r}", f"say one of {', '.join(SIDES)}")
    paths = guildsync.Paths(tuple(map(os.fsencode, include or ())), tuple(map(os.fsencode, exclude or ())))
    policy: Policy = guildsync.Policy(resolve=resolve, paths=paths)
    return policy


def _options(settings: Settings, verb: _Verb, runs: Sequence[str] | None, dry_run: bool, policy: Policy) -> Options:
    settings.no_remote(verb.now, f"say `guildsync {verb.now} NAME`")
    options: Options = guildsync.Options(choose=settings.choice(runs), policy=policy, dry_run=dry_run)
    return options


def _told(settings: Settings, outcome: Outcome, verb: _Verb, remote: str, options: Options) -> int:
    terminal = settings.terminal
    for note in outcome.notes:
        terminal.note(f"note: {note}")
    if outcome.bytes_resumed:
        terminal.note(f"note: took over {size(outcome.bytes_resumed)} that an interrupted {verb.now} had sent")
    terminal.problems(outcome.problems)
    if any(problem.reason == CONFLICT for problem in outcome.problems):
        terminal.hint(_way_out(verb, options.policy))
    if settings.json:
        terminal.document(outcome.to_json())
    else:
        terminal.done(last_line(outcome, verb, remote, options.dry_run))
    return outcome.exit_code


def _way_out(verb: _Verb, policy: Policy) -> str:
    """Of a conflict."""
    if policy.resolve is not None and policy.paths.leave_out:
        return "what --include and --exclude leave out is never replaced; say --resolve without them"
    return (
        "--resolve source takes the versions of the source, --resolve target keeps those of the target "
        f"({'the remote' if verb is PUSH else 'this home'} is the target)"
    )


def last_line(outcome: Outcome, verb: _Verb, remote: str, dry_run: bool) -> str:
    """What was done, also where that was nothing."""
    failed = words.failures(outcome.problems)
    if not outcome.runs:
        place = f"{verb.preposition} {remote}" if failed else ""
        return _tail(f"Nothing to {verb.now}" if not failed else f"Nothing was {verb.done.lower()} {place}", [
            failed, _same(outcome, verb, remote, bool(failed)),
        ])  # fmt: skip
    files = [number(outcome.files, "file"), size(outcome.bytes_total)]
    head = f"Would {verb.now}" if dry_run else verb.done
    sent = "to send" if dry_run else "sent"
    there = "there already" if dry_run else "were there already"
    amount = ", ".join(files)
    if outcome.bytes_reused:
        amount += f"; {size(outcome.bytes_total - outcome.bytes_reused)} {sent}, {size(outcome.bytes_reused)} {there}"
    if outcome.removed:
        amount += f"; {outcome.removed} removed"
    said = f"{head} {number(outcome.runs, 'run')} ({amount}) {verb.preposition} {remote}"
    if not dry_run:
        said += f" in {words.seconds(outcome.seconds)}"
    return f"{said}; {failed}" if failed else said


def _same(outcome: Outcome, verb: _Verb, remote: str, failed: bool) -> str:
    if not outcome.same:
        return "" if failed or outcome.notes else "no runs are chosen"
    runs = f"{number(outcome.same, 'run')} {'is' if outcome.same == 1 else 'are'} already"
    return f"{runs} on {remote}" if verb is PUSH else f"{runs} here"


def _tail(head: str, parts: Sequence[str]) -> str:
    said = [part for part in parts if part]
    return f"{head}: {', '.join(said)}" if said else head
