"""push, pull and copy, and what they say at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, NamedTuple, Optional

import typer

import guildsync
from guildsync.cli import completion, words
from guildsync.cli.mirroring import For, Mirroring, Watch, Watched, mirrored, seconds_of
from guildsync.cli.options import LOCAL, DryRun, Runs, Settings
from guildsync.cli.progress import told
from guildsync.cli.words import number, size
from guildsync.errors import CONFLICT, Usage

if TYPE_CHECKING:
    from guildsync.api import Context, Options, Outcome, Policy, Removals

SIDES = ("source", "target")

_PLACE = "A configured remote, s3:bucket, or a URL."
Place = Annotated[
    str, typer.Argument(metavar="REMOTE", show_default=False, help=_PLACE, autocompletion=completion.remotes)
]
From = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        show_default=False,
        help=f"{_PLACE} `local` is this home.",
        autocompletion=completion.remotes,
    ),
]
To = Annotated[
    str, typer.Argument(metavar="DST", show_default=False, help="The same.", autocompletion=completion.remotes)
]
Resolve = Annotated[
    Optional[str],  # noqa: UP045 -- typer
    typer.Option(
        "--resolve",
        metavar="source|target",
        help="Whose side to take in conflicts.",
        autocompletion=completion.one_of(SIDES),
    ),
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


Delete = Annotated[
    bool, typer.Option("--delete", help="Remove files in the runs there that the source had, and no longer has.")
]
MaxDelete = Annotated[
    Optional[int],  # noqa: UP045 -- typer
    typer.Option("--max-delete", metavar="N", min=0, help="Remove up to so many files, however large a part that is."),
]
Undelete = Annotated[bool, typer.Option("--undelete", help="Bring back runs that were deleted there.")]


@dataclass(frozen=True)
class _Asked:
    """The options of one command line."""

    runs: Sequence[str] | None
    dry_run: bool
    resolve: str | None
    rehash: bool
    include: Sequence[str] | None
    exclude: Sequence[str] | None
    delete: bool
    max_delete: int | None
    undelete: bool


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
    delete: Delete = False,
    max_delete: MaxDelete = None,
    undelete: Undelete = False,
    watch: Watch = False,
    lasts: For = None,
) -> int:
    """Deliver runs of this home to a remote. All of them, where none is named."""
    way = _Way(PUSH, (LOCAL, remote), f"to {remote}", f"on {remote}", "the remote")
    asked = _Asked(runs, dry_run, resolve, rehash, include, exclude, delete, max_delete, undelete)
    return _carried_out(ctx.obj, way, asked, seconds_of(watch, lasts) if watch or lasts else None)


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
    delete: Delete = False,
    max_delete: MaxDelete = None,
    undelete: Undelete = False,
    watch: Watch = False,
    lasts: For = None,
) -> int:
    """Deliver runs of a remote to this home. All of them, where none is named.

    A run that was deleted here comes back where it is named by its id."""
    way = _Way(PULL, (remote, LOCAL), f"from {remote}", "here", "this home")
    asked = _Asked(runs, dry_run, resolve, rehash, include, exclude, delete, max_delete, undelete)
    return _carried_out(ctx.obj, way, asked, seconds_of(watch, lasts) if watch or lasts else None)


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
    delete: Delete = False,
    max_delete: MaxDelete = None,
    undelete: Undelete = False,
) -> int:
    """Deliver runs of one remote to another, through this machine. All of them, where none is named."""
    at = "here" if target == LOCAL else f"on {target}"
    way = _Way(COPY, (source, target), f"from {source} to {target}", at, target)
    asked = _Asked(runs, dry_run, resolve, rehash, include, exclude, delete, max_delete, undelete)
    return _carried_out(ctx.obj, way, asked)


def _carried_out(settings: Settings, way: _Way, asked: _Asked, watched: Watched | None = None) -> int:
    names = "SRC DST" if way.verb is COPY else "NAME"
    settings.no_remote(way.verb.now, f"say `guildsync {way.verb.now} {names}`")
    if watched is not None:
        _check_watching(settings, asked)
    choice, context = settings.choice(asked.runs), settings.context()
    options = guildsync.Options(
        choose=choice,
        policy=_policy(asked, context),
        max_delete=asked.max_delete,
        dry_run=asked.dry_run,
        details=choice.needs_details,
        revives=lambda run: asked.undelete or (way.verb is PULL and choice.names(run)),
    )
    if watched is not None:
        return mirrored(settings, context, Mirroring(way.ends, way.along, options, choice, watched))
    with told(settings.terminal, way.verb.going, not (settings.json or asked.dry_run)) as (progress, warn, line):

        def agree(removals: Removals) -> None:
            line.clear()
            amount = f"{number(removals.files, 'file')} ({size(removals.size)})"
            settings.agreed(f"Remove {amount} in {number(removals.runs, 'run')} {way.at}?")

        options = replace(options, agree=agree)
        outcome = replace(context, warn=warn).copy(*way.ends, options, progress, rehash=asked.rehash)
    return _told(settings, outcome, way, options)


def _check_watching(settings: Settings, asked: _Asked) -> None:
    if asked.dry_run or asked.rehash:
        raise Usage("--watch goes on with what it has seen", "leave out --dry-run and --rehash")
    if asked.delete and not settings.yes:
        raise Usage("--watch asks nothing while it goes on", "--delete --yes: remove without being asked")


def _policy(asked: _Asked, context: Context) -> Policy:
    if asked.resolve is not None and asked.resolve not in SIDES:
        raise Usage(f"--resolve cannot be {asked.resolve!r}", f"say one of {', '.join(SIDES)}")
    paths = context.paths(asked.include or (), asked.exclude or ())
    policy: Policy = guildsync.Policy(delete=asked.delete, resolve=asked.resolve, paths=paths)
    return policy


def _told(settings: Settings, outcome: Outcome, way: _Way, options: Options) -> int:
    terminal = settings.terminal
    for note in outcome.notes:
        terminal.note(f"note: {note}")
    if outcome.skipped:
        terminal.hint(_way_back(way))
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


def _way_back(way: _Way) -> str:
    """Of runs that were deleted at the target."""
    return "name a run by its id to bring it back" if way.verb is PULL else "--undelete brings them back"


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
