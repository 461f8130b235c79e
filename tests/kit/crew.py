"""People who work at one store at once, each by a process that is slowed down, stopped, killed and started again."""

from __future__ import annotations

import heapq
import itertools
import multiprocessing
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from guildsync.errors import TRASHED, GuildsyncError
from guildsync.model.run import RunId
from guildsync.remotes import opened_home
from guildsync.store import checkpoint, fs
from guildsync.store.fs import Files
from tests.kit.model import Person

CALLS = ("list", "get", "read", "put", "remove")
PUSHES = ("push", "revive")
CHECKPOINT_AFTER = 20
"""Entries, so that a short schedule sees some checkpoints."""


class Act(NamedTuple):
    """A method of a person with its arguments; what is to be written into the home before it, by (run, path); and how
    long the person waits before all of that, in seconds."""

    verb: str
    arguments: Mapping[str, Any] = {}
    writes: Mapping[tuple[str, str], bytes] = {}
    pause: float = 0.0


class Said(NamedTuple):
    """How an act ended: `exit_code` is None where it died of something unforeseen. Of a push, `stored` are the contents
    that were acknowledged, by run."""

    act: Act
    exit_code: int | None
    reasons: frozenset[str] = frozenset()
    stored: Mapping[str, str] = {}
    text: str = ""


@dataclass
class Worker:
    """A person and what is left of what he wants to do. `said` is what he was told so far."""

    name: str
    person: Person
    acts: list[Act]
    said: list[Said] = field(default_factory=list)
    starts: int = 0


# -- in a process of its own


def work(person: Person, seed: int, calls: Connection) -> None:
    """Once all that is slow about starting is done, do what comes, one after the other, and say how it went."""
    fs._s3fs = made_once(fs._s3fs)
    checkpoint.CHECKPOINT_AFTER = CHECKPOINT_AFTER
    context = person.context()
    with context.remote(person.remote).opened(context.home) as store:
        _ = store.is_there
    _slow_down(random.Random(seed))
    calls.send(None)
    while True:
        act = calls.recv()
        if act is None:
            return
        time.sleep(act.pause)
        calls.send(carried_out(person, act))


def carried_out(person: Person, act: Act) -> Said:
    try:
        for (run, name), data in act.writes.items():
            person.write(run, name, data)
        held = _contents(person) if act.verb in PUSHES else {}
        outcome = getattr(person, act.verb)(**act.arguments)
        problems = getattr(outcome, "problems", ())
        stored = _acknowledged(held, outcome) if held else {}
        reasons = frozenset(problem.reason for problem in problems)
        return Said(act, getattr(outcome, "exit_code", 0), reasons, stored, repr(outcome))
    except GuildsyncError as exc:
        return Said(act, exc.exit_code, text=traceback.format_exc())
    except Exception:  # noqa: BLE001 (the parent tells)
        return Said(act, None, text=traceback.format_exc())


def _contents(person: Person) -> dict[str, str]:
    with opened_home(person.context().home) as home:
        scans = home.manifests({RunId(run): () for run in person.runs()})
        return {scan.run: scan.content for scan in scans}


def _acknowledged(held: Mapping[str, str], outcome: Any) -> dict[str, str]:
    """All that was there to be pushed, but what is said to have failed or to have been left out."""
    said = " ".join(note for note in outcome.notes if "left out" in note)
    failed = {problem.run for problem in outcome.problems if problem.reason != TRASHED}
    return {run: content for run, content in held.items() if run[:8] not in said and run not in failed}


def made_once(make: Callable[..., Any]) -> Callable[..., Any]:
    """One s3fs for all stores at an endpoint: to make it takes longer than most acts do."""
    made: dict[str, Any] = {}

    def once(where: Any, *args: Any, **more: Any) -> Any:
        if where.endpoint_url not in made:
            made[where.endpoint_url] = make(where, *args, **more)
        return made[where.endpoint_url]

    return once


def _slow_down(rng: random.Random) -> None:
    """Every request takes some time, some take long; most of all between what is put and the commit that names it."""

    def slowly(original: Callable[..., Any], often: float) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if rng.random() < 0.3:
                time.sleep(min(0.4, rng.expovariate(1 / 0.01)))
            if rng.random() < often:
                time.sleep(rng.random() * 0.4)
            return original(*args, **more)

        return call

    for name in CALLS:
        setattr(Files, name, slowly(getattr(Files, name), 0.15 if name == "put" else 0.02))


# -- those who watch


