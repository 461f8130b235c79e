"""An interrupted push goes on where it was: what it costs, what shows meanwhile, whose word is taken (promise P9)."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from guildsync import api
from guildsync.model.manifest import Digest
from guildsync.store import stage
from guildsync.store.fs import Files
from guildsync.store.journal import Commit, Facts, decode, encode
from guildsync.store.pack import pack_path
from guildsync.store.reading import Journal
from guildsync.store.stage import CACHED
from guildsync.verbs import deliver
from tests.conftest import new_bucket
from tests.kit.model import Person, opened_store
from tests.kit.proxy import Proxy, proxied
from tests.kit.servers import S3Server, bucket_file
from tests.kit.trees import MIB, assert_same, noise, run_ids, write_run

ROOT = Path(__file__).parents[2]
MOST = 64 * MIB
"""Bytes that one cut may cost."""
SECONDS = 120
"""In which a process ends, or hangs."""
SMALL, LARGE, *_ = run_ids(2)

soak = [pytest.mark.soak, pytest.mark.timeout(1800)]
sizes = pytest.mark.parametrize(("size", "cuts"), [(160 * MIB, 3), pytest.param(1024 * MIB, 10, marks=soak)])


# -- cut off on the way to a bucket


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Site:
    """Somebody whose pushes are processes of their own, and the proxy that they go through."""

    def __init__(self, person: Person, proxy: Proxy) -> None:
        self.person, self.proxy = person, proxy

    def start(self, *argv: str) -> subprocess.Popen[str]:
        assert self.person.config_file is not None
        words = [*argv, "--home", str(self.person.home), "--config", self.person.config_file, "-y"]
        return subprocess.Popen(
            [sys.executable, "-m", "guildsync", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def wait(self, child: subprocess.Popen[str]) -> Ended:
        try:
            out, err = child.communicate(timeout=SECONDS)
        finally:
            child.kill()
        self.proxy.wait_closed()
        return Ended(child.returncode, out, err)

    def run(self, *argv: str) -> Ended:
        return self.wait(self.start(*argv))

    def killed_push(self, after: int) -> int:
        """A push is killed when so many bytes of it have passed; answers how many there were in the end."""
        self.proxy.forget()
        child = self.start("push", "bucket")
        self.proxy.alarm(after, child.kill)
        assert self.wait(child).code == -signal.SIGKILL
        return self.proxy.bytes_out

    def to_send(self) -> int:
        """Bytes that a push would send now. To ask changes nothing."""
        self.proxy.forget()
        said = self.run("push", "bucket", "--dry-run", "--json")
        assert said.code == 0, said.err
        assert {request.partition(" ")[0] for request in self.proxy.requests} == {"GET"}
        return int(said.json["bytes_total"] - said.json["bytes_reused"])

    def listed(self) -> set[str]:
        said = self.run("runs", "-r", "bucket", "--json")
        assert said.code == 0, said.err
        return {row["id"] for row in said.json}

    def assert_delivered(self, fresh: Person) -> None:
        assert self.run("verify", "-r", "bucket").code == 0
        assert fresh.pull().problems == []
        assert fresh.runs() == self.person.runs()
        for run in fresh.runs():
            assert_same(fresh.run(run), self.person.run(run))


@pytest.fixture
def site(seaweed: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A store with one small run; a home that has it too."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweed.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.secret_key)
    with proxied(seaweed.endpoint) as proxy:
        file = bucket_file(tmp_path, proxy.endpoint, new_bucket(seaweed))
        site = Site(Person(tmp_path / "a" / "guild", "bucket", str(file)), proxy)
        write_run(site.person.home, SMALL)
        assert site.run("push", "bucket").code == 0
        yield site
    shutil.rmtree(tmp_path)


@pytest.fixture
def fresh(site: Site, tmp_path: Path) -> Person:
    return replace(site.person, home=tmp_path / "b" / "guild")


def make_large(person: Person, size: int) -> None:
    write_run(person.home, LARGE)
    with (person.run(LARGE) / "weights").open("wb") as file:
        for block in range(size // MIB):
            file.write(noise(block, MIB))


@pytest.mark.servers
@sizes
def test_a_killed_push_costs_little(site: Site, fresh: Person, size: int, cuts: int) -> None:
    """Whatever has passed when it is killed, the next one sends 64 MiB of it again at most; nothing of it shows."""
    make_large(site.person, size)
    points, uploaded, left = random.Random(size), 0, site.to_send()
    wanted = left
    assert wanted >= size
    for cut in range(cuts):
        passed = site.killed_push(points.randrange(MIB, int(0.95 * size / cuts)))
        assert site.listed() == {SMALL}
        now = site.to_send()
        print(f"cut {cut}: {passed:,} bytes had passed, {passed - (left - now):,} of them are sent again")
        assert 0 <= passed - (left - now) <= MOST
        uploaded, left = uploaded + passed, now
    site.proxy.forget()
    last = site.run("push", "bucket", "--json")
    assert last.code == 0, last.err
    assert "note: took over" in last.err
    assert "that an interrupted push had sent" in last.err
    assert last.json["bytes_resumed"] == wanted - left > 0
    assert left <= site.proxy.bytes_out <= left + MIB
    uploaded += site.proxy.bytes_out
    print(f"in all {uploaded:,} bytes for {size:,}: {(uploaded - size) / cuts:,.0f} a cut")
    assert uploaded <= size + cuts * MOST
    assert site.listed() == {SMALL, LARGE}
    site.assert_delivered(fresh)


@pytest.mark.servers
@sizes
def test_connections_that_are_cut_cost_little(site: Site, fresh: Person, size: int, cuts: int) -> None:
    """All of them at once, at some points of one push, which goes on by itself."""
    make_large(site.person, size)
    points = random.Random(size)
    after = [points.randrange(MIB, int(0.95 * size / cuts)) for _ in range(cuts)]
    done: list[int] = []

    def cut() -> None:
        done.append(site.proxy.bytes_out)
        site.proxy.cut()
        if len(done) < cuts:
            site.proxy.alarm(after[len(done)], cut)

    site.proxy.forget()
    site.proxy.alarm(after[0], cut)
    said = site.run("push", "bucket", "--json")
    assert said.code == 0, said.err
    assert len(done) == cuts
    again = site.proxy.bytes_out - said.json["bytes_total"]
    print(f"{site.proxy.bytes_out:,} bytes for {size:,}: {again / cuts:,.0f} a cut")
    assert again <= cuts * MOST
    site.assert_delivered(fresh)


@pytest.mark.servers
def test_two_pushes_from_one_home_at_once_do_no_harm(site: Site, fresh: Person) -> None:
    """Both take over what a killed one has sent."""
    make_large(site.person, 64 * MIB)
    site.killed_push(32 * MIB)
    both = [site.start("push", "bucket", "--json") for _ in range(2)]
    for child in both:
        out, err = child.communicate(timeout=SECONDS)
        assert child.returncode in (0, 7), err  # 7: the other's version came first, and is the same
        assert json.loads(out)["bytes_resumed"] > 0
    assert site.run("push", "bucket").code == 0
    assert site.listed() == {SMALL, LARGE}
    site.assert_delivered(fresh)


# -- what a home notes of packs that no commit names yet


class Folder:
    """Somebody whose store is a folder, with a run in it already."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "store"
        self.person = Person(directory / "a" / "guild", self.path.as_uri())
        self.fresh = Person(directory / "b" / "guild", self.path.as_uri())
        self.wanted = 0
        write_run(self.person.home, SMALL)
        assert self.person.push().exit_code == 0

    @property
    def packs(self) -> set[str]:
        return {path.name for path in self.path.glob("packs/*/*")}

    @property
    def notes(self) -> set[str]:
        return {path.name for path in self.person.home.glob(f".guildsync/remotes/*/{CACHED}/*")}

    def interrupted_push(self, monkeypatch: pytest.MonkeyPatch) -> set[str]:
        """A push that ends when all packs are there and its commit is not; answers their names."""
        before = self.packs

        def end(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "put", end)
            with pytest.raises(KeyboardInterrupt):
                self.person.push()
        left = self.packs - before
        assert left == self.notes
        return left

    def say(self, **facts: Any) -> None:
        """Another client commits these facts."""
        last = max(path.name for path in (self.path / "journal").iterdir())
        store = decode(last, (self.path / "journal" / last).read_bytes()).store
        found = Facts(**{kind: frozenset(values) for kind, values in facts.items()})
        commit = Commit(store, 1 + int(last[:16]), str(uuid.uuid4()), found)
        (self.path / "journal" / commit.name).write_bytes(encode(commit))

    def claimed(self, run: str) -> set[str]:
        with opened_store(self.person.remote) as store:
            view = store._read().view
            return {pack for head in view.heads(run) for claim in view.claims(head.id) for pack in claim.packs}

    def assert_delivered(self) -> None:
        assert self.person.verify().problems == []
        assert self.fresh.pull().problems == []
        assert self.fresh.runs() == self.person.runs()
        for run in self.fresh.runs():
            assert_same(self.fresh.run(run), self.person.run(run))
        assert self.person.push().same == len(self.person.runs())

    def make_large(self) -> None:
        """Another run, most of whose bytes are new."""
        write_run(self.person.home, LARGE, {f"part{n}": noise(n, 3 * MIB) for n in range(4)})
        dry = self.person.push(dry_run=True)
        self.wanted = dry.bytes_total - dry.bytes_reused


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    folder.make_large()
    return folder


