"""The laws that every Source and Target obeys, whatever kind of replica it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3fs import S3FileSystem

from guildsync.errors import CHANGED, CONFLICT, MISSING, MOVED, Damaged, Problem
from guildsync.model.manifest import DIRECTORY, NOTHING, Manifest
from guildsync.model.ports import Piece, Replica, Scan, Update
from guildsync.model.run import COMPLETED, INCOMPLETE, NO_METADATA, Comment, Metadata, Record, RunId, Summary
from guildsync.remotes import bases
from guildsync.tree.home import Home
from guildsync.tree.tree import Tree
from guildsync.verbs.sync import Options, Sync
from tests.kit import replicas
from tests.kit.counting import Counts
from tests.kit.replicas import ALL, STORES, TREES, Content, Directory, File, Kind, Link, Literal, Site, new_site
from tests.kit.trees import MIB, noise, opref, run_ids, write_run

RUN, OTHER = map(RunId, run_ids(2))

GUILD: Literal = {
    b".guild/opref": opref("train.py"),
    b".guild/attrs/exit_status": b"0\n",
    b".guild/attrs/flags": b"lr: 0.1\n",
    b".guild/attrs/started": b"1700000000000005\n",
}
SUMMARY = Summary("train.py", COMPLETED, 1_700_000_000_000_005, exit_status=0, flags={"lr": 0.1})
METADATA = Metadata("a label: #1", frozenset(["x", "ü"]), (Comment("well", 5, "u"),), True)


@pytest.fixture(params=ALL)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return new_site(request.param, tmp_path, request)


@pytest.fixture(params=STORES)
def store_site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return new_site(request.param, tmp_path, request)


@pytest.fixture
def far_site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return new_site("far", tmp_path, request)


def content(literal: Mapping[bytes, Kind], mtime_ns: int = 1_700_000_000_123_456_789) -> Content:
    """A run of Guild's with something in it."""
    return Content({**GUILD, **literal}, mtime_ns)


ONE = content(
    {b"a": b"one", b"d/b": File(b"script", 0o755), b"l": Link(b"d/b"), b"empty": b"", b"nothing": Directory()}
)
TWO = content({b"a": b"two", b"d/b": File(b"script", 0o755), b"l": Link(b"a"), b"new": b"new"})
THREE = content({b"a": b"three", b"d/b": File(b"script", 0o755), b"l": Link(b"d/b")})


def scan_of(replica: Replica, run: RunId = RUN) -> Scan | None:
    return next(iter(replica.manifests({run: ()})), None)


def update_to(new: Content, have: Scan | None = None, run: RunId = RUN) -> Update:
    summary = replace(SUMMARY, size=new.manifest.size, files=new.manifest.files)
    was = None if have is None else have.manifest
    return Update(run, was, new.manifest, summary, heads=() if have is None else have.heads)


def stage(replica: Replica, new: Content, run: RunId = RUN, leave_out: tuple[bytes, ...] = ()) -> int:
    """Stages what is missing; answers how many objects that were."""
    missing = replica.missing(new.wants(run, leave_out))
    wants = {want.digest: want for want in new.wants(run, leave_out) if want.digest in missing}
    replica.stage(iter(new.pieces(wants.values())))
    return len(wants)


def deliver(replica: Replica, new: Content, run: RunId = RUN) -> list[Problem]:
    """What a sync does: look at what is there, stage what is missing, commit."""
    have = scan_of(replica, run)
    stage(replica, new, run)
    return replica.commit([update_to(new, have, run)])


def listed(replica: Replica) -> dict[RunId, Record]:
    return {record.run: record for record in replica.runs()}


def without_directory_times(manifest: Manifest) -> list[object]:
    """Everything that must come back: the times of directories that were there before are nobody's promise."""
    return [replace(entry, mtime_ns=0) if entry.kind == DIRECTORY else entry for entry in manifest.entries]


def assert_holds(site: Site, new: Content, run: RunId = RUN, exactly: bool = False) -> None:
    """A fresh client finds the content: its manifest, and every byte of it."""
    with site.opened() as replica:
        scan = scan_of(replica, run)
        assert scan is not None
        assert scan.manifest is not None, scan.problems
        assert without_directory_times(scan.manifest) == without_directory_times(new.manifest)
        assert not exactly or scan.manifest == new.manifest
        assert (scan.content, scan.settled, scan.problems) == (new.manifest.content, True, ())
        wants = new.wants(run)
        found = list(replica.fetch(wants))
        assert {piece.want.digest for piece in found} == {want.digest for want in wants}
        assert all(isinstance(piece, Piece) and piece.data == new.objects[piece.want.digest] for piece in found)


