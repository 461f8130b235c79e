"""run, watch and stop: training where the hardware is."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

import guildsync
from guildsync.cli.listing import RunOrLatest
from guildsync.cli.options import LOCAL, Command, DryRun, Runs, Settings, expanded
from guildsync.cli.words import SHORT_ID, number
from guildsync.errors import GuildsyncError, Interrupted, Unreachable, Usage
from guildsync.model.run import PENDING, RUNNING, STAGED, Metadata

if TYPE_CHECKING:
    from guildsync.api import Context, Record
    from guildsync.model.run import RunId
    from guildsync.training import Wish

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_UNPRINTABLE = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\x8e\x8f\xaa-\xae]|\xe2\x81[\xa6-\xa9]"
)

Text = Optional[str]  # noqa: UP045 -- typer
Texts = Optional[list[str]]  # noqa: UP045


class RunCommand(Command):
    """Takes words before `--` as the command's own, and hands over those behind it as they are."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta["behind"] = tuple(args[at + 1 :])
            args = args[:at]
        return super().parse_args(ctx, args)


def run(  # noqa: PLR0913 -- one for each option
    ctx: typer.Context,
    words: Annotated[
        Texts, typer.Argument(metavar="[SCRIPT] [FLAG=VAL]... [-- ARG...]", show_default=False, help="What to run.")
    ] = None,
    *,
    module: Annotated[
        Text, typer.Option("-m", "--module", metavar="MODULE", help="Run a module, as python -m.")
    ] = None,
    label: Annotated[Text, typer.Option("-l", "--label", metavar="TEXT", help="Label the run.")] = None,
    tag: Annotated[
        Texts, typer.Option("-t", "--tag", metavar="TAG", help="Tag the run; several times: several.")
    ] = None,
    env: Annotated[Texts, typer.Option("--env", metavar="NAME=VALUE", help="A variable of its environment.")] = None,
    secret: Annotated[
        Texts,
        typer.Option("--secret", metavar="NAME", help="A variable of this environment that it gets, and nobody else."),
    ] = None,
    gpus: Annotated[Text, typer.Option("--gpus", metavar="LIST", help="The GPUs it sees, such as 0,1.")] = None,
    stage: Annotated[bool, typer.Option("--stage", help="Deliver it, and start nothing.")] = False,
    start: Annotated[Text, typer.Option("--start", metavar="RUN", help="Start a run that was staged.")] = None,
    restart: Annotated[
        Text, typer.Option("--restart", metavar="RUN", help="Start a run that has ended once more, where it lies.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Start it, and wait for nothing.")] = False,
    pull: Annotated[
        bool, typer.Option("--pull", help="Bring what it writes home, while it runs and at the end.")
    ] = False,
    start_remote: Annotated[
        bool, typer.Option("--start-remote", help="First start the machine there, if it is stopped. It costs money.")
    ] = False,
) -> int:
    """Start a run here, or with -r where the hardware is: of the project as it lies here, uncommitted changes and all.

    What stands behind `--` goes to the script as it is; without a script it is the command to run."""
    settings: Settings = ctx.obj
    remote, context = settings.one_remote(), settings.context()
    behind: tuple[str, ...] = ctx.meta.get("behind", ())
    named = start if start is not None else restart
    if named is not None and (words or behind or module or label or tag or stage or (start and restart)):
        hint = "leave out all but --env, --secret, --gpus and how to wait"
        raise Usage("--start and --restart start a run as it is", hint)
    if stage and (env or secret or gpus):
        raise Usage("--stage starts nothing: no variable is kept for later", "say it with --start")
    _check_waiting(settings, remote, stage, no_wait, pull)
    wish = _wish(words or [], behind, module, Metadata(label, frozenset(tag or ())), _variables(env, secret, gpus))
    if start_remote:
        context.start_machine(remote, say=settings.terminal.note)
    offset = 0
    if named is not None:
        choice = guildsync.Choice(expanded([named]))
        chosen, order = context.order(remote, choice, wish, again=restart is not None)
        offset = context.tail(remote, chosen, 0) if restart is not None else 0
    else:
        prepared = context.prepare(remote, wish)
        chosen, order = prepared.run, prepared.order
        settings.terminal.note(f"run {chosen} on {remote}")
        with _goes_on(f"if it has arrived, `{_again('run --start', chosen, remote)}` starts it"):
            context.stage(remote, prepared)
    if stage:
        how = f"`{_again('run --start', chosen, remote)}` starts it"
        return _said(settings, remote, chosen, STAGED, f"Staged {chosen[:SHORT_ID]} on {remote}; {how}")
    with _goes_on(f"`{_again('watch' if restart else 'run --start', chosen, remote)}` goes on; nothing starts twice"):
        begun = context.start(remote, chosen, order)
    if no_wait:
        how = f"`{_again('watch', chosen, remote)}` follows it"
        said = f"Started {chosen[:SHORT_ID]} on {remote}" if begun else f"{chosen[:SHORT_ID]} was started before"
        return _said(settings, remote, chosen, RUNNING if begun else None, f"{said}; {how}")
    if pull:
        return _pulled(settings, context, remote, chosen, offset)
    return _followed(settings, context, remote, chosen, offset)


