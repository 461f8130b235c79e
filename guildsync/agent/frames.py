"""Length-prefixed frames between two processes: a JSON header and raw bytes; items that take several; errors."""

from __future__ import annotations

import json
import os
import select
import struct
import threading
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from guildsync import errors
from guildsync.agent.buffers import LARGE, Body, Outgoing, enlarge
from guildsync.errors import Damaged, GuildsyncError, Unreachable

VERSION = (1, 0)
"""Major, minor. Ends of different majors do not talk; unknown header keys are ignored, so a minor may add some."""
MAX_HEADER = 1 << 20
MAX_BODY = 4 << 20
MAX_NOISE = 1 << 16
"""Bytes before the first frame."""
MAX_ITEMS = 5_000_000
"""Of one call or answer."""

_HEAD = struct.Struct(">II")
_CHUNK = 1 << 16
_BUFFER = 1 << 16
_MAX_FRAME = _HEAD.size + MAX_HEADER + MAX_BODY

Header = Dict[str, Any]
Frame = Tuple[Header, bytearray]
Item = Sequence[Optional[bytes]]
"""One value as it crosses: a blob of JSON, then raw blobs; it may take several frames."""


class Channel:
    """Frames over two descriptors (numbers, or objects with `fileno`), of which nothing may have been read ahead.

    They are made non-blocking. Every wait ends: `timeout` seconds in which nothing moved in either direction raise
    Unreachable. While a send waits for room, what arrives is taken in (up to one frame), so two ends that send at
    once still see each other's beats. A channel that failed stays failed: `broken` is what every later call raises.
    One thread may send and receive; `beat` may come from another.
    """

    def __init__(self, reader: Any, writer: Any, timeout: float = 30.0) -> None:
        self._ends = (reader, writer)
        self._reader, self._writer = _descriptor(reader), _descriptor(writer)
        self.timeout = timeout
        self._incoming, self._outgoing = bytearray(), Outgoing(self._writer)
        self._body: Optional[Body] = None
        self._found: Optional[Frame] = None
        self._ended = False
        self._sending = threading.Lock()
        self._stop = threading.Event()
        self.broken: Optional[GuildsyncError] = None
        self.frames_out = self.frames_in = self.bytes_out = self.bytes_in = 0
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)
            enlarge(end)

    def send(self, header: Header, *body: bytes) -> None:
        """Raises Unreachable; GuildsyncError for a frame above the limits, of which nothing is sent."""
        with self._sending:
            self._check()
            self._put(header, body)
            if self._outgoing.size >= _BUFFER:
                self._drain()

    def send_raw(self, data: bytes) -> None:
        """Bytes that are no frame, for what stands before the frames at the other end."""
        with self._sending:
            self._check()
            self._outgoing.add(data)
            self._drain()

    def skip_to(self, mark: bytes) -> bytes:
        """Takes in what comes up to and with `mark`; answers what stood before it. Raises Unreachable, Damaged."""
        self.flush()
        while mark not in self._incoming:
            if len(self._incoming) > MAX_NOISE:
                raise self.fail(Damaged("the far side prints much, and nothing that is ours"))
            if self._ended:
                raise self.fail(Unreachable("the far side ended before it said hello"))
            self._wait(writing=False)
        noise, _, rest = bytes(self._incoming).partition(mark)
        self._incoming = bytearray(rest)
        return noise

    def flush(self) -> None:
        """What was sent leaves this process."""
        with self._sending:
            self._check()
            self._drain()

    def receive(self) -> Optional[Frame]:
        """The next frame that is no beat; None when the other side ended between two frames. Flushes first."""
        self.flush()
        while True:
            frame = self._next()
            if frame is not None:
                self._found = None
                return frame
            if self._ended and (self._incoming or self._body is not None):
                raise self.fail(Unreachable("the connection ended in the middle of a frame"))
            if self._ended:
                return None
            self._wait(writing=False)

    def waiting(self) -> bool:
        """Is there a frame, or the end, for `receive` to come back with at once? Raises what it would raise."""
        self._check()
        while not self._ended and len(self._incoming) < _MAX_FRAME and self._read():
            pass
        return self._next() is not None or self._ended

    def beat(self) -> None:
        """One frame that says "alive", if that can be done without waiting. Any thread may call it."""
        if not self._sending.acquire(blocking=False):
            return  # then somebody is sending
        try:
            if self.broken is None:
                if not self._outgoing.size:
                    self._put({"beat": True}, ())
                self._write()
        except Unreachable:
            pass  # whoever sends or receives next finds out
        finally:
            self._sending.release()

    def keep_beating(self, every: float) -> None:
        """Beats from a daemon thread until the channel is closed or fails."""

        def beats() -> None:
            while self.broken is None and not self._stop.wait(every):
                self.beat()

        threading.Thread(target=beats, name="guildsync-beat", daemon=True).start()

    def fail(self, error: GuildsyncError) -> GuildsyncError:
        """Gives up the channel; answers the error that it failed with first, to be raised."""
        if self.broken is None:
            self.broken = error
        return self.broken

    def close(self) -> None:
        """Closes both descriptors; twice is harmless."""
        self._stop.set()
        with self._sending:
            self.fail(Unreachable("the connection is closed"))
            ends, self._ends = self._ends, ()  # type: ignore[assignment]  # closed ones are forgotten
            for end in ends[:1] if len(set(ends)) == 1 else ends:
                try:
                    os.close(end) if isinstance(end, int) else end.close()
                except OSError:
                    pass  # a buffered pipe whose other end is gone

    def _check(self) -> None:
        if self.broken is not None:
            raise self.broken

    def _put(self, header: Header, body: Sequence[bytes]) -> None:
        head, size = dumps(header), sum(map(len, body))
        if len(head) > MAX_HEADER or size > MAX_BODY:
            raise GuildsyncError(f"a frame of {len(head)} + {size} bytes is larger than allowed")
        self._outgoing.add(_HEAD.pack(len(head), size) + head)
        for blob in body:
            self._outgoing.add(blob)
        self.frames_out += 1

    def _drain(self) -> None:
        while self._outgoing.size:
            if not self._write():
                self._wait(writing=True)

    def _write(self) -> bool:
        try:
            count = self._outgoing.write()
        except BlockingIOError:
            return False
        except OSError as exc:
            raise self.fail(Unreachable(f"the other side is gone: {exc.strerror}")) from exc
        self.bytes_out += count
        return count > 0

    def _wait(self, writing: bool) -> None:
        events: Dict[int, int] = {}
        if not self._ended and len(self._incoming) < _MAX_FRAME:
            events[self._reader] = select.POLLIN
        if writing:
            events[self._writer] = events.get(self._writer, 0) | select.POLLOUT
        poll = select.poll()
        for fd, mask in events.items():
            poll.register(fd, mask)
        ready = dict(poll.poll(self.timeout * 1000))
        if not ready:
            raise self.fail(Unreachable(f"the other side has been silent for {self.timeout:g} seconds"))
        if events.get(self._reader, 0) & select.POLLIN and ready.get(self._reader, 0) & ~select.POLLOUT:
            self._read()

    def _read(self) -> bool:
        try:
            if self._body is not None and self._body.missing:
                count = os.readv(self._reader, [self._body.missing])
                self._body.missing = self._body.missing[count:]
            else:
                data = os.read(self._reader, _CHUNK)
                self._incoming += data
                count = len(data)
        except BlockingIOError:
            return False
        except OSError as exc:
            raise self.fail(Unreachable(f"the other side is gone: {exc.strerror}")) from exc
        self._ended = not count
        self.bytes_in += count
        return True

    def _next(self) -> Optional[Frame]:
        """The first whole frame that is no beat; it stays until `receive` takes it."""
        while self._found is None:
            frame = self._take()
            if frame is None:
                break
            if "beat" not in frame[0]:
                self._found = frame
        return self._found

    def _take(self) -> Optional[Frame]:
        self._check()
        if self._body is None:
            self._begin()
        body = self._body
        if body is None or body.missing:
            return None
        self._body = None
        self.frames_in += 1
        return body.header, body.data

    def _begin(self) -> None:
        """Takes the next frame's header in, and of its body what has come, once enough is there."""
        if len(self._incoming) < _HEAD.size:
            return
        length, size = _HEAD.unpack_from(self._incoming)
        if length > MAX_HEADER or size > MAX_BODY:
            raise self.fail(Damaged(f"a frame of {length} + {size} bytes is larger than allowed"))
        start, end = _HEAD.size + length, _HEAD.size + length + size
        if len(self._incoming) < (start if size >= LARGE else end):
            return
        with memoryview(self._incoming) as view:
            raw, came = bytes(view[_HEAD.size : start]), view[start:end]
            body = Body(size, came)
            came.release()
        del self._incoming[:end]
        try:
            body.header = loads(raw)
        except Damaged as exc:
            raise self.fail(exc) from exc
        if not isinstance(body.header, dict):
            raise self.fail(Damaged("the header of a frame is no object"))
        self._body = body


