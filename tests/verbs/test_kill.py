"""SIGKILL before and after every storage call of push and pull: old or new, and again converges (promises P1, P2)."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from guildsync import api
from guildsync.errors import INCOMPLETE
from guildsync.model.manifest import digest_of
from guildsync.model.run import Metadata, RunId, Summary
from guildsync.remotes import Home, opened_home
from guildsync.store.store import Store
from guildsync.verbs.lifecycle import verify
from tests.conftest import new_bucket
from tests.kit import dying
from tests.kit.dying import Call, Command, Server
from tests.kit.model import Person
from tests.kit.servers import REGION, S3Server
from tests.kit.trees import MIB, Row, noise, run_ids, snapshot, write_run

SMALL, LARGE, TWIN, BYSTANDER = run_ids(4)
GROWN = noise(1, 5 * MIB // 2) + noise(2, MIB)

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with dying.server() as found:
        yield found


# -- beginnings: homes and store as they are before the push or pull that is killed


def runs_of(person: Person) -> None:
    lean = dict.fromkeys(("initialized", "started", "stopped", "flags", "cmd", "op", "run_params", "host", "user"))
    write_run(person.home, SMALL, {"log": b"step 1\n", "both": b"old"}, label="first", **lean)
    write_run(person.home, LARGE, {"weights": GROWN[: 5 * MIB // 2], "to-link": b"file"}, **lean)
    write_run(person.home, TWIN, {"weights": noise(1, 5 * MIB // 2), "empty": b"", "to-dir": b"file"}, **lean)
    (person.run(TWIN) / "to-file").mkdir()
    (person.run(TWIN) / "to-file/inside").write_bytes(b"goes away")
    (person.run(TWIN) / "turns").symlink_to("here")


def changed(person: Person) -> None:
    """A label and nothing else; a large file that grew; files changed, added, gone, and of another kind."""
    person.say(SMALL, "label", "second")
    (person.run(LARGE) / "weights").write_bytes(GROWN)
    person.write(TWIN, "checkpoints/model.pt", noise(3, 20_000))
    person.write(TWIN, "new/below/file", b"new")
    person.say(TWIN, "label", "changed")
    (person.run(TWIN) / "empty").unlink()
    (person.run(TWIN) / "to-dir").unlink()
    person.write(TWIN, "to-dir/inside", b"was a file")
    shutil.rmtree(person.run(TWIN) / "to-file")
    person.write(TWIN, "to-file", b"was a directory")
    (person.run(TWIN) / "turns").unlink()
    (person.run(TWIN) / "turns").symlink_to("there")
    (person.run(LARGE) / "to-link").unlink()
    (person.run(LARGE) / "to-link").symlink_to("weights")


def push_new(author: Person, killed: Person) -> None:
    runs_of(killed)


def push_changed(author: Person, killed: Person) -> None:
    write_run(author.home, BYSTANDER, {"of": b"somebody else"})
    assert author.push().exit_code == 0
    runs_of(killed)
    assert killed.push().exit_code == 0
    changed(killed)


def pull_new(author: Person, killed: Person) -> None:
    runs_of(author)
    assert author.push().exit_code == 0
    write_run(killed.home, BYSTANDER, {"of": b"here alone"})


def pull_changed(author: Person, killed: Person) -> None:
    pull_new(author, killed)
    assert killed.pull().exit_code == 0
    changed(author)
    assert author.push(delete=True).exit_code == 0


BEGINNINGS: dict[str, Callable[[Person, Person], None]] = {
    found.__name__: found for found in (push_new, push_changed, pull_new, pull_changed)
}


# -- what is looked at


@dataclass(frozen=True)
class Held:
    """A run in a home."""

    status: str
    metadata: Metadata
    rows: Mapping[bytes, Row]


Homes = dict[str, Held]
Stored = dict[str, tuple[str | None, Metadata, Summary]]


def homes_runs(person: Person) -> Homes:
    records = person.context().runs(api.LOCAL)
    return {r.run: Held(r.summary.status, r.metadata, snapshot(person.run(r.run))) for r in records}


def raw(directory: Path) -> dict[str, tuple[int, ...]]:
    """Whatever lies there; nothing can touch it without a trace in this."""
    out = {}
    for top, directories, files in os.walk(directory):
        for path in (os.path.join(top, name) for name in (*directories, *files)):
            info = os.lstat(path)
            out[path] = (info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    return out


class Place:
    """A folder in which one person's command is killed again and again, and what it is put back to each time."""

    def __init__(self, top: Path, begin: str, server: S3Server | None) -> None:
        self.top, self.work, self.saved = top, top / "work", top / "saved"
        self.work.mkdir()
        remote: dict[str, Any] = {"type": "fsspec", "url": f"file://{self.work}/store"}
        self._bucket: Any = None
        if server is not None:
            keys = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
            remote = {"type": "s3", "bucket": new_bucket(server), "root": "r", "endpoint-url": server.endpoint}
            remote |= {"region": REGION, "local-env": keys}
            self._name, self._bucket = remote["bucket"], server.client()
        config = top / "config.yml"
        config.write_text(json.dumps({"remotes": {"store": remote}}))
        self.author = Person(top / "author", "store", str(config))
        self.killed = Person(self.work / "home", "store", str(config))
        BEGINNINGS[begin](self.author, self.killed)
        self.store = self.work / "store"
        self.command = Command(
            self.killed, begin.partition("_")[0], str(self.work), {"delete": begin.endswith("changed")}
        )
        shutil.copytree(self.work, self.saved, symlinks=True)
        self._objects = self.names()

    def restore(self) -> None:
        shutil.rmtree(self.work)
        shutil.copytree(self.saved, self.work, symlinks=True)
        if self._bucket is not None:
            names = self.names()
            assert names >= self._objects, "something was removed from the store"
            for name in names - self._objects:
                self._bucket.delete_object(Bucket=self._name, Key=name)

    def names(self) -> set[str]:
        """All objects of the store, whoever may need them."""
        if self._bucket is not None:
            return {row["Key"] for row in self._bucket.list_objects_v2(Bucket=self._name).get("Contents", ())}
        return {str(path) for path in self.store.rglob("*") if path.is_file()}

    def stored(self) -> tuple[Stored, Counter[str]]:
        """What a client without any cache finds, every byte verified; and how many versions of each run there are."""
        context = self.killed.context()
        nowhere = Home(str(self.top / "nowhere"))
        with context.remote("store").opened(nowhere, fresh=True) as store:
            assert isinstance(store, Store)
            if not store.is_there:
                return {}, Counter()
            records = list(store.runs(deleted=None))
            found = verify(store, list)
            assert (found.exit_code, found.problems, found.runs) == (0, [], len(records))
            assert all(len(record.heads) == 1 for record in records)
            versions = Counter(str(version.run) for version in store._read().view.facts.versions)
        assert not (self.top / "nowhere").exists()
        return {r.run: (r.content, r.metadata, r.summary) for r in records}, versions


