"""SIGKILL at every storage call of delete, restore, purge, label and gc: each run is in one place, whole (P2, P7)."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from guildsync import api
from guildsync.errors import NotFound
from guildsync.model.manifest import NOTHING, digest_of
from guildsync.model.run import Metadata, RunId
from guildsync.remotes import Home, opened_home
from guildsync.store.pack import Packer, pack_path
from guildsync.store.store import Store
from guildsync.verbs.lifecycle import verify
from tests.conftest import new_bucket
from tests.kit import dying
from tests.kit.dying import Call, Command, Server
from tests.kit.model import Contents, Person, contents_of
from tests.kit.servers import REGION, S3Server
from tests.kit.trees import noise, opref, put, run_ids, snapshot

LIVES, LIVES_TOO, BYSTANDER = run_ids(3)
AWAY, AWAY_TOO, PURGED, LARGE = run_ids(7)[3:]
"""In the trash of the store, and purged there, while they live in the home. The last was in the store alone."""
HERE, HERE_TOO, GIVEN_UP = run_ids(10)[7:]
"""In the trash of the home, and purged there, while they live in the store."""

LIVE, TRASH, GONE = "live", "trash", "purged"
COLLECTIONS = 3
"""So many that nobody disturbs leave nothing but what is needed."""

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with dying.server() as found:
        yield found


# -- what each command is given, and where it stands then


@dataclass(frozen=True)
class Case:
    """A person's command, what is done to which runs, and what becomes of them. `steps`: of several runs one may be
    done and the other not; what was done is then not found again."""

    place: str
    verb: str
    runs: tuple[str, ...] = ()
    becomes: str = LIVE
    more: Mapping[str, Any] = field(default_factory=dict)
    steps: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        return {**({"runs": self.runs} if self.runs else {}), **self.more}


_HOME = partial(Case, "home", steps=True)
_STORE = partial(Case, "store")
_FOR_GOOD = {"permanent": True}
CASES = {
    "store-delete": _STORE("delete", (LIVES, LIVES_TOO), TRASH),
    "store-delete-permanent": _STORE("delete", (LIVES, LIVES_TOO), GONE, _FOR_GOOD, steps=True),
    "store-restore": _STORE("restore", (AWAY, AWAY_TOO)),
    "store-purge": _STORE("purge", (AWAY, AWAY_TOO), GONE),
    "store-label": _STORE("label", (LIVES, LIVES_TOO), more={"label": "new"}),
    "store-gc": _STORE("collect", more={"grace": 0}),
    "store-push-undelete": _STORE("revive", (AWAY, PURGED), more={"verb": "push"}),
    "home-delete": _HOME("delete", (LIVES, LIVES_TOO), TRASH),
    "home-delete-permanent": _HOME("delete", (LIVES, LIVES_TOO), GONE, _FOR_GOOD),
    "home-restore": _HOME("restore", (HERE, HERE_TOO)),
    "home-purge": _HOME("purge", (HERE, HERE_TOO), GONE),
    "home-label": _HOME("label", (LIVES, LIVES_TOO), more={"label": "new"}),
    "home-gc": _HOME("collect"),
    "home-pull-by-id": _HOME("revive", (HERE, GIVEN_UP), more={"verb": "pull"}),
}


@dataclass(frozen=True)
class Lies:
    """Where a run is, and all that it holds there."""

    where: str
    metadata: Metadata | None = None
    holds: Any = None


States = dict[str, Lies]


class Scene:
    """A store and a home, as they are before every command and are put back to each time."""

    def __init__(self, top: Path, server: S3Server | None) -> None:
        self.top, self.work, self.saved = top, top / "work", top / "saved"
        self.work.mkdir()
        remote: dict[str, Any] = {"type": "fsspec", "url": f"file://{self.work}/store"}
        self._bucket: Any = None
        if server is not None:
            keys = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
            remote = {"type": "s3", "bucket": new_bucket(server), "root": "r", "endpoint-url": server.endpoint}
            remote |= {"region": REGION, "local-env": keys}
            self._name, self._bucket = remote["bucket"], server.client()
        self._config = top / "config.yml"
        self._config.write_text(json.dumps({"remotes": {"store": remote}}))
        self.there, self.here = self._person("work/home", "store"), self._person("work/home", api.LOCAL)
        self.truth = self._begin()
        shutil.copytree(self.work, self.saved, symlinks=True)
        self._objects = {name: self._get(name) for name in self.names()} if self._bucket is not None else {}
        self.versions = self._living()

    def whose(self, case: Case) -> Person:
        return self.here if case.place == "home" and case.verb != "revive" else self.there

    def _person(self, home: str, remote: str) -> Person:
        return Person(self.top / home, remote, str(self._config))

    def _begin(self) -> dict[str, Any]:
        """Answers what each run holds, as a home shows it."""
        home = self.there.home
        shared = noise(1, 3000)
        lean_run(self.top / "other", LARGE, noise(2, 60_000), shared)
        other = self._person("other", "store")
        assert other.push().exit_code == 0
        for run in run_ids(10):
            if run != LARGE:
                lean_run(home, run, run.encode(), shared)
                assert self.there.push().exit_code == 0  # small packs, for a collection to put together
        for run in (LIVES, AWAY, HERE):  # a version that is replaced
            self.there.write(run, "of", run.encode() * 2)
        assert self.there.push().exit_code == 0
        truth = {run: snapshot(self.there.run(run)) for run in self.there.runs()}
        assert self.there.delete([AWAY, AWAY_TOO]).exit_code == 0
        assert self.there.delete([PURGED, LARGE], permanent=True).exit_code == 0
        assert self.here.delete([HERE, HERE_TOO]).exit_code == 0
        assert self.here.delete([GIVEN_UP], permanent=True).exit_code == 0
        with self._opened() as store:
            store._files.put(*_orphan())
        left = home / ".guildsync/staging" / ("5" * 32)
        left.mkdir()
        left.with_name(left.name + ".lock").touch()
        (left / "what a dead process staged").write_bytes(b"left")
        return truth

    def _opened(self) -> Any:
        nowhere = Home(str(self.top / "nowhere"))
        return self.there.context().remote("store").opened(nowhere, fresh=True)

    def restore(self) -> None:
        shutil.rmtree(self.work)
        shutil.copytree(self.saved, self.work, symlinks=True)
        shutil.rmtree(self.top / "newcomer", ignore_errors=True)
        if self._bucket is not None:
            now = self.names()
            for name in now - self._objects.keys():
                self._bucket.delete_object(Bucket=self._name, Key=name)
            for name in self._objects.keys() - now:
                self._bucket.put_object(Bucket=self._name, Key=name, Body=self._objects[name])

    def _get(self, name: str) -> bytes:
        data: bytes = self._bucket.get_object(Bucket=self._name, Key=name)["Body"].read()
        return data

    def names(self) -> set[str]:
        """All objects of the store, whoever may need them."""
        if self._bucket is not None:
            return {row["Key"] for row in self._bucket.list_objects_v2(Bucket=self._name).get("Contents", ())}
        return {str(path) for path in (self.work / "store").rglob("*") if path.is_file()}

    # what a client without any cache finds

    def in_store(self) -> States:
        """Every byte of every version, of history too, is verified."""
        with self._opened() as store:
            assert isinstance(store, Store)
            records = list(store.runs(deleted=None))
            assert len({record.run for record in records}) == len(records)
            for quick in (True, False):
                found = verify(store, list, quick)
                assert (found.exit_code, found.problems) == (0, [])
            view, found_in = store._read().view, {}
            for record in records:
                heads = [contents_of(store, head.id) for head in view.heads(record.run)]
                assert len(heads) == (0 if record.purged else 1)
                found_in[record.run] = Lies(_where(record), record.metadata, heads)
            for version in view.living:
                assert version not in self.versions or contents_of(store, version) == self.versions[version]
            assert self.versions.keys() - view.facts.purged <= view.living, "a version went away that nobody purged"
        return found_in

    def _living(self) -> dict[str, Contents]:
        with self._opened() as store:
            return {version: contents_of(store, version) for version in store._read().view.living}

    def in_home(self) -> States:
        home = self.here.home
        with opened_home(Home(str(home))) as replica:
            records = list(replica.runs(deleted=None))
            assert verify(replica, list).problems == []
        found = {LIVE: set(os.listdir(home / "runs")), TRASH: set(os.listdir(home / "trash/runs")), GONE: set()}
        assert found[LIVE].isdisjoint(found[TRASH])
        out: States = {}
        for record in records:
            found[where := _where(record)].discard(record.run)
            top = {LIVE: home / "runs", TRASH: home / "trash/runs"}.get(where)
            assert record.run not in out
            out[record.run] = Lies(where, record.metadata, None if top is None else snapshot(top / record.run))
        assert not any(found.values())
        return out

    def converges(self) -> None:
        """A few collections leave exactly what is needed; and everything that was not purged can be had."""
        before = self.in_store()
        for _ in range(COLLECTIONS):
            self.there.collect(0)
        with self._opened() as store:
            facts, needed = store._read().view.facts, store._read().view.needed_packs()
            names = {path.rpartition("/")[2] for path in store._files.list("packs", deep=True)}
            assert {name for name in names if not name.startswith(".")} == needed
            assert facts.condemned == facts.dropped
            young = set(store._files.list("")) - {"guildsync.json"}
            assert all(name.startswith((".", "probe-")) for name in young)
        assert self.in_store() == before
        newcomer = self._person("newcomer", "store")
        assert newcomer.pull().problems == []
        assert set(newcomer.runs()) == {run for run, lies in before.items() if lies.where == LIVE}
        if any(lies.where == TRASH for lies in before.values()):
            assert newcomer.restore([]).problems == []
            assert newcomer.pull().problems == []
        for run, lies in before.items():
            if lies.where != GONE:
                assert snapshot(newcomer.run(run)) == self.truth[run]


def lean_run(home: Path, run: str, own: bytes, shared: bytes) -> None:
    """A run of few files: most of the time goes into putting a scene back."""
    files = {"of": own, "model.pt": shared, ".guild/attrs/exit_status": b"0\n", ".guild/attrs/label": b"old\n"}
    for name, data in {**files, ".guild/opref": opref()}.items():
        put(home / "runs" / run, name, data)


def _where(record: api.Record) -> str:
    return GONE if record.purged else TRASH if record.deleted else LIVE


def _orphan() -> tuple[str, bytes]:
    """What a push that never ended has left."""
    packer = Packer()
    packer.add(digest_of(b"nobody's"), b"nobody's")
    sealed = packer.seal()
    return pack_path(sealed.fact.name), sealed.data


# -- the laws


class Sweep:
    """The laws of one command, whichever call it dies at."""

    def __init__(self, server: Server, scene: Scene, case: Case) -> None:
        """A first child lives, to learn the calls."""
        self.server, self.scene, self.case = server, scene, case
        self.person = scene.whose(case)
        self.command = Command(self.person, case.verb, str(scene.work), case.arguments)
        self.look, self.other = scene.in_home, scene.in_store
        if case.place == "store":
            self.look, self.other = self.other, self.look
        scene.restore()
        self.old, self.elsewhere = self.look(), self.other()
        scene.restore()
        whole = server.run(self.command)
        assert whole.exit_code == 0, whole.text
        self.calls = whole.calls
        self.new = self.look()
        assert {run: lies for run, lies in self.new.items() if run not in case.runs} == {
            run: lies for run, lies in self.old.items() if run not in case.runs
        }
        for run in case.runs:
            assert self.new[run].where == case.becomes
            assert self.new[run] != self.old[run]
        assert self.other() == self.elsewhere
        scene.converges()

    def kill(self, at: int, after: bool) -> bool:
        """False where it made so many calls no more, and so lived."""
        self.scene.restore()
        end = self.server.run(self.command, at, after)
        assert end.killed == (len(end.calls) > at), f"it should have died, but ended with {end.exit_code}: {end.text}"
        assert end.killed or end.exit_code == 0, end.text
        now = self._old_or_new()
        self._again(now)
        assert self.look() == self.new
        assert self.other() == self.elsewhere
        if self.case.verb == "collect":
            self.scene.converges()
        return end.killed

    def _old_or_new(self) -> States:
        now = self.look()
        assert now.keys() <= self.new.keys() | self.old.keys()
        for run in self.new.keys() | self.old.keys():
            old, new = self.old.get(run), self.new.get(run)
            assert now.get(run) in (old, new, *self._between(old, new)), f"{run} is neither old nor new"
        return now

    def _between(self, old: Lies | None, new: Lies | None) -> Iterator[Lies | None]:
        """What a command leaves that takes two steps with a run."""
        if old is None or new is None or old.where == new.where:
            return
        if (old.where, new.where) == (LIVE, GONE):
            yield replace(old, where=TRASH)
        elif old.where == GONE:
            yield None  # it may come again, and has not come yet

    def _again(self, now: States) -> None:
        case = self.case
        try:
            assert getattr(self.command(), "exit_code", 0) == 0
        except NotFound:
            left = [run for run in case.runs if now.get(run) != self.new[run]]
            assert case.steps or not left
            alive = [run for run in left if now[run] == self.old[run]]
            trashed = [run for run in left if run not in alive]
            if alive:
                assert getattr(self.person, case.verb)(**{**case.arguments, "runs": alive}).exit_code == 0
            if trashed:
                assert self.person.purge(trashed).exit_code == 0


# -- which calls

_VITAL = re.compile(
    r"Files\.(put|_rename|remove) .*(journal|packs)/"  # what a reader of a store sees
    r"|os\.(rename|replace|unlink) home/(runs|trash|\.guildsync/(inflight|tombstones))/"  # and of a home
)


def every(calls: Sequence[Call]) -> Iterator[tuple[int, bool]]:
    return ((n, after) for n in range(len(calls)) for after in (False, True))


def some(calls: Sequence[Call], stride: int) -> Iterator[tuple[int, bool]]:
    """Before the vital calls and just after, and before or after every so many of the others. Where no other thread is
    at work, after one call is before the next."""
    last = -1
    for n, call in enumerate(calls):
        if _VITAL.match(f"{call.what} {call.where}"):
            if last != n - 1:
                yield n, False
            yield n, True
            last = n
        elif n % stride == 0:
            yield n, n // stride % 2 == 0


def sweep(server: Server, scene: Scene, case: Case, choose: Callable[[Sequence[Call]], Any]) -> None:
    laws = Sweep(server, scene, case)
    points = list(choose(laws.calls))
    killed = 0
    for at, after in points:
        try:
            killed += laws.kill(at, after)
        except Exception as exc:
            call = laws.calls[min(at, len(laws.calls) - 1)]
            told = f"killed {'after' if after else 'before'} call {at}, {call.what} {call.where}"
            raise AssertionError(told) from exc
    print(f"{len(laws.calls)} calls, killed {killed} times at {len(points)} points")
    assert killed > 0.9 * len(points)  # what several threads do may take some calls more, or fewer


@pytest.fixture(scope="module")
def in_a_folder(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("folder"), None)


@pytest.fixture(scope="module")
def in_a_bucket(tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server) -> Scene:
    return Scene(tmp_path_factory.mktemp("bucket"), seaweed)


@pytest.mark.parametrize("name", CASES)
def test_a_command_that_dies_leaves_every_run_in_one_place(server: Server, in_a_folder: Scene, name: str) -> None:
    stride = 3 if name in ("home-delete", "home-restore", "home-gc") else 20
    sweep(server, in_a_folder, CASES[name], partial(some, stride=stride))


@pytest.mark.parametrize("name", ["store-delete-permanent", "store-gc", "store-push-undelete", "home-pull-by-id"])
def test_a_command_that_dies_leaves_every_run_in_one_place_of_a_bucket(
    server: Server, in_a_bucket: Scene, name: str
) -> None:
    sweep(server, in_a_bucket, CASES[name], partial(some, stride=1000))


def test_a_purge_of_an_unfinished_run_that_dies_leaves_nothing_that_gc_does_not_end(
    server: Server, tmp_path: Path
) -> None:
    def begin(number: int) -> tuple[Person, Command]:
        person = Person(tmp_path / str(number) / "home", api.LOCAL)
        lean_run(person.home, HERE, b"own", b"shared")
        home = Home(str(person.home))
        home.prepare()
        home.begin(RunId(HERE), NOTHING, NOTHING)
        assert person.delete([HERE]).exit_code == 0
        return person, Command(person, "purge", str(person.home.parent), {"runs": [HERE]})

    calls = server.run(begin(0)[1]).calls
    for number, (at, after) in enumerate(some(calls, 1000), 1):
        person, command = begin(number)
        assert server.run(command, at, after).killed
        home = Home(str(person.home))
        assert home.is_inflight(RunId(HERE)) or not home.is_deleted(RunId(HERE))
        if home.is_deleted(RunId(HERE)):
            assert command().exit_code == 0
        person.collect()
        assert home.is_purged(RunId(HERE))
        assert person.verify().problems == []


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("place", ["folder", "bucket"])
@pytest.mark.parametrize("name", CASES)
def test_a_command_that_dies_at_any_call_leaves_every_run_in_one_place(
    server: Server, request: pytest.FixtureRequest, name: str, place: str
) -> None:
    sweep(server, request.getfixturevalue(f"in_a_{place}"), CASES[name], every)
