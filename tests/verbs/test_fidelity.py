"""What goes to a remote and comes back into an empty home is what it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guildsync.api import Context, open_context
from guildsync.remotes import bases, opened_home
from guildsync.tree.home import Home
from guildsync.tree.redact import PATHS, redact
from guildsync.verbs.sync import Options, Sync
from tests.conftest import new_bucket
from tests.kit.replicas import Content, Directory, File, Kind, Link, Literal, new_site, write
from tests.kit.servers import REGION, S3Server
from tests.kit.strategies import names
from tests.kit.trees import MIB, differences, noise, run_ids, snapshot, ugly_run
from tests.kit.workloads import w1, w3

Workload = Callable[[Path], list[str]]

SMALL: dict[str, Workload] = {
    "w1": lambda home: w1(home, 40),
    "w3": lambda home: w3(home, 4, log_size=1_200_000, checkpoint_size=3_500_000),
    "ugly": lambda home: [ugly_run(home, run_ids(1)[0]).name],
}
FULL: dict[str, Workload] = {"full w1": w1, "full w3": w3}
WORKLOADS = [*SMALL, *(pytest.param(name, marks=pytest.mark.soak) for name in FULL)]

CONFIG = """\
remotes:
  bucket:
    type: s3
    bucket: {bucket}
    root: team/runs
    region: {region}
    endpoint-url: {endpoint}
"""


@pytest.fixture(params=["folder", *(pytest.param(name, marks=pytest.mark.servers) for name in ("s3", "ssh"))])
def context_of(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], tuple[Context, str]]:
    """Opens a home with one remote; answers the remote's name too."""
    if request.param == "folder":
        return lambda home: (open_context(str(home), cwd=str(tmp_path)), f"file://{tmp_path}/a remote")
    if request.param == "ssh":
        request.getfixturevalue("ssh_user")
        file = tmp_path / "guildsync.yml"
        file.write_text(f"remotes:\n  gpu: {{type: ssh, host: far, guild-home: {tmp_path}/far home}}\n")
        return lambda home: (open_context(str(home), str(file), cwd=str(tmp_path)), "gpu")
    server: S3Server = request.getfixturevalue("seaweed")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    file = tmp_path / "guildsync.yml"
    file.write_text(CONFIG.format(bucket=new_bucket(server), region=REGION, endpoint=server.endpoint))
    return lambda home: (open_context(str(home), str(file), cwd=str(tmp_path)), "bucket")


def redact_here(runs: Path) -> None:
    """Captured environments stay at home by design: what comes back is the redacted view of them."""
    for path in (run / os.fsdecode(name) for run in runs.iterdir() for name in PATHS):
        if path.is_file():
            info = path.stat()
            path.write_bytes(redact(path.read_bytes()))
            os.utime(path, ns=(info.st_mtime_ns, info.st_mtime_ns))


def lines_of(home: Path) -> list[str]:
    """The lines in which a home's environments differ from what others may see."""
    return [line for path in (home / "runs").glob("*/.guild/attrs/env") for line in path.read_text().splitlines()]


