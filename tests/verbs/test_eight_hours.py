"""Eight hours of mirrors, compressed: nothing grows but what is kept of the runs and of their versions.

The clocks of mirrors, hints and settling, and the times in the store, are those of a world in which nobody waits; the
work is done, all of it. Real are the clock of the homes' filesystem, and the pings of connections.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from guildsync import api, remotes
from guildsync.hints import Periodic, WatchedHome
from guildsync.store import checkpoint
from guildsync.store.fs import Files
from guildsync.tree import tree
from guildsync.tree.home import Home
from guildsync.tree.settling import Settling
from guildsync.verbs.mirror import Mirror, Silent
from tests.kit.events import event_bytes, scalar_event
from tests.kit.measured import children
from tests.kit.sshd import Sshd
from tests.kit.trees import MIB, assert_same, noise, run_ids, write_run
from tests.kit.trees import _record as record
from tests.kit.world import News, World

MINUTE, HOUR = 60.0, 3600.0
EVENTS = ".guild/events.out.tfevents.1700000000.host.1"
HERE, STORE, FAR = api.LOCAL, "store", "far"
PAGE = os.sysconf("SC_PAGE_SIZE")
PASSING = (".", "probe-", "clock.")
"""How names begin of what is there for a moment; `.tmp` and `.intended` end them."""

ENTRY = 120
"""Bytes of the largest journal object, a checkpoint, a version: of each, what it replaced, and packs that are gone."""
LIVING = 2048
"""Bytes by which it may be more for packs that were there when it was written: they come and go."""
MEMORY = 48 << 20
"""Bytes by which resident memory of four mirrors may be more: what comes and goes, and what is known of versions."""
BLOCKS, PASSING_BLOCKS = 200, 10_000
"""Blocks that Python may hold more a version; and those that come and go, as checkpoints do."""
STAGING = 6
"""Descriptors, and files, of staging directories and their locks: what a delivery leaves the next look removes."""
POOLS = 16
"""Threads that the pools of both stores begin when they first need them, however long all lasts."""
STATE = 12
"""Files that homes may hold more of a run: bases, stat data, scalars."""


@dataclass(frozen=True)
class Course:
    """How long all lasts, and a run; how often what is done, in seconds. All is looked at every `look` seconds, from
    `warm` on. A collection spares what is younger than `grace`; `soon` and `entries` are a checkpointer's."""

    lasts: float = 8 * HOUR
    warm: float = 3 * HOUR
    look: float = 30 * MINUTE
    run: float = 40 * MINUTE
    log: float = 20.0
    save: float = 5 * MINUTE
    collect: float = 30 * MINUTE
    grace: float = 30 * MINUTE
    soon: float = checkpoint.SOON
    entries: int = checkpoint.CHECKPOINT_AFTER


SHORT = Course(
    lasts=30 * MINUTE,
    warm=20 * MINUTE,
    look=5 * MINUTE,
    run=10 * MINUTE,
    log=60.0,
    save=3 * MINUTE,
    collect=5 * MINUTE,
    grace=0.0,
    soon=10 * MINUTE,
    entries=8,
)


