"""The laws of three-way diffs: in a small scope all of them, beyond it by chance."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from guildsync.errors import SafetyStop
from guildsync.model.manifest import (
    DIRECTORY,
    NOTHING,
    Entry,
    Manifest,
    digest_of,
    directory_entry,
    file_entry,
    link_entry,
    parent,
    same,
)
from guildsync.model.paths import EVERYTHING, Paths
from guildsync.model.plan import (
    SOURCE,
    TARGET,
    Change,
    Clash,
    Plan,
    Policy,
    agreed,
    apply,
    continued,
    diff,
    guard,
    noted,
)
from guildsync.model.ports import Aim
from tests.kit import strategies as some

POLICIES = [Policy(delete, resolve) for delete in (False, True) for resolve in (None, SOURCE, TARGET)]
Triple = tuple[Manifest | None, Manifest, Manifest]


def at(manifest: Manifest | None, path: bytes) -> Entry | None:
    return None if manifest is None else manifest.by_path.get(path)


def near(path: bytes, tops: Collection[bytes]) -> bool:
    """Whether `path` is one of `tops`, or above or below one."""
    return any(path == top or path.startswith(top + b"/") or top.startswith(path + b"/") for top in tops)


def all_paths(*manifests: Manifest | None) -> set[bytes]:
    return {path for manifest in manifests if manifest is not None for path in manifest.by_path}


def brought_back(path: bytes, have: Manifest, result: Manifest) -> bool:
    """A directory that was gone at the target, and that something below it needs now."""
    entry = at(result, path)
    if at(have, path) is not None or entry is None or entry.kind != DIRECTORY:
        return False
    return any(parent(name) == path for name in result.by_path)


def check_laws(triple: Triple, policy: Policy, grown: Collection[bytes] = ()) -> None:
    base, have, want = triple
    plan = diff(base, have, want, policy, grown)
    result = apply(plan, have)  # (i) raises Damaged unless it is a tree
    open_plan = plan if policy.resolve is None else diff(base, have, want, Policy(policy.delete), grown)
    disputed = [clash.path for clash in open_plan.clashes] if policy.resolve is not None else []
    assert [c.path for c in plan.changes] == sorted({c.path for c in plan.changes})
    for path in all_paths(base, have, want):
        b, h, w, r = at(base, path), at(have, path), at(want, path), at(result, path)
        if near(path, disputed):
            continue
        if same(b, w):
            assert same(r, h) or brought_back(path, have, result), "(ii) unchanged at the source, changed here"
        if policy.resolve is None and not plan.clashes and not same(b, h) and path not in grown:
            assert same(r, h) or brought_back(path, have, result), "(iii) the target's own change is lost"
        if not policy.delete and h is not None:
            assert r is not None, "(iv) removed without delete"
    if have.content == want.content:
        assert plan == Plan((), (), ()), "(v)"
    if policy.delete and base is not None and base.content == have.content:
        assert result.content == want.content, "(vi)"
        assert not plan.clashes
    if policy.resolve != SOURCE:
        kept = {entry.digest for entry in result.entries}
        for entry in have.entries:
            known = at(base, entry.path)
            was_known = known is not None and known.digest == entry.digest
            assert entry.digest in kept or was_known or entry.path in grown, "(vii) bytes nobody else has are lost"
    if policy.resolve is not None:
        assert not plan.clashes, "(viii)"
    if not plan.clashes:
        again = diff(agreed(base, result, want), result, want, policy)
        assert not again.changes, "(ix) the second sync is no no-op"
        assert not again.clashes, "(ix) the second sync has clashes"


# The small scope: every manifest over {a, a/b, c} of two files that are no growth of one another, and directories.


def _states(path: bytes) -> list[Entry | None]:
    one, two = (file_entry(path, 0o644, 1, digest_of(data), 0) for data in (b"1", b"2"))
    return [None, one, two, directory_entry(path, 0o755, 0)]


def _scope() -> list[Manifest]:
    out = []
    for a, c in itertools.product(_states(b"a"), _states(b"c")):
        below = _states(b"a/b") if a is not None and a.kind == DIRECTORY else [None]
        out += [Manifest(e for e in (a, b, c) if e is not None) for b in below]
    return out


SCOPE = _scope()
TRIPLES = list(itertools.product([None, *SCOPE], SCOPE, SCOPE))
ABOVE = [m for m in SCOPE if b"c" not in m.by_path]


def test_the_scope_is_what_it_says() -> None:
    assert len(SCOPE) == 28
    assert len({manifest.content for manifest in SCOPE}) == 28
    assert len(TRIPLES) == 29 * 28 * 28


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_laws_hold_in_all_of_the_small_scope(policy: Policy) -> None:
    for triple in TRIPLES:
        try:
            check_laws(triple, policy)
        except Exception as exc:
            raise AssertionError(f"{exc!r} of {policy} and\n{told(triple)}") from exc


def told(manifests: Collection[Manifest | None]) -> str:
    """Manifests for people."""
    lines = []
    for name, manifest in zip(("base", "have", "want", "want2"), manifests, strict=False):
        rows = None if manifest is None else {e.path: (e.kind, e.mode, e.size, e.target) for e in manifest.entries}
        lines.append(f"  {name} = {rows}")
    return "\n".join(lines)


@given(some.triples(), st.sampled_from(POLICIES))
def test_laws_hold_beyond(triple: Triple, policy: Policy) -> None:
    check_laws(triple, policy)


@given(some.triples(), st.sampled_from(POLICIES), st.data())
def test_laws_hold_with_growth(triple: Triple, policy: Policy, data: st.DataObject) -> None:
    _, have, want = triple
    both = sorted(have.by_path.keys() & want.by_path.keys())
    grown = [
        path
        for path in both
        if Clash(path, None, have.by_path[path], want.by_path[path]).growth and data.draw(st.booleans())
    ]
    check_laws(triple, policy, grown)


# (x) Growth.


def log(size: int, mode: int = 0o644) -> Manifest:
    return Manifest([file_entry(b"log", mode, size, digest_of(b"x" * size), 0)])


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("base", [None, NOTHING, log(1)])
def test_the_longer_of_two_wins(base: Manifest | None, policy: Policy) -> None:
    short, long = log(2), log(3)
    assert apply(diff(base, short, long, policy, {b"log"}), short) == long
    assert apply(diff(base, long, short, policy, {b"log"}), long) == long
    assert not diff(base, short, long, policy, {b"log"}).clashes
    assert not diff(base, long, short, policy, {b"log"}).clashes
    assert diff(base, long, short, policy, {b"log"}).left == (b"log",)


def test_growth_must_be_known_to_count() -> None:
    plan = diff(None, log(2), log(3))
    assert [clash.growth and clash.growth[0] for clash in plan.clashes] == [SOURCE]
    assert not plan.changes
    assert diff(None, log(3), log(2)).clashes[0].growth == (TARGET, *log(3).entries, *log(2).entries)


def test_a_source_that_was_cut_is_a_change_and_no_growth() -> None:
    """The target has what both had; that the source is shorter now is what the source wants."""
    assert apply(diff(log(3), log(3), log(2), grown={b"log"}), log(3)) == log(2)


@pytest.mark.parametrize(
    ("have", "want"),
    [
        (log(2), log(3, 0o600)),
        (log(2), log(2, 0o600)),
        (log(2), Manifest([link_entry(b"log", b"x", 0)])),
        (Manifest([directory_entry(b"log", 0o755, 0)]), log(2)),
    ],
)
def test_what_is_no_growth(have: Manifest, want: Manifest) -> None:
    (clash,) = diff(None, have, want, grown={b"log"}).clashes
    assert clash.growth is None


# Without a base.


@given(some.manifests(), some.manifests(), st.booleans())
def test_without_a_base_nothing_goes_and_nothing_is_overwritten(have: Manifest, want: Manifest, delete: bool) -> None:
    result = apply(diff(None, have, want, Policy(delete)), have)
    assert all(same(at(result, entry.path), entry) for entry in have.entries)


@given(some.manifests())
def test_to_a_target_that_has_nothing_all_is_sent(want: Manifest) -> None:
    plan = diff(None, NOTHING, want)
    assert apply(plan, NOTHING) == want
    assert not plan.clashes
    assert not plan.left


def test_a_directory_and_a_file_of_one_name_clash() -> None:
    directory = Manifest([directory_entry(b"a", 0o755, 0), file_entry(b"a/b", 0o644, 1, digest_of(b"1"), 0)])
    file = Manifest([file_entry(b"a", 0o644, 1, digest_of(b"2"), 0)])
    assert b"a" in {clash.path for clash in diff(None, directory, file).clashes}
    assert b"a" in {clash.path for clash in diff(None, file, directory).clashes}
    assert apply(diff(None, directory, file, Policy(resolve=SOURCE)), directory) == file
    assert apply(diff(None, file, directory, Policy(resolve=SOURCE)), file) == directory
    assert apply(diff(None, directory, file, Policy(resolve=TARGET)), directory) == directory


# Paths that are left out.

FILTERS = [
    Paths((b"a",)),
    Paths((b"/a/b",)),
    Paths((b"a/",)),
    Paths((), (b"a/",)),
    Paths((), (b"/a",)),
    Paths((), (b"b",)),
    Paths((b"**",), (b"**",)),
]


def is_left_out(paths: Paths, *entries: Entry | None) -> bool:
    return any(entry is not None and entry not in paths for entry in entries)


def needed(path: bytes, result: Manifest) -> bool:
    entry = at(result, path)
    return entry is not None and entry.kind == DIRECTORY and any(parent(name) == path for name in result.by_path)


def check_left_out(triple: Triple, policy: Policy) -> None:
    base, have, want = triple
    paths = policy.paths
    plan, whole = diff(base, have, want, policy), diff(base, have, want, replace(policy, paths=EVERYTHING))
    result, entire = apply(plan, have), apply(whole, have)
    every = all_paths(base, have, want)
    out = {path for path in every if is_left_out(paths, at(have, path), at(want, path))}
    for path in out:
        h, w, r = at(have, path), at(want, path), at(result, path)
        assert same(r, h) or (h is None and same(r, w) and needed(path, result)), "what is left out was touched"
        assert path not in plan.left
        assert (path in plan.out) == (not same(h, w))
    assert out >= set(plan.out)
    unresolved = [diff(base, have, want, Policy(policy.delete, paths=each)) for each in (paths, EVERYTHING)]
    disputed = {clash.path for each in unresolved for clash in each.clashes}
    for path in every - out:
        if not near(path, disputed):
            r, e = at(result, path), at(entire, path)
            assert same(r, e) or needed(path, result) or needed(path, entire), "what is chosen has another fate"
    if not plan.clashes:
        check_afterwards(triple, policy, plan, result)


def check_afterwards(triple: Triple, policy: Policy, plan: Plan, result: Manifest) -> None:
    base, _, want = triple
    after = agreed(base, result, want, plan.out)
    for path in all_paths(base, result, want) - all_paths(*([] if base is None else [base])):
        r, w = at(result, path), at(want, path)
        known = at(after, path)
        assert known is None or (same(known, r) and same(known, w)) or known.mode == 0, "the base claims too much"
    for path in plan.out:
        if not same(at(result, path), at(want, path)):
            known = at(after, path)
            assert same(known, at(base, path)) or known is None or known.mode == 0, "the base claims too much"
    again = diff(after, result, want, policy)
    assert not again.changes, "the second sync is no no-op"
    assert not again.clashes, "the second sync has clashes"
    for entry in result.entries if policy.resolve is None else ():
        if entry.kind != DIRECTORY and same(entry, at(want, entry.path)):
            assert same(at(after, entry.path), entry), "the base forgot what both have"


@pytest.mark.parametrize("paths", FILTERS, ids=str)
def test_what_is_left_out_stays_as_it_is_in_all_of_the_small_scope(paths: Paths) -> None:
    for policy in POLICIES:
        for triple in itertools.product([None, *ABOVE], ABOVE, ABOVE):
            try:
                check_left_out(triple, replace(policy, paths=paths))
            except Exception as exc:
                raise AssertionError(f"{exc!r} of {policy} and\n{told(triple)}") from exc


def filters() -> st.SearchStrategy[Paths]:
    wild = st.sampled_from([b"*", b"a", b"b", b"a/", b".guild", b".guild/", b"/a", b"/a/*", b"**/b", b"a/**", b"?*/"])
    literal = some.paths().map(lambda path: re.sub(rb"([*?\[\\])", rb"\\\1", path))
    patterns = st.lists(wild | literal, max_size=2).map(tuple)
    return st.builds(Paths, patterns, patterns)


@given(some.triples(), st.sampled_from(POLICIES), filters())
def test_what_is_left_out_stays_as_it_is_beyond(triple: Triple, policy: Policy, paths: Paths) -> None:
    check_left_out(triple, replace(policy, paths=paths))


@given(some.triples(), st.sampled_from(POLICIES), filters())
def test_a_whole_sync_after_one_that_left_out_ends_as_if_there_had_been_none(
    triple: Triple, policy: Policy, paths: Paths
) -> None:
    base, have, want = triple
    if base is None:
        base = NOTHING
    whole = diff(base, have, want, policy)
    first = diff(base, have, want, replace(policy, paths=paths))
    assume(not diff(base, have, want, Policy(policy.delete)).clashes and not first.clashes)
    middle = apply(first, have)
    rest = diff(agreed(base, middle, want, first.out), middle, want, policy)
    assert not rest.clashes
    assert apply(rest, middle).content == apply(whole, have).content


def of(**files: bytes) -> Manifest:
    return Manifest(file_entry(name.encode(), 0o644, len(data), digest_of(data), 0) for name, data in files.items())


def test_a_left_out_path_that_both_sides_changed_is_no_clash_until_it_counts() -> None:
    base, have, want = of(a=b"1", b=b"1"), of(a=b"2", b=b"1"), of(a=b"3", b=b"3")
    policy = Policy(paths=Paths((), (b"a",)))
    plan = diff(base, have, want, policy)
    result = apply(plan, have)
    assert result == of(a=b"2", b=b"3")
    assert (plan.clashes, plan.left, plan.out) == ((), (), (b"a",))
    after = agreed(base, result, want, plan.out)
    assert after == of(a=b"1", b=b"3")
    assert [clash.path for clash in diff(after, result, want).clashes] == [b"a"]


@pytest.mark.parametrize("resolve", [None, SOURCE])
def test_no_side_is_taken_that_costs_what_is_left_out(resolve: str | None) -> None:
    directory = Manifest([directory_entry(b"a", 0o755, 0), file_entry(b"a/b", 0o644, 1, digest_of(b"1"), 0)])
    file = of(a=b"2")
    for have, want, paths in ((file, directory, Paths((b"b",))), (directory, file, Paths((), (b"b",)))):
        plan = diff(None, have, want, Policy(resolve=resolve, paths=paths))
        assert b"a" in {clash.path for clash in plan.clashes}
        assert apply(plan, have) == have
    assert not diff(None, file, directory, Policy(resolve=TARGET, paths=Paths((b"b",)))).clashes
    assert apply(diff(None, file, directory, Policy(resolve=SOURCE, paths=Paths((b"a",)))), file) == directory


def test_conceding_says_nothing_of_what_is_left_out() -> None:
    want = Manifest(
        [
            directory_entry(b"a", 0o755, 0),
            directory_entry(b"a/d", 0o755, 0),
            *(file_entry(b"a/" + name, 0o644, 1, digest_of(b"1"), 0) for name in (b"log", b"b", b"d/b")),
        ]
    )
    have = of(a=b"2")
    policy = Policy(resolve=TARGET, paths=Paths((b"b",)))
    plan = diff(None, have, want, policy)
    assert apply(plan, have) == have
    assert plan.out == (b"a", b"a/d", b"a/log")
    after = noted(agreed(None, have, want, plan.out), want, [b"a"], plan.out)
    assert [entry.path for entry in after.entries] == [b"a", b"a/b", b"a/d", b"a/d/b"]
    assert not diff(after, have, want, replace(policy, resolve=None)).clashes
    assert diff(after, have, want).clashes


# Commits that did not end.


def subsets(plan: Plan) -> Iterator[tuple[Change, ...]]:
    for count in range(len(plan.changes) + 1):
        yield from itertools.combinations(plan.changes, count)


def half_done(have: Manifest, done: Collection[Change]) -> Manifest | None:
    """`have` after some of a plan's changes; None where they are no tree by themselves."""
    tree = dict(have.by_path)
    for change in done:
        if change.want is None:
            del tree[change.path]
        else:
            tree[change.path] = change.want
    directories = {b""} | {entry.path for entry in tree.values() if entry.kind == DIRECTORY}
    return Manifest(tree.values()) if all(parent(path) in directories for path in tree) else None