# -- items: one value in as many frames as it takes


def send_item(channel: Channel, item: Item) -> None:
    """`{"item": [length or null, …]}` and the blobs' bytes, going on in `{"more": true}` frames above MAX_BODY."""
    blobs = [blob for blob in item if blob]
    header = {"item": [None if blob is None else len(blob) for blob in item]}
    if sum(map(len, blobs)) <= MAX_BODY:
        channel.send(header, *blobs)
        return
    data = b"".join(blobs)
    channel.send(header, data[:MAX_BODY])
    for start in range(MAX_BODY, len(data), MAX_BODY):
        channel.send({"more": True}, data[start : start + MAX_BODY])


class Incoming:
    """The items of call or answer `number`, up to its end frame.

    Iterating raises the error that the other side sends instead, as itself. `ended` tells whether the channel stands
    behind the last frame; if not, `skip` passes over what is left, also after an item that was Damaged.
    """

    def __init__(self, channel: Channel, number: int, limits: Sequence[int]) -> None:
        self._channel, self._number, self._limits = channel, number, limits
        self.ended = False

    def __iter__(self) -> Iterator[Item]:
        for _ in range(MAX_ITEMS):
            header, body = _expect(self._channel)
            if "item" in header:
                yield _receive_item(self._channel, header["item"], body, self._limits)
                continue
            if not self._is_last(header):
                raise Damaged("a frame that was not expected")
            self.ended = True
            if "error" in header:
                raise error_from(header)
            return
        raise Damaged(f"more than {MAX_ITEMS} items where so many cannot be")

    def skip(self) -> None:
        while not self.ended:
            self.ended = self._is_last(_expect(self._channel)[0])

    def _is_last(self, header: Header) -> bool:
        """The error of a peer that gives up belongs to no call."""
        if "error" in header and header.get("id") is None:
            return True
        return ("error" in header or "end" in header) and header.get("id") == self._number


