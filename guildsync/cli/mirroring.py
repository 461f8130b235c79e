"""push --watch and pull --watch: what they say while they go on, and how they end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Optional

import typer

import guildsync
from guildsync.cli import words
from guildsync.cli.options import Settings
from guildsync.cli.progress import Line, told
from guildsync.cli.terminal import Terminal
from guildsync.cli.words import number, size
from guildsync.errors import Interrupted, Usage
from guildsync.schema import duration

if TYPE_CHECKING:
    from guildsync.api import Choice, Context, Mirrored, Options, Outcome

GRACE = 4.5
"""Seconds that a mirror has to end by itself after Ctrl-C."""

Watch = Annotated[
    bool, typer.Option("--watch", help="Go on: what changes is there a moment later. Ctrl-C ends it cleanly.")
]
For = Annotated[
    Optional[str],  # noqa: UP045 -- typer
    typer.Option("--for", metavar="DURATION", help="With --watch: end after 30s, 10m, 24h."),
]


class Watched(NamedTuple):
    """`seconds`: for how long (None: no end is said)."""

    seconds: float | None


class Mirroring(NamedTuple):
    """What is mirrored from where to where; `along` in words."""

    ends: tuple[str, str]
    along: str
    options: Options
    choice: Choice
    watched: Watched


def seconds_of(watch: bool, lasts: str | None) -> Watched:
    """Raises Usage."""
    if not watch:
        raise Usage("--for says how long to watch", "say --watch, too")
    try:
        return Watched(None if lasts is None else duration(lasts))
    except ValueError as exc:
        raise Usage(f"--for {str(lasts)[:40]!r} {exc}") from exc


class Stop:
    """Ctrl-C once: to end cleanly; twice, or where that takes too long: now. Only the main thread is asked by it."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    @contextmanager
    def armed(self) -> Iterator[Stop]:
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)}
        signal.signal(signal.SIGINT, self._interrupted)
        signal.signal(signal.SIGALRM, _now)
        try:
            yield self
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupted(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        signal.setitimer(signal.ITIMER_REAL, GRACE)


def _now(*_: object) -> None:
    raise KeyboardInterrupt


@dataclass
class _Spoken:
    """A mirror's words: one line that stands on a terminal, or JSON Lines."""

    terminal: Terminal
    line: Line
    along: str
    json: bool

    def delivered(self, done: Mirrored, outcome: Outcome) -> None:
        if self.json:
            row = {"event": "delivered", "time": _time(), "lag": round(done.lag, 3), **outcome.to_json()}
            self.terminal.row(row)

    def rests(self, done: Mirrored) -> None:
        if self.terminal.has_line and not self.json:
            lag = f", {words.seconds(done.lag)} behind" if done.deliveries else ""
            left = f"; {number(len(done.waiting), 'file')} being rewritten" if done.waiting else ""
            self.line.say(f"Mirroring {self.along}: {_amount(done)}{lag}{left}")

    def warns(self, text: str) -> None:
        self.line.clear()
        self.terminal.warning(text)


def mirrored(settings: Settings, context: Context, what: Mirroring) -> int:
    """Until Ctrl-C, the end of what `--for` says, or of the named runs."""
    terminal = settings.terminal
    terms = guildsync.Terms(
        lasts=what.watched.seconds, ends=bool(what.choice.selectors), each=not what.choice.selectors
    )
    with told(terminal, "Mirroring", not settings.json) as (progress, warn, line), Stop().armed() as stop:
        teller = _Spoken(terminal, line, what.along, settings.json)
        done = replace(context, warn=warn).mirror(what.ends, what.options, terms, teller, stop, progress)
    terminal.problems(done.problems)
    if settings.json:
        terminal.row({"event": "end", "time": _time(), **done.to_json()})
    else:
        failed = words.failures(done.problems)
        said = f"Mirrored {_amount(done)} {what.along} in {words.seconds(done.seconds)}"
        terminal.done("; ".join(filter(None, [said, _cost(done), failed])))
    return Interrupted.exit_code if stop.asked else int(done.exit_code)


def _amount(done: Mirrored) -> str:
    return f"{number(len(done.runs), 'run')} ({number(done.files, 'file')}, {size(done.bytes_total)})"


def _cost(done: Mirrored) -> str:
    hourly = done.hourly
    if hourly is None or not hourly.requests:
        return ""
    return f"an hour like this: {number(hourly.requests, 'request')}, {size(hourly.sent + hourly.received)}"


def _time() -> Any:
    return datetime.now(timezone.utc).astimezone().isoformat()
