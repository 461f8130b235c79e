"""Where words go: data to stdout, all else to stderr, and a reader that went away is no trouble."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TextIO

from guildsync.cli.words import NOTED, clipped, problem_line, shown
from guildsync.errors import GuildsyncError, Problem, Usage

_COLUMNS = 80
_STYLES = {"error": "1;31", "warning": "33", "hint": "36"}


@dataclass(frozen=True)
class Terminal:
    """Both streams. Every text but that of `data` and `document` may be foreign: it is made harmless here."""

    quiet: bool = False
    color: str = "auto"

    def data(self, text: str) -> None:
        """A line, or several, of what the command was asked for."""
        _write(sys.stdout, text)

    def raw(self, data: bytes) -> bool:
        """Bytes as they are, to stdout. False: nobody reads them, and more are not worth having."""
        stream = sys.stdout
        if stream is None or stream.closed:
            return False
        try:
            stream.flush()
            stream.buffer.write(data)
            stream.buffer.flush()
        except BrokenPipeError:
            _turn_away(stream)
            return False
        except OSError as exc:
            raise GuildsyncError(f"standard output cannot be written: {exc.strerror}") from exc
        return True

    def line(self, text: str | None) -> None:
        """A line on stderr that the next one replaces; None: it goes away. Raises OSError."""
        words = clipped(shown(text), _columns_of(sys.stderr) - 1) if text is not None else ""
        sys.stderr.write(f"\r\x1b[K{words}")
        sys.stderr.flush()

    def ask(self, question: str) -> bool:
        """Yes or no? Raises Usage where there is nobody to be asked."""
        if not (_is_terminal(sys.stdin) and _is_terminal(sys.stderr)):
            raise Usage(f"{question} There is no terminal to ask at", "--yes answers")
        sys.stderr.write(f"{shown(question)} [y/N] ")
        sys.stderr.flush()
        answer = sys.stdin.readline()
        if not answer.endswith("\n"):
            _write(sys.stderr, "")  # Ctrl-D leaves the cursor behind the question
        return answer.strip().lower() in ("y", "yes")

    @property
    def has_line(self) -> bool:
        """Does anybody look at stderr, and can a line there be replaced?"""
        return not self.quiet and _is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"

    def document(self, value: Any) -> None:
        """JSON that is exact and harmless: all that is not ASCII is escaped."""
        _write(sys.stdout, json.dumps(value, indent=2, allow_nan=False))

    def row(self, value: Any) -> None:
        """One of JSON Lines, as harmless as a `document`."""
        _write(sys.stdout, json.dumps(value, allow_nan=False))

    def done(self, text: str) -> None:
        """The last line, which says what was done."""
        if not self.quiet:
            _write(sys.stdout, shown(text))

    def note(self, text: str) -> None:
        if not self.quiet:
            _write(sys.stderr, shown(text))

    def warning(self, text: str) -> None:
        self._labelled("warning", text)

    def error(self, what: str, hint: str | None = None) -> None:
        self._labelled("error", what)
        if hint:
            self.hint(hint)

    def hint(self, text: str) -> None:
        self._labelled("hint", text)

    def problems(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            if problem.reason in NOTED:
                self.note(f"note: {problem_line(problem)}")
            else:
                _write(sys.stderr, problem_line(problem))

    def trace(self, text: str) -> None:
        """Lines for those who asked for them twice."""
        for line in text.splitlines():
            _write(sys.stderr, shown(line))

    @property
    def columns(self) -> int | None:
        """How wide stdout is, or None where nobody looks at it."""
        return shutil.get_terminal_size().columns if _is_terminal(sys.stdout) else None

    def _labelled(self, label: str, text: str) -> None:
        head = f"{label}:"
        if self._has_color:
            head = f"\x1b[{_STYLES[label]}m{head}\x1b[0m"
        _write(sys.stderr, f"{head} {shown(text)}")

    @property
    def _has_color(self) -> bool:
        if self.color != "auto":
            return self.color == "always"
        return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and _is_terminal(sys.stderr)


def prepare() -> None:
    """Let no character end the process that a stream cannot say."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def finish() -> None:
    """All is written, or nobody reads it."""
    for stream in (sys.stdout, sys.stderr):
        _write(stream, None)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def _write(stream: TextIO | None, text: str | None) -> None:
    """A line, or None to only flush. A stream that was closed is given up quietly: what the command does, and how it
    ends, does not depend on who reads."""
    if stream is None or stream.closed:
        return
    try:
        if text is not None:
            stream.write(f"{text}\n")
        stream.flush()
    except BrokenPipeError:
        _turn_away(stream)


def _turn_away(stream: TextIO) -> None:
    """What is still written to a pipe that nobody reads goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _columns_of(stream: TextIO) -> int:
    """How wide the terminal is now."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or _COLUMNS
    except (OSError, ValueError):
        return _COLUMNS