def ok(outcome: api.Outcome) -> api.Outcome:
    assert (outcome.problems, outcome.exit_code, outcome.runs) == ([], 0, 1)
    return outcome


def test_what_was_sent_is_taken_over(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    left = folder.interrupted_push(monkeypatch)
    assert len(left) > 1
    assert [record.run for record in folder.person.context().runs(folder.person.remote)] == [SMALL]
    done = ok(folder.person.push())
    assert (done.bytes_sent, done.bytes_resumed) == (0, folder.wanted)
    assert folder.claimed(LARGE) <= left | folder.claimed(SMALL)
    folder.assert_delivered()


def test_notes_go_when_the_journal_names_the_packs(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.interrupted_push(monkeypatch)
    ok(folder.person.push())
    assert folder.notes == set()
    folder.person.write(LARGE, "more", noise(9, MIB))
    assert ok(folder.person.push()).bytes_resumed == 0
    assert folder.notes == set()


def test_notes_of_packs_that_the_journal_names_go_unused(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their push was killed between its commit and the end."""
    with monkeypatch.context() as patch:
        put = Journal.put

        def end(self: Journal, commit: Commit) -> None:
            put(self, commit)
            raise KeyboardInterrupt

        patch.setattr(Journal, "put", end)
        with pytest.raises(KeyboardInterrupt):
            folder.person.push()
    assert folder.notes
    assert folder.person.push().runs == 0
    folder.person.write(LARGE, "more", noise(9, MIB))
    assert ok(folder.person.push()).bytes_resumed == 0
    assert folder.notes == set()
    folder.assert_delivered()


def test_a_note_of_a_pack_that_is_gone_is_not_believed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it held is sent again, and no more than that."""
    left = sorted(folder.interrupted_push(monkeypatch))
    largest = max(left, key=lambda name: (folder.path / pack_path(name)).stat().st_size)
    (folder.path / pack_path(largest)).unlink()
    done = ok(folder.person.push())
    assert done.bytes_resumed + done.bytes_sent == folder.wanted
    assert done.bytes_sent > 0 < done.bytes_resumed
    assert largest not in folder.claimed(LARGE)
    folder.assert_delivered()


def test_a_note_of_a_pack_that_is_cut_short_is_not_believed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in folder.interrupted_push(monkeypatch):
        path = folder.path / pack_path(name)
        path.write_bytes(path.read_bytes()[:-60])
    done = ok(folder.person.push())
    assert (done.bytes_resumed, done.bytes_sent) == (0, folder.wanted)
    folder.assert_delivered()


def test_a_note_without_its_index_is_not_used(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.interrupted_push(monkeypatch)
    for path in folder.person.home.glob(".guildsync/remotes/*/index/*"):
        path.unlink()
    assert ok(folder.person.push()).bytes_resumed == 0
    folder.assert_delivered()


@pytest.mark.parametrize("kind", ["condemned", "dropped"])
def test_a_pack_that_was_condemned_meanwhile_is_not_used(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Though it is still there: a collector may delete it at any time."""
    left = folder.interrupted_push(monkeypatch)
    folder.say(**{kind: {Digest(name) for name in left}})
    done = ok(folder.person.push())
    assert (done.bytes_resumed, done.bytes_sent) == (0, folder.wanted)
    assert folder.claimed(LARGE).isdisjoint(left)
    assert folder.notes == set()
    for name in left:
        (folder.path / pack_path(name)).unlink()
    folder.assert_delivered()


def test_a_pack_that_is_condemned_once_it_was_taken_over_is_replaced(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at it and the commit, which another round mends."""
    left = folder.interrupted_push(monkeypatch)
    put, condemned = Journal.put, []

    def condemn(self: Journal, commit: Commit) -> None:
        if not condemned:
            folder.say(condemned={Digest(name) for name in left})
            condemned.append(True)
            commit = replace(commit, sequence=commit.sequence + 1)
        put(self, commit)

    monkeypatch.setattr(Journal, "put", condemn)
    ok(folder.person.push())
    with opened_store(folder.person.remote) as store:
        view = store._read().view
        assert all(view.settled(head.id) for head in view.heads(LARGE))
    for name in left:
        (folder.path / pack_path(name)).unlink()
    folder.assert_delivered()


def test_a_push_of_something_else_leaves_the_notes(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    left = folder.interrupted_push(monkeypatch)
    folder.person.write(SMALL, "more", b"more")
    only = api.Choice((SMALL,))
    assert ok(folder.person.push(choose=only)).bytes_resumed == 0
    assert folder.notes == left
    assert ok(folder.person.push()).bytes_sent == 0
    folder.assert_delivered()


def test_a_dry_run_takes_over_nothing(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what would be, and all stays as it is."""
    folder.interrupted_push(monkeypatch)
    state = folder.person.home / ".guildsync"
    before = files_below(folder.path) | files_below(state)
    for _ in range(2):
        done = folder.person.push(dry_run=True)
        assert (done.runs, done.bytes_resumed) == (1, folder.wanted)
        assert (done.bytes_reused, done.bytes_sent) == (done.bytes_total, 0)
    assert files_below(folder.path) | files_below(state) == before
    assert ok(folder.person.push()).bytes_resumed == folder.wanted


def files_below(directory: Path) -> dict[Path, bytes]:
    """But for the stat cache, which any look at the home may fill."""
    paths = (path for path in directory.rglob("*") if path.is_file() and "stat" not in path.parts)
    return {path: path.read_bytes() for path in paths}


def test_a_push_takes_over_from_one_that_still_runs(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one's whole push lies before the first one's commit, and uses its packs."""
    put, inner = Journal.put, list[api.Outcome]()

    def late(self: Journal, commit: Commit) -> None:
        if not inner:
            with monkeypatch.context() as patch:
                patch.setattr(Journal, "put", put)
                inner.append(folder.person.push())
        put(self, commit)

    monkeypatch.setattr(Journal, "put", late)
    outer = folder.person.push()
    assert (ok(inner[0]).bytes_sent, inner[0].bytes_resumed) == (0, folder.wanted)
    assert outer.exit_code in (0, 7)
    assert folder.person.push().exit_code == 0
    assert folder.notes == set()
    folder.assert_delivered()


def test_what_was_committed_before_the_cut_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole runs, as they got whole; of the others the next push sends what is not there."""
    folder, more = Folder(tmp_path), run_ids(9)[1:]
    for number, run in enumerate(more):
        write_run(folder.person.home, run, {"weights": noise(number, 2 * MIB)})
    monkeypatch.setattr(deliver, "COMMIT_BYTES", 5 * MIB)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put", nth(Journal.put, 3, interrupt))
        with pytest.raises(KeyboardInterrupt):
            folder.person.push()
    assert folder.person.verify().problems == []
    listed = {record.run for record in folder.person.context().runs(folder.person.remote)}
    assert {SMALL} < listed < {SMALL, *more}
    done = folder.person.push()
    assert (done.exit_code, done.runs, done.same) == (0, 9 - len(listed), len(listed))
    assert 0 < done.bytes_resumed < done.bytes_total
    folder.assert_delivered()


@pytest.mark.parametrize("upload", [1, 2, 3, 4, 5])
def test_a_failed_upload_costs_what_was_under_way(folder: Folder, monkeypatch: pytest.MonkeyPatch, upload: int) -> None:
    """Packs that are confirmed are noted, one whose upload failed is not."""
    before = folder.packs
    with monkeypatch.context() as patch:
        patch.setattr(stage, "LARGEST_PACK", stage.FIRST)  # however quick the uploads are, there are at least six
        patch.setattr(Files, "put", nth(Files.put, upload, partial(fail, OSError("the line is dead"))))
        with pytest.raises(OSError, match="the line is dead"):
            folder.person.push()
    assert folder.notes == folder.packs - before
    done = ok(folder.person.push())
    assert done.bytes_resumed + done.bytes_sent == folder.wanted
    folder.assert_delivered()


def nth(original: Callable[..., Any], number: int, act: Callable[[], None]) -> Callable[..., Any]:
    """What acts instead from its `number`-th call on."""
    calls: list[None] = []

    def call(*args: Any) -> Any:
        calls.append(None)
        if len(calls) >= number:
            act()
        return original(*args)

    return call


def interrupt() -> None:
    raise KeyboardInterrupt


def fail(exc: Exception) -> None:
    raise exc