def check_resumed(triple: Triple, policy: Policy, done: Collection[Change], plan: Plan) -> Manifest | None:
    base, have, _ = triple
    half, aim = half_done(have, done), apply(plan, have)
    if half is None:
        return None
    rest = diff(continued(base, half, have, aim), half, aim, policy)
    assert not rest.clashes, "what arrived, or is still to come, clashes"
    left = {change.path for change in plan.changes} - {change.path for change in done}
    assert {change.path for change in rest.changes} == left, "not exactly the rest"
    assert apply(rest, half).content == aim.content
    return half


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_commit_that_did_not_end_goes_on(policy: Policy) -> None:
    for triple in itertools.product([None, *SCOPE], ABOVE, ABOVE):
        plan = diff(*triple, policy)
        if plan.clashes:
            continue
        for done in subsets(plan):
            try:
                check_resumed(triple, policy, done, plan)
            except AssertionError as exc:
                raise AssertionError(f"{exc} {policy}, done {[c.path for c in done]}\n{told(triple)}") from exc


def check_moved_on(base: Manifest | None, half: Manifest, aim: Aim, want2: Manifest, done: Collection[Change]) -> None:
    plan = diff(continued(base, half, *aim), half, want2, Policy(delete=True))
    arrived = {change.path for change in done}
    clashes = {clash.path for clash in plan.clashes}
    assert not clashes & arrived, "what arrived is taken for a change of the target's own"
    apply(plan, half)


