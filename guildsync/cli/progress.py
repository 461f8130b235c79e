"""Progress: one line on a terminal that says how far a transfer is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import guildsync
from guildsync.cli.terminal import Terminal
from guildsync.cli.words import number, size

if TYPE_CHECKING:
    from guildsync.api import Progress

PERIOD = 0.1
"""Seconds between two updates, at least."""
_WINDOW = 5.0
"""The rate is that of so many seconds."""


class Line:
    """Draws a `Progress`. A terminal that went away is given up quietly, and nothing is drawn behind `close`."""

    def __init__(self, terminal: Terminal, verb: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal, self._verb, self._clock = terminal, verb, clock
        self._marks: deque[tuple[float, int]] = deque()
        self._drawn_at: float | None = None
        self._stands = self._closed = False
        self._said: str | None = None

    def draw(self, progress: Progress) -> None:
        now = self._clock()
        if self._closed or not progress.runs or (self._drawn_at is not None and now - self._drawn_at < PERIOD):
            return
        self._drawn_at = now
        self._marks.append((now, progress.bytes_done))
        while now - self._marks[0][0] > _WINDOW and len(self._marks) > 2:
            self._marks.popleft()
        self._put(self._words(progress))

    def _words(self, progress: Progress) -> str:
        (began, before), (now, done) = self._marks[0], self._marks[-1]
        said = [
            f"{self._verb} {progress.runs_done} of {number(progress.runs, 'run')}",
            f"{progress.files_done} of {number(progress.files, 'file')}",
            f"{size(progress.bytes_done)} of {size(progress.size)}",
        ]
        if now > began:
            said.append(f"{size(round((done - before) / (now - began)))}/s")
        return ", ".join(said)

    def say(self, text: str) -> None:
        """What stands there while nothing moves."""
        now = self._clock()
        if not self._closed and text != self._said and (self._drawn_at is None or now - self._drawn_at >= PERIOD):
            self._drawn_at, self._said = now, text
            self._put(text)

    def clear(self) -> None:
        """Make room for other words; what comes next draws the line again."""
        if self._stands:
            self._put(None)

    def close(self) -> None:
        self.clear()
        self._closed = True

    def _put(self, text: str | None) -> None:
        try:
            self._terminal.line(text)
        except OSError:
            self._closed, text = True, None
        self._stands = text is not None
        if self._said != text:
            self._said = None


@contextmanager
def told(terminal: Terminal, verb: str, wanted: bool) -> Iterator[tuple[Progress, Callable[[str], None], Line]]:
    """What a transfer tells its progress, how it warns meanwhile, and the line; at the end none is left."""
    line = Line(terminal, verb)

    def warn(text: str) -> None:
        line.clear()
        terminal.warning(text)

    try:
        yield guildsync.Progress(line.draw if wanted and terminal.has_line else None), warn, line
    finally:
        line.close()