STOP, GO, KILL, START = "stop", "go", "kill", "start"


@dataclass(order=True)
class Event:
    at: float
    number: int
    what: str = field(compare=False)
    worker: str = field(compare=False)


class Crew:
    """Processes that work for `seconds`; then each ends what it has begun, or is killed after `patience` more."""

    def __init__(self, workers: Sequence[Worker], seed: int, seconds: float, patience: float) -> None:
        self._workers = {worker.name: worker for worker in workers}
        self._rng, self._seconds, self._patience = random.Random(seed), seconds, patience
        self._numbers = itertools.count()
        self._events: list[Event] = []
        self._running: dict[str, tuple[Any, Connection]] = {}
        self._fork = multiprocessing.get_context("forkserver")  # each is a child of one that never had a thread
        self._fork.set_forkserver_preload([__name__, "guildsync.store.store", "s3fs"])
        self.counts = dict.fromkeys((STOP, GO, KILL, START), 0)

    def run(self) -> None:
        for name in self._workers:
            self._plan(name)
        try:
            self._get_ready()
            self._watch(time.monotonic())
            for name in list(self._running):
                self._signal(name, signal.SIGCONT)
            self._events.clear()
            self._finish(time.monotonic() + self._patience)
        finally:
            for name in list(self._running):
                self._kill(name)

    def _plan(self, name: str) -> None:
        """When a worker stops, dies, starts again."""
        rng, when = self._rng, 0.0
        while (when := when + rng.expovariate(1 / 0.7)) < self._seconds:
            self._at(when, STOP, name)
            when += min(1.5, rng.expovariate(1 / 0.25))
            self._at(when, GO, name)
        for _ in range(rng.choice((0, 0, 1, 2))):
            when = rng.random() * self._seconds
            self._at(when, KILL, name)
            self._at(when + rng.random() * 0.3, START, name)

    def _at(self, when: float, what: str, name: str) -> None:
        heapq.heappush(self._events, Event(when, next(self._numbers), what, name))

    def _get_ready(self) -> None:
        for name in self._workers:
            self._start(name)
        for process, connection in self._running.values():
            assert connection.poll(self._patience), f"{process.name} does not start"
        for name, (_, connection) in self._running.items():
            assert connection.recv() is None
            self._ask(name)

    def _watch(self, began: float) -> None:
        while (now := time.monotonic() - began) < self._seconds:
            while self._events and self._events[0].at <= now:
                event = heapq.heappop(self._events)
                self._happens(event.what, event.worker)
            following = self._events[0].at if self._events else self._seconds
            self._listen(max(0.0, min(following, self._seconds) - now), more=True)

    def _happens(self, what: str, name: str) -> None:
        if (what == START) == (name in self._running):
            return
        self.counts[what] += 1
        if what == START:
            self._start(name)
        elif what == KILL:
            self._kill(name)
        else:
            self._signal(name, signal.SIGSTOP if what == STOP else signal.SIGCONT)

    def _start(self, name: str) -> None:
        worker = self._workers[name]
        ours, theirs = self._fork.Pipe()
        process = self._fork.Process(
            target=work, args=(worker.person, self._rng.getrandbits(32), theirs), name=name, daemon=True
        )
        process.start()
        theirs.close()
        worker.starts += 1
        self._running[name] = (process, ours)

    def _ask(self, name: str) -> None:
        """The next act; who was killed is told his last one again."""
        acts = self._workers[name].acts
        self._running[name][1].send(acts[0] if acts else None)

    def _listen(self, seconds: float, more: bool) -> None:
        connections = {connection: name for name, (_, connection) in self._running.items()}
        if not connections:
            time.sleep(seconds)
            return
        for ready in wait(list(connections), seconds):
            name = connections[ready]  # type: ignore[index]
            try:
                said = ready.recv()  # type: ignore[union-attr]
            except (EOFError, OSError):
                self._kill(name)
                continue
            if said is not None:
                self._workers[name].said.append(said)
                self._workers[name].acts.pop(0)
            if more:
                self._ask(name)
            else:
                self._running[name][1].send(None)

    def _finish(self, deadline: float) -> None:
        while self._running and time.monotonic() < deadline:
            self._listen(0.1, more=False)

    def _signal(self, name: str, number: int) -> None:
        pid = self._running[name][0].pid
        assert pid is not None
        os.kill(pid, number)

    def _kill(self, name: str) -> None:
        process, connection = self._running.pop(name)
        process.kill()
        process.join()
        connection.close()