@pytest.mark.parametrize("delete", [False, True])
def test_what_arrived_is_no_clash_when_the_source_moved_on(delete: bool) -> None:
    for base, have, want in itertools.product([None, *ABOVE], ABOVE, ABOVE):
        plan = diff(base, have, want, Policy(delete))
        if plan.clashes:
            continue
        for done in subsets(plan):
            half = half_done(have, done)
            if half is None:
                continue
            for want2 in ABOVE:
                try:
                    check_moved_on(base, half, Aim(have, apply(plan, have)), want2, done)
                except AssertionError as exc:
                    said = told((base, have, want, want2))
                    raise AssertionError(f"{exc}, done {[c.path for c in done]}\n{said}") from exc


def keeps_own_changes(aim_is_result: bool) -> None:
    """Syncing again what the source has keeps what the target changed, however far the first sync came."""
    for base, have, want in TRIPLES:
        plan = diff(base, have, want, Policy(delete=True))
        if plan.clashes or base is None:
            continue
        aim = apply(plan, have) if aim_is_result else want
        for done in subsets(plan):
            half = half_done(have, done)
            if half is None:
                continue
            result = apply(diff(continued(base, half, have, aim), half, want, Policy(delete=True)), half)
            for path in all_paths(base, have, want):
                own = not same(at(base, path), at(have, path))
                if own and not same(at(result, path), at(have, path)) and not brought_back(path, have, result):
                    said = f"{path!r} is lost, done {[c.path for c in done]}\n{told((base, have, want))}"
                    raise AssertionError(said)


