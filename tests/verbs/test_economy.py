"""What syncs with a bucket cost in requests and bytes, counted on the way (the goals of W1 and W4 to W10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from guildsync.api import Outcome
from guildsync.cutting import content_cut
from guildsync.model.run import RunId
from guildsync.remotes import Home, opened_home
from scripts.benchmarks import work
from scripts.benchmarks.work import Change, Sizes
from tests.conftest import new_bucket
from tests.kit.model import Person
from tests.kit.proxy import Proxy, proxied
from tests.kit.servers import S3Server, bucket_file
from tests.kit.trees import MIB, assert_same, run_ids, write_run

pytestmark = pytest.mark.servers

SLACK = 16 << 10
"""Bytes that a sync may take beside what it is about."""

SIZES = Sizes(w3_runs=6, w3_log=2_000_000, w3_checkpoint=5_000_000, w6_log=20_000_000, w9_checkpoint=64 * MIB)


@dataclass(frozen=True)
class Cost:
    """Requests, and bytes to the server."""

    requests: str
    count: int
    sent: int


class Site:
    """People who share a bucket behind a proxy."""

    def __init__(self, directory: Path, proxy: Proxy, remote_file: str) -> None:
        self._directory, self._proxy, self._file = directory, proxy, remote_file

    def person(self, name: str) -> Person:
        home = self._directory / name / "guild"
        home.mkdir(parents=True)
        return Person(home, "bucket", self._file)

    def cost(self, what: str, act: Callable[[], object]) -> Cost:
        """Of what must go well."""
        self._proxy.forget()
        done = act()
        cost = Cost("\n".join(self._proxy.requests), len(self._proxy.requests), self._proxy.bytes_out)
        if isinstance(done, Outcome):
            assert done.problems == []
            assert done.requests in (cost.count, cost.count - 1)  # s3fs may ask what kind of thing a name is
        print(f"{what}: {cost.count} requests, {cost.sent} bytes sent")
        return cost


both_engines = pytest.mark.parametrize("engine", ["obstore", "s3fs"])


@pytest.fixture
def engine() -> str:
    return "auto"


@pytest.fixture
def site(seaweed: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> Iterator[Site]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweed.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.secret_key)
    with proxied(seaweed.endpoint) as proxy:
        file = bucket_file(tmp_path, proxy.endpoint, new_bucket(seaweed), engine)
        yield Site(tmp_path, proxy, str(file))


def manifests(person: Person, *runs: str) -> int:
    """Bytes of the encoded manifests of these runs."""
    with opened_home(Home(str(person.home))) as home:
        scans = list(home.manifests({RunId(run): () for run in runs}))
    found = [len(scan.manifest.encode()) for scan in scans if scan.manifest is not None]
    assert len(found) == len(runs)
    return sum(found)


def assert_frugal(site: Site, person: Person, change: Change) -> None:
    """What changed since the last push costs three requests more than nothing, and little more than its bytes."""
    cost = site.cost("push of a change", person.push)
    assert cost.count <= 1 + 3, cost.requests
    assert cost.sent <= 1.1 * change.size + SLACK + manifests(person, change.run)
    nothing_to_do(site, person)


def nothing_to_do(site: Site, person: Person) -> None:
    """It costs one look at the journal."""
    cost = site.cost("push of nothing", person.push)
    assert cost.count == 1, cost.requests
    assert cost.requests.startswith("GET ")
    assert "list-type=2" in cost.requests
    assert cost.sent < SLACK


@both_engines
def test_many_small_files_go_in_few_requests(site: Site) -> None:
    """W1, W4, W5 and W7."""
    a, b = site.person("a"), site.person("b")
    assert len(work_runs(a, "W1")) == SIZES.w1_runs
    cost = site.cost("first push", a.push)
    assert cost.count <= 12, cost.requests
    nothing_to_do(site, a)
    assert_frugal(site, a, work.edit_file(a.home, 3, SIZES))
    pull = site.cost("first pull", b.pull)
    assert pull.count <= 24, pull.requests
    assert b.runs() == a.runs()
    assert site.cost("pull of nothing", b.pull).count == 1


def work_runs(person: Person, workload: str, sizes: Sizes = SIZES) -> list[str]:
    """A home full of a workload; answers its runs."""
    work.make(workload, person.home, sizes)
    return person.runs()


def test_a_log_that_grew_costs_what_grew(site: Site) -> None:
    """W6, several times over."""
    person = site.person("a")
    work_runs(person, "W6")
    assert person.push().problems == []
    for number in range(3):
        assert_frugal(site, person, work.grow_log(person.home, number, SIZES))


@both_engines
def test_a_copied_run_costs_its_manifest(site: Site) -> None:
    """W8."""
    person = site.person("a")
    work_runs(person, "W3")
    assert person.push().problems == []
    change = work.copy_run(person.home, 0, SIZES)
    assert change.size == 0
    assert_frugal(site, person, change)


@pytest.mark.skipif(content_cut() is None, reason="pyfastcdc, which cuts files by their content, is not installed")
@pytest.mark.parametrize("size", [64 * MIB, pytest.param(256 * MIB, marks=pytest.mark.soak)])
def test_a_shifted_checkpoint_costs_what_is_new_in_it(site: Site, size: int) -> None:
    """W9."""
    person, sizes = site.person("a"), replace(SIZES, w9_checkpoint=size)
    work_runs(person, "W9", sizes)
    assert person.push().problems == []
    work.fine_tune(person.home, 0, sizes)
    cost = site.cost("fine-tuned", person.push)
    print(f"{cost.sent / size:.1%} of the file")
    assert cost.sent <= 0.2 * size
    assert cost.count <= 12, cost.requests


def test_a_list_of_many_runs_takes_few_requests(site: Site) -> None:
    """W10."""
    a, b = site.person("a"), site.person("b")
    assert len(work_runs(a, "W10")) == SIZES.w10_runs
    assert a.push().problems == []
    for most in (5, 1):
        cost = site.cost("list", lambda: b.context().runs(b.remote))
        assert cost.count <= most, cost.requests
    assert len(b.context().runs(b.remote)) == SIZES.w10_runs


@both_engines
def test_a_pull_after_somebody_elses_push_costs_what_is_new(site: Site) -> None:
    """The listing, its one new entry, and what that names: an index, a manifest, objects."""
    a, b = site.person("a"), site.person("b")
    for run in run_ids(20):
        write_run(a.home, run)
    assert (a.push().exit_code, b.pull().exit_code) == (0, 0)
    assert site.cost("pull of nothing", b.pull).count == 1
    (new,) = set(run_ids(21)) - set(run_ids(20))
    write_run(a.home, new, {"weights": bytes(range(256)) * 400})
    assert a.push().exit_code == 0
    cost = site.cost("pull of one new run", b.pull)
    assert cost.count <= 1 + 4, cost.requests
    assert_same(b.run(new), a.run(new))
    assert site.cost("pull of nothing", b.pull).count == 1
