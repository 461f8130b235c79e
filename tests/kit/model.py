"""People at homes that share one store: they edit, sync and crash, and the laws that hold after each step."""

from __future__ import annotations

import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from guildsync import api
from guildsync.errors import CONFLICT, INCOMPLETE
from guildsync.model.edits import set_label
from guildsync.model.manifest import FILE, Digest, Manifest
from guildsync.model.ports import Lost, Want
from guildsync.store.fs import Files, open_url
from guildsync.store.pack import pack_path
from guildsync.store.store import Store
from tests.kit.trees import opref, snapshot

Contents = dict[str, bytes]


@dataclass(frozen=True)
class Person:
    """Somebody with a home, and a remote. Every sync is by a client that has just been started."""

    home: Path
    remote: str
    config_file: str | None = None

    def context(self) -> api.Context:
        environ = {"HOME": str(self.home.parent)}
        return api.open_context(str(self.home), self.config_file, cwd=str(self.home.parent), environ=environ)

    def push(self, resolve: str | None = None, **options: Any) -> api.Outcome:
        return self.context().push(self.remote, _options(resolve, options))

    def pull(self, resolve: str | None = None, **options: Any) -> api.Outcome:
        return self.context().pull(self.remote, _options(resolve, options))

    def revive(self, verb: str, runs: Sequence[str]) -> api.Outcome:
        """Push or pull runs, also those that were deleted or purged where they go."""
        choice = api.Choice(tuple(runs))
        outcome: api.Outcome = getattr(self, verb)(choose=choice, revives=choice.names)
        return outcome

    def verify(self) -> api.Verified:
        return self.context().verify(self.remote)

    def delete(self, runs: Sequence[str], permanent: bool = False) -> api.Acted:
        return self.context().delete(self.remote, _request(runs), permanent=permanent)

    def restore(self, runs: Sequence[str]) -> api.Acted:
        return self.context().restore(self.remote, _request(runs))

    def purge(self, runs: Sequence[str]) -> api.Acted:
        return self.context().purge(self.remote, _request(runs))

    def label(self, runs: Sequence[str], label: str | None) -> api.Acted:
        return self.context().edit(self.remote, _request(runs), set_label(label))

    def collect(self, grace: float | None = None) -> api.Collected:
        return self.context().collect(self.remote, grace)

    def record(self, run: str, remote: str = api.LOCAL) -> api.Record:
        return next(record for record in self.context().runs(remote) if record.run == run)

    def run(self, run: str) -> Path:
        return self.home / "runs" / run

    def runs(self) -> list[str]:
        top = self.home / "runs"
        return sorted(os.listdir(top)) if top.is_dir() else []

    def write(self, run: str, name: str, data: bytes) -> None:
        path = self.run(run) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def remove(self, run: str, name: str) -> None:
        (self.run(run) / name).unlink()

    def read(self, run: str, name: str) -> bytes | None:
        path = self.run(run) / name
        return path.read_bytes() if path.exists() else None

    def say(self, run: str, attribute: str, value: Any) -> None:
        """Set an attribute as Guild would; None removes it."""
        path = self.run(run) / ".guild" / "attrs" / attribute
        path.parent.mkdir(parents=True, exist_ok=True)
        if value is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(yaml.safe_dump(value))

    def contents(self, run: str) -> Contents:
        """The bytes of every file of a run that is an entry."""
        return {
            os.fsdecode(name): (self.run(run) / os.fsdecode(name)).read_bytes()
            for name, row in snapshot(self.run(run)).items()
            if row[0] == "file"
        }


def _request(runs: Sequence[str]) -> api.Request:
    """No run named means all."""
    return api.Request(api.Choice(tuple(runs)))


def _options(resolve: str | None, more: Mapping[str, Any]) -> api.Options:
    more = dict(more)
    return api.Options(policy=api.Policy(more.pop("delete", False), resolve), **more)


def reasons(outcome: api.Outcome) -> set[str]:
    return {problem.reason for problem in outcome.problems}


def conflict_code(outcome: api.Outcome) -> int:
    """6 where conflicts of paths are all there is to say and nothing was sent, 7 where there was more."""
    if not outcome.problems:
        return 0
    only = all(problem.reason == CONFLICT and problem.path is not None for problem in outcome.problems)
    return 6 if only and outcome.runs == 0 else 7


# -- crashes


class Crash(BaseException):
    """The process died here."""


STEPS = ("rename", "replace", "unlink", "mkdir", "rmdir", "symlink", "link")
"""What changes a directory, and so what a reader of it sees."""