class Sweep:
    """The laws of one command, whichever call it dies at."""

    def __init__(self, server: Server, place: Place) -> None:
        """A first child lives, to learn the calls."""
        self.server, self.place, self.command = server, place, place.command
        self.person, self.is_push = place.killed, place.command.verb == "push"
        self.old_homes, (self.old_stored, self.old_versions) = homes_runs(self.person), place.stored()
        place.restore()
        whole = server.run(self.command)
        assert whole.exit_code == 0, whole.text
        self.calls = whole.calls
        self.new_homes, (self.new_stored, self.new_versions) = homes_runs(self.person), place.stored()
        self._know_what_is_new()

    def _know_what_is_new(self) -> None:
        if self.is_push:
            assert self.new_homes == self.old_homes
            assert self.new_stored != self.old_stored
        else:
            truth = homes_runs(self.place.author)
            assert self.new_homes != self.old_homes
            assert {run: self.new_homes[run] for run in truth} == truth
        assert self._contents() == {run: self.new_stored[run][0] for run in (SMALL, LARGE, TWIN)}

    def _contents(self) -> dict[str, str]:
        """What lies in the home of the runs that are synced, as guildsync names it."""
        with opened_home(self.person.context().home) as home:
            scans = home.manifests({RunId(run): () for run in (SMALL, LARGE, TWIN)})
            return {scan.run: scan.content for scan in scans}

    def kill(self, at: int, after: bool) -> bool:
        """False where it made so many calls no more, and so lived."""
        self.place.restore()
        others = self.person.home / "runs" if self.is_push else self.person.run(BYSTANDER)
        before = raw(others)
        end = self.server.run(self.command, at, after)
        assert end.killed == (len(end.calls) > at), f"it should have died, but ended with {end.exit_code}: {end.text}"
        assert end.killed or end.exit_code == 0, end.text
        self._old_or_new()
        assert raw(others) == before
        again = self.command()
        assert again.problems == [], again.problems
        assert again.exit_code == 0
        self._converged(again)
        assert raw(others) == before
        runs, names = raw(self.person.home / "runs"), self.place.names()
        again = self.command()
        assert (again.problems, again.runs, again.files) == ([], 0, 0)
        assert raw(self.person.home / "runs") == runs
        assert self.place.names() == names
        return end.killed

    def _old_or_new(self) -> None:
        stored, _ = self.place.stored()
        assert stored.keys() <= self.new_stored.keys()
        for run in self.new_stored:
            assert stored.get(run) in (self.old_stored.get(run), self.new_stored[run]), f"{run} is neither old nor new"
        if self.is_push:
            return
        assert stored == self.old_stored
        now = homes_runs(self.person)
        assert now.keys() <= self.new_homes.keys()
        for run, new in self.new_homes.items():
            held, old = now.get(run), self.old_homes.get(run)
            if held is None or held.status != INCOMPLETE:
                assert held in (old, new), f"{run} is neither old nor new: {held}"
                continue
            assert old is not None, "a new run appeared before it was whole"
            assert held.metadata in (old.metadata, new.metadata)
            for path in old.rows.keys() | new.rows.keys() | held.rows.keys():
                path_is_old_or_new(path, held.rows, old.rows, new.rows)
            names = self.place.names()
            refused = self.person.push(choose=api.Choice((run,)))
            assert [(p.run, p.path, p.reason) for p in refused.problems] == [(run, None, INCOMPLETE)]
            assert (refused.exit_code, refused.runs) == (7, 0)
            assert homes_runs(self.person) == now
            assert self.place.names() == names

    def _converged(self, again: api.Outcome) -> None:
        stored, versions = self.place.stored()
        assert stored == self.new_stored
        assert versions == self.new_versions, "another version than the new one was needed"
        assert homes_runs(self.person) == self.new_homes
        assert self._contents() == {run: stored[run][0] for run in (SMALL, LARGE, TWIN)}
        context = self.person.context()
        assert context.verify(api.LOCAL, quick=True).problems == []
        for name in ("staging", "inflight"):
            left = self.person.home / ".guildsync" / name
            assert not left.exists() or os.listdir(left) == [], f"left in {name}: {os.listdir(left)}"


