"""remote start and remote stop: machines that cost money while they run, and what would be lost with one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from guildsync.cli import completion
from guildsync.cli.lifecycle import shown_runs
from guildsync.cli.listing import PARTIAL
from guildsync.cli.options import ALL, Settings
from guildsync.cli.rows import table
from guildsync.cli.words import SHORT_ID, number, shown
from guildsync.errors import Usage

if TYPE_CHECKING:
    from guildsync.api import Context, Found
    from guildsync.model.machine import Instance

_MANY = 10
"""So many of the runs that were there when they were last listed are named."""

Name = Annotated[
    Optional[str],  # noqa: UP045 -- typer
    typer.Argument(metavar="NAME", show_default=False, help="A configured remote.", autocompletion=completion.remotes),
]


def start(ctx: typer.Context, name: Name = None) -> int:
    """Start the machine of a remote; where there is none, make it. Done when a run can be started there."""
    settings: Settings = ctx.obj
    context, terminal, remote = settings.context(), settings.terminal, _named(settings, name)

    def agree(found: Instance | None) -> None:
        what = f"Start {found.id} ({found.kind})" if found else f"Make a machine ({context.remote(remote).where})"
        settings.agreed(f"{what} for {remote}? It costs money until it is stopped.")

    found = context.start_machine(remote, None if settings.yes else agree, terminal.note)
    if settings.json:
        terminal.document({"remote": remote, "machine": machine_row(found)})
    else:
        terminal.done(f"{remote} can be used: {described(found)}")
    return 0


def stop(
    ctx: typer.Context,
    name: Name = None,
    *,
    terminate: Annotated[
        bool, typer.Option("--terminate", help="Destroy it, with its disk and all runs that lie there.")
    ] = False,
) -> int:
    """Stop the machine of a remote: it costs no more than its disk, which is kept."""
    settings: Settings = ctx.obj
    context, terminal, remote = settings.context(), settings.terminal, _named(settings, name)

    def agree(found: Instance | None) -> None:
        assert found is not None
        for line in _stakes(context, remote, terminate):
            terminal.note(line)
        which = f"{found.id} ({found.kind}) of {remote}"
        settings.agreed(
            f"Destroy {which}, and all that lies there? Nothing brings it back."
            if terminate
            else f"Stop {which}? What lies there is kept."
        )

    found = context.stop_machine(remote, None if settings.yes else agree, terminal.note, terminate=terminate)
    if settings.json:
        terminal.document({"remote": remote, "machine": machine_row(found) if found else None})
    elif found is None:
        terminal.done(f"Nothing to stop: {remote} has no machine")
    elif found.is_stopped:
        kept = "what lies there is kept, and its disk is paid for"
        terminal.done(f"Stopped {found.id} of {remote}: it is {found.state}; {kept}")
    else:
        terminal.done(f"{'Destroyed ' if terminate else ''}{found.id} of {remote}: it is {found.state}")
    return 0


def orphans(settings: Settings, names: Sequence[str]) -> int:
    """All machines of ours in the accounts of these remotes; without any, of all that have one."""
    context, terminal = settings.context(), settings.terminal
    asked = list(names) if names and ALL not in names else _with_machines(context)
    unasked: list[str] = []
    found = context.machines(asked, unasked.append)
    for line in unasked:
        terminal.warning(line)
    if settings.json:
        terminal.document([{**machine_row(each), "remote": each.remote, "owner": each.owner} for each in found])
    elif found:
        rows = [[each.id, each.remote, each.kind, each.region, each.state, since(each), each.owner] for each in found]
        terminal.data(table([[shown(cell) for cell in row] for row in rows], terminal.columns))
    elif not unasked:
        terminal.note("no machine of ours is there" if asked else "no configured remote has a machine")
    return PARTIAL if unasked else 0


def machine_row(found: Instance) -> dict[str, Any]:
    """As JSON can say it; what there is not yet is null."""
    return {
        "id": found.id,
        "state": found.state,
        "type": found.kind,
        "address": found.address or None,
        "since": found.since or None,
        "region": found.region,
    }


def described(found: Instance) -> str:
    """i-0abc, g5.xlarge, running at 192.0.2.7 since 2026-11-25 15:11:22"""
    at = f" at {found.address}" if found.address else ""
    began = f" since {since(found)}" if found.is_running and found.since else ""
    return f"{found.id}, {found.kind}, {found.state}{at}{began}"


def since(found: Instance) -> str:
    """On the clock of this machine."""
    try:
        return datetime.fromisoformat(found.since.replace("Z", "+00:00")).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return found.since


def _named(settings: Settings, name: str | None) -> str:
    if name is None:
        return settings.one_remote()
    if settings.remotes and set(settings.remotes) != {name}:
        raise Usage(f"both {name} and {settings.remotes[0]} are named", "name one remote")
    return name


def _with_machines(context: Context) -> list[str]:
    return [name for name, remote in context.remotes().items() if getattr(remote, "machine", None) is not None]


def _stakes(context: Context, remote: str, terminate: bool) -> Iterator[str]:
    """What a person should know before a machine is stopped or destroyed."""
    found = context.stakes(remote, terminate=terminate)
    if found.error is not None:
        yield f"Which runs lie there cannot be told: {found.error.message}"
    if found.error is not None and terminate:
        yield from _last_known(context, remote)
    if found.running:
        yield f"{number(len(found.running), 'run')} on {remote} will be ended:"
        yield from _rows(remote, found.running)
    if found.error is None and terminate and not found.not_here:
        yield "All runs that lie there are here, too."
    elif found.not_here:
        yield f"{number(len(found.not_here), 'run')} on {remote} will be lost, not being here as there:"
        yield from _rows(remote, found.not_here)


def _rows(remote: str, found: Sequence[Found]) -> list[str]:
    return shown_runs(remote, [each.record for each in found])


def _last_known(context: Context, remote: str) -> Iterator[str]:
    """What can be said without asking: by the last listing."""
    here = {run for run, _ in context.known()}
    runs = context.known(remote)
    missing = [(run, label) for run, label in runs if run not in here]
    if runs:
        yield f"When they were last listed, {number(len(runs), 'run')} lay there, {len(missing)} of which are not here."
    for run, label in missing[:_MANY]:
        yield f"{run[:SHORT_ID]}  {label}".rstrip()
