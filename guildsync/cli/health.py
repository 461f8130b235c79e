"""check and verify: is it usable, and is everything whole?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from guildsync.cli.options import Runs, Settings
from guildsync.cli.words import NOTED, number, shown, size
from guildsync.errors import DAMAGED, MISSING

if TYPE_CHECKING:
    from guildsync.api import Verified


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
