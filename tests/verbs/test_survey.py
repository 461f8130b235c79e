"""Runs of several places at once: what is where, how it compares with this home, and what asking costs."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from guildsync import hosts
from guildsync.api import LOCAL, Choice, Context, Options, Paths, Policy, Survey, open_context
from guildsync.errors import NOT_KEPT, UNREADABLE, GuildsyncError, NotFound, Problem, Unreachable, Usage
from guildsync.model.manifest import Digest, Manifest
from guildsync.model.ports import Aim, Scan
from guildsync.model.run import NO_METADATA, Record, RunId, Summary
from guildsync.model.select import Filters
from guildsync.tree.kept import HomeBases
from guildsync.verbs.survey import Place, Question, survey
from scripts.benchmarks import work
from scripts.benchmarks.work import Sizes
from tests.conftest import new_bucket
from tests.kit.proxy import proxied
from tests.kit.servers import REGION, S3Server
from tests.kit.sshd import Client, Sshd
from tests.kit.trees import EPOCH_US, put, run_ids, write_run
from tests.kit.wire import wire
from tests.verbs.test_copy import PLACES, Config

FIRST, SECOND, THIRD = run_ids(3)

REMOTES = [
    pytest.param(place.config, id=place.name, marks=[pytest.mark.servers] if place.needs_server else [])
    for place in PLACES
    if place.config is not None
]


@dataclass(frozen=True)
class World:
    """A remote `there`, an empty folder `aside`, my home, and a colleague's."""

    directory: Path

    def context(self, who: str) -> Context:
        return open_context(str(self.directory / who), str(self.directory / "c.yml"), cwd=str(self.directory))

    def run(self, who: str, run: str = FIRST) -> Path:
        return self.directory / who / "runs" / run

    def write(self, who: str, run: str = FIRST, **more: Any) -> Path:
        return write_run(self.directory / who, run, **more)

    def push(self, who: str = "me", **options: Any) -> None:
        assert self.context(who).push("there", Options(**options)).exit_code == 0

    def pull(self, who: str = "me") -> None:
        assert self.context(who).pull("there").exit_code == 0

    def ask(self, *names: str, **more: Any) -> Survey:
        return self.context("me").survey(names or (LOCAL, "there", "aside"), **more)

    def standings(self, *names: str, **more: Any) -> dict[tuple[str, str], str | None]:
        asked = self.ask(*names, **more)
        assert [trouble for trouble in asked.troubles if not isinstance(trouble.error, NotFound)] == []
        return {(found.place, found.record.run): found.standing for found in asked.found}


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, there: Config) -> World:
    (tmp_path / "place").mkdir()
    (tmp_path / "c.yml").write_text(
        f"remotes:\n  there: {there(tmp_path / 'place', request)}\n"
        f"  aside: {{type: fsspec, url: 'file://{tmp_path}/aside'}}\n"
    )
    return World(tmp_path)


everywhere = pytest.mark.parametrize("there", REMOTES)
in_a_folder = pytest.mark.parametrize("there", [place.config for place in PLACES if place.name == "folder"])
on_disk = pytest.mark.parametrize("there", [place.config for place in PLACES if place.name == "disk"])


# -- how it compares


@everywhere
def test_who_changed_since_the_last_sync(world: World) -> None:
    for run in run_ids(5)[:4]:
        world.write("me", run)
    same, here, there, both = run_ids(5)[:4]
    world.push()
    world.pull("colleague")
    for who, runs in (("me", (here, both)), ("colleague", (there, both))):
        for run in runs:
            put(world.run(who, run), "train.py", f"by {who}\n".encode())
    colleague = world.context("colleague")
    assert colleague.push("there").exit_code == 0
    mine, theirs = run_ids(7)[5:]
    world.write("me", mine)
    world.write("colleague", theirs)
    world.push("colleague")
    assert world.standings() == {
        **{(LOCAL, run): None for run in (same, here, there, both)},
        (LOCAL, mine): "only here",
        ("there", same): "same",
        ("there", here): "local newer",
        ("there", there): "remote newer",
        ("there", both): "both changed",
        ("there", theirs): "only there",
    }