@contextmanager
def crash(at: int, after: bool, *below: Path) -> Iterator[Callable[[], bool]]:
    """Dies at the `at`-th step that changes something: before it, or just after. From then on nothing more is done by
    any thread, and what the dead process held below these directories is let go. Yields whether it died."""
    lock = threading.Lock()
    count, dead = 0, False

    def stepwise(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal count, dead
            with lock:
                if dead:
                    raise Crash
                mine = count == at
                count += 1
                dead = mine
            if mine and after:
                original(*args, **kwargs)
            if mine:
                raise Crash
            return original(*args, **kwargs)

        return step

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Files, "put", stepwise(Files.put))
            for name in STEPS:
                patch.setattr(os, name, stepwise(getattr(os, name)))
            yield lambda: dead
    except Crash:
        pass
    finally:
        if dead:
            _let_go(below)


def _let_go(directories: tuple[Path, ...]) -> None:
    """Close the descriptors, and with them the locks, that only a process's end would have closed."""
    tops = tuple(f"{directory}/" for directory in directories)
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith(tops):
                os.close(int(name))
        except OSError:
            continue


# -- what a store holds


@contextmanager
def opened_store(remote: str) -> Iterator[Store]:
    """A store at a URL, by a client without any cache."""
    store = Store(open_url(remote))
    try:
        yield store
    finally:
        store.close()


def contents_of(store: Store, version: str) -> Contents:
    """The bytes of every file of one version, current or not, verified."""
    found = store._read().view.version(version)
    assert found is not None
    store._load(found_packs(store, version))
    (data,) = _fetched(store, [Want(found.manifest, 0, found.run, b"", 0)]).values()
    manifest = Manifest.decode(data)
    assert manifest.content == found.content
    files = [entry for entry in manifest.entries if entry.kind == FILE]
    wants = [Want(o.digest, o.size, found.run, e.path, o.offset) for e in files for o in e.objects()]
    objects = _fetched(store, wants)
    return {os.fsdecode(e.path): b"".join(objects[o.digest] for o in e.objects()) for e in files}


def found_packs(store: Store, version: str) -> list[str]:
    claim = store._read().view.claim(version)
    assert claim is not None, f"{version} has no claim that can be read"
    return list(claim.packs)


def _fetched(store: Store, wants: list[Want]) -> dict[Digest, bytes]:
    out: dict[Digest, bytes] = {}
    for answer in store.fetch(wants):
        assert not isinstance(answer, Lost), answer.problem
        out[answer.want.digest] = answer.data
    return out


def heads(remote: str) -> dict[str, list[Contents]]:
    """What every head of every run in a store holds."""
    with opened_store(remote) as store:
        view = store._read().view
        return {run: [contents_of(store, head.id) for head in view.heads(run)] for run in view.runs()}


def packs(remote: str) -> list[str]:
    """The names of a store's packs, as the journal has them."""
    with opened_store(remote) as store:
        return [pack_path(fact.name) for fact in sorted(store._read().view.facts.adds)]


# -- the world and its laws


