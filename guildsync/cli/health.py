"""check, status and verify: is it usable, is it there, and is everything whole?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from guildsync.cli import completion
from guildsync.cli import machine as machines
from guildsync.cli.listing import PARTIAL
from guildsync.cli.options import ALL, Runs, Settings
from guildsync.cli.rows import table
from guildsync.cli.words import NOTED, number, shown, size
from guildsync.errors import DAMAGED, MISSING, GuildsyncError

if TYPE_CHECKING:
    from guildsync.api import Context, Verified
    from guildsync.model.machine import Instance


def check(ctx: typer.Context) -> int:
    """Is a remote, or this home, usable? Step by step, with a hint for what failed."""
    settings: Settings = ctx.obj
    remote, terminal, steps = settings.one_remote(), settings.terminal, []
    for step in settings.context().check(remote):
        steps.append(step)
        if not settings.json:
            terminal.data(f"{'ok' if step.ok else 'FAILED':6}  {shown(step.name)}: {shown(step.detail)}")
            if step.hint:
                terminal.hint(step.hint)
    ok = all(step.ok for step in steps)
    if settings.json:
        rows = [{"name": s.name, "ok": s.ok, "detail": s.detail, "hint": s.hint or None} for s in steps]
        terminal.document({"remote": remote, "ok": ok, "steps": rows})
    elif ok:
        terminal.done(f"{remote} can be used")
    return max(step.exit_code for step in steps)


@dataclass(frozen=True)
class _Status:
    """Whether one remote is available: `detail` is what was found there, or what is wrong; `code` 0 or how a command
    that needs it would end. `where` None: it cannot be opened at all; `machine` None: it has none."""

    name: str
    kind: str
    where: str | None
    code: int
    detail: str
    hint: str | None = None
    machine: Instance | None = None

    def cells(self) -> list[str]:
        found = self.detail if self.code else "available"
        machine = f" ({machines.described(self.machine)})" if self.machine is not None else ""
        return [shown(cell) for cell in (self.name, self.kind, self.where or "", found + machine)]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "type": self.kind,
            "where": None if self.where is None else shown(self.where),
            "available": not self.code,
            "detail": self.detail,
            "machine": machines.machine_row(self.machine) if self.machine is not None else None,
        }


def status(
    ctx: typer.Context,
    name: Annotated[
        Optional[str],  # noqa: UP045 -- typer
        typer.Argument(
            metavar="[NAME]",
            show_default=False,
            help="A configured remote, s3:bucket, or a URL.",
            autocompletion=completion.remotes,
        ),
    ] = None,
    *,
    orphans: Annotated[
        bool, typer.Option("--orphans", help="Instead, every machine of ours in the account, known here or not.")
    ] = False,
) -> int:
    """Is a remote available? Without a name, all configured ones are asked."""
    settings: Settings = ctx.obj
    if orphans:
        return machines.orphans(settings, [*([name] if name is not None else []), *settings.remotes])
    context, terminal = settings.context(), settings.terminal
    asked = [*([name] if name is not None else []), *settings.remotes] or [ALL]
    names: dict[str, None] = {}
    for each in asked:
        names |= dict.fromkeys(sorted(context.config.remotes) if each == ALL else [context.config.remote(each).name])
    rows = [_status(context, each) for each in names]
    failed = [row for row in rows if row.code]
    if settings.json:
        terminal.document([row.to_json() for row in rows])
    elif rows:
        terminal.data(table([row.cells() for row in rows], terminal.columns if len(rows) > 1 else None))
    else:
        terminal.note("no remotes are configured; s3:bucket and URLs such as file:///path need no configuration")
    for row in failed:
        if len(rows) > 1:
            terminal.warning(f"{row.name}: {row.detail}")
        elif row.hint:
            terminal.hint(row.hint)
    if not failed:
        return 0
    return failed[0].code if len(failed) == len(rows) else PARTIAL


def _status(context: Context, name: str) -> _Status:
    kind, where, machine = context.config.remote(name).type, None, None
    try:
        remote = context.remote(name)
        where = remote.where
        machine = context.machine(name) if remote.machine is not None else None
        step = context.status(name)
    except GuildsyncError as exc:
        return _Status(name, kind, where, exc.exit_code, exc.message, exc.hint, machine)
    return _Status(name, kind, where, 0 if step.ok else step.exit_code or 1, step.detail, step.hint or None, machine)


def verify(
    ctx: typer.Context,
    runs: Runs = None,
    quick: Annotated[bool, typer.Option("--quick", help="Structure and sizes only: not every byte is read.")] = False,
) -> int:
    """Do all bytes of runs match their digests? Reads them where they lie, in a remote or in this home."""
    settings: Settings = ctx.obj
    choice, terminal = settings.choice(runs), settings.terminal
    verified = settings.context().verify(settings.one_remote(), choice, quick=quick)
    terminal.problems(verified.problems)
    if settings.json:
        terminal.document(verified.to_json())
    else:
        terminal.done(last_line(verified, quick))
    return verified.exit_code


def last_line(verified: Verified, quick: bool) -> str:
    runs = number(verified.runs, "run")
    if quick:
        head, good = f"Looked over {runs}", "nothing is missing"
    else:
        head = f"Verified {runs} ({number(verified.objects, 'object')}, {size(verified.bytes)})"
        good = "all bytes match their digests"
    bad = {reason: sum(problem.reason == reason for problem in verified.problems) for reason in (DAMAGED, MISSING)}
    others = sum(problem.reason not in {DAMAGED, MISSING, *NOTED} for problem in verified.problems)
    said = [f"{count} {reason}" for reason, count in (*bad.items(), ("with other problems", others)) if count]
    return f"{head}: {', '.join(said) or good}"