# -- a new run


def test_nothing_shows_before_the_commit(site: Site) -> None:
    with site.opened() as replica:
        assert stage(replica, ONE) == len(ONE.objects)
        with site.opened() as other:
            assert list(other.runs(deleted=None)) == []
            assert scan_of(other) is None
        assert list(replica.runs(deleted=None)) == []
    with site.opened() as fresh:
        assert list(fresh.runs(deleted=None)) == []


def test_a_new_run_is_listed_and_read_by_a_fresh_client(site: Site) -> None:
    update = replace(update_to(ONE), metadata=METADATA)
    with site.opened() as replica:
        stage(replica, ONE)
        assert replica.commit([update]) == []
        assert set(listed(replica)) == {RUN}
    with site.opened() as fresh:
        assert fresh.is_there
        record = listed(fresh)[RUN]
        assert replace(record.summary, size=None, files=None) == SUMMARY
        assert (record.run, record.metadata, record.deleted) == (RUN, METADATA, False)
        assert list(fresh.runs(deleted=True)) == []
        assert list(fresh.problems) == list(fresh.audit()) == []
        if site.is_store:
            assert record.content == ONE.manifest.content
            assert record.summary == update.summary
    assert_holds(site, ONE, exactly=True)


@pytest.mark.parametrize("literal", [{}, {b"d": Directory(0o700)}, {b"e": b""}, {b"d/e": File(b"", 0o600)}])
def test_empty_runs_directories_and_files(site: Site, literal: Literal) -> None:
    new = Content(literal)
    with site.opened() as replica:
        assert deliver(replica, new) == []
    assert_holds(site, new, exactly=True)


def test_many_runs_in_one_commit(site: Site) -> None:
    runs = [RunId(run) for run in run_ids(12)]
    news = {run: content({b"own": run.encode(), b"all": b"the same"}) for run in runs}
    with site.opened() as replica:
        for run, new in news.items():
            stage(replica, new, run)
        assert replica.commit([update_to(new, run=run) for run, new in news.items()]) == []
    for run in (runs[0], runs[-1]):
        assert_holds(site, news[run], run)
    with site.opened() as fresh:
        scans = {scan.run: scan.content for scan in fresh.manifests(dict.fromkeys(runs, ()))}
        assert scans == {run: new.manifest.content for run, new in news.items()}


def test_a_manifest_that_is_known_does_not_come(site: Site) -> None:
    with site.opened() as replica:
        deliver(replica, ONE)
    with site.opened() as fresh:
        known = {RUN: [TWO.manifest.content, ONE.manifest.content], OTHER: [ONE.manifest.content]}
        (scan,) = fresh.manifests(known)
        assert (scan.run, scan.content, scan.manifest) == (RUN, ONE.manifest.content, None)
        (scan,) = fresh.manifests({RUN: [TWO.manifest.content]})
        assert scan.manifest == ONE.manifest


# -- staging


def test_what_is_staged_or_there_is_not_missing(site: Site) -> None:
    wants = ONE.wants(RUN)
    with site.opened() as replica:
        assert replica.missing(wants) == ONE.objects.keys()
        replica.stage(ONE.pieces(wants))
        assert replica.missing(wants) == set()
        assert replica.missing(TWO.wants(RUN)) == TWO.objects.keys() - ONE.objects.keys()
        replica.commit([update_to(ONE)])
    with site.opened() as fresh:
        assert scan_of(fresh) is not None
        assert fresh.missing(ONE.wants(OTHER)) == set()
        assert deliver(fresh, ONE, OTHER) == []
    assert_holds(site, ONE, OTHER, exactly=True)