def path_is_old_or_new(
    path: bytes, held: Mapping[bytes, Row], old: Mapping[bytes, Row], new: Mapping[bytes, Row]
) -> None:
    now, was, to = held.get(path), old.get(path), new.get(path)
    if now in (was, to):
        return
    if now is None:  # no rename puts a directory in the place of a file, or the other way round
        assert was is not None and to is not None, path  # noqa: PT018
        assert was[0] != to[0] and "dir" in (was[0], to[0]), path  # noqa: PT018
        return
    if was is not None and to is not None and was[2] <= now[2] <= to[2] and now[3] == digest_of(GROWN[: now[2]]):
        return  # what grows is appended to in place: any prefix of the new
    # a directory that is new gets its mode when all is in it
    assert to is not None and (now[0], to[0]) == ("dir", "dir"), f"{path!r} is neither old nor new: {now}"  # noqa: PT018


# -- which calls

_VITAL = re.compile(
    r"Files\.(put|_rename) .*journal/"  # the commit of a store
    r"|os\.(rename|replace|unlink|rmdir|mkdir) home/runs/"  # what a reader of a home sees
    r"|os\.(replace|unlink) home/\.guildsync/inflight/"  # the marker of a run that is changed
)


def is_vital(call: Call) -> bool:
    in_vain = (call.what == "os.unlink" and not call.inode) or (call.what == "os.mkdir" and call.inode)
    return not in_vain and _VITAL.match(f"{call.what} {call.where}") is not None


