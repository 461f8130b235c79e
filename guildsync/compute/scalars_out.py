"""Scalars in lines of output, as Guild AI finds them by default, written as an event file that TensorBoard reads."""

from __future__ import annotations

import math
import os
import re
import struct
from typing import Callable, Dict, Iterable, List, Optional, Set, Tuple

from guildsync.model.crc32c import masked

MAX_LINE = 64 << 10
"""A longer line is not looked at."""
MAX_TAG = 1 << 10
"""Bytes of a tag; longer ones are passed over."""
MAX_TAGS = 10_000
"""Those that come first."""

Scalar = Tuple[str, float, int]
"""Tag, value, step."""

_NUMBER = re.compile(r"[-+]?[0-9]*\.?(?:[0-9]+)?(?:[eE][-+]?[0-9]+)?|[nN][aA][nN]|[-+]?[iI][nN][fF]")
_STEP = re.compile(r"\((?:step\s+)?([0-9]+)\)$")
_KEY_START = re.compile(r"[_a-zA-Z]")
_CONTROL = bytes(range(9))
_FLOAT = struct.Struct("<f")


class Lines:
    """The lines of one stream, out of the blocks in which it comes."""

    def __init__(self) -> None:
        self._rest = b""
        self._passing = False  # over a line that is too long

    def take(self, data: bytes) -> List[str]:
        """Those that are complete now and hold a colon; nothing else can be a scalar."""
        whole, newline, rest = data.rpartition(b"\n")
        if not newline:
            self._keep(data)
            return []
        whole = whole.partition(b"\n")[2] if self._passing else self._rest + whole
        self._rest, self._passing = b"", False
        self._keep(rest)
        return _readable(whole)

    def end(self) -> List[str]:
        """The last one, which no newline ended."""
        rest, self._rest = self._rest, b""
        return _readable(rest)

    def _keep(self, data: bytes) -> None:
        if not self._passing and len(self._rest) + len(data) <= MAX_LINE:
            self._rest += data
        else:
            self._rest, self._passing = b"", True


def _readable(data: bytes) -> List[str]:
    """As Guild reads them: without the lowest control characters and what is not UTF-8."""
    text = data.translate(None, _CONTROL).decode("utf-8", "ignore")
    return [line for line in text.split("\n") if ":" in line and len(line) <= MAX_LINE]


def found_in(line: str) -> Dict[str, float]:
    """The values in a line, by tag; `step` is the step they are of.

    As Guild's two patterns have it, in time linear in the line: `KEY: VALUE`, perhaps with something in parentheses, is
    the whole line; where a line ends with `KEY: VALUE (step N)` or `(N)`, N is the step.
    """
    line = line.rstrip()
    found: Dict[str, float] = {}
    step = _step(line) if line.endswith(")") else None
    if step is not None:
        found["step"] = step
    words = line.split(None, 2)
    if len(words) < 2 or not _is_key(words[0]) or not line.startswith(words[0]) or not _KEY_START.match(line):
        return found
    if len(words) == 2 or (words[2].startswith("(") and words[2].endswith(")") and len(words[2]) > 1):
        value = _number(words[1])
        if value is not None:
            found[words[0][:-1]] = value
    return found


def _step(line: str) -> Optional[float]:
    """N of a line that ends with `KEY: VALUE (step N)`; VALUE may be missing where its two spaces are not."""
    match = _STEP.search(line)
    before = line[: match.start()] if match else ""
    words = before.rsplit(None, 2)
    if match is None or not words or not before[-1].isspace():
        return None
    if len(words) > 1 and _is_key(words[-2]) and _NUMBER.fullmatch(words[-1]):
        return float(match.group(1))
    return float(match.group(1)) if _is_key(words[-1]) and before[-2:].isspace() else None


def _is_key(word: str) -> bool:
    """With its colon."""
    return word.endswith(":") and _KEY_START.search(word) is not None


def _number(word: str) -> Optional[float]:
    try:
        return float(word) if _NUMBER.fullmatch(word) else None
    except ValueError:
        return None  # a sign or a point alone


class OutputScalars:
    """Gives the scalars of lines to an event file, which is made when there is a first one. Nothing raises: where they
    cannot be written, they are lost, and the output has them still."""

    def __init__(self, directory: int, name: str, clock: Callable[[], float]) -> None:
        """`directory`: its descriptor; it stays the caller's. `clock`: seconds since the epoch."""
        self._directory, self._name, self._clock = directory, name, clock
        self._fd: Optional[int] = None
        self._good = 0  # so many bytes are whole records
        self._broken = False
        self._tags: Set[str] = set()
        self._step: Optional[int] = None
        self._implied = 0
        self._implied_by: Set[str] = set()

    def take(self, lines: Iterable[str]) -> None:
        scalars = [scalar for line in lines for scalar in self._scalars(line)]
        if scalars and not self._broken:
            self._write(scalars)

    def close(self) -> None:
        """What was written is durable then."""
        if self._fd is not None:
            try:
                os.fsync(self._fd)
            except OSError:
                pass  # the run ends all the same
            os.close(self._fd)
            self._fd = None

    def _scalars(self, line: str) -> List[Scalar]:
        """As Guild counts: the last step that was printed holds for all that follows; while none was, a tag that comes
        again begins the next one."""
        found = found_in(line)
        step = found.pop("step", None)
        if step is not None and math.isfinite(step) and step < 1 << 63:
            self._step = int(step)
        known = sorted(tag for tag in found if self._is_known(tag))
        if not known:
            return []
        if self._step is None:
            if self._implied_by.intersection(known):
                self._implied, self._implied_by = self._implied + 1, set()
            self._implied_by.update(known)
        at = self._implied if self._step is None else self._step
        return [(tag, found[tag], at) for tag in known]

    def _is_known(self, tag: str) -> bool:
        if tag not in self._tags:
            if len(self._tags) >= MAX_TAGS or len(tag.encode("utf-8", "replace")) > MAX_TAG:
                return False
            self._tags.add(tag)
        return True

    def _write(self, scalars: List[Scalar]) -> None:
        try:
            now = self._clock()
            data = b"".join(record(event(now, scalar)) for scalar in scalars)
            if self._fd is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
                self._fd = os.open(self._name, flags, 0o600, dir_fd=self._directory)
            if self._good == 0:
                data = record(first_event(now)) + data
            if os.write(self._fd, data) < len(data):
                os.ftruncate(self._fd, self._good)  # a disk that is full takes a part; the rest may fit later
            else:
                self._good += len(data)
        except OSError:
            self._broken = self._fd is None


def record(data: bytes) -> bytes:
    """As TFRecord files have it: length, its check sum, data, its check sum."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data))


def first_event(now: float) -> bytes:
    """What every event file begins with."""
    return b"\x09" + struct.pack("<d", now) + _field(0x1A, b"brain.Event:2")


def event(now: float, scalar: Scalar) -> bytes:
    """A serialised Event with one simple value, float32 as TensorBoard keeps them."""
    tag, value, step = scalar
    try:
        number = _FLOAT.pack(value)
    except OverflowError:
        number = _FLOAT.pack(math.copysign(math.inf, value))
    simple = _field(0x0A, tag.encode("utf-8", "replace")) + b"\x15" + number
    steps = b"\x10" + _varint(step & 0xFFFFFFFFFFFFFFFF)
    return b"\x09" + struct.pack("<d", now) + steps + _field(0x2A, _field(0x0A, simple))


def _field(key: int, data: bytes) -> bytes:
    return bytes((key,)) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