class Training:
    """Runs, one after the other, in a home."""

    def __init__(self, home: Path, world: World, course: Course) -> None:
        self._home, self._world, self._course = home, world, course
        self._saved = self._steps = 0
        self.runs: list[str] = []

    def go_on(self) -> None:
        for run in run_ids(int(self._course.lasts / self._course.run)):
            self.runs.append(run)
            self._train(write_run(self._home, run, exit_status=None, stopped=None))

    def _train(self, run: Path) -> None:
        (run / ".guild/LOCK").write_text(str(os.getpid()))
        (run / ".guild/attrs/label").write_text(f"run {len(self.runs)}\n")
        (run / EVENTS).write_bytes(event_bytes())
        saved = began = self._world.now
        while self._world.now < began + self._course.run - self._course.log:
            self._log(run)
            if self._world.now >= saved + self._course.save:
                saved = self._world.now
                self._save(run / "checkpoints")
            self._world.sleep(self._course.log)
        (run / ".guild/attrs/exit_status").write_text("0\n")
        (run / ".guild/LOCK").unlink()

    def _log(self, run: Path) -> None:
        self._steps += 1
        with (run / ".guild/output").open("ab") as file:
            file.write(b"step %d\n" % self._steps)
        with (run / EVENTS).open("ab") as file:
            file.write(record(scalar_event("loss", 1 / self._steps, self._steps)))

    def _save(self, checkpoints: Path) -> None:
        """A new one, of which two are kept; and two that are written over in place, a large one among them."""
        self._saved += 1
        (checkpoints / str(self._saved)).write_bytes(noise(self._saved, 100_000))
        (checkpoints / str(self._saved - 2)).unlink(missing_ok=True)
        for name, size in (("last", 200_000), ("best", MIB + MIB // 2)):
            path = checkpoints / name
            with path.open("r+b" if path.exists() else "wb") as file:
                file.write(noise(self._saved, size))


class Teller(Silent):
    """Counts deliveries, and keeps warnings."""

    def __init__(self) -> None:
        self.deliveries, self.warnings = 0, list[str]()

    def delivered(self, done: api.Mirrored, outcome: api.Outcome) -> None:
        self.deliveries += 1

    def warns(self, text: str) -> None:
        self.warnings.append(text)


@dataclass(frozen=True)
class Sight:
    """What there is while everybody sleeps. `rss` in bytes, `blocks` of Python's; `objects` by the store's directories;
    `state`: files below `.guildsync` of all homes; `litter`: what should be there for a moment only."""

    at: float
    runs: int
    versions: int
    deliveries: int
    rss: int
    blocks: int
    descriptors: int
    threads: int
    objects: Counter[str]
    bytes: Counter[str]
    largest: int
    state: Counter[str]
    litter: Sequence[str]

    @property
    def own(self) -> int:
        """Files that homes keep of their own runs."""
        return sum(count for kind, count in self.state.items() if "remotes" not in kind and "staging" not in kind)

    @property
    def staged(self) -> int:
        """The files in a home's staging directories, and their locks."""
        return max((count for kind, count in self.state.items() if kind.endswith("staging")), default=0)

    def cached(self, kind: str) -> int:
        """The most files that a home keeps of what the store has, or had when it last looked."""
        return max(count for name, count in self.state.items() if name.endswith(f"remotes/{kind}"))

    def __str__(self) -> str:
        return (
            f"{self.at / HOUR:.2f} h: {self.runs} runs, {self.versions} versions, {self.deliveries} deliveries; "
            f"{self.rss / MIB:.1f} MiB, {self.blocks} blocks, {self.descriptors} descriptors, {self.threads} threads; "
            f"store: {dict(self.objects)}, bytes: {dict(self.bytes)}, checkpoint: {self.largest}; "
            f"homes: {sum(self.state.values())} files, {dict(self.state.most_common(4))}"
        )


class Scene:
    """A home that is mirrored to a store, and from there to another one; and to a tree, and from there to another one
    where that is on this machine. A stranger collects what the store holds no longer."""

    def __init__(self, world: World, top: Path, course: Course, host: Sshd | None) -> None:
        self.world, self.top, self.course, self.host = world, top, course, host
        self.home, fed, far, near = (top / name for name in ("home", "fed", FAR, "near"))
        self.ways = [(self.home, (HERE, STORE)), (fed, (STORE, HERE)), (self.home, (HERE, FAR))]
        self.ways += [] if host else [(near, (FAR, HERE))]
        self.targets = [fed, far, *([] if host else [near])]
        self.training = Training(self.home, world, course)
        self.tellers = [Teller() for _ in self.ways]
        self.done: list[api.Mirrored] = []
        self.over = False

    def begin(self) -> None:
        """One after the other: what is to be pulled has to be there."""
        self.world.begin(self.training.go_on)
        for (home, ends), teller in zip(self.ways, self.tellers, strict=True):
            self.world.go(self.world.now + 10.0)
            self.world.begin(partial(self._mirror, home, ends, teller))
        self.world.begin(self._collect)

    def end(self) -> None:
        self.over = True
        self.world.go()

    def _mirror(self, home: Path, ends: tuple[str, str], teller: Teller) -> None:
        deletes = api.Options(policy=api.Policy(delete=True))
        self.done.append(api.open_context(str(home)).mirror(ends, deletes, api.Terms(), teller, lambda: self.over))

    def _collect(self) -> None:
        stranger = api.open_context(str(self.top / "stranger"))
        while not self.over:
            self.world.sleep(self.course.collect)
            stranger.collect(STORE, self.course.grace)

    def sight(self) -> Sight:
        gc.collect()
        store = {path.relative_to(self.top / "store"): path.stat().st_size for path in _files(self.top / "store")}
        homes = [self.home, *self.targets]
        tops = [home / ".guildsync" for home in homes]
        state = [(top.parent.name, path.relative_to(top)) for top in tops for path in _files(top)]
        processes = ["self", *map(str, children(self.host.pid) if self.host else ())]
        return Sight(
            at=self.world.now,
            runs=len(self.training.runs),
            versions=self.tellers[0].deliveries,
            deliveries=sum(teller.deliveries for teller in self.tellers),
            rss=sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE for pid in processes),
            blocks=sys.getallocatedblocks(),
            descriptors=sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in processes),
            threads=sum(len(os.listdir(f"/proc/{pid}/task")) for pid in processes),
            objects=Counter(path.parts[0] for path in store),
            bytes=sum((Counter({path.parts[0]: size}) for path, size in store.items()), Counter()),
            largest=max((size for path, size in store.items() if path.parts[0] == "journal"), default=0),
            state=Counter("/".join([home, *path.parts[:-1][::2]]) for home, path in state),
            litter=[str(path) for path in [*store, *(path for _, path in state)] if _is_passing(path)],
        )