@dataclass
class World:
    """Homes, one store, and a book of what people wrote. `write` and its like are what people do themselves."""

    people: list[Person]
    remote: str
    _written: dict[tuple[str, str], set[bytes]] = field(default_factory=lambda: defaultdict(set))
    _standing: dict[tuple[int, str, str], set[bytes]] = field(default_factory=lambda: defaultdict(set))
    _removed: set[tuple[str, str]] = field(default_factory=set)
    _versions: dict[str, tuple[str, Contents]] = field(default_factory=dict)

    @classmethod
    def below(cls, directory: Path, remote: str, homes: int = 3) -> World:
        world = cls([Person(directory / f"home{n}", remote) for n in range(homes)], remote)
        for person in world.people:
            (person.home / "runs").mkdir(parents=True)
        return world

    # what people do

    def new_run(self, who: int, run: str, files: Contents) -> None:
        if run in self.people[who].runs():
            return
        for name, data in {**files, ".guild/opref": opref(), ".guild/attrs/exit_status": b"0\n"}.items():
            self.write(who, run, name, data)

    def write(self, who: int, run: str, name: str, data: bytes) -> None:
        self._gives_up(who, run, name)
        self.people[who].write(run, name, data)
        self._written[run, name].add(data)
        self._standing[who, run, name].add(data)

    def append(self, who: int, run: str, name: str, data: bytes) -> None:
        self.write(who, run, name, (self.people[who].read(run, name) or b"") + data)

    def remove(self, who: int, run: str, name: str) -> None:
        if self.people[who].read(run, name) is None:
            return
        self._gives_up(who, run, name)
        self.people[who].remove(run, name)
        self._removed.add((run, name))

    def say(self, who: int, run: str, attribute: str, value: Any) -> None:
        self.people[who].say(run, attribute, value)

    def _gives_up(self, who: int, run: str, name: str) -> None:
        """Who overwrites what lies there does not want it any more."""
        there = self.people[who].read(run, name)
        if there is not None:
            self._standing[who, run, name].discard(there)

    # syncs

    def sync(
        self, who: int, verb: str, resolve: str | None = None, die: tuple[int, bool] | None = None
    ) -> api.Outcome | None:
        """One push or pull, which may die at a step; None where it did. A run in conflict stays as it is everywhere."""
        person = self.people[who]
        before = {run: person.contents(run) for run in person.runs()}
        there = self._heads()
        if (verb, resolve) in (("push", "target"), ("pull", "source")):
            for key in self._standing:  # this home's side is given up where both changed
                if key[0] == who:
                    self._standing[key].clear()
        outcome = None
        if die is None:
            outcome = getattr(person, verb)(resolve)
        else:
            with crash(*die, person.home, *self._folder()):
                outcome = getattr(person, verb)(resolve)
        if outcome is not None:
            assert reasons(outcome) <= {CONFLICT, INCOMPLETE}, outcome.problems
            assert outcome.exit_code == conflict_code(outcome)
            now = self._heads()
            for run in {problem.run for problem in outcome.problems}:
                assert before.get(run) == (person.contents(run) if run in before else None)
                assert there.get(run) == now.get(run)
        return outcome

    def _folder(self) -> list[Path]:
        return [Path(self.remote.removeprefix("file://"))] if self.remote.startswith("file://") else []

    def _heads(self) -> dict[str, list[str]]:
        with opened_store(self.remote) as store:
            view = store._read().view
            return {run: [head.content for head in view.heads(run)] for run in view.runs()}

    # laws

    def check(self) -> None:
        """Every version that a person wrote is somewhere; every file anywhere is one that somebody wrote, whole."""
        self._learn_versions()
        somewhere: dict[tuple[str, str], set[bytes]] = defaultdict(set)
        for run, contents in self._versions.values():
            for name, data in contents.items():
                somewhere[run, name].add(data)
        for person in self.people:
            for run in person.runs():
                for name, data in person.contents(run).items():
                    somewhere[run, name].add(data)
        for key, found in somewhere.items():
            assert found <= self._written[key], f"{key}: a mixture: {found - self._written[key]}"
        for (who, run, name), wanted in self._standing.items():
            for data in wanted:
                kept = any(other.startswith(data) for other in somewhere[run, name])
                assert kept, f"what home {who} wrote to {name} of {run} is lost: {data!r}"

    def _learn_versions(self) -> None:
        with opened_store(self.remote) as store:
            reading = store._read()
            assert not reading.problems
            living = reading.view.living
            assert living >= self._versions.keys(), "a version went out of the store"
            for version in living - self._versions.keys():
                found = reading.view.version(version)
                assert found is not None
                self._versions[version] = (found.run, contents_of(store, version))

    def verify(self) -> None:
        if self._versions:
            found = self.people[0].verify()
            assert found.problems == []

    def settle(self) -> None:
        """Everybody pushes and pulls until nothing moves: then all homes agree on what is not in conflict."""
        if not any(person.runs() for person in self.people):
            return
        quarrels: set[str] = set()
        for _ in range(4):
            quarrels = set()
            for verb in ("push", "pull"):
                for who in range(len(self.people)):
                    outcome = self.sync(who, verb)
                    assert outcome is not None
                    quarrels |= {problem.run for problem in outcome.problems}
            self.check()
        self.verify()
        for run in sorted({run for person in self.people for run in person.runs()} - quarrels):
            said = [person.record(run).metadata for person in self.people]
            status = [person.record(run).summary.status for person in self.people]
            held = [self._unremoved(run, person.contents(run)) for person in self.people]
            assert all(each == held[0] for each in held), f"run {run} differs: {held}"
            assert all(each == said[0] for each in said), f"metadata of run {run} differ: {said}"
            assert set(status) == {"completed"}
            store = self.people[0].record(run, self.remote)
            assert store.metadata == said[0]

    def _unremoved(self, run: str, contents: Contents) -> Contents:
        """Without the paths that somebody removed somewhere: what is gone on one side stays gone there alone."""
        return {name: data for name, data in contents.items() if (run, name) not in self._removed}

    def wipe(self) -> None:
        """Remove all of it."""
        for person in self.people:
            shutil.rmtree(person.home, ignore_errors=True)
        files = open_url(self.remote)
        if files.fs.exists(files.root):
            files.fs.rm(files.root, recursive=True)