def test_own_changes_survive_a_commit_that_did_not_end() -> None:
    keeps_own_changes(aim_is_result=False)


def test_own_changes_survive_where_the_aim_is_what_the_run_was_to_become() -> None:
    keeps_own_changes(aim_is_result=True)


@given(some.triples(), some.manifests(4), st.sampled_from(POLICIES), st.data())
def test_commits_that_did_not_end_beyond(triple: Triple, want2: Manifest, policy: Policy, data: st.DataObject) -> None:
    plan = diff(*triple, policy)
    assume(not plan.clashes)
    done = [change for change in plan.changes if data.draw(st.booleans())]
    half = check_resumed(triple, policy, done, plan)
    if half is not None:
        check_moved_on(triple[0], half, Aim(triple[1], apply(plan, triple[1])), want2, done)


@given(some.triples())
def test_the_agreed_base_is_what_both_have_or_had(triple: Triple) -> None:
    base, have, want = triple
    both = agreed(base, have, want)
    for entry in both.entries:
        h, w = at(have, entry.path), at(want, entry.path)
        assert (same(entry, h) and same(entry, w)) or (not same(h, w) and same(entry, at(base, entry.path)))
    assert agreed(base, want, want).content == want.content


# The guard.


def run_of(files: int) -> Manifest:
    return Manifest(file_entry(b"%04d" % n, 0o644, 1, digest_of(b"1"), 0) for n in range(files))


