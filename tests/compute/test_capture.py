"""Output on a disk that fails."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from guildsync.compute.capture import ERR, OUT, Capture
from guildsync.tree.dirs import open_directory


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = open_directory(os.fsencode(tmp_path))
    yield fd
    os.close(fd)


def test_a_line_is_as_long_as_its_stream_says(tmp_path: Path, directory: int) -> None:
    notes: list[str] = []
    capture = Capture(directory, lambda: 1700000000.5, notes.append)
    capture.write(OUT, b"a\nb")
    capture.write(ERR, b"c\n\n")
    capture.say("so")
    capture.write(OUT, b"d")
    capture.say("that")
    capture.close()
    assert (tmp_path / "output").read_bytes() == b"a\nbc\n\nguildsync: so\nd\nguildsync: that\n"
    index = (tmp_path / "output.index").read_bytes()
    assert list(struct.iter_unpack(">QB", index)) == [(1700000000500, stream) for stream in (0, 1, 1, 1, 1, 1)]
    assert notes == []


def test_nothing_raises_and_what_is_lost_is_counted(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes three bytes, none, two of a line of ours, then all."""
    notes: list[str] = []
    capture = Capture(directory, lambda: 1.0, notes.append)
    real, room = os.write, [3, 0, 0, 2, None]

    def write(fd: int, data: bytes) -> int:
        left = room[0]
        if left is None:
            return real(fd, data)
        room.pop(0)
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[:left])

    monkeypatch.setattr(os, "write", write)
    capture.write(OUT, b"abcdef\n")  # three, then none
    capture.write(OUT, b"ghi\n")  # none for the line of ours
    capture.write(OUT, b"jkl\n")  # two of it, which go again
    assert (tmp_path / "output").read_bytes() == b"abc"
    capture.write(OUT, b"mno\n")
    capture.close()
    lost = len(b"def\nghi\njkl\n")
    said = b"guildsync: %d bytes of output are lost: they could not be written\n" % lost
    assert (tmp_path / "output").read_bytes() == b"abc\n" + said + b"mno\n"
    assert (tmp_path / "output.index").stat().st_size == 9 * 3
    assert notes == ["output is lost: No space left on device"]


def test_a_link_is_not_written_through(tmp_path: Path, directory: int) -> None:
    (tmp_path / "output").symlink_to("victim")
    with pytest.raises(OSError, match=r"Too many|symbolic"):
        Capture(directory, lambda: 1.0, print)
    assert not (tmp_path / "victim").exists()
