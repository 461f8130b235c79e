"""A TCP proxy before an HTTP server: counts requests and bytes, and has faults that a test asks for."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

_BODY = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_BUSY_TEXT = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_BUSY_TEXT),
    _BUSY_TEXT,
)
_BLOCK = 1 << 16


class Proxy:
    """The faults may be set at any time and hold for what comes then:

    `busy`: which requests, numbered from 0 in the order of their coming, are answered 503 and never reach the server;
    `resets`: how many more answers are cut off by a reset, after `reset_after` of their bytes;
    `stalled`: nothing passes any more, and what comes is taken and kept, as much as buffers hold.
    `requests` are the methods and paths of all requests, `connections` counts what was opened, `bytes_in` and
    `bytes_out` what came of the server and went to it.
    """

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self._server = (parts.hostname or "", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._closed = False
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.busy: Callable[[int], bool] = lambda _: False
        self.resets = 0
        self.reset_after = 0
        self.reset_count = 0
        self.busy_count = 0
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
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._flowing.set()
        with self._lock:
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

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
        self._flowing.wait()
        if b"\r\nexpect: 100" in head.lower():
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = re.sub(rb"\r\nexpect: [^\r]*", b"", head, flags=re.IGNORECASE)
        if busy:
            self._pass(client, None, _length(head), body)
            client.sendall(_BUSY)
            return True
        server.sendall(head)
        self._pass(client, server, _length(head), body)
        answer, body = _head(server)
        self._flowing.wait()
        with self._lock:
            self.bytes_out += len(head) + _length(head)
            cut = self.resets > 0 and _length(answer) > self.reset_after and head.startswith(b"GET ")
            self.resets -= cut
            self.reset_count += cut
        client.sendall(answer)
        length = self.reset_after if cut else _length(answer)
        if head.startswith(b"HEAD ") or answer.split(b" ", 2)[1] in (b"204", b"304"):
            length = 0
        chunked = b"\r\ntransfer-encoding: chunked" in answer.lower()
        if chunked:
            self._pass_chunks(server, client, body)
        else:
            self._pass(server, client, length, body)
        with self._lock:
            self.bytes_in += len(answer) + length
        if cut:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        return b"\r\nconnection: close" not in answer.lower()

    def _pass(self, source: socket.socket, target: socket.socket | None, length: int, first: bytes) -> None:
        data = first[:length]
        while True:
            length -= len(data)
            self._flowing.wait()
            if target is not None:
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