@everywhere
def test_only_the_mode_differs_and_labels_do_not_count(world: World) -> None:
    world.write("me", FIRST)
    world.write("me", SECOND)
    world.push()
    (world.run("me", FIRST) / "train.py").chmod(0o755)
    put(world.run("me", SECOND), ".guild/attrs/label", b"new\n")
    found = world.standings()
    assert (found["there", FIRST], found["there", SECOND]) == ("local newer", "same")


@everywhere
def test_what_was_left_out_of_the_last_push_is_here_alone(world: World) -> None:
    world.write("me")
    world.push(policy=Policy(paths=Paths((), (b"checkpoints/",))))
    assert world.standings()["there", FIRST] == "local newer"


@everywhere
def test_the_home_need_not_be_asked_to_be_compared_with(world: World) -> None:
    world.write("me")
    world.push()
    world.write("colleague", SECOND)
    world.push("colleague")
    assert world.standings("there", "aside") == {("there", FIRST): "same", ("there", SECOND): "only there"}
    shutil.rmtree(world.directory / "me/runs")
    assert world.standings("there", "aside") == {("there", FIRST): "only there", ("there", SECOND): "only there"}


@everywhere
def test_one_place_and_the_trash_are_not_compared(world: World) -> None:
    world.write("me")
    world.push()
    assert world.standings("there") == {("there", FIRST): None}
    assert world.standings(LOCAL) == {(LOCAL, FIRST): None}
    assert world.standings(compare=False) == {(LOCAL, FIRST): None, ("there", FIRST): None}
    (world.directory / "me/trash/runs").mkdir(parents=True, exist_ok=True)
    world.run("me").rename(world.directory / "me/trash/runs" / FIRST)
    assert world.standings(deleted=True) == {(LOCAL, FIRST): None}
    assert world.standings() == {("there", FIRST): "only there"}


@in_a_folder
def test_a_copy_made_by_hand_is_known_by_the_history_of_a_store(world: World) -> None:
    run = world.write("colleague")
    world.push("colleague")
    shutil.copytree(run, world.run("me"))
    put(run, "train.py", b"newer\n")
    world.push("colleague")
    assert world.standings()["there", FIRST] == "remote newer"
    put(world.run("me"), "train.py", b"nobody ever stored this\n")
    assert world.standings()["there", FIRST] == "both changed"


@in_a_folder
def test_a_store_that_went_back_in_time_is_not_older_by_a_base(world: World) -> None:
    run = world.write("me")
    world.push()
    shutil.copytree(world.directory / "place/store", world.directory / "kept")
    for word in (b"second\n", b"third\n"):
        put(run, "train.py", word)
        world.push()
    assert world.standings()["there", FIRST] == "same"
    shutil.rmtree(world.directory / "place/store")
    shutil.copytree(world.directory / "kept", world.directory / "place/store")
    assert world.standings()["there", FIRST] == "both changed"


@in_a_folder
def test_versions_in_conflict_are_no_version_of_anybody(world: World) -> None:
    """Two people pushed a new run at once: what the store lists of it is one of two."""
    store = world.directory / "place/store"
    for who in ("me", "colleague"):
        put(world.write(who), "train.py", f"by {who}\n".encode())
        world.push(who)
        store.rename(world.directory / f"of {who}")
    for who in ("me", "colleague"):
        shutil.copytree(world.directory / f"of {who}", store, dirs_exist_ok=True)
    assert world.standings()["there", FIRST] == "both changed"
    assert world.context("colleague").survey(["there", LOCAL]).found[0].standing == "both changed"