def _receive_item(channel: Channel, lengths: Any, body: bytearray, limits: Sequence[int]) -> Item:
    if not isinstance(lengths, list) or len(lengths) != len(limits):
        raise Damaged("an item has the wrong number of blobs")
    for place, limit in enumerate(limits):
        length = lengths[place]
        if length is not None and (type(length) is not int or not 0 <= length <= limit):
            raise Damaged(f"a blob has length {str(length)[:40]}, at most {limit} is allowed")
    total = sum(length or 0 for length in lengths)
    data = body
    while len(data) < total:
        header, body = _expect(channel)
        if "more" not in header or not body:
            raise Damaged("an item breaks off")
        data += body
    if len(data) != total:
        raise Damaged("an item is longer than it says")
    blobs: List[Optional[bytes]] = []
    at = 0
    with memoryview(data) as view:
        for length in lengths:
            blobs.append(None if length is None else bytes(view[at : at + length]))
            at += length or 0
    return blobs


def _expect(channel: Channel) -> Frame:
    frame = channel.receive()
    if frame is None:
        raise channel.fail(Unreachable("the connection ended in the middle of a call"))
    return frame


# -- errors: the same class on both sides of the pipe

_ERRORS: Dict[str, Callable[[str, Optional[str]], GuildsyncError]] = {
    name: getattr(errors, name)
    for name in (
        "GuildsyncError",
        "Usage",
        "NotFound",
        "Refused",
        "Unreachable",
        "NoRoom",
        "SafetyStop",
        "Damaged",
        "Interrupted",
    )
}


def error_header(error: BaseException, number: Any) -> Header:
    """Any exception as an error frame: ours as themselves, the operating system's with what and why, never a trace."""
    name, hint = type(error).__name__, None
    if isinstance(error, GuildsyncError):
        message, hint = error.message, error.hint
    elif isinstance(error, OSError):
        what = error.filename if error.filename is not None else "an operation there"
        what = os.fsdecode(what) if isinstance(what, (str, bytes)) else str(what)
        message = f"{what}: {error.strerror or error}"
    else:
        message, hint = f"unexpected {name}: {error}", "this is a bug in guildsync; please report it"
    known = name if name in _ERRORS else "GuildsyncError"
    return {"error": known, "message": message[:2000], "hint": hint and hint[:1000], "id": number}


def error_from(header: Header) -> GuildsyncError:
    """The error of an error frame."""
    make = _ERRORS.get(str(header["error"]), GuildsyncError)
    message, hint = header.get("message"), header.get("hint")
    if not isinstance(message, str) or not (hint is None or isinstance(hint, str)):
        return Damaged("an error frame is malformed")
    return make(message[:2000], hint and hint[:1000])


# -- JSON


_ENCODER = json.JSONEncoder(separators=(",", ":"))


def dumps(value: Any) -> bytes:
    return _ENCODER.encode(value).encode()


def loads(data: Optional[bytes]) -> Any:
    try:
        return json.loads((data or b"").decode())
    except (ValueError, RecursionError) as exc:
        raise Damaged("what should be JSON is none") from exc


def _descriptor(end: Any) -> int:
    return end if isinstance(end, int) else int(end.fileno())
