"""What people read: foreign text made harmless, and sizes, times and counts in words."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime, timezone

from guildsync.errors import CONFLICT, NOT_KEPT, TRASHED, Problem

_JOINERS = "\u200c\u200d"
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_WHITE = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_URL_PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
SHORT_ID = 8
NOTED = frozenset({NOT_KEPT, TRASHED})
"""Reasons of problems that are only worth a note: the run was delivered."""


def shown(text: object) -> str:
    """Any text on one line and harmless to a terminal: control, bidi and other invisible characters as escapes, and
    no password of a URL. Nothing that others wrote reaches a person by another way."""
    plain = str(text)
    if plain.isascii() and plain.isprintable():
        return _URL_PASSWORD.sub("***@", plain)
    return _URL_PASSWORD.sub("***@", "".join(map(_visible, plain)))


def path_shown(path: bytes) -> str:
    return shown(path.decode("utf-8", "backslashreplace"))


def _visible(char: str) -> str:
    if unicodedata.category(char) not in _INVISIBLE or char in _JOINERS:
        return char
    code = ord(char)
    if char in _WHITE:
        return _WHITE[char]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def width(text: str) -> int:
    """Columns that `text` takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_columns(char) for char in text)


def _columns(char: str) -> int:
    if unicodedata.combining(char) or char in _JOINERS:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def clipped(text: str, columns: int) -> str:
    """`text`, or as much of its beginning as fits with an ellipsis."""
    if width(text) <= columns:
        return text
    kept, left = [], columns - 1
    for char in text:
        left -= _columns(char)
        if left < 0:
            break
        kept.append(char)
    return "".join(kept).rstrip() + "…"


def size(count: int) -> str:
    """Bytes in decimal units: 999 B, 1.2 MB, 12 MB."""
    value = float(count)
    for unit in _UNITS:
        if value < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1000
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def number(count: int, noun: str) -> str:
    """1 run, 2 runs"""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def octal(mode: int) -> str:
    return f"{mode:03o}"


def seconds(span: float) -> str:
    if span < 60:
        return f"{span:.1f} s"
    minutes, rest = divmod(round(span), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def local_time(microseconds: int | None) -> str:
    """A moment on the clock of this machine; empty where there is none, or no calendar holds it."""
    moment = _moment(microseconds)
    return moment.strftime("%Y-%m-%d %H:%M:%S") if moment is not None else ""


def iso_time(microseconds: int | None) -> str | None:
    """ISO 8601 with offset."""
    moment = _moment(microseconds)
    return moment.isoformat() if moment is not None else None


def _moment(microseconds: int | None) -> datetime | None:
    if microseconds is None:
        return None
    try:
        whole, rest = divmod(microseconds, 1_000_000)
        return datetime.fromtimestamp(whole, timezone.utc).replace(microsecond=rest).astimezone()
    except (OverflowError, ValueError, OSError):
        return None


def problem_line(problem: Problem) -> str:
    """reason: run 1234abcd: path: what it is"""
    parts = [problem.reason.replace("-", " ")]
    if problem.run:
        parts.append(f"run {shown(problem.run[:SHORT_ID])}")
    if problem.path is not None:
        parts.append(path_shown(problem.path))
    return ": ".join([*parts, shown(problem.detail)])


def failures(problems: list[Problem]) -> str:
    """How many runs failed and how many are in conflict, or nothing."""
    conflicts = {problem.run for problem in problems if problem.reason == CONFLICT}
    failed = {problem.run for problem in problems if problem.reason not in {*NOTED, CONFLICT}} - conflicts
    elsewhere = "" in failed
    failed.discard("")
    said = [f"{number(len(failed), 'run')} failed"] if failed else []
    if conflicts:
        said.append(f"{number(len(conflicts), 'run')} {'is' if len(conflicts) == 1 else 'are'} in conflict")
    if elsewhere:
        said.append("a part of the remote could not be read")
    return ", ".join(said)
