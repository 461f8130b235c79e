"""A TCP proxy before an HTTP server: counts requests and bytes, and has faults that a test asks for."""

from __future__ import annotations

import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

_BODY = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_BLOCK = 1 << 16


OUT, IN = "out", "in"
"""To the server, and from it."""
BUSY, BROKEN = "503", "500"
"""Answers that do not come of the server."""


def _answer(status: bytes, code: bytes, text: bytes) -> bytes:
    body = b"<?xml version='1.0'?><Error><Code>%b</Code><Message>%b</Message></Error>" % (code, text)
    head = b"HTTP/1.1 %b\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
    return head + body


_ANSWERS = {
    BUSY: _answer(b"503 Service Unavailable", b"SlowDown", b"Please reduce your request rate."),
    BROKEN: _answer(b"500 Internal Server Error", b"InternalError", b"We encountered an internal error."),
}

_CLOSED_WITHIN = 60.0
"""Seconds."""


@dataclass(frozen=True)
class Fault:
    """What becomes of an exchange, once `after` bytes of its body have passed (-1: before its head has): its connection
    is reset; or stalls, for ever and without a word. Only one whose path has `path` in it; `lasting`: each such one."""

    method: str
    way: str
    after: int
    stall: bool = False
    lasting: bool = False
    path: str = ""

    def fits(self, head: bytes, way: str, length: int) -> bool:
        method, path = head.split(b" ", 2)[:2]
        return (self.method, self.way) == (method.decode(), way) and length > self.after and self.path.encode() in path