def some(calls: tuple[Call, ...], stride: int) -> Iterator[tuple[int, bool]]:
    """(n, after) of the vital calls, and of every so many of the others. Where no other thread is at work, after one
    call is before the next."""
    before = -1
    for n, call in enumerate(calls):
        if is_vital(call):
            if before != n - 1:
                yield n, False
            yield n, True
            before = n
        elif n % stride == 0:
            yield n, n // stride % 2 == 0


def every(calls: tuple[Call, ...]) -> Iterator[tuple[int, bool]]:
    return ((n, after) for n in range(len(calls)) for after in (False, True))


def sweep(server: Server, place: Place, choose: Callable[[tuple[Call, ...]], Iterator[tuple[int, bool]]]) -> None:
    laws = Sweep(server, place)
    points = list(choose(laws.calls))
    killed = 0
    for at, after in points:
        try:
            killed += laws.kill(at, after)
        except Exception as exc:
            call = laws.calls[at]
            raise AssertionError(
                f"killed {'after' if after else 'before'} call {at}, {call.what} {call.where}"
            ) from exc
    assert killed > 0.9 * len(points)  # what several threads do may take some calls more, or fewer


@pytest.mark.parametrize(
    ("begin", "stride"), [("push_new", 9), ("push_changed", 6), ("pull_new", 25), ("pull_changed", 20)]
)
def test_a_command_that_dies_leaves_old_or_new_in_a_folder(
    server: Server, tmp_path: Path, begin: str, stride: int
) -> None:
    sweep(server, Place(tmp_path, begin, None), partial(some, stride=stride))


@pytest.mark.parametrize(("begin", "stride"), [("push_changed", 12), ("pull_new", 150)])
def test_a_command_that_dies_leaves_old_or_new_in_a_bucket(
    server: Server, seaweed: S3Server, tmp_path: Path, begin: str, stride: int
) -> None:
    sweep(server, Place(tmp_path, begin, seaweed), partial(some, stride=stride))


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("begin", BEGINNINGS)
@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_command_that_dies_at_any_call_leaves_old_or_new(
    server: Server, request: pytest.FixtureRequest, tmp_path: Path, begin: str, place: str
) -> None:
    s3 = request.getfixturevalue("seaweed") if place == "bucket" else None
    sweep(server, Place(tmp_path, begin, s3), every)


# -- what survives a power cut: only the order of calls can be tested here

_CHANGES = frozenset({"os.fchmod", "os.ftruncate", "os.pwrite", "os.utime", "os.write"})
_NAMES = frozenset({"os.link", "os.mkdir", "os.open", "os.rename", "os.replace", "os.rmdir", "os.symlink", "os.unlink"})


def durable_before(calls: tuple[Call, ...], inode: int, end: int) -> bool:
    """Is all that was done to a file, or to the names in a directory, before a call also synced before it?"""
    done = [n for n, c in enumerate(calls[:end]) if inode in touched(c)]
    synced = [n for n, c in enumerate(calls[:end]) if c.what == "os.fsync" and c.inode == inode]
    return bool(synced) and max(done, default=-1) < synced[-1]


def touched(call: Call) -> tuple[int, ...]:
    if call.what in _CHANGES:
        return (call.inode,)
    return (call.directory,) if call.what in _NAMES else ()


