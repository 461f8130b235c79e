"""A RawTree in memory, for both ends; as a program (Python 3.8 suffices) it serves one over its standard streams."""

from __future__ import annotations

import sys
import time

from guildsync.agent.server import serve
from guildsync.errors import MISSING, NOT_KEPT, NotFound, Problem
from guildsync.model.manifest import Manifest, digest_of, directory_entry, file_entry, link_entry
from guildsync.model.ports import Aim, Lost, Piece, RawRecord, RawUpdate, Scan, Want
from guildsync.model.run import Attributes, RunId

RUN, OTHER = RunId("0123456789abcdef" * 2), RunId("f" * 32)
DATA = {b"a": b"hello", b"d/\xff\xfe": b"\0" * 70_000, b"big": b"x" * (1 << 20)}


def manifest(data=DATA):
    files = [file_entry(path, 0o644, len(d), digest_of(d), 5) for path, d in data.items()]
    return Manifest([*files, directory_entry(b"d", 0o755, 1), link_entry(b"l", b"\xe9 d", -7)])


def want_of_path(path, run=RUN, data=DATA):
    return Want(digest_of(data[path]), len(data[path]), run, path, 0)


class NoFolder:
    def read(self, path, start, stop):
        raise NotFound("nothing lies there")


class MemoryTree:
    folder = NoFolder()
    replica = "ab" * 16
    is_there = True

    def __init__(self):
        self.staged = {}
        self.listed = ()
        self.updates = []
        self.slow = 0.0
        self.fails = None
        self.staged_bytes = 0
        self.yielded = 0
        self.keep = True

    @property
    def problems(self):
        return self.listed

    def _wait(self):
        if self.slow:
            time.sleep(self.slow)

    def _maybe_fail(self):
        if self.fails is not None:
            raise self.fails

    def runs(self, deleted=False, sizes=False, only=None):
        self._maybe_fail()
        self.only = only
        values = {"label": b"\xff\x00caf\xc3\xa9", "odd\udc80": b""}
        found = Attributes(
            values, b"op", frozenset({"LOCK"}), True, False, 12 if sizes else None, 3 if sizes else None, lost=True
        )
        yield RawRecord(RUN, found, bool(deleted))
        yield RawRecord(OTHER, Attributes({}, None, frozenset(), False, True), bool(deleted))
        self.listed = (Problem("", b"runs/\xff", MISSING, "a listing's own"),) if sizes else ()

    def manifests(self, known):
        self._maybe_fail()
        there = manifest()
        for run, contents in known.items():
            problems = (Problem(run, b"s\xff", NOT_KEPT, "a socket \udc80"),)
            if run == RUN:
                yield Scan(run, there.content, None if there.content in contents else there, alive=True, heads=("h",))
            elif run == OTHER:
                yield Scan(run, "", None, settled=False, aim=Aim(manifest({}), manifest()), problems=problems)

    def fetch(self, wanted):
        for want in wanted:
            self._wait()
            self._maybe_fail()
            self.yielded += 1
            if want.path in DATA:
                yield Piece(want, DATA[want.path])
            elif want.path.startswith(b"zeros"):
                yield Piece(want, bytes(want.size))
            else:
                yield Lost(want, Problem(want.run, want.path, MISSING, "it is not there"))

    def missing(self, wanted):
        self._maybe_fail()
        return {want.digest for want in wanted if want.path not in DATA}

    resumed = 0

    def stage(self, pieces):
        for piece in pieces:
            self._wait()
            self.staged_bytes += len(piece.data)
            if self.keep:
                self.staged[piece.want.digest] = piece.data
            self._maybe_fail()

    def commit(self, updates):
        self._maybe_fail()
        self.updates += updates
        return [Problem(update.run, None, MISSING, "no") for update in updates if update.run == OTHER]

    def audit(self):
        self._maybe_fail()
        yield Problem(RUN, b".guild/LOCK", MISSING, "x" * 9000)


def updates():
    one = RawUpdate(
        RUN,
        None,
        manifest(),
        {"label": b"\xff", "tags": None},
        {"STAGED": b""},
        frozenset({b"d/\xff\xfe"}),
        {"label": None, "tags": b"\xfe"},
    )
    return [one, RawUpdate(OTHER, manifest({}), None, {}, {})]


if __name__ == "__main__":
    serve(MemoryTree(), sys.stdin.buffer, sys.stdout.buffer)