@on_disk
def test_a_base_that_only_the_target_proves_counts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push died between its commit and the note of it."""
    run = world.write("me")
    with monkeypatch.context() as patch:
        patch.setattr(HomeBases, "save", lambda *_: None)
        world.push()
    put(run, "train.py", b"newer\n")
    assert world.standings()["there", FIRST] == "local newer"


@everywhere
def test_each_place_is_compared_with_the_home_as_it_sees_captured_environments(world: World) -> None:
    """One keeps them, another does not: neither differs for that."""
    text = (world.directory / "c.yml").read_text()
    (world.directory / "c.yml").write_text(
        text + f"  open: {{type: fsspec, url: 'file://{world.directory}/open', keep-env: true}}\n"
        f"  open-disk: {{type: local, path: {world.directory}/open-disk, keep-env: true}}\n"
    )
    for run in (FIRST, SECOND):
        put(world.write("me", run), ".guild/attrs/env", b"HOME: /home/u\nSECRET_TOKEN: hunter2\n")
    for name in ("there", "open", "open-disk"):
        assert world.context("me").push(name).exit_code == 0
    put(world.run("me", SECOND), ".guild/attrs/env", b"HOME: /home/u\nSECRET_TOKEN: hunter3\n")
    for names in (("there", "open", "open-disk"), (LOCAL, "there", "open", "open-disk"), ("open", "open-disk")):
        found = world.standings(*names)
        assert {key: standing for key, standing in found.items() if key[0] != LOCAL} == {
            (name, run): "local newer" if run == SECOND and name != "there" else "same"
            for name in names
            if name != LOCAL
            for run in (FIRST, SECOND)
        }


# -- places that cannot be asked, and what is asked of the others


def record(run: str, started: int = 0, **more: Any) -> Record:
    return Record(RunId(run), Summary(operation="train", started=EPOCH_US + started), NO_METADATA, **more)


@dataclass
class Fake:
    """A replica that answers what it is told to, and notes what it was asked."""

    records: Sequence[Record] = ()
    scans: Mapping[str, Scan] = field(default_factory=dict)
    fails: GuildsyncError | None = None
    breaks: GuildsyncError | None = None
    before: Callable[[], object] = lambda: None
    is_there: bool = True
    asked: dict[str, Collection[Digest]] = field(default_factory=dict)
    opened: int = 0
    closed: int = 0
    aliases: frozenset[str] = frozenset()

    def runs(self, deleted: bool | None = False, sizes: bool = False) -> Sequence[Record]:
        return self.records

    def manifests(self, known: Mapping[RunId, Collection[Digest]]) -> Iterator[Scan]:
        self.asked.update(known)
        if self.breaks is not None:
            raise self.breaks
        for run, contents in known.items():
            scan = self.scans.get(run, Scan(run, Digest(f"{1:064x}"), None))
            assert scan.manifest is None or scan.content not in contents
            yield scan

    @contextmanager
    def open(self) -> Iterator[Any]:
        self.opened += 1
        self.before()
        if self.fails is not None:
            raise self.fails
        try:
            yield self
        finally:
            self.closed += 1

    def place(self, name: str) -> Place:
        opened: Callable[[], AbstractContextManager[Any]] = self.open
        return Place(name, f"the place {name}", opened)


class NoBases:
    def load(self, run: RunId, content: Digest | None) -> None:
        return None

    def intend(self, *_: object) -> None:
        raise AssertionError

    save = intend


def ask(home: Fake, question: Question = Question(), *, with_home: bool = True, **fakes: Fake) -> Survey:
    places = [*([home.place(LOCAL)] if with_home else []), *(fake.place(name) for name, fake in fakes.items())]
    return survey(places, lambda _: home.place(LOCAL), lambda _one, _other: NoBases(), question)


def test_all_places_are_asked_at_the_same_time() -> None:
    """Each waits until all are being asked: one after another, none would ever answer."""
    barrier = threading.Barrier(4)
    fakes = [Fake([record(FIRST)], before=lambda: barrier.wait(10)) for _ in range(4)]
    asked = ask(fakes[0], a=fakes[1], b=fakes[2], c=fakes[3])
    assert [found.place for found in asked.found] == [LOCAL, "a", "b", "c"]
    assert [found.standing for found in asked.found] == [None, "same", "same", "same"]
    assert [fake.closed for fake in fakes] == [1, 1, 1, 1]


def test_one_that_cannot_be_asked_costs_nobody_else_anything() -> None:
    home, good = Fake([record(FIRST, 2), record(SECOND, 1)]), Fake([record(FIRST, 2)])
    asked = ask(home, bad=Fake(fails=Unreachable("no route")), good=good)
    assert [(found.place, found.record.run, found.standing) for found in asked.found] == [
        (LOCAL, FIRST, None),
        ("good", FIRST, "same"),
        (LOCAL, SECOND, None),  # it may be at the other place
    ]
    assert [(trouble.place, str(trouble.error), trouble.answered) for trouble in asked.troubles] == [
        ("bad", "no route", False)
    ]
    assert asked.exit_code == 7
    assert ask(home, bad=Fake(fails=NotFound("there is no such bucket")), good=good).exit_code == 7


def test_where_nothing_was_ever_made_there_is_nothing() -> None:
    asked = ask(Fake([record(FIRST)]), new=Fake(is_there=False))
    assert [found.standing for found in asked.found] == ["only here"]
    (trouble,) = asked.troubles
    assert isinstance(trouble.error, NotFound)
    assert "the place new" in str(trouble.error)
    assert asked.exit_code == 0


def test_what_fails_later_costs_only_the_comparison() -> None:
    bad = Fake([record(FIRST)], breaks=Unreachable("cut off"))
    good = Fake([record(FIRST)])
    asked = ask(Fake([record(FIRST)]), bad=bad, good=good)
    assert [(found.place, found.standing) for found in asked.found] == [(LOCAL, None), ("bad", None), ("good", "same")]
    assert [(trouble.place, str(trouble.error)) for trouble in asked.troubles] == [("bad", "cut off")]
    assert (asked.exit_code, bad.closed, good.closed) == (7, 1, 1)


def test_a_home_that_nobody_named_may_fail_too() -> None:
    asked = ask(Fake(fails=Unreachable("stale")), with_home=False, a=Fake([record(FIRST)]), b=Fake())
    assert [found.standing for found in asked.found] == [None]
    assert [trouble.place for trouble in asked.troubles] == [LOCAL]
    broken = ask(Fake([record(FIRST)], breaks=Unreachable("stale")), with_home=False, a=Fake([record(FIRST)]), b=Fake())
    assert [found.standing for found in broken.found] == [None]
    assert broken.exit_code == 7
    gone = ask(Fake(is_there=False), with_home=False, a=Fake([record(FIRST)]), b=Fake())
    assert ([found.standing for found in gone.found], gone.troubles) == (["only there"], ())


def test_where_nothing_is_found_the_first_reason_is_raised() -> None:
    with pytest.raises(Unreachable, match="one"):
        ask(Fake(fails=Unreachable("one")), a=Fake(fails=Unreachable("two")))
    with pytest.raises(Unreachable, match="two"):
        ask(Fake(), with_home=False, a=Fake(fails=Unreachable("two")))
    with pytest.raises(NotFound):
        ask(Fake([record(FIRST)]), Question(selectors=["7"]), a=Fake([record(FIRST)]))
    with pytest.raises(Usage):
        ask(Fake([record(FIRST)]), Question(selectors=["what?"]), a=Fake([record(FIRST)]))
    assert ask(Fake(), a=Fake(fails=Unreachable("two"))).found == ()


def test_selectors_are_understood_place_by_place_and_filters_come_first() -> None:
    home = Fake([record(FIRST, 3), record(SECOND, 2), record(THIRD, 1)])
    there = Fake([record(THIRD, 1), record(SECOND, 2, deleted=False)])
    asked = ask(home, Question(selectors=["2"]), a=there)
    assert [(f.place, f.record.run, f.index) for f in asked.found] == [(LOCAL, SECOND, 2), ("a", THIRD, 2)]
    asked = ask(home, Question(selectors=["3"]), a=there)
    assert [(f.place, f.record.run) for f in asked.found] == [(LOCAL, THIRD)]
    assert [(trouble.place, trouble.answered) for trouble in asked.troubles] == [("a", True)]
    assert asked.exit_code == 0
    assert ask(home, Question(filters=Filters(operations=("none",))), a=there).found == ()


def test_only_what_is_wanted_and_in_both_is_read() -> None:
    home = Fake([record(FIRST, 3), record(SECOND, 2), record(THIRD, 1)])
    a, b = Fake([record(SECOND, 2), record(THIRD, 1)]), Fake([record(THIRD, 1)])
    asked = ask(home, Question(limit=3), a=a, b=b)
    assert [(f.place, f.record.run, f.standing) for f in asked.found] == [
        (LOCAL, FIRST, "only here"),
        (LOCAL, SECOND, None),
        ("a", SECOND, "same"),
    ]
    assert asked.total == 6
    assert (set(home.asked), set(a.asked), set(b.asked)) == ({SECOND}, {SECOND}, set())
    assert (ask(home, Question(limit=0), a=a).found, ask(home, Question(limit=0), a=a).total) == ((), 5)


def test_manifests_of_what_is_known_do_not_cross() -> None:
    """Asked about are the contents here, and those that the listing says."""
    listed, here = Digest(f"{2:064x}"), Digest(f"{1:064x}")
    home = Fake([record(FIRST)])
    store = Fake([record(FIRST, content=listed, history=frozenset([here, listed]))])
    store.scans = {FIRST: Scan(RunId(FIRST), listed, None)}
    asked = ask(home, a=store)
    assert asked.found[1].standing == "remote newer"
    assert set(home.asked[FIRST]) == {listed}
    assert set(store.asked[FIRST]) == {listed, here}


@pytest.mark.parametrize(
    ("scan", "expected"),
    [
        (Scan(RunId(FIRST), Digest(f"{2:064x}"), None), "both changed"),
        (Scan(RunId(FIRST), Digest(f"{1:064x}"), None, rivals=(Digest(f"{2:064x}"),)), "both changed"),
        (Scan(RunId(FIRST), Digest(f"{1:064x}"), None, problems=(Problem(FIRST, b"s", NOT_KEPT, "a socket"),)), "same"),
        (Scan(RunId(FIRST), Digest(f"{1:064x}"), None, problems=(Problem(FIRST, b"s", UNREADABLE, "no"),)), None),
        (Scan(RunId(FIRST), Digest(f"{1:064x}"), None, aim=Aim(Manifest([]), Manifest([]))), None),
    ],
)
@pytest.mark.parametrize("at_home", [False, True])
def test_what_was_not_read_whole_is_not_judged(scan: Scan, expected: str | None, at_home: bool) -> None:
    if at_home and scan.rivals:
        pytest.skip("no home has them")
    home, there = Fake([record(FIRST)]), Fake([record(FIRST)])
    (home if at_home else there).scans = {FIRST: scan}
    assert ask(home, a=there).found[1].standing == expected


def test_a_run_that_goes_away_meanwhile_is_not_judged() -> None:
    class Empty(Fake):
        def manifests(self, known: Mapping[RunId, Collection[Digest]]) -> Iterator[Scan]:
            return iter(())

    assert ask(Empty([record(FIRST)]), a=Fake([record(FIRST)])).found[1].standing is None
    assert ask(Fake([record(FIRST)]), a=Empty([record(FIRST)])).found[1].standing is None


def test_nobody_is_waited_for_after_an_interruption() -> None:
    started, over = threading.Event(), threading.Event()

    def blocks() -> None:
        started.set()
        assert over.wait(60)

    def interrupts() -> None:
        assert started.wait(10)
        raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            ask(Fake(before=interrupts), a=Fake(before=blocks))
        assert not over.is_set()
    finally:
        over.set()


def test_what_a_remote_lists_is_known_afterwards(tmp_path: Path) -> None:
    write_run(tmp_path / "me", FIRST, label="one", started=EPOCH_US)
    write_run(tmp_path / "other", SECOND, label="two", started=EPOCH_US + 1)
    write_run(tmp_path / "other", THIRD, label=None, started=EPOCH_US + 2)
    (tmp_path / "c.yml").write_text(f"remotes:\n  disk: {{type: local, path: {tmp_path}/other}}\n")
    context = open_context(str(tmp_path / "me"), str(tmp_path / "c.yml"), cwd=str(tmp_path))
    assert context.known("disk") == []
    context.survey([LOCAL, "disk"], Choice((), Filters(labels=("none",))))
    context.survey([LOCAL, "disk"], deleted=True)
    shutil.rmtree(tmp_path / "other")
    assert context.known("disk") == [(THIRD, ""), (SECOND, "two")]
    assert context.known() == [(FIRST, "one")]
    (noted,) = (tmp_path / "me/.guildsync/remotes").glob("*/listed/runs")
    noted.write_bytes(b'[["../..", 1]]')
    assert context.known("disk") == []


@pytest.mark.parametrize(("names", "asks"), [(["one"], [True]), (["one", "other"], [False, False])])
def test_of_several_hosts_none_asks_for_a_passphrase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], asks: list[bool]
) -> None:
    """Two prompts on one terminal would be answered by halves."""
    interactive: list[bool] = []

    class Ssh:
        def __init__(self, host: object, interactively: bool) -> None:
            interactive.append(interactively)
            raise Unreachable("no route")

    monkeypatch.setattr(hosts, "Ssh", Ssh)
    monkeypatch.setattr(hosts, "has_terminal", lambda: True)
    write_run(tmp_path / "me", FIRST)
    (tmp_path / "c.yml").write_text(
        "remotes:\n  one: {type: ssh, host: one}\n  other: {type: ssh, host: other}\n"
        f"  store: {{type: fsspec, url: 'file://{tmp_path}/store'}}\n"
    )
    context = open_context(str(tmp_path / "me"), str(tmp_path / "c.yml"), cwd=str(tmp_path))
    assert len(context.survey([LOCAL, "store", *names]).found) == 1
    assert interactive == asks


# -- what it costs


@pytest.mark.servers
def test_a_thousand_runs_in_four_places(
    seaweed: S3Server, ssh_host: Sshd, ssh_user: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W10, for a home, a host and two buckets: a bucket takes as many requests as its listing alone, a host one
    session, and no manifest crosses that is known."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweed.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.secret_key)
    with ExitStack() as stack:
        line = stack.enter_context(wire(ssh_host.port))
        ssh_user.add("gpu", ssh_host, Port=str(line.port), HostKeyAlias=f"[127.0.0.1]:{ssh_host.port}")
        proxies = {name: stack.enter_context(proxied(seaweed.endpoint)) for name in ("one", "two")}
        lines = ["remotes:", f"  gpu: {{type: ssh, host: gpu, guild-home: {tmp_path}/far}}"]
        for name, proxy in proxies.items():
            bucket, where = new_bucket(seaweed), f"region: {REGION}, endpoint-url: '{proxy.endpoint}'"
            lines.append(f"  {name}: {{type: s3, bucket: {bucket}, {where}}}")
        (tmp_path / "c.yml").write_text("\n".join(lines))
        writer, reader = (
            open_context(str(tmp_path / who), str(tmp_path / "c.yml"), cwd=str(tmp_path)) for who in ("writer", "me")
        )
        work.make("W10", tmp_path / "writer", Sizes())
        shutil.copytree(tmp_path / "writer", tmp_path / "far")
        shutil.copytree(tmp_path / "writer", tmp_path / "me")
        for name in proxies:
            assert writer.push(name).exit_code == 0
        assert len(reader.runs("gpu")) == 1000  # the agent's modules are brought once
        line.reset()
        reader.runs("gpu")
        listing = line.received
        for most in (5, 1):
            for proxy in proxies.values():
                proxy.forget()
            line.reset()
            sessions = ssh_host.log.count("Starting session: command")
            asked = reader.survey([LOCAL, "gpu", "one", "two"])
            assert (len(asked.found), asked.troubles) == (4000, ())
            assert [found.standing for found in asked.found if found.place == LOCAL] == [None] * 1000
            assert {found.standing for found in asked.found if found.place != LOCAL} == {"same"}
            assert ssh_host.log.count("Starting session: command") == sessions + 1
            for proxy in proxies.values():
                assert 1 <= len(proxy.requests) <= most, proxy.requests
            print(f"{line.received} bytes from the host, {listing} of them for its listing, {line.sent} to it")
            assert line.received < listing + 1000 * 400  # a manifest takes more than a kilobyte