def test_staging_twice_is_harmless(site: Site) -> None:
    big = content({b"big": noise(1, 5 * MIB // 2), b"same": noise(1, MIB)})
    pieces = big.pieces(big.wants(RUN))
    with site.opened() as replica:
        replica.stage(pieces)
        replica.stage(iter(pieces[::-1]))
        assert replica.commit([update_to(big)]) == []
        assert scan_of(replica) is not None
        replica.stage(pieces)
    assert_holds(site, big, exactly=True)


def test_a_piece_with_other_bytes_is_refused_where_it_comes_off_a_wire(far_site: Site) -> None:
    """Whoever yields a piece has verified it; what crosses a pipe is verified again at its end."""
    site = far_site
    wants = ONE.wants(RUN)
    good = ONE.pieces(wants)
    with site.opened() as replica:
        for data in (b"x" * wants[0].size, good[0].data + b"x", good[0].data[:-1], b""):
            with pytest.raises(Damaged):
                replica.stage(iter([good[1], Piece(wants[0], data)]))
        assert wants[0].digest in replica.missing(wants)
        assert deliver(replica, ONE) == []
    assert_holds(site, ONE, exactly=True)


def test_a_run_whose_objects_never_arrived_is_refused(site: Site) -> None:
    with site.opened() as replica:
        deliver(replica, ONE)
        have = scan_of(replica)
        stage(replica, TWO, leave_out=(b"new",))
        (problem,) = replica.commit([update_to(TWO, have)])
        assert problem.run == RUN
        assert problem.reason == (MISSING if site.is_store else MOVED)
    assert_holds(site, ONE, exactly=True)


# -- a run that is there

KINDS: dict[str, Literal] = {
    "gone": {},
    "file": {b"x": b"a file"},
    "other file": {b"x": b"another"},
    "empty file": {b"x": b""},
    "program": {b"x": File(b"a file", 0o755)},
    "link": {b"x": Link(b"a")},
    "dangling link": {b"x": Link(b"no/where")},
    "empty directory": {b"x": Directory()},
    "private directory": {b"x": Directory(0o700)},
    "directory": {b"x/y": b"below", b"x/z/w": b"deep", b"x/l": Link(b"y")},
    "other directory": {b"x/y/v": b"below", b"x/z": Link(b"y"), b"x/l": Directory(0o700)},
}
STEPS = [(one, other) for one in KINDS for other in KINDS if one != other]


def test_every_kind_becomes_every_other(site: Site) -> None:
    """One run for each step, all in one commit each."""
    runs = dict(zip(map(RunId, run_ids(len(STEPS))), STEPS, strict=True))
    for side in (0, 1):
        news = {run: content({b"a": b"the same", **KINDS[step[side]]}) for run, step in runs.items()}
        with site.opened() as replica:
            have = {scan.run: scan for scan in replica.manifests(dict.fromkeys(runs, ()))}
            wants = [want for run, new in news.items() for want in new.wants(run)]
            missing = replica.missing(wants)
            firsts = {want.digest: want for want in wants if want.digest in missing}
            objects = {digest: data for new in news.values() for digest, data in new.objects.items()}
            replica.stage(Piece(want, objects[want.digest]) for want in firsts.values())
            problems = replica.commit([update_to(new, have.get(run), run) for run, new in news.items()])
            assert [(runs[RunId(p.run)], p.path, p.detail) for p in problems] == []
        with site.opened() as fresh:
            found = {scan.run: scan for scan in fresh.manifests(dict.fromkeys(runs, ()))}
            for run, step in runs.items():
                manifest = found[run].manifest
                assert manifest is not None
                assert without_directory_times(manifest) == without_directory_times(news[run].manifest), step
                assert found[run].settled, step
            assert {record.summary.status for record in fresh.runs()} == {COMPLETED}


def test_changes_additions_and_removals_in_one_commit(site: Site) -> None:
    with site.opened() as replica:
        assert deliver(replica, ONE) == []
    with site.opened() as replica:
        assert deliver(replica, TWO) == []
        assert deliver(replica, ONE) == []
        assert deliver(replica, TWO) == []
    assert_holds(site, TWO)
    with site.opened() as replica:
        assert deliver(replica, Content({})) == []
    assert_holds(site, Content({}))


def test_only_the_part_that_changed_is_missing(site: Site) -> None:
    data = noise(7, 7 * MIB // 2)
    changed = data[: MIB + 5] + b"changed" + data[MIB + 12 :]
    was, now = content({b"big": data}), content({b"big": changed})
    with site.opened() as replica:
        assert deliver(replica, was) == []
    assert_holds(site, was, exactly=True)
    with site.opened() as replica:
        have = scan_of(replica)
        (part,) = now.objects.keys() - was.objects.keys()
        assert replica.missing(now.wants(RUN)) == {part}
        assert stage(replica, now) == 1
        assert replica.commit([update_to(now, have)]) == []
    assert_holds(site, now)


def test_parts_that_do_not_add_up_are_refused(site: Site) -> None:
    """A Store takes them, as whoever stores them says what they are; no Tree ever shows a file of them."""
    big = content({b"big": noise(7, 5 * MIB // 2)})
    lie = content({b"big": noise(8, 5 * MIB // 2)}).manifest.by_path[b"big"]
    true = big.manifest.by_path[b"big"]
    entries = [replace(true, digest=lie.digest) if e.path == b"big" else e for e in big.manifest.entries]
    with site.opened() as replica:
        stage(replica, big)
        problems = replica.commit([replace(update_to(big), want=Manifest(entries))])
    if not site.is_store:
        assert [(p.path, p.reason) for p in problems] == [(b"big", "damaged")]
        with site.opened() as fresh:
            assert list(fresh.runs()) == []


# -- what the plan was not made for


def test_an_update_of_another_state_loses_nothing(site: Site) -> None:
    with site.opened() as replica:
        deliver(replica, ONE)
    with site.opened() as slow:
        have = scan_of(slow)
        with site.opened() as quick:
            assert deliver(quick, TWO) == []
        stage(slow, THREE)
        problems = slow.commit([update_to(THREE, have)])
    _assert_both_are_somewhere(site, problems, TWO, THREE)


def test_a_run_that_appeared_meanwhile_is_not_lost(site: Site) -> None:
    with site.opened() as slow:
        assert scan_of(slow) is None
        with site.opened() as quick:
            assert deliver(quick, TWO) == []
        stage(slow, THREE)
        problems = slow.commit([update_to(THREE)])
    _assert_both_are_somewhere(site, problems, TWO, THREE)


def _assert_both_are_somewhere(site: Site, problems: list[Problem], first: Content, second: Content) -> None:
    assert {problem.run for problem in problems} == {RUN}
    if not site.is_store:
        assert {problem.reason for problem in problems} == {CHANGED}
        assert_holds(site, first)
        return
    assert {problem.reason for problem in problems} == {CONFLICT}
    with site.opened() as fresh:
        scan = scan_of(fresh)
        assert scan is not None
        assert {scan.content, *scan.rivals} == {first.manifest.content, second.manifest.content}
        assert len(scan.heads) == len(listed(fresh)[RUN].heads) == 2
        wants = [*first.wants(RUN), *second.wants(RUN)]
        assert all(isinstance(found, Piece) for found in fresh.fetch(wants))
        assert deliver(fresh, second) == []  # its heads are both
        after = scan_of(fresh)
        assert after is not None
        assert (after.content, after.rivals) == (second.manifest.content, ())


def test_equal_contents_that_did_not_see_each_other_are_no_conflict(store_site: Site) -> None:
    with store_site.opened() as slow, store_site.opened() as quick:
        assert scan_of(slow) is None
        assert deliver(quick, ONE) == []
        stage(slow, ONE)
        assert slow.commit([update_to(ONE)]) == []
    assert_holds(store_site, ONE)


# -- metadata alone


def test_metadata_travels_without_content(site: Site) -> None:
    with site.opened() as replica:
        assert deliver(replica, content({b"big": noise(3, MIB)})) == []
    site.counts.reset()
    with site.opened(fresh=False) as replica:
        have = scan_of(replica)
        assert have is not None
        update = Update(RUN, have.manifest, None, SUMMARY, METADATA, NO_METADATA, have.heads)
        out = site.far.bytes_out if site.far else 0
        assert replica.commit([update]) == []
        if site.far:
            assert site.far.bytes_out - out < 4096
        assert listed(replica)[RUN].metadata == METADATA
    if site.is_store:
        assert site.counts["put"] == len(site.counts.names("put", "journal/")) == 1
        assert site.counts.bytes_out < 4096
    assert_holds(site, content({b"big": noise(3, MIB)}))
    with site.opened() as fresh:
        have = scan_of(fresh)
        assert have is not None
        now = replace(METADATA, tags=frozenset(["x"]), label=None, marked=False)
        assert fresh.commit([Update(RUN, have.manifest, None, SUMMARY, now, METADATA, have.heads)]) == []
    with site.opened() as fresh:
        assert listed(fresh)[RUN].metadata == now


def test_only_fields_that_differ_are_written(site: Site) -> None:
    """Two people who each change another field both have their way."""
    with site.opened() as replica:
        deliver(replica, ONE)
        have = scan_of(replica)
    assert have is not None
    for metadata in (Metadata(label="one"), Metadata(tags=frozenset(["t"]))):
        with site.opened() as replica:
            replica.commit([Update(RUN, have.manifest, None, SUMMARY, metadata, NO_METADATA, have.heads)])
    with site.opened() as fresh:
        assert listed(fresh)[RUN].metadata == Metadata("one", frozenset(["t"]))


# -- what could not be had


def test_a_new_run_without_some_files(site: Site) -> None:
    update = replace(update_to(ONE), withheld=frozenset([b"a"]))
    with site.opened() as replica:
        stage(replica, ONE, leave_out=(b"a",))
        problems = replica.commit([update])
    with site.opened() as fresh:
        if site.is_store:
            assert [(p.path, p.reason) for p in problems] == [(b"a", MISSING)]
            assert list(fresh.runs()) == []
            return
        assert problems == []
        assert listed(fresh)[RUN].summary.status == INCOMPLETE
        scan = scan_of(fresh)
        assert scan is not None
        assert scan.manifest is not None
        assert not scan.settled
        assert scan.aim == (NOTHING, ONE.manifest)
        assert scan.manifest.by_path.keys() == ONE.manifest.by_path.keys() - {b"a"}
        assert [p.run for p in fresh.audit()] == [RUN]
        stage(fresh, ONE)
        assert fresh.commit([update_to(ONE, scan)]) == []
        assert listed(fresh)[RUN].summary.status == COMPLETED
        assert list(fresh.audit()) == []
    assert_holds(site, ONE)


def test_an_existing_run_without_some_files(site: Site) -> None:
    with site.opened() as replica:
        deliver(replica, ONE)
    with site.opened() as replica:
        have = scan_of(replica)
        assert have is not None
        stage(replica, TWO, leave_out=(b"a",))
        problems = replica.commit([replace(update_to(TWO, have), withheld=frozenset([b"a"]))])
    if site.is_store:
        assert [(p.path, p.reason) for p in problems] == [(b"a", MISSING)]
        assert_holds(site, ONE, exactly=True)
        return
    assert problems == []
    with site.opened() as fresh:
        assert listed(fresh)[RUN].summary.status == INCOMPLETE
        scan = scan_of(fresh)
        assert scan is not None
        assert scan.manifest is not None
        assert scan.aim == (have.manifest, TWO.manifest)
        assert not scan.settled
        partial = {**TWO.manifest.by_path, b"a": ONE.manifest.by_path[b"a"]}
        assert scan.content == Manifest(partial.values()).content


# -- any content after any other


def literals() -> st.SearchStrategy[Literal]:
    names = st.sampled_from([b"a", b"b", b"c\n", b"\xff", b"-x"])
    paths = st.lists(names, min_size=1, max_size=3).map(b"/".join)
    data = st.sampled_from([b"", b"x", b"y", noise(5, MIB + 1), noise(5, 2 * MIB), noise(5, 2 * MIB + 9)])
    kinds = st.one_of(
        st.builds(File, data, st.sampled_from([0o644, 0o755, 0o400])),
        st.builds(Directory, st.sampled_from([0o755, 0o700])),
        st.builds(Link, st.sampled_from([b"a", b"..", b"\xfe"])),
    )

    def tree(rows: list[tuple[bytes, Kind]]) -> Literal:
        """The first that takes a name decides what can lie below it."""
        out: dict[bytes, Kind] = {}
        for path, kind in rows:
            tops = [path[:n] for n, byte in enumerate(path) if byte == ord("/")]
            if path in out or any(isinstance(out.get(top, Directory()), (File, Link)) for top in tops):
                continue
            if not isinstance(kind, Directory) and any(other.startswith(path + b"/") for other in out):
                continue
            out[path] = kind
        return out

    return st.lists(st.tuples(paths, kinds), max_size=6).map(tree)


@pytest.mark.parametrize("kind", ["near", "far", "memory"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(steps=st.lists(literals(), min_size=2, max_size=4))
def test_any_content_after_any_other(
    kind: str,
    steps: list[Literal],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> None:
    site = new_site(kind, tmp_path_factory.mktemp("law"), request)
    with site.opened() as same:
        for number, step in enumerate(steps):
            new = Content(step)
            assert deliver(same, new) == []
            assert_holds(site, new, exactly=number == 0)


# -- what it costs


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """A home with 20 small runs."""
    for run in run_ids(20):
        write_run(tmp_path / "source", run, label="a label")
    return tmp_path / "source"


def _sync(source: Replica, target: Replica, home: Path) -> int:
    outcome = Sync(source, target, bases(Home(str(home)), source, target), Options()).run()
    assert outcome.problems == []
    return outcome.runs


def _push(source: Path, site: Site, fresh: bool = False) -> int:
    with replicas.Site("near", source).opened() as here, site.opened(fresh) as there:
        return _sync(here, there, source)


def test_each_call_is_one_round_trip(far_site: Site) -> None:
    runs = [RunId(run) for run in run_ids(50)]
    news = {run: content({b"own": run.encode()}) for run in runs}
    wants = [want for run, new in news.items() for want in new.wants(run)]
    objects = {digest: data for new in news.values() for digest, data in new.objects.items()}
    firsts = list({want.digest: want for want in wants}.values())
    with far_site.opened() as replica:
        far = far_site.far
        assert far is not None
        calls: list[Callable[[], object]] = [
            lambda: list(replica.runs(deleted=None)),
            lambda: list(replica.manifests(dict.fromkeys(runs, ()))),
            lambda: replica.missing(wants),
            lambda: replica.stage(Piece(want, objects[want.digest]) for want in firsts),
            lambda: replica.commit([update_to(new, run=run) for run, new in news.items()]),
            lambda: list(replica.manifests(dict.fromkeys(runs, ()))),
            lambda: list(replica.fetch(wants)),
            lambda: list(replica.audit()),
        ]
        for number, call in enumerate(calls, 1):
            call()
            assert far.round_trips == number


def test_a_push_to_a_far_tree(far_site: Site, source: Path) -> None:
    content_bytes = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    with replicas.Site("near", source).opened() as here:
        with far_site.opened() as there:
            assert _sync(here, there, source) == 20
            assert far_site.far is not None
            # its id; runs, manifests, missing, stage, commit; no content comes back
            assert far_site.far.round_trips == 6
            assert far_site.far.bytes_out < content_bytes + 120_000  # 20 manifests, attributes, wants
            assert far_site.far.bytes_in < 10_000
        with far_site.opened() as there:
            assert _sync(here, there, source) == 0
            # its id comes with hello; runs, manifests (left out as known); nothing is asked when nothing is to be done
            assert far_site.far.round_trips == 2
            assert far_site.far.bytes_out < 20 * 300
            assert far_site.far.bytes_in < 20 * 2000


def test_a_push_of_small_runs_to_a_store(store_site: Site, source: Path) -> None:
    counts = store_site.counts
    assert _push(source, store_site) == 20
    assert counts["put"] == 3
    assert len(counts.names("put", "packs/")) == len(counts.names("put", "journal/")) == 1
    assert counts.names("put", "guildsync.json") == ["guildsync.json"]
    # the reading before, the reading that proves; nothing that was written is read again
    assert counts.names("list") == ["journal", "journal"]
    assert counts["get"] == counts["read"] == counts["remove"] == counts.bytes_in == 0


def test_another_push_reads_nothing_again(store_site: Site, source: Path) -> None:
    counts = store_site.counts
    _push(source, store_site)
    (source / "runs" / run_ids(1)[0] / "more").write_bytes(b"more")
    counts.reset()
    assert _push(source, store_site) == 1
    assert counts.summary() == {"list": 2, "put": 2}
    assert counts.bytes_in == 0


def test_a_warm_push_of_nothing_is_one_list(store_site: Site, source: Path) -> None:
    _push(source, store_site)
    store_site.counts.reset()
    assert _push(source, store_site) == 0
    assert store_site.counts.calls == [("list", "journal")]


def test_a_cold_opening_gets_every_entry_once(store_site: Site) -> None:
    for run in run_ids(10):
        with store_site.opened(fresh=False) as replica:
            assert deliver(replica, ONE, RunId(run)) == []
    counts = store_site.counts
    counts.reset()
    with store_site.opened() as fresh:
        assert len(list(fresh.runs())) == 10
        assert len(fresh.replica) == 32
        assert fresh.is_there
        assert list(fresh.problems) == []
    assert counts.summary() == {"get": 11, "list": 1}
    assert len(counts.names("get", "guildsync.json")) == 1
    assert len(set(counts.names("get", "journal/"))) == 10


def test_a_warm_reading_is_one_list(store_site: Site) -> None:
    with store_site.opened(fresh=False) as replica:
        deliver(replica, ONE)
    store_site.counts.reset()
    with store_site.opened(fresh=False) as replica:
        assert len(replica.replica) == 32
        assert list(listed(replica)) == [RUN]
        (scan,) = replica.manifests({RUN: [ONE.manifest.content]})
        assert scan.manifest is None
    assert store_site.counts.calls == [("list", "journal")]


def test_a_pull_reads_a_pack_in_one_request(store_site: Site, source: Path, tmp_path: Path) -> None:
    _push(source, store_site)
    counts = store_site.counts
    counts.reset()
    with store_site.opened() as there, replicas.Site("near", tmp_path / "target").opened() as here:
        assert _sync(there, here, tmp_path / "target") == 20
    # the journal, the format, the index of the pack, its manifests, its objects
    assert counts["list"] == 1
    assert counts["get"] == 2
    assert counts["put"] == 0
    assert counts["read"] == 3


def test_a_client_without_a_cache_does_not_read_its_own_entry(store_site: Site) -> None:
    with store_site.opened() as replica:
        assert deliver(replica, ONE) == []
    assert store_site.counts["get"] == 0
    assert store_site.counts["read"] == 0


@pytest.mark.servers
def test_a_call_is_one_request_of_the_server(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = new_site("s3", tmp_path, request)
    for run in run_ids(3):
        with site.opened(fresh=False) as replica:
            assert deliver(replica, ONE, RunId(run)) == []
    requests: list[str] = []
    call = S3FileSystem._call_s3

    async def counted(self: S3FileSystem, method: str, *args: object, **kwargs: object) -> object:
        requests.append(method)
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(S3FileSystem, "_call_s3", counted)
    with site.opened() as fresh:
        assert len(list(fresh.runs())) == 3
    assert sorted(requests) == ["get_object"] * 4 + ["list_objects_v2"]
    requests.clear()
    with site.opened(fresh=False) as same:
        assert deliver(same, TWO, RUN) == []
    # the manifest of what is there, the objects and the commit, the proof
    assert sorted(requests) == ["get_object", "list_objects_v2", "list_objects_v2", "put_object", "put_object"]


def test_counts_count(store_site: Site) -> None:
    counts = Counts()
    assert store_site.files is not None
    files = replicas.CountingFiles(store_site.files(), counts)
    files.put("probe/x", b"12345")
    assert files.get("probe/x") == b"12345"
    assert files.read("probe/x", 1, 3) == b"23"
    assert files.list("probe") == {"probe/x": 5}
    files.remove("probe/x")
    assert counts.summary() == {"get": 1, "list": 1, "put": 1, "read": 1, "remove": 1}
    assert (counts.bytes_in, counts.bytes_out) == (7, 5)


def test_a_tree_closed_leaves_what_it_staged_until_it_is_in_its_run(tmp_path: Path) -> None:
    size = sum(map(len, ONE.objects.values()))
    for kind in TREES:
        site = Site(kind, tmp_path / kind)
        with site.opened() as replica:
            assert replica.missing(ONE.wants(RUN)) == ONE.objects.keys()
            assert replica.resumed == 0
            stage(replica, ONE)
        assert len(list((tmp_path / kind / ".guildsync" / "staging").iterdir())) == 2
        assert Tree(Home(str(site.home))).is_there
        with site.opened() as replica:
            assert list(replica.manifests({})) == list(replica.runs()) == []
            assert replica.missing(ONE.wants(RUN)) == set()
            assert replica.missing(ONE.wants(RUN)) == set()
            assert replica.resumed == size
            assert replica.commit([update_to(ONE)]) == []
        assert list((tmp_path / kind / ".guildsync" / "staging").iterdir()) == []
        assert_holds(site, ONE)