def _check_waiting(settings: Settings, remote: str, stage: bool, no_wait: bool, pull: bool) -> None:
    if stage and (no_wait or pull):
        raise Usage("--stage starts nothing that could be waited for", "say the rest with --start")
    if settings.json and not (stage or no_wait):
        raise Usage("what a run prints is no JSON", "say --no-wait; `runs info --json` tells how it ended")
    if pull and (remote == LOCAL or no_wait):
        hint = "leave it out; `pull` does it later"
        raise Usage("--pull brings home what lies elsewhere, while it is followed", hint)


def watch(
    ctx: typer.Context,
    run: RunOrLatest = None,
    *,
    tail: Annotated[
        Optional[int],  # noqa: UP045 -- typer
        typer.Option("--tail", metavar="N", min=0, help="Begin with the last N lines."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Every byte as it is, also to a terminal.")] = False,
) -> int:
    """Follow what a run prints; the newest, where none is named. Ctrl-C stops following: the run goes on."""
    settings: Settings = ctx.obj
    remote, context = settings.one_remote(), settings.context()
    context.remote(remote).require_executor()
    found: list[Record] = context.runs(remote, guildsync.Choice(expanded([run or "@latest"]), settings.filters))
    if len(found) != 1:
        raise Usage(f"{len(found)} runs are named", "name one")
    chosen = found[0].run
    if found[0].summary.status in (STAGED, PENDING):
        raise Usage(
            f"run {chosen[:SHORT_ID]} was not started yet", f"`{_again('run --start', chosen, remote)}` starts it"
        )
    offset = 0 if tail is None else context.tail(remote, chosen, tail)
    try:
        return _followed(settings, context, remote, chosen, offset, raw, until_nobody_reads=True)
    except _NobodyReads:
        return 0


def stop(
    ctx: typer.Context,
    runs: Runs = None,
    *,
    patience: Annotated[
        float, typer.Option("--patience", metavar="SECONDS", help="Until what will not end is killed.")
    ] = 10.0,
    dry_run: DryRun = False,
) -> int:
    """Stop runs where they run; all that run, where none is named. Only processes that are proven to be theirs."""
    settings: Settings = ctx.obj
    remote, context = settings.one_remote(), settings.context()

    def agree(records: Sequence[Record]) -> None:
        settings.agreed(f"Stop {number(len(records), 'run')} on {remote}?")

    choice = settings.choice(runs)
    request = guildsync.Request(choice, None if settings.yes else agree, dry_run, choice.needs_details)
    acted = context.stop(remote, request, patience)
    settings.terminal.problems(acted.problems)
    if settings.json:
        settings.terminal.document({**acted.to_json(), "dry_run": dry_run})
    elif acted.runs:
        settings.terminal.done(f"{'Would stop' if dry_run else 'Stopped'} {number(len(acted.runs), 'run')} on {remote}")
    else:
        settings.terminal.done("Nothing was stopped" if acted.problems else f"Nothing to stop on {remote}")
    return int(acted.exit_code)


class _NobodyReads(Exception):
    """Of what is written to stdout."""


def _followed(  # noqa: PLR0913 -- how it is followed
    settings: Settings,
    context: Context,
    remote: str,
    chosen: RunId,
    offset: int = 0,
    raw: bool = False,
    *,
    until_nobody_reads: bool = False,
) -> int:
    """To its end, or Ctrl-C."""
    terminal = settings.terminal
    plain = raw or not sys.stdout.isatty()

    def take(data: bytes) -> None:
        if not terminal.raw(data if plain else _UNPRINTABLE.sub(b"?", data)) and until_nobody_reads:
            raise _NobodyReads

    try:
        with _goes_on(f"the run goes on; `{_again('watch', chosen, remote)}` follows it again"):
            done = context.follow(remote, chosen, take, offset)
    except Interrupted as exc:
        if not plain:
            terminal.note("")  # ends the line of ^C
        terminal.note(f"note: {exc.hint}")
        return Interrupted.exit_code
    code: int = done.exit_code
    if done.exit_status is None:
        terminal.error(f"run {chosen[:SHORT_ID]} ended without a word", "its host was restarted, or it was killed")
    elif code:
        terminal.note(f"note: run {chosen[:SHORT_ID]} ended with {done.exit_status}")
    return code


def _pulled(settings: Settings, context: Context, remote: str, chosen: RunId, offset: int) -> int:
    """As `_followed`, and meanwhile the run is mirrored here; at its end it is whole."""
    choose: Any = guildsync.Choice((chosen,))
    options = guildsync.Options(choose=choose, policy=guildsync.Policy(paths=context.paths()))
    left = threading.Event()

    def go_on() -> None:
        try:
            context.mirror((remote, LOCAL), options, stop=left.is_set)
        except GuildsyncError:
            pass  # the last pull says what is wrong

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        code = _followed(settings, context, remote, chosen, offset)
    finally:
        left.set()
    if code == Interrupted.exit_code:
        return code  # the thread ends with the process; what it was pulling goes on with the next pull
    thread.join()
    done = context.pull(remote, options)
    settings.terminal.problems(done.problems)
    return code or int(done.exit_code)


@contextmanager
def _goes_on(how: str) -> Iterator[None]:
    """Whatever breaks off what is done here, people are told how to go on."""
    try:
        yield
    except Unreachable as exc:
        raise Unreachable(exc.message, how) from exc
    except KeyboardInterrupt as exc:
        raise Interrupted("interrupted", how) from exc


def _said(settings: Settings, remote: str, chosen: RunId, status: str | None, line: str) -> int:
    """`status` None: it is not known."""
    if settings.json:
        settings.terminal.document({"id": chosen, "remote": remote, "status": status})
    else:
        settings.terminal.done(line)
    return 0


def _wish(
    words: Sequence[str],
    behind: tuple[str, ...],
    module: str | None,
    metadata: Metadata,
    variables: tuple[dict[str, str], dict[str, str]],
) -> Wish:
    from guildsync.model.script import Target, parse_flag
    from guildsync.training import Wish

    target: Target | None = None
    flags = list(words)
    if module is not None:
        target = Target(module, is_module=True)
    elif flags:
        target = Target(flags.pop(0))
    return Wish(os.getcwd(), target, tuple(map(parse_flag, flags)), behind, metadata, *variables)


def _variables(
    env: Sequence[str] | None, secret: Sequence[str] | None, gpus: str | None
) -> tuple[dict[str, str], dict[str, str]]:
    plain: dict[str, str] = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}
    for word in env or ():
        name, sign, value = word.partition("=")
        if not sign or not _NAME.fullmatch(name):
            raise Usage(f"--env {name[:40]!r} names no variable", "say --env NAME=VALUE")
        plain[name] = value
    secrets = {}
    for name in secret or ():
        if name not in os.environ:
            raise Usage(f"there is no variable {name[:40]!r} here", "--secret names one of this environment")
        secrets[name] = os.environ[name]
    return plain, secrets


def _again(verb: str, chosen: RunId, remote: str) -> str:
    return f"guildsync {verb} {chosen[:SHORT_ID]}" + (f" -r {remote}" if remote != LOCAL else "")