def assert_same_homes(one: Path, other: Path) -> None:
    ids = {path.name for path in (one / "runs").iterdir()}
    assert {path.name for path in (other / "runs").iterdir()} == ids
    for run in sorted(ids):
        lines = differences(snapshot(one / "runs" / run), snapshot(other / "runs" / run))
        assert not lines, "\n".join([run, *lines[:20]])


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_there_and_back(workload: str, context_of: Callable[[Path], tuple[Context, str]], tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    runs = {**SMALL, **FULL}[workload](first)
    before = {run: snapshot(first / "runs" / run) for run in runs}

    here, remote = context_of(first)
    pushed = here.push(remote)
    assert (pushed.problems, pushed.runs, pushed.exit_code) == ([], len(runs), 0)
    assert all(snapshot(first / "runs" / run) == before[run] for run in runs)  # a source is only read

    there, remote = context_of(second)
    pulled = there.pull(remote)
    assert (pulled.problems, pulled.runs, pulled.exit_code) == ([], len(runs), 0)
    assert pulled.files == pushed.files
    assert [r.run for r in there.runs()] == [r.run for r in here.runs()] == [r.run for r in here.runs(remote)]
    assert there.runs()[0].metadata == here.runs()[0].metadata

    for again in (here.push(remote), there.push(remote), there.pull(remote), here.pull(remote)):
        assert (again.problems, again.runs, again.same, again.bytes_sent) == ([], 0, len(runs), 0)
    assert there.verify(remote).problems == []
    redact_here(first / "runs")
    assert_same_homes(first, second)
    if remote == "gpu":
        assert_same_homes(second, tmp_path / "far home")


def test_environments_come_back_redacted_and_stay_as_they_are(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    w1(first, 2)
    assert "redacted" not in "".join(lines_of(first))
    remote = f"file://{tmp_path}/remote"
    open_context(str(first)).push(remote)
    open_context(str(second)).pull(remote)
    assert "redacted" not in "".join(lines_of(first))
    assert lines_of(second)
    assert all(line.endswith(": redacted") for line in lines_of(second))


# -- random trees


def data() -> st.SearchStrategy[bytes]:
    sizes = st.sampled_from([MIB, MIB + 1, 2 * MIB, 2 * MIB + 77])
    small = st.binary(max_size=40)
    return st.one_of(small, small, small, st.builds(noise, st.integers(0, 3), sizes))


@st.composite
def literals(draw: Callable[[st.SearchStrategy[Kind]], Kind], size: int = 10) -> Literal:
    """A tree of odd names. As root all modes work; what nobody can read is no matter of fidelity."""
    file_modes = st.integers(0, 0o377).map(lambda mode: mode | 0o400)
    directory_modes = st.integers(0, 0o77).map(lambda mode: mode | 0o700)
    paths = st.lists(names() | st.sampled_from([b"a", b"b", b"x" * 255]), min_size=1, max_size=4).map(b"/".join)
    tops: set[bytes] = set()
    out: dict[bytes, Kind] = {}
    for path in draw(st.lists(paths, max_size=size)):  # type: ignore[arg-type, union-attr]
        above = [path[:n] for n, byte in enumerate(path) if byte == ord("/")]
        if path in out or path in tops or path.startswith(b".guild") or any(top in out for top in above):
            continue
        tops.update(above)
        target = st.binary(min_size=1, max_size=20).map(lambda t: t.replace(b"\0", b"0"))
        kind = st.one_of(
            st.builds(File, data(), file_modes), st.builds(Directory, directory_modes), st.builds(Link, target)
        )
        out[path] = draw(kind)
    return out


def times() -> st.SearchStrategy[int]:
    """Nanoseconds that a file system here can hold."""
    return st.integers(0, 4 * 10**18) | st.just(1_700_000_000_000_000_001)


def _there_and_back(trees: list[tuple[Literal, int]], through: str, directory: Path, request: object) -> None:
    first, second = directory / "first", directory / "second"
    for run, (literal, when) in zip(run_ids(len(trees)), trees, strict=True):
        write(first, run, Content(literal, when))
    site = new_site(through, directory / "site", request)  # type: ignore[arg-type]
    steps = [(first, True), (second, False)]
    for home, is_push in steps:
        near = Home(str(home))
        with opened_home(near) as here, site.opened() as there:
            source, target = (here, there) if is_push else (there, here)
            outcome = Sync(source, target, bases(near, source, target), Options()).run()
            assert (outcome.problems, outcome.runs) == ([], len(trees))
    assert_same_homes(first, second)
    shutil.rmtree(directory)


_QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}
_TREES = st.lists(st.tuples(literals(), times()), min_size=3, max_size=3)


@settings(max_examples=35, **_QUIET)  # type: ignore[arg-type]
@pytest.mark.parametrize("through", ["memory", "folder", "far"])
@given(trees=_TREES)
def test_random_trees(
    trees: list[tuple[Literal, int]],
    through: str,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> None:
    """3 x 35 examples of 3 runs each."""
    _there_and_back(trees, through, tmp_path_factory.mktemp("trees"), request)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@settings(max_examples=560, **_QUIET)  # type: ignore[arg-type]
@pytest.mark.parametrize("through", ["memory", "folder", "far"])
@given(trees=_TREES)
def test_five_thousand_random_trees(
    trees: list[tuple[Literal, int]],
    through: str,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> None:
    _there_and_back(trees, through, tmp_path_factory.mktemp("trees"), request)


@pytest.mark.parametrize("workload", SMALL)
def test_home_to_home_through_an_agent(workload: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    first = tmp_path / "first"
    runs = SMALL[workload](first)
    site = new_site("far", tmp_path / "second", request)
    home = Home(str(first))
    for expected in (len(runs), 0):
        with opened_home(home) as here, site.opened() as there:
            outcome = Sync(here, there, bases(home, here, there), Options()).run()
            assert (outcome.problems, outcome.runs) == ([], expected)
    redact_here(first / "runs")
    assert_same_homes(first, site.home)


def test_an_agent_gets_nothing_twice(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Runs that share a checkpoint: it crosses once."""
    first = tmp_path / "first"
    w3(first, 4, log_size=60_000, checkpoint_size=2_500_000)
    site = new_site("far", tmp_path / "second", request)
    with opened_home(Home(str(first))) as here, site.opened() as there:
        outcome = Sync(here, there, bases(Home(str(first)), here, there), Options()).run()
        assert outcome.bytes_sent < 3 * 2_500_000 + 4 * 60_000 + 300_000
        assert outcome.bytes_reused > 2_500_000
        assert site.far is not None
        assert site.far.bytes_out < outcome.bytes_sent + 150_000
    redact_here(first / "runs")
    assert_same_homes(first, site.home)
