"""A TCP proxy before a server, in a process of its own: counts bytes and HTTP requests, and delays both ways.

The handshake is modelled (a client's first bytes arrive after three delays); slow start, loss and limits of bandwidth
are not. Commands come on standard input, one a line: `delay SECONDS` holds for what comes then, `take` answers the
counts as JSON and begins anew. The end of standard input ends the process.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

WINDOW = 64 << 20
"""Bytes a connection may have under way in one direction."""

_LISTINGS = (b"list-type=", b"prefix=", b"delimiter=")


class Proxy:
    """The handle of a running proxy."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        self.port: int = self._answer()["port"]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def delay(self, rtt_ms: float) -> None:
        self._say(f"delay {rtt_ms / 2000}")

    def take(self) -> dict[str, Any]:
        """What passed since the last time: `requests` by method, `sent`, `received` (bytes, as the client sees it),
        `connections`, `cpu` (the proxy's own seconds)."""
        self._say("take")
        return self._answer()

    def _say(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError("the proxy has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def proxied(server: str) -> Iterator[Proxy]:
    """A proxy on 127.0.0.1 before an `http://host:port`, or a `tcp://host:port` in which there are no requests."""
    argv = [sys.executable, "-I", __file__, server]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield Proxy(child)
        finally:
            child.kill()


class Requests:
    """Counts the HTTP/1.1 requests in a stream of bytes; bodies are skipped, not read."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._head = b""
        self._skip = 0
        self._chunked = False

    def feed(self, data: bytes) -> None:
        start = 0
        while start < len(data):
            if self._skip:
                step = min(self._skip, len(data) - start)
                self._skip -= step
                start += step
                continue
            end = b"\r\n" if self._chunked else b"\r\n\r\n"
            before = len(self._head)
            self._head += data[start:] if before or start else data
            found = self._head.find(end)
            if found < 0:
                return
            start += found + len(end) - before
            head, self._head = self._head[:found], b""
            (self._chunk if self._chunked else self._request)(head)

    def _chunk(self, line: bytes) -> None:
        size = int(line.partition(b";")[0], 16)
        self._chunked = size > 0
        self._skip = size + 2

    def _request(self, head: bytes) -> None:
        first, *fields = head.split(b"\r\n")
        method, _, path = first.partition(b" ")
        query = path.partition(b"?")[2]
        listing = method == b"GET" and any(word in query for word in _LISTINGS)
        self._counts["LIST" if listing else method.decode("latin-1")] += 1
        for field in fields:
            name, _, value = field.partition(b":")
            if name.lower() == b"content-length":
                self._skip = int(value)
            elif name.lower() == b"transfer-encoding":
                self._chunked = b"chunked" in value.lower()


class _Unread:
    """Takes bytes that are not HTTP."""

    def feed(self, data: bytes) -> None:
        pass


class _Counts:
    def __init__(self) -> None:
        self.delay = 0.0
        self.requests: Counter[str] = Counter()
        self.sent = self.received = self.connections = 0
        self._cpu = time.process_time()

    def take(self) -> dict[str, Any]:
        now = time.process_time()
        counts = {"requests": dict(self.requests), "sent": self.sent, "received": self.received}
        counts.update(connections=self.connections, cpu=now - self._cpu)
        self.requests.clear()
        self.sent = self.received = self.connections = 0
        self._cpu = now
        return counts


_EOF, _CLOSE = b"eof", b"close"
"""Marks in a flow, told from data by identity."""


class _Flow:
    """One direction of a connection: what `source` reads is written to `sink` when it is due."""

    def __init__(self, loop: asyncio.AbstractEventLoop, earliest: float) -> None:
        self._loop = loop
        self._earliest = earliest
        self._queue: deque[tuple[float, bytes]] = deque()
        self._pending = 0
        self._timer: asyncio.TimerHandle | None = None
        self._holds: set[str] = set()
        self.source: asyncio.Transport | None = None
        self.sink: asyncio.Transport | None = None

    def put(self, data: bytes, delay: float) -> None:
        now = self._loop.time()
        due = max(now + delay, self._earliest)
        if due <= now and self.sink is not None and not self._queue:
            self._write(data)
            return
        self._queue.append((due, data))
        self._pending += len(data)
        if self._pending > WINDOW:
            self.hold("window", True)
        if self._timer is None:
            self._timer = self._loop.call_at(due, self.flush)

    def flush(self) -> None:
        """Writes what is due; before there is a sink, nothing is."""
        self._timer = None
        if self.sink is None:
            return
        soon = self._loop.time() + 0.0002
        while self._queue and self._queue[0][0] <= soon:
            data = self._queue.popleft()[1]
            self._pending -= len(data)
            self._write(data)
        if self._pending < WINDOW // 2:
            self.hold("window", False)
        if self._queue:
            self._timer = self._loop.call_at(self._queue[0][0], self.flush)

    def hold(self, reason: str, held: bool) -> None:
        """Reads nothing more of `source` while there is a reason."""
        was = bool(self._holds)
        (self._holds.add if held else self._holds.discard)(reason)
        if self.source is None or self.source.is_closing() or was == bool(self._holds):
            return
        (self.source.pause_reading if self._holds else self.source.resume_reading)()

    def _write(self, data: bytes) -> None:
        assert self.sink is not None
        if data is _CLOSE:
            self.sink.close()
        elif self.sink.is_closing():
            return
        elif data is _EOF:
            self.sink.write_eof()
        else:
            self.sink.write(data)


class _End(asyncio.Protocol):
    """One socket of a connection: what it reads goes into `out`, what it writes comes from `back`."""

    def __init__(self, counts: _Counts, out: _Flow, back: _Flow, requests: Requests | _Unread | None = None) -> None:
        self._counts = counts
        self._out = out
        self._back = back
        self._requests = requests

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=1 << 20)
        self._out.source = self._back.sink = transport
        self._back.flush()

    def data_received(self, data: bytes) -> None:
        if self._requests is None:
            self._counts.received += len(data)
        else:
            self._counts.sent += len(data)
            self._requests.feed(data)
        self._out.put(data, self._counts.delay)

    def eof_received(self) -> bool:
        self._out.put(_EOF, self._counts.delay)
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio calls it so)
        self._out.put(_CLOSE, self._counts.delay)

    def pause_writing(self) -> None:
        self._back.hold("sink", True)

    def resume_writing(self) -> None:
        self._back.hold("sink", False)


async def _serve(host: str, port: int, http: bool) -> None:
    loop = asyncio.get_running_loop()
    counts = _Counts()
    connecting: set[asyncio.Task[None]] = set()

    async def connect(up: _Flow, down: _Flow, wait: float) -> None:
        await asyncio.sleep(wait)
        try:
            await loop.create_connection(lambda: _End(counts, down, up), host, port)
        except OSError:
            down.put(_CLOSE, 0)

    def accepted() -> _End:
        counts.connections += 1
        wait = 3 * counts.delay
        up, down = _Flow(loop, loop.time() + wait), _Flow(loop, 0)
        task = loop.create_task(connect(up, down, wait))
        connecting.add(task)
        task.add_done_callback(connecting.discard)
        return _End(counts, up, down, Requests(counts.requests) if http else _Unread())

    listener = await loop.create_server(accepted, "127.0.0.1", 0, backlog=1024)
    print(json.dumps({"port": listener.sockets[0].getsockname()[1]}), flush=True)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := (await commands.readline()).decode():
        word, _, value = line.strip().partition(" ")
        if word == "delay":
            counts.delay = float(value)
        else:
            print(json.dumps(counts.take()), flush=True)


if __name__ == "__main__":
    parts = urlsplit(sys.argv[1])
    asyncio.run(_serve(parts.hostname or "", parts.port or 80, parts.scheme == "http"))