def _files(top: Path) -> list[Path]:
    return [path for path in top.rglob("*") if path.is_file()]


def _is_passing(path: Path) -> bool:
    return path.name.startswith(PASSING) or path.suffix in (".tmp", ".intended") or "inflight" in path.parts


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """By whose clock mirrors, hints, settling and folder stores go."""
    world, began, put = World(), time.time() + MINUTE, Files.put

    def watched(home: Home) -> WatchedHome:
        found = WatchedHome(home, world.time)
        found._news = News(world)
        return found

    def put_now(files: Files, name: str, data: bytes) -> None:
        put(files, name, data)
        os.utime(f"{files.root}/{name}", times=(began + world.now,) * 2)

    monkeypatch.setattr(api, "Mirror", partial(Mirror, clock=world.time, sleep=world.sleep))
    monkeypatch.setattr(remotes, "WatchedHome", watched)
    monkeypatch.setattr(remotes, "Periodic", partial(Periodic, clock=world.time, sleep=world.sleep))
    monkeypatch.setattr(tree, "Settling", partial(Settling, world.time))
    monkeypatch.setattr(Files, "put", put_now)
    return world


def scene_of(kind: str, course: Course, tmp_path: Path, world: World, request: pytest.FixtureRequest) -> Scene:
    patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    patch.setattr(checkpoint, "SOON", course.soon)
    patch.setattr(checkpoint, "CHECKPOINT_AFTER", course.entries)
    far, host = f"{{type: local, path: '{tmp_path}/{FAR}'}}", None
    if kind == "ssh":
        request.getfixturevalue("ssh_user")
        far, host = f"{{type: ssh, host: far, guild-home: '{tmp_path}/{FAR}'}}", request.getfixturevalue("ssh_host")
    store = f"{{type: fsspec, url: 'file://{tmp_path}/store', poll: 15s}}"
    (tmp_path / "config.yml").write_text(f"remotes:\n  {STORE}: {store}\n  {FAR}: {far}\n")
    patch.setenv("GUILDSYNC_CONFIG", str(tmp_path / "config.yml"))
    return Scene(world, tmp_path, course, host)


def bounded(first: Sight, now: Sight, course: Course) -> None:
    """Once all is warm only what is kept of runs and of versions is more."""
    versions, runs = now.versions - first.versions, now.runs - first.runs
    assert now.litter == []
    assert now.descriptors <= first.descriptors + STAGING
    assert now.threads <= first.threads + POOLS
    assert now.rss <= first.rss + MEMORY
    assert now.blocks <= first.blocks + BLOCKS * versions + PASSING_BLOCKS
    assert now.objects["journal"] <= 4 * course.entries + 8
    assert now.largest <= first.largest + ENTRY * (versions + course.entries) + LIVING
    assert now.staged <= STAGING
    assert now.own <= first.own + STATE * runs
    assert now.cached("journal") <= now.objects["journal"] + 2 * course.entries
    assert now.cached("index") <= now.objects["packs"] + 2 * course.entries


long = [pytest.mark.soak, pytest.mark.timeout(7200)]


@pytest.mark.parametrize(
    ("kind", "course"),
    [
        pytest.param("disk", SHORT, id="disk-short"),
        pytest.param("ssh", SHORT, id="ssh-short", marks=pytest.mark.servers),
        pytest.param("disk", Course(), id="disk", marks=long),
        pytest.param("ssh", Course(), id="ssh", marks=[*long, pytest.mark.servers]),
    ],
)
def test_nothing_grows_but_what_is_kept(
    kind: str, course: Course, world: World, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    scene = scene_of(kind, course, tmp_path, world, request)
    scene.begin()
    sights: list[Sight] = []
    while (at := course.warm + len(sights) * course.look) <= course.lasts:
        world.go(at)
        sights.append(scene.sight())
        print(sights[-1], flush=True)
    for now in sights[1:]:
        bounded(sights[0], now, course)
    scene.end()
    assert [teller.warnings for teller in scene.tellers] == [[] for _ in scene.ways]
    assert [done.problems for done in scene.done] == [[] for _ in scene.ways]
    for run in scene.training.runs:
        for target in scene.targets:
            assert_same(scene.home / "runs" / run, target / "runs" / run)
    assert api.open_context(str(tmp_path / "fresh")).verify(STORE).problems == []
