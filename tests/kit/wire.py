"""A TCP forwarder between a client and a server: counts bytes, cuts connections after so many, stalls."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_BLOCK = 1 << 16


class Wire:
    """Listens on `port` of 127.0.0.1. `sent` and `received` count bytes as the client sees them."""

    def __init__(self, server: int) -> None:
        """`server`: the port that connections go on to."""
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.sent = self.received = self.connections = 0
        self.cut_after: int | None = None
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def reset(self, cut_after: int | None = None) -> None:
        """Counts from here. After `cut_after` bytes, of both ways together, all connections are reset, once."""
        with self._lock:
            self.sent = self.received = self.connections = 0
            self.cut_after = cut_after

    def cut(self) -> None:
        """Every connection there is now ends without a word."""
        with self._lock:
            ends, self._open = self._open, []
        for end in ends:
            try:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it ended by itself
            end.close()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server))
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open += [client, server]
            threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, out: bool) -> None:
        try:
            while data := source.recv(_BLOCK):
                if self._count(len(data), out):
                    self.cut()
                    return
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other side, or `cut`, ended it

    def _count(self, size: int, out: bool) -> bool:
        with self._lock:
            if out:
                self.sent += size
            else:
                self.received += size
            due = self.cut_after is not None and self.sent + self.received >= self.cut_after
            if due:
                self.cut_after = None
            return due


@contextmanager
def wire(server: int) -> Iterator[Wire]:
    made = Wire(server)
    try:
        yield made
    finally:
        made.close()