def published(calls: tuple[Call, ...], run: str) -> int:
    (at,) = [n for n, c in enumerate(calls) if c.what == "os.rename" and c.where == f"home/runs/{run}"]
    return at


def test_all_of_a_new_run_is_durable_before_its_name_and_its_name_before_success(
    server: Server, tmp_path: Path
) -> None:
    place = Place(tmp_path, "pull_new", None)
    end = server.run(place.command)
    assert end.exit_code == 0, end.text
    runs = place.killed.home / "runs"
    for run in (SMALL, LARGE, TWIN):
        at = published(end.calls, run)
        whole = [runs / run, *(path for path in (runs / run).rglob("*") if not path.is_symlink())]
        assert len(whole) > 10
        for path in whole:
            assert durable_before(end.calls, path.stat().st_ino, at), f"{path} is not durable when its run appears"
    assert durable_before(end.calls, runs.stat().st_ino, len(end.calls))


def test_every_step_of_a_change_is_durable_before_its_marker_goes(server: Server, tmp_path: Path) -> None:
    place = Place(tmp_path, "pull_changed", None)
    end = server.run(place.command)
    assert end.exit_code == 0, end.text
    marker = {c.where: n for n, c in enumerate(end.calls) if c.what == "os.unlink" and "/inflight/" in c.where}
    began = {c.where: n for n, c in enumerate(end.calls) if c.what == "os.replace" and "/inflight/" in c.where}
    inflight = (place.killed.home / ".guildsync/inflight").stat().st_ino
    for run in (LARGE, TWIN):
        name = f"home/.guildsync/inflight/{run}"
        steps = [n for n, c in enumerate(end.calls) if c.where.startswith(f"home/runs/{run}/")]
        first = next(n for n in steps if end.calls[n].what in ("os.rename", "os.unlink", "os.mkdir", "os.rmdir"))
        assert began[name] < first
        assert any(c.what == "os.fsync" and c.inode == inflight for c in end.calls[began[name] : first])
        top = place.killed.run(run)
        for path in [top, *(path for path in top.rglob("*") if path.is_dir() and not path.is_symlink())]:
            if any(path.stat().st_ino in touched(c) for c in end.calls):
                assert durable_before(end.calls, path.stat().st_ino, marker[name]), f"{path} is not durable"
        assert max(steps) < marker[name]
        for n in steps:  # a staged file is durable before it takes its name
            if end.calls[n].what == "os.rename" and not (place.work / end.calls[n].where).is_symlink():
                assert durable_before(end.calls, end.calls[n].inode, n), end.calls[n].where
    assert durable_before(end.calls, inflight, len(end.calls))


def test_what_a_push_says_is_durable_in_a_folder(server: Server, tmp_path: Path) -> None:
    """Packs before the commit that names them, the commit before success; of each the bytes before the name."""
    place = Place(tmp_path, "push_new", None)
    end = server.run(place.command)
    assert end.exit_code == 0, end.text
    store = place.work / "store"
    commits = [n for n, c in enumerate(end.calls) if c.what == "os.replace" and c.where.startswith("store/journal/")]
    assert len(commits) == 1
    packs = list((store / "packs").rglob("*/*"))
    assert packs
    for path in packs:
        name = next(n for n, c in enumerate(end.calls) if c.what == "os.replace" and c.where.endswith(path.name))
        assert synced_between(end.calls, path.stat().st_ino, 0, name)
        assert synced_between(end.calls, path.parent.stat().st_ino, name, commits[0])
    (commit,) = (store / "journal").iterdir()
    assert synced_between(end.calls, commit.stat().st_ino, 0, commits[0])
    assert synced_between(end.calls, commit.parent.stat().st_ino, commits[0], len(end.calls))


def synced_between(calls: tuple[Call, ...], inode: int, start: int, stop: int) -> bool:
    return any(c.what == "os.fsync" and c.inode == inode for c in calls[start:stop])