class Proxy:
    """The faults may be set at any time and hold for what comes then:

    `busy`: which requests, numbered from 0 in the order of their coming, are answered 503 and never reach the server;
    `fails`: how such a request fails, if it does: answered BUSY or BROKEN, or reset before it reaches the server (OUT),
    or when the server has done what it asks (IN); `failures` counts each;
    `resets`: how many more answers are cut off by a reset, after `reset_after` of their bytes;
    `stalled`: nothing passes any more, and what comes is taken and kept, as much as buffers hold;
    `faults`: each befalls the first exchange that it fits, one whose body is longer than that; `struck` is set then,
    and `strikes` counts.
    `requests` are the methods and paths of all requests, `connections` counts what was opened, `bytes_in` and
    `bytes_out` what came of the server and went to it, as it passes.
    """

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self._server = (parts.hostname or "", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._lock = threading.Condition()
        self._over = threading.Event()
        self._alarm: tuple[int, Callable[[], object]] | None = None
        self._open: set[socket.socket] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._closed = False
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.busy: Callable[[int], bool] = lambda _: False
        self.fails: Callable[[int], str | None] = lambda _: None
        self.failures: Counter[str] = Counter()
        self.resets = 0
        self.reset_after = 0
        self.reset_count = 0
        self.busy_count = 0
        self.faults: list[Fault] = []
        self.struck = threading.Event()
        self.strikes = 0
        self.requests: list[str] = []
        self.connections = 0
        self.bytes_in = 0
        self.bytes_out = 0

    @property
    def stalled(self) -> bool:
        return not self._flowing.is_set()

    @stalled.setter
    def stalled(self, value: bool) -> None:
        (self._flowing.clear if value else self._flowing.set)()

    def forget(self) -> None:
        """Count from 0 again; faults stay."""
        with self._lock:
            self.requests.clear()
            self.bytes_in = self.bytes_out = self.reset_count = self.busy_count = 0

    def alarm(self, size: int, act: Callable[[], object]) -> None:
        """Call `act` once, when so many bytes more have gone to the server, before anything else does."""
        with self._lock:
            self._alarm = (self.bytes_out + size, act)

    def cut(self) -> None:
        """Break off all connections there are; new ones are taken."""
        with self._lock:
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def wait_closed(self) -> None:
        """Until no connection is left, and all that was sent on its own way has arrived."""
        with self._lock:
            assert self._lock.wait_for(lambda: not self._open, _CLOSED_WITHIN), "a connection stays open"

    def serve(self) -> None:
        """Takes connections until `close`."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._connection, args=(client,), daemon=True).start()

    def close(self) -> None:
        self._closed = True
        self._over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._flowing.set()
        self.cut()

    def _connection(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(self._server) as server:
            with self._lock:
                self._open |= {client, server}
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                while not self._closed and self._exchange(client, server):
                    pass
            finally:
                with self._lock:
                    self._open -= {client, server}
                    self._lock.notify_all()

    def _exchange(self, client: socket.socket, server: socket.socket) -> bool:
        """One request and its answer; False where the connection is over."""
        head, body = _head(client)
        if not head:
            return False
        with self._lock:
            number = len(self.requests)
            self.requests.append(head.partition(b" HTTP/")[0].decode("latin-1"))
            busy = self.busy(number)
            self.busy_count += busy
            failure = BUSY if busy else self.fails(number)
            if failure is not None:
                self.failures[failure] += 1
        self._flowing.wait()
        if b"\r\nexpect: 100" in head.lower():
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = re.sub(rb"\r\nexpect: [^\r]*", b"", head, flags=re.IGNORECASE)
        if failure in _ANSWERS:
            self._pass(client, None, _length(head), body, None)
            client.sendall(_ANSWERS[failure])
            return True
        fault = Fault("", OUT, -1) if failure == OUT else self._fault(head, OUT, _length(head))
        if fault is not None and fault.after < 0:
            self._strike(client, fault)
            return False
        self._count(OUT, len(head))
        server.sendall(head)
        if not self._body(client, server, OUT, (_length(head), body), fault):
            return False
        answer, body = _head(server)
        if not answer:
            return False
        self._flowing.wait()
        length = 0 if head.startswith(b"HEAD ") or answer.split(b" ", 2)[1] in (b"204", b"304") else _length(answer)
        with self._lock:
            cut = self.resets > 0 and length > self.reset_after and head.startswith(b"GET ")
            self.resets -= cut
            self.reset_count += cut
        fault = Fault("GET", IN, self.reset_after) if cut else self._fault(head, IN, length)
        if failure == IN:
            fault = Fault("", IN, -1)
        if fault is not None and fault.after < 0:
            self._strike(client, fault)
            return False
        self._count(IN, len(answer))
        client.sendall(answer)
        if b"\r\ntransfer-encoding: chunked" in answer.lower():
            self._pass_chunks(server, client, body)
        elif not self._body(server, client, IN, (length, body), fault):
            return False
        return b"\r\nconnection: close" not in answer.lower()

    def _fault(self, head: bytes, way: str, length: int) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.fits(head, way, length):
                    if not fault.lasting:
                        self.faults.remove(fault)
                    return fault
        return None

    def _strike(self, client: socket.socket, fault: Fault) -> None:
        with self._lock:
            self.strikes += 1
        self.struck.set()
        if fault.stall:
            self._over.wait()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _body(
        self, source: socket.socket, target: socket.socket, way: str, body: tuple[int, bytes], fault: Fault | None
    ) -> bool:
        """Pass a body of so many bytes, of which some have come; False where a fault ends the connection."""
        length, first = body
        if fault is not None and fault.after >= 0:
            self._pass(source, target, fault.after, first, way)
            self._strike(source if way == OUT else target, fault)
            return False
        self._pass(source, target, length, first, way)
        return True

    def _count(self, way: str, size: int) -> None:
        act = None
        with self._lock:
            if way == IN:
                self.bytes_in += size
            else:
                self.bytes_out += size
                if self._alarm is not None and self.bytes_out >= self._alarm[0]:
                    act, self._alarm = self._alarm[1], None
        if act is not None:
            act()

    def _pass(
        self, source: socket.socket, target: socket.socket | None, length: int, first: bytes, way: str | None
    ) -> None:
        data = first[:length]
        while True:
            length -= len(data)
            self._flowing.wait()
            if target is not None and way is not None:
                self._count(way, len(data))
                target.sendall(data)
            if not length:
                return
            data = source.recv(min(length, _BLOCK))
            if not data:
                raise ConnectionError("the body ended early")

    def _pass_chunks(self, source: socket.socket, target: socket.socket, data: bytes) -> None:
        tail = b""
        while True:
            self._flowing.wait()
            self._count(IN, len(data))
            target.sendall(data)
            tail = (tail + data)[-7:]
            if tail.endswith(b"\r\n0\r\n\r\n") or tail == b"0\r\n\r\n":
                return
            data = source.recv(_BLOCK)
            if not data:
                raise ConnectionError("the body ended early")


def some(of: int, among: int) -> Callable[[int], bool]:
    """For `Proxy.busy`: so many among so many requests, spread evenly and the same each time."""
    return lambda number: number * of % among < of


def storm(share: float, seed: int) -> Callable[[int], str | None]:
    """For `Proxy.fails`: so many of all requests fail, by chance, in all the ways there are."""

    def fails(number: int) -> str | None:
        chance = random.Random(f"{seed} {number}")
        return chance.choice((BUSY, BROKEN, OUT, IN)) if chance.random() < share else None

    return fails


def _head(sock: socket.socket) -> tuple[bytes, bytes]:
    """A head with its empty line, and what came after it; no head where the connection ends."""
    data = b""
    while b"\r\n\r\n" not in data:
        block = sock.recv(_BLOCK)
        if not block:
            return b"", b""
        data += block
    end = data.index(b"\r\n\r\n") + 4
    return data[:end], data[end:]


def _length(head: bytes) -> int:
    found = _BODY.search(head)
    return int(found[1]) if found else 0


@contextmanager
def proxied(server: str) -> Iterator[Proxy]:
    """A proxy on 127.0.0.1 before an `http://host:port`."""
    proxy = Proxy(server)
    threading.Thread(target=proxy.serve, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.close()