def removal(have: Manifest, count: int) -> Plan:
    return Plan(tuple(Change(entry.path, entry, None) for entry in have.entries[:count]), (), ())


@pytest.mark.parametrize(
    ("files", "removed", "max_delete", "stopped"),
    [
        (4, 0, None, False),
        (4, 2, None, False),
        (4, 3, None, True),
        (1, 1, None, True),
        (2, 1, None, False),
        (4, 3, 3, False),
        (4, 3, 2, True),
        (4, 1, 0, True),
        (4, 0, 0, False),
        (2000, 1000, None, False),
        (2002, 1001, None, True),
        (2002, 1001, 1001, False),
        (2002, 1001, 1000, True),
        (0, 0, None, False),
    ],
)
def test_guard(files: int, removed: int, max_delete: int | None, stopped: bool) -> None:
    have = run_of(files)
    plans = [("r", removal(have, removed), have)]
    if not stopped:
        guard(plans, max_delete)
        return
    with pytest.raises(SafetyStop) as caught:
        guard(plans, max_delete)
    assert f"--max-delete {removed}" in (caught.value.hint or "")


def test_guard_counts_all_runs_together() -> None:
    have = run_of(1200)
    guard([("r", removal(have, 500), have), ("s", removal(have, 500), have)])
    with pytest.raises(SafetyStop, match="1001"):
        guard([("r", removal(have, 500), have), ("s", removal(have, 501), have)])


def test_guard_counts_files_and_links_and_names_the_worst_run() -> None:
    have = Manifest([*run_of(3).entries, *(directory_entry(b"d%d" % n, 0o755, 0) for n in range(9))])
    only_directories = Plan(tuple(Change(e.path, e, None) for e in have.entries if e.kind == DIRECTORY), (), ())
    guard([("r", only_directories, have)])
    link = Manifest([link_entry(b"l", b"x", 0)])
    with pytest.raises(SafetyStop, match="run big"):
        guard([("small", removal(link, 1), link), ("big", removal(run_of(3), 3), run_of(3))])


def test_replacing_is_not_removing() -> None:
    guard([("r", diff(log(1), log(1), log(2)), log(1))])
