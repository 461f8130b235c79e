"""Real processes at one store, stopped, killed and started again at random: no reference dangles (promises P7, P8)."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from guildsync import api
from guildsync.errors import CHANGED, CONFLICT, MOVED, PURGED, TRASHED
from guildsync.remotes import open_remote
from guildsync.store import fs
from guildsync.store.store import Store
from tests.conftest import new_bucket
from tests.kit.crew import PUSHES, Act, Crew, Said, Worker, made_once
from tests.kit.model import Contents, Person, contents_of
from tests.kit.servers import REGION, S3Server
from tests.kit.trees import noise, opref, run_ids

SECONDS, PATIENCE = 4.0, 20.0
SCHEDULES = 300
PUSHERS = 3
COLLECTIONS = 3
IDS = run_ids(3 * PUSHERS + 2)
EVERYWHERE, DIFFERENT, OWN = IDS[0], IDS[1], IDS[2:]
"""A run that is the same in all homes, one that is another one in each, and those of one home."""

pytestmark = pytest.mark.servers


@dataclass
class Schedule:
    """What everybody is to do; all of it is decided by the seed."""

    seed: int
    top: Path
    config: str
    written: dict[str, list[Contents]] = field(default_factory=dict)
    labels: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.workers = [self._pusher(n) for n in range(PUSHERS)]
        self.workers += [
            self._worker("deleter", [self._of_some("delete", IDS, 0.4) for _ in range(40)]),
            self._worker("restorer", [self._of_some("restore", (), 1.2) for _ in range(40)]),
            self._worker("purger", [self._of_some("purge", (), 1.2) for _ in range(40)]),
            self._worker("editor", [self._label(n) for n in range(40)]),
            self._worker("puller", [Act("pull", pause=self.rng.random()) for _ in range(40)]),
            self._worker("gc 1", [self._gc() for _ in range(80)]),
            self._worker("gc 2", [self._gc() for _ in range(80)]),
        ]

    def _worker(self, name: str, acts: list[Act]) -> Worker:
        return Worker(name, Person(self.top / name, "store", self.config), acts)

    def _pusher(self, number: int) -> Worker:
        """Runs of small files, most of which others have, too; they change between pushes."""
        rng, pool = self.rng, [noise(n, 300 + 97 * n) for n in range(12)]
        mine = OWN[3 * number : 3 * number + 3]
        runs: dict[str, Contents] = {EVERYWHERE: _run({"a": pool[0], "b": pool[1]})}
        if self.rng.random() < 0.5:
            runs[DIFFERENT] = _run({"which": b"%d" % number, "b": pool[1]})
        runs |= {run: _run({f"f{n}": rng.choice(pool) for n in range(4)} | {"of": run.encode()}) for run in mine}
        acts = [self._push(runs, runs)]
        for step in range(30):
            changed: dict[str, Contents] = {}
            for run in rng.sample(mine, rng.choice((0, 1, 1, 2))):
                log = runs[run].get("log", b"") + b"step %d\n" % step
                changed[run] = {rng.choice(("log", "f1")): rng.choice((log, rng.choice(pool))), "log": log}
                runs[run] = {**runs[run], **changed[run]}
            acts.append(self._push(runs, changed))
        return self._worker(f"pusher {number}", acts)

    def _push(self, runs: Mapping[str, Contents], changed: Mapping[str, Contents]) -> Act:
        for run, contents in runs.items():
            self.written.setdefault(run, []).append(dict(contents))
        writes = {(run, name): data for run, contents in changed.items() for name, data in contents.items()}
        if self.rng.random() < 0.2:
            return Act("revive", {"verb": "push", "runs": list(runs)}, writes)
        return Act("push", {}, writes)

    def _of_some(self, verb: str, runs: Sequence[str], pause: float) -> Act:
        """Of none means all."""
        some = self.rng.sample(runs, self.rng.choice((1, 1, 2))) if runs else self.rng.sample(("@latest", "1:"), 1)
        return Act(verb, {"runs": some}, pause=self.rng.random() * pause)

    def _label(self, number: int) -> Act:
        self.labels.add(label := f"label {number}")
        return Act("label", {"runs": [self.rng.choice(IDS)], "label": label}, pause=self.rng.random() * 0.4)

    def _gc(self) -> Act:
        return Act("collect", {"grace": 0}, pause=self.rng.random() * 0.3)

    @property
    def said(self) -> list[tuple[str, Said]]:
        return [(worker.name, said) for worker in self.workers for said in worker.said]


def _run(files: Contents) -> Contents:
    return {**files, ".guild/opref": opref(), ".guild/attrs/exit_status": b"0\n"}


# -- the laws


@contextmanager
def fresh(person: Person) -> Iterator[Store]:
    """The store, as a client without any cache finds it."""
    context = person.context()
    with open_remote(context.config.remote(person.remote), context.home).opened(context.home, fresh=True) as store:
        assert isinstance(store, Store)
        yield store


def check_what_was_said(schedule: Schedule) -> None:
    """Whatever the others do, nobody is told of damage, and nothing dies of it."""
    allowed = {"pull": {0, 3, 6, 7, 8}, "push": {0, 5, 6, 7}, "revive": {0, 5, 6, 7}, "collect": {0, 3, 5}}
    for name, said in schedule.said:
        codes = allowed.get(said.act.verb, {0, 3, 5})
        assert said.exit_code in codes, f"{name}: {said.act.verb} ended with {said.exit_code}: {said.text}"
        if said.act.verb == "pull" and said.exit_code == 6:
            assert said.reasons == {CONFLICT}, f"{name}: {said.text}"
        if said.act.verb in PUSHES:
            assert said.reasons <= {CHANGED, CONFLICT, MOVED, PURGED, TRASHED}, f"{name}: {said.text}"


def check_acknowledged(schedule: Schedule, store: Store) -> dict[str, Contents]:
    """Every version that was acknowledged is there, whole, unless a purge named it. Answers all living versions."""
    view = store._read().view
    living = {version: contents_of(store, version) for version in view.living}
    for version, contents in living.items():
        run = version.partition("/")[2]
        assert contents in schedule.written[run], f"{version} is a mixture: {contents}"
    for name, said in schedule.said:
        for run, content in said.stored.items():
            same = [version.id for version in view.versions(run) if version.content == content]
            kept = [version for version in same if version in living or version in view.facts.purged]
            assert kept, f"{name} was told that {run} is stored as {content}, and nothing is left of {same}"
    return living


def check_listed_once(store: Store) -> dict[str, api.Record]:
    records = list(store.runs(deleted=None))
    assert len({record.run for record in records}) == len(records)
    lists = [{record.run for record in store.runs(deleted=deleted)} for deleted in (False, True)]
    assert lists[0].isdisjoint(lists[1])
    return {record.run: record for record in records}


def check_settled(store: Store) -> None:
    view = store._read().view
    there = {path.rpartition("/")[2] for path in store._files.list("packs", deep=True)}
    assert {name for name in there if not name.startswith(".")} == view.needed_packs()
    assert all(view.settled(version) for version in view.living)


def check_can_be_had(schedule: Schedule, living: Mapping[str, Contents], newcomer: Person) -> None:
    """By a home that was not there before: what lives, then what lies in the trash, byte by byte."""
    for deleted in (False, True):
        if deleted and not list(newcomer.context().runs(newcomer.remote, deleted=True)):
            continue
        if deleted:
            assert newcomer.restore([]).exit_code == 0
        outcome = newcomer.pull()
        assert {problem.reason for problem in outcome.problems} <= {CONFLICT}
    with fresh(newcomer) as store:
        view = store._read().view
        runs = [run for run in view.runs() if view.heads(run)]
        assert newcomer.runs() == runs
        for run in runs:
            assert newcomer.contents(run) in [living[head.id] for head in view.heads(run)]
            assert newcomer.record(run).metadata.label in {None, *schedule.labels}


def carried_out(schedule: Schedule) -> Counter[str]:
    """Let them all work, and then see what is left. Answers what happened how often."""
    crew = Crew(schedule.workers, schedule.seed, SECONDS, PATIENCE)
    crew.run()
    check_what_was_said(schedule)
    someone = Person(schedule.top / "someone", "store", schedule.config)
    for quick in (True, False):
        found = someone.context().verify("store", quick=quick)
        assert (found.exit_code, found.problems) == (0, [])
    with fresh(someone) as store:
        check_listed_once(store)
        facts = store._read().view.facts
        living = check_acknowledged(schedule, store)
    for person in (worker.person for worker in schedule.workers if not worker.name.startswith("pusher")):
        for run in person.runs():  # a pusher may have been killed while it wrote
            partial = person.record(run).summary.status == "incomplete"
            assert partial or person.contents(run) in schedule.written[run]
    for _ in range(COLLECTIONS):
        someone.collect(0)
    with fresh(someone) as store:
        check_settled(store)
        assert check_acknowledged(schedule, store) == living
    assert someone.verify().problems == []
    check_can_be_had(schedule, living, Person(schedule.top / "newcomer", "store", schedule.config))
    counts = Counter({f"{what}s": count for what, count in crew.counts.items()})
    for _, said in schedule.said:
        counts[f"{said.act.verb} {said.exit_code}"] += 1
        counts.update(f"{said.act.verb} {reason}" for reason in said.reasons)
        counts["acknowledged"] += len(said.stored)
    claims = Counter(claim.version for claim in facts.claims)
    counts["claimed anew"] = sum(count > 1 for count in claims.values())
    return counts + Counter(dropped=len(facts.dropped), purged=len(facts.purged), versions=len(facts.versions))


@pytest.fixture(params=["seaweed", "rclone_server"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    monkeypatch.setattr(fs, "_s3fs", made_once(fs._s3fs))
    server: S3Server = request.getfixturevalue(request.param)
    return server


def one_schedule(seed: int, top: Path, server: S3Server) -> Counter[str]:
    top.mkdir()
    keys = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
    remote: dict[str, Any] = {"type": "s3", "bucket": new_bucket(server), "root": "r", "region": REGION}
    remote |= {"endpoint-url": server.endpoint, "local-env": keys}
    if server.name == "rclone":
        remote["engine"] = "s3fs"  # what reads parts of its files in the end; each process would have to learn that
    config = top / "config.yml"
    config.write_text(json.dumps({"remotes": {"store": remote}}))
    try:
        return carried_out(Schedule(seed, top, str(config)))
    except BaseException as exc:
        raise AssertionError(f"schedule {seed} on {server.name}, below {top}") from exc


@pytest.mark.parametrize("seed", range(2))
def test_nothing_dangles_after_a_schedule(bucket: S3Server, tmp_path: Path, seed: int) -> None:
    print(sorted(one_schedule(seed, tmp_path / "schedule", bucket).items()))


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seeds", [range(n, n + 20) for n in range(100, 100 + SCHEDULES, 20)], ids=str)
def test_nothing_dangles_after_many_schedules(bucket: S3Server, tmp_path: Path, seeds: range) -> None:
    total = sum((one_schedule(seed, tmp_path / str(seed), bucket) for seed in seeds), Counter[str]())
    print(sorted(total.items()))
    assert min(total[what] for what in ("acknowledged", "claimed anew", "dropped", "purged", "kills")) > 0
