"""The output of a training process: both streams into one file, with the time and stream of each line beside it."""

from __future__ import annotations

import os
import struct
from typing import Callable, Optional

OUT, ERR = 0, 1

_ENTRY = struct.Struct(">QB")
_APPENDING = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class Capture:
    """Appends to `output` and `output.index` as Guild AI reads them: an entry for each line of the file, of the stream
    that ended it, in milliseconds.

    Nothing raises: what a full disk does not take is lost, so that the training never waits for it; as soon as there
    is room again, a line says how much that was.
    """

    def __init__(self, directory: int, clock: Callable[[], float], note: Callable[[str], None]) -> None:
        """`directory`: the descriptor of `.guild`. Raises OSError. `clock`: seconds since the epoch. `note` is told
        why, when bytes begin to be lost."""
        self._clock, self._note = clock, note
        self._output = os.open("output", _APPENDING, 0o600, dir_fd=directory)
        try:
            self._index = os.open("output.index", _APPENDING, 0o600, dir_fd=directory)
        except OSError:
            os.close(self._output)
            raise
        self._open_line: Optional[int] = None  # the stream of a line that has no end yet
        self._lost = 0

    def write(self, stream: int, data: bytes) -> None:
        """They are in the file when this returns, ended by a newline or not."""
        if self._lost:
            self._say_what_was_lost()
        if self._lost:
            self._lost += len(data)
        else:
            self._append(stream, data)

    def say(self, text: str) -> None:
        """A line of ours, about why there is no other."""
        start = b"" if self._open_line is None else b"\n"
        self.write(ERR, start + f"guildsync: {text}\n".encode("utf-8", "surrogateescape"))

    def close(self) -> None:
        """What was written is durable then."""
        if self._lost:
            self._say_what_was_lost()
        if self._open_line is not None:
            self._enter(self._open_line, 1)
        for fd in (self._output, self._index):
            try:
                os.fsync(fd)
            except OSError as exc:
                self._note(f"the output may not be durable: {exc.strerror}")
            os.close(fd)

    def _append(self, stream: int, data: bytes) -> None:
        done = 0
        try:
            while done < len(data):
                done += os.write(self._output, data[done:] if done else data)
        except OSError as exc:
            self._lost += len(data) - done
            self._note(f"output is lost: {exc.strerror}")
        written = data[:done]
        if written:
            self._enter(stream, written.count(b"\n"))
            self._open_line = None if written.endswith(b"\n") else stream

    def _enter(self, stream: int, lines: int) -> None:
        if lines:
            try:
                os.write(self._index, _ENTRY.pack(int(self._clock() * 1000), stream) * lines)
            except OSError as exc:
                self._note(f"the output's index has gaps: {exc.strerror}")

    def _say_what_was_lost(self) -> None:
        """All of it or, while there is no room for it, nothing."""
        start = b"" if self._open_line is None else b"\n"
        line = start + f"guildsync: {self._lost} bytes of output are lost: they could not be written\n".encode()
        try:
            size = os.fstat(self._output).st_size
            if os.write(self._output, line) < len(line):
                os.ftruncate(self._output, size)
                return
        except OSError:
            return
        self._lost, self._open_line = 0, None
        self._enter(ERR, line.count(b"\n"))
