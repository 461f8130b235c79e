"""From every kind of place to every kind of place: what is copied arrives as it was, and nothing is lost on the way."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from guildsync.api import LOCAL, Choice, Context, Options, Outcome, Policy, open_context
from guildsync.errors import CONFLICT
from guildsync.tree.redact import PATHS, redact
from tests.conftest import new_bucket
from tests.kit.servers import REGION, S3Server
from tests.kit.trees import assert_same, put, run_ids, snapshot, ugly_run, write_run, yaml_bytes

UGLY, PLAIN = run_ids(2)
CAPTURED = b"HOME: /home/u\nSECRET_TOKEN: hunter2\n"
MARKER = b"hunter2"

Config = Callable[[Path, pytest.FixtureRequest], str]


@dataclass(frozen=True)
class Place:
    """A kind of place. `config` makes a new one below a directory and answers its keys in a configuration; None: the
    home itself."""

    name: str
    config: Config | None
    needs_server: bool = False


def _bucket(_: Path, request: pytest.FixtureRequest) -> str:
    server: S3Server = request.getfixturevalue("seaweed")
    patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    patch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    patch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    return f"{{type: s3, bucket: {new_bucket(server)}, region: {REGION}, endpoint-url: '{server.endpoint}'}}"


def _host(directory: Path, request: pytest.FixtureRequest) -> str:
    request.getfixturevalue("ssh_user")
    return f"{{type: ssh, host: far, guild-home: {directory}/home}}"


def _account(directory: Path, request: pytest.FixtureRequest) -> str:
    request.getfixturevalue("ssh_user")
    return f"{{type: ssh, host: far, layout: store, guild-home: {directory}/store}}"


PLACES = (
    Place("home", None),
    Place("disk", lambda directory, _: f"{{type: local, path: {directory}/home}}"),
    Place("folder", lambda directory, _: f"{{type: fsspec, url: 'file://{directory}/store'}}"),
    Place("s3", _bucket, needs_server=True),
    Place("ssh", _host, needs_server=True),
    Place("sftp", _account, needs_server=True),
)
PAIRS = [
    pytest.param(
        *pair,
        id=f"{pair[0].name}-{pair[1].name}",
        marks=[pytest.mark.servers] if any(place.needs_server for place in pair) else [],
    )
    for pair in product(PLACES, repeat=2)
    if any(place.config for place in pair)
]


@dataclass(frozen=True)
class Person:
    """Somebody with a home of his own, who works on one of the two places: `name` as he calls it."""

    context: Context
    name: str

    @property
    def home(self) -> Path:
        return Path(self.context.home.text)

    @property
    def run(self) -> Path:
        return self.home / "runs" / PLAIN

    def hand_in(self) -> None:
        """What is in his home lies at the place."""
        if self.name != LOCAL:
            assert self.context.push(self.name).exit_code == 0

    def fetch(self) -> None:
        if self.name != LOCAL:
            assert self.context.pull(self.name).exit_code == 0


class World:
    """Two places, and the one home that copies between them; it has no runs of its own unless it is a place."""

    def __init__(self, directory: Path, ends: tuple[Place, Place], request: pytest.FixtureRequest) -> None:
        lines, self.names = ["remotes:"], []
        for name, place in zip(("one", "other"), ends, strict=True):
            (directory / name).mkdir()
            self.names.append(name if place.config else LOCAL)
            if place.config:
                lines.append(f"  {name}: {place.config(directory / name, request)}")
        self.directory, self.file = directory, directory / "guildsync.yml"
        self.file.write_text("\n".join(lines))
        self.copier = self._context("copier")

    def _context(self, home: str) -> Context:
        return open_context(str(self.directory / home), str(self.file), cwd=str(self.directory))

    def person(self, end: int, who: str = "worker") -> Person:
        """Somebody at the source (0) or the target (1), the same for the same `who`."""
        name = self.names[end]
        return Person(self.copier if name == LOCAL else self._context(f"{who} at {end}"), name)

    def copy(self, back: bool = False, **options: object) -> Outcome:
        source, target = reversed(self.names) if back else self.names
        return self.copier.copy(source, target, Options(**options))  # type: ignore[arg-type]

    def seen(self, end: int, who: str) -> Path:
        """The home of somebody who just fetched all runs of a place."""
        person = self.person(end, who)
        person.fetch()
        return person.home


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, one: Place, other: Place) -> World:
    return World(tmp_path, (one, other), request)


def redact_here(run: Path) -> None:
    for path in (run / os.fsdecode(name) for name in PATHS):
        if path.exists():
            info = path.stat()
            path.write_bytes(redact(path.read_bytes()))
            os.utime(path, ns=(info.st_mtime_ns, info.st_mtime_ns))


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_an_ugly_run_arrives_as_it_was_and_is_copied_once(world: World) -> None:
    worker = world.person(0)
    run = ugly_run(worker.home, UGLY)
    put(run, ".guild/attrs/env", CAPTURED)
    write_run(worker.home, PLAIN, label="first")
    before = snapshot(run)
    worker.hand_in()
    planned = world.copy(dry_run=True)
    assert (planned.problems, planned.runs, planned.exit_code) == ([], 2, 0)
    copied = world.copy()
    assert (copied.problems, copied.runs, copied.exit_code) == ([], 2, 0)
    assert (copied.files, copied.bytes_total) == (planned.files, planned.bytes_total)
    assert snapshot(run) == before
    for again in (world.copy(), world.copy(back=True)):
        assert (again.problems, again.runs, again.same, again.bytes_sent) == ([], 0, 2, 0)
    seen = world.seen(1, "reader")
    redact_here(run)
    assert MARKER not in (seen / "runs" / UGLY / ".guild/attrs/env").read_bytes()
    for name in (UGLY, PLAIN):
        assert_same(worker.home / "runs" / name, seen / "runs" / name)
    assert world.copier.verify(world.names[1]).exit_code == 0
    if LOCAL not in world.names:
        assert not (world.directory / "copier/runs").exists()


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_labels_travel_without_the_bytes(world: World) -> None:
    worker = world.person(0)
    write_run(worker.home, PLAIN, label="first")
    worker.hand_in()
    assert world.copy().exit_code == 0
    put(worker.run, ".guild/attrs/label", yaml_bytes("second"))
    put(worker.run, ".guild/attrs/tags", yaml_bytes(["best"]))
    worker.hand_in()
    copied = world.copy()
    assert (copied.problems, copied.runs, copied.bytes_total, copied.exit_code) == ([], 1, 0, 0)
    (record,) = world.copier.runs(world.names[1])
    assert (record.metadata.label, set(record.metadata.tags)) == ("second", {"best"})
    assert world.copy(back=True).runs == 0


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_conflict_is_reported_and_nothing_is_lost(world: World) -> None:
    worker, colleague = world.person(0), world.person(1)
    write_run(worker.home, PLAIN)
    worker.hand_in()
    assert world.copy().exit_code == 0
    colleague.fetch()
    put(worker.run, "train.py", b"one\n")
    put(worker.run, "only here", b"1")
    put(colleague.run, "train.py", b"other\n")
    put(colleague.run, "only there", b"2")
    worker.hand_in()
    colleague.hand_in()
    copied = world.copy()
    (problem,) = copied.problems
    assert (problem.run, problem.path, problem.reason, copied.exit_code) == (PLAIN, b"train.py", CONFLICT, 6)
    write_run(worker.home, UGLY)
    worker.hand_in()
    copied = world.copy()
    assert (copied.runs, [found.run for found in copied.problems], copied.exit_code) == (1, [PLAIN], 7)
    seen = [world.seen(end, "reader") / "runs" / PLAIN for end in (0, 1)]
    assert [(run / "train.py").read_bytes() for run in seen] == [b"one\n", b"other\n"]
    assert ((seen[0] / "only here").exists(), (seen[0] / "only there").exists()) == (True, False)
    assert ((seen[1] / "only here").exists(), (seen[1] / "only there").exists()) == (False, True)
    assert world.copy(policy=Policy(resolve="source")).exit_code == 0
    last = world.seen(1, "late reader") / "runs" / PLAIN
    assert {name: (last / name).read_bytes() for name in ("train.py", "only here", "only there")} == {
        "train.py": b"one\n",
        "only here": b"1",
        "only there": b"2",
    }


def test_two_copiers_do_not_undo_each_other(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Each home has bases of its own for the same pair of places."""
    world = World(tmp_path, (PLACES[2], PLACES[1]), request)
    worker, second = world.person(0), world._context("second copier")
    write_run(worker.home, PLAIN)
    worker.hand_in()
    assert world.copy().runs == 1
    put(worker.run, "train.py", b"newer\n")
    worker.hand_in()
    assert second.copy(*world.names).exit_code == 6  # what it never saw the same on both sides
    assert world.copy().runs == 1
    assert second.copy(*world.names).same == 1
    put(tmp_path / "other/home/runs" / PLAIN, "train.py", b"newest\n")
    outcome = world.copy()
    assert (outcome.runs, outcome.problems) == (0, [])
    assert second.copy(*reversed(world.names)).runs == 1
    assert world.copy(choose=Choice((PLAIN[:6],))).same == 1
