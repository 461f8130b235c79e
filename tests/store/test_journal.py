"""The journal: what is written is read, nothing else is; and the merge, against its definitions, in every order."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from functools import cache

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from guildsync.errors import Damaged
from guildsync.model.manifest import Digest, canonical
from guildsync.store.journal import (
    KINDS,
    MAX_DECODED,
    Claim,
    Commit,
    Edit,
    Facts,
    Mark,
    PackFact,
    Version,
    decode,
    encode,
    join,
    next_sequence,
    split_name,
)
from guildsync.store.view import View
from tests.kit import facts as kit

RUN = kit.RUNS[0]
P1, P2, P3, P4 = kit.PACKS
SAME, OTHER = kit.CONTENTS
STORE = kit.STORES[0]


def commit_id(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def vid(number: int, run: str = RUN) -> str:
    return f"{commit_id(number)}/{run}"


def eid(number: int, nth: int = 0) -> str:
    return f"{commit_id(number)}/{nth}"


def facts(*rows, **names) -> Facts:
    """Facts from rows of any kind; `condemned`, `dropped`, `purged` and `stores` by name."""
    kinds = {PackFact: "adds", Version: "versions", Claim: "claims", Mark: "marks", Edit: "edits"}
    out = {kind: frozenset(row for row in rows if kinds[type(row)] == kind) for kind in kinds.values()}
    return Facts(**out, **{kind: frozenset(values) for kind, values in names.items()})


def push(number: int, *packs: str, content: str = SAME, replaces=(), run=RUN) -> Facts:
    version = Version(vid(number, run), run, content, content, "{}", tuple(sorted(vid(n, run) for n in replaces)))
    adds = [PackFact(pack, 1000, 900, pack) for pack in packs]
    return facts(version, Claim(version.id, tuple(sorted(packs))), *adds)


def mark(value: str, sequence: int, number: int) -> Facts:
    return facts(Mark(RUN, value, sequence, commit_id(number)))


def edit(number: int, field: str, value, sequence: int, replaces=()) -> Facts:
    text = canonical(value).decode()
    before = tuple(sorted(eid(n) for n in replaces))
    return facts(Edit(eid(number), RUN, field, text, before, sequence, commit_id(number)))


def view(*states: Facts) -> View:
    return View(join(states))


# The reference: the definitions, transcribed without any thought of speed ------------------------------------------


def ancestors(start, replaces):
    seen, todo = set(), list(start)
    while todo:
        for before in replaces.get(todo.pop(), ()):
            if before not in seen:
                seen.add(before)
                todo.append(before)
    return seen


def by_id(rows):
    return {id_: min(row for row in rows if row.id == id_) for id_ in {row.id for row in rows}}


def expected(s: Facts):
    """All that a View may tell, from the definitions of the merge."""
    bad = s.condemned | s.dropped
    versions = by_id(s.versions)
    claims = {v: sorted(c for c in s.claims if c.version == v) for v in {*versions, *(c.version for c in s.claims)}}
    good = {v: [c for c in cs if not set(c.packs) & bad] for v, cs in claims.items()}
    free = {v: [c for c in cs if not set(c.packs) & s.dropped] for v, cs in claims.items()}
    living = {v for v in versions if v not in s.purged and free[v]}
    needed = set()
    for v in living:
        for c in good[v][:1] or claims[v]:
            needed |= set(c.packs)
    replaces = {v: row.replaces for v, row in versions.items()}
    runs = {}
    for run in {row.run for row in versions.values()} | {m.run for m in s.marks}:
        mine = {v for v in living if versions[v].run == run}
        heads = sorted(mine - ancestors(mine, replaces)) or sorted(mine)
        marks = [(m.sequence, m.commit, m.value) for m in s.marks if m.run == run]
        edits = by_id([e for e in s.edits if e.run == run])
        dead = ancestors(edits, {e: row.replaces for e, row in edits.items()})
        fields, overruled, standing = {}, {}, {}
        for field in {row.field for e, row in edits.items() if e not in dead}:
            left = [row for e, row in edits.items() if e not in dead and row.field == field]
            standing[field] = tuple(sorted(row.id for row in left))
            said = {"null" if row.value == "false" else row.value for row in left}
            won = max((row.sequence, row.commit, row.id, row.value) for row in left)[3]
            if field.startswith("tag:"):
                won = "true" if "true" in said else "null"
            won = "null" if won == "false" else won
            if won != "null":
                fields[field] = won
            if said - {won}:
                overruled[field] = tuple(sorted(said - {won}))
        runs[run] = {
            "status": "gone" if not mine else (max(marks)[2] if marks else "live"),
            "heads": tuple(heads),
            "current": heads[0] if heads else None,
            "conflict": len({versions[h].content for h in heads}) > 1,
            "rivals": tuple(h for h in heads if versions[h].content != versions[heads[0]].content),
            "fields": fields,
            "overruled": overruled,
            "standing": standing,
        }
    return {
        "store": min(s.stores) if s.stores else None,
        "needed": needed,
        "living": living,
        "void": {v for v in claims if not free[v]},
        "settled": {v for v in living if good[v]},
        "claim": {v: (good[v] or free[v] or [None])[0] for v in claims},
        "good": {v: (good[v] or [None])[0] for v in claims},
        "runs": runs,
    }


def observed(v: View):
    ids = {row.id for row in v.facts.versions} | {c.version for c in v.facts.claims}
    runs = {}
    for run in v.runs():
        current = v.current(run)
        texts = {field: canonical(value).decode() for field, value in v.fields(run).items()}
        overruled = {f: tuple(canonical(value).decode() for value in found) for f, found in v.overruled(run).items()}
        standing = {f: v.standing_edits(run, f) for f in kit.FIELDS}
        runs[run] = {
            "status": v.status(run),
            "heads": tuple(version.id for version in v.heads(run)),
            "current": current.id if current else None,
            "conflict": bool(v.rivals(run)),
            "rivals": tuple(version.id for version in v.rivals(run)),
            "fields": texts,
            "overruled": overruled,
            "standing": {f: found for f, found in standing.items() if found},
        }
    return {
        "store": v.store,
        "needed": set(v.needed_packs()),
        "living": set(v.living),
        "void": {id_ for id_ in ids if v.is_void(id_)},
        "settled": {id_ for id_ in ids if v.settled(id_)},
        "claim": {id_: v.claim(id_) for id_ in ids},
        "good": {id_: v.good_claim(id_) for id_ in ids},
        "runs": runs,
    }


# The merge ---------------------------------------------------------------------------------------------------------


@settings(max_examples=600, deadline=None)
@given(kit.facts)
def test_a_view_is_what_the_definitions_say(state: Facts) -> None:
    assert observed(View(state)) == expected(state)


@settings(max_examples=150, deadline=None)
@given(st.lists(kit.facts, max_size=5), st.data())
def test_any_order_grouping_and_duplication_joins_to_the_same(states: list[Facts], data: st.DataObject) -> None:
    whole = join(states)
    for kind in KINDS:
        assert getattr(whole, kind) == {row for state in states for row in getattr(state, kind)}
    pile = data.draw(st.permutations(states))
    for _ in range(3):
        some = data.draw(st.lists(st.sampled_from(pile), max_size=3)) if pile else []
        pile = [*pile, join(some)]
    kept = [state for state in pile[: len(states)] if data.draw(st.booleans())]
    assert join([*kept, join(pile), *pile]) == whole
    assert observed(View(join(pile))) == observed(View(whole))


SCOPES = {
    "push, replacing push, hide, restore": [
        push(1, P1),
        push(2, P2, content=OTHER, replaces=[1]),
        mark("hidden", 2, 3),
        mark("live", 3, 4),
    ],
    "two pushes that did not see each other, a push that did": [
        push(1, P1),
        push(2, P2, content=OTHER),
        push(3, P3, content=OTHER, replaces=[1, 2]),
        mark("hidden", 1, 5),
    ],
    "condemn, drop, claim": [
        push(1, P1),
        push(2, P2, content=OTHER, replaces=[1]),
        facts(dropped=[P2], condemned=[P2]),
        facts(Claim(vid(2), (P3,))),
    ],
    "condemn of all, rescue, purge": [
        push(1, P1, P2),
        facts(condemned=[P1]),
        facts(Claim(vid(1), (P2, P4)), Claim(vid(1), (P3,)), dropped=[P1]),
        join([facts(purged=[vid(1)]), mark("hidden", 2, 4)]),
    ],
    "purge, and a push nobody saw": [
        push(1, P1),
        push(2, P2, content=OTHER, replaces=[1]),
        join([facts(purged=[vid(1)]), mark("hidden", 2, 3)]),
        mark("live", 2, 2),
    ],
    "edits with the same and different stamps": [
        push(1, P1),
        join([edit(2, "label", "one", 2), facts(stores=["1" * 32])]),
        join([edit(3, "label", "two", 2), facts(stores=["2" * 32])]),
        edit(4, "label", None, 3, replaces=[2]),
    ],
    "a tag added, removed, added again": [
        edit(1, "tag:x", True, 1),
        edit(2, "tag:x", None, 3, replaces=[1]),
        edit(3, "tag:x", True, 2, replaces=[1]),
        push(1, P1),
    ],
    "hide and restore with one sequence": [push(1, P1), mark("hidden", 2, 2), mark("live", 2, 3), mark("hidden", 1, 9)],
}


@cache
def stored(state: Facts) -> Facts:
    """What a reader makes of a state that was written."""
    commit = Commit(STORE, 7, commit_id(7), state)
    return decode(commit.name, encode(commit)).facts


def subsets(items):
    return [part for size in range(len(items) + 1) for part in itertools.combinations(items, size)]


@pytest.mark.parametrize("commits", SCOPES.values(), ids=SCOPES)
def test_every_order_and_duplication_gives_one_view(commits: list[Facts]) -> None:
    want, read = expected(join(commits)), [stored(entry) for entry in commits]
    indices = range(len(commits))
    for again in subsets(indices):
        for order in set(itertools.permutations([*indices, *again])):
            cached = Facts()  # a client that reads one entry at a time, and keeps what it has
            for n in order:
                cached = join([cached, read[n]])
            assert observed(View(cached)) == want


@pytest.mark.parametrize("commits", SCOPES.values(), ids=SCOPES)
def test_every_late_commit_is_one_more_fact(commits: list[Facts]) -> None:
    want = expected(join(commits))
    for early in subsets(commits):
        reading = join(map(stored, early))
        assert observed(View(reading)) == expected(join(early))
        checkpoint = stored(reading)
        late = [entry for entry in commits if entry not in early]
        for order in itertools.permutations(late):
            assert observed(View(join([checkpoint, *map(stored, order)]))) == want


@pytest.mark.parametrize("commits", SCOPES.values(), ids=SCOPES)
def test_every_nest_of_checkpoints_gives_one_view(commits: list[Facts]) -> None:
    """One checkpoint, another that may or may not have seen it, and any part of what both sum up deleted."""
    want = expected(join(commits))
    indices = range(len(commits))
    views = {}
    for one, other in itertools.product(subsets(indices), repeat=2):
        first = stored(join(commits[n] for n in one))
        for seen in ([], [first]):
            second = stored(join([*seen, *(commits[n] for n in other)]))
            for deleted in subsets(sorted({*one, *other})):
                kept = [stored(commits[n]) for n in indices if n not in deleted]
                for still in ([first], []) if seen else ([first],):
                    journal = join([second, *still, *kept])
                    if journal not in views:
                        views[journal] = observed(View(journal))
                    assert views[journal] == want


def test_a_void_version_shows_what_it_replaced() -> None:
    before = [push(1, P1), push(2, P2, content=OTHER, replaces=[1])]
    assert view(*before).current(RUN).id == vid(2)
    lost = view(*before, facts(condemned=[P2], dropped=[P2]))
    assert lost.is_void(vid(2))
    assert [version.id for version in lost.heads(RUN)] == [vid(1)]
    assert lost.claim(vid(2)) is None


def test_a_later_claim_revives_a_void_version() -> None:
    again = view(push(1, P1), push(2, P2, replaces=[1]), facts(dropped=[P2]), facts(Claim(vid(2), (P3,))))
    assert not again.is_void(vid(2))
    assert again.current(RUN).id == vid(2)
    assert again.claim(vid(2)) == Claim(vid(2), (P3,))
    assert again.needed_packs() == {P1, P3}


def test_a_version_without_a_claim_is_void() -> None:
    bare = view(facts(Version(vid(1), RUN, SAME, SAME, "{}", ())))
    assert bare.is_void(vid(1))
    assert bare.status(RUN) == "gone"
    assert bare.runs() == (RUN,)


def test_a_condemned_pack_unsettles_and_hides_nothing() -> None:
    found = view(push(1, P1), facts(condemned=[P1]))
    assert found.current(RUN).id == vid(1)
    assert not found.settled(vid(1))
    assert found.good_claim(vid(1)) is None
    assert found.claim(vid(1)) == Claim(vid(1), (P1,))
    assert found.needed_packs() == {P1}


def test_equal_contents_of_two_heads_are_no_conflict() -> None:
    found = view(push(1, P1), push(2, P2))
    assert len(found.heads(RUN)) == 2
    assert found.rivals(RUN) == ()


def test_different_contents_of_two_heads_are_a_conflict_and_the_smallest_is_shown() -> None:
    found = view(push(2, P1), push(3, P2, content=OTHER), push(1, P3))
    assert found.current(RUN).id == vid(1)
    assert [version.id for version in found.rivals(RUN)] == [vid(3)]


def test_a_purge_names_versions_and_an_unseen_push_survives_hidden() -> None:
    purge = join([facts(purged=[vid(1)]), mark("hidden", 2, 2)])
    assert view(push(1, P1), purge).status(RUN) == "gone"
    found = view(push(1, P1), purge, push(3, P2, content=OTHER, replaces=[1]))
    assert found.status(RUN) == "hidden"
    assert found.current(RUN).id == vid(3)
    assert not found.settled(vid(1))
    assert found.needed_packs() == {P2}


def test_what_a_purged_version_replaced_stays_replaced() -> None:
    found = view(push(1, P1), push(2, P2, replaces=[1]), push(3, P3, replaces=[2]), facts(purged=[vid(2)]))
    assert [version.id for version in found.heads(RUN)] == [vid(3)]


def test_adding_a_tag_wins_over_removing_it() -> None:
    found = view(push(1, P1), edit(2, "tag:x", True, 2), edit(3, "tag:x", False, 9))
    assert found.fields(RUN) == {"tag:x": True}
    assert found.overruled(RUN) == {"tag:x": (None,)}
    gone = view(push(1, P1), edit(2, "tag:x", True, 2), edit(3, "tag:x", False, 9, replaces=[2]))
    assert gone.fields(RUN) == {}
    assert gone.overruled(RUN) == {}


def test_the_greatest_stamp_wins_a_field_and_the_other_is_reported() -> None:
    found = view(edit(9, "label", "one", 2), edit(3, "label", "two", 10), edit(4, "label", "old", 20))
    assert found.fields(RUN) == {"label": "old"}
    found = view(found.facts, edit(5, "label", "new", 2, replaces=[4]))
    assert found.fields(RUN) == {"label": "two"}
    assert found.overruled(RUN) == {"label": ("new", "one")}
    assert found.standing_edits(RUN, "label") == (eid(3), eid(5), eid(9))


def test_replacing_is_transitive_and_of_equal_sequences_the_greater_commit_wins() -> None:
    found = view(edit(1, "label", "one", 9), edit(2, "label", "two", 9, replaces=[1]), edit(3, "label", None, 1, [2]))
    assert found.fields(RUN) == {}
    tie = view(edit(1, "label", "one", 2), edit(2, "label", "two", 2))
    assert tie.fields(RUN) == {"label": "two"}


def test_rings_and_twins_of_hostile_writers_end_and_are_the_same_for_all() -> None:
    ring = view(push(1, P1, replaces=[2]), push(2, P2, content=OTHER, replaces=[1]))
    assert [version.id for version in ring.heads(RUN)] == [vid(1), vid(2)]
    assert view(push(1, P1, replaces=[1])).current(RUN).id == vid(1)
    twin = push(1, P1, content=OTHER)
    assert view(push(1, P1), twin).current(RUN) == view(twin, push(1, P1)).current(RUN)
    assert view(push(1, P1), twin).current(RUN).content == min(SAME, OTHER)
    assert view(edit(1, "label", "x", 1, [1])).fields(RUN) == {}


def test_an_unknown_run_or_version_is_simply_not_there() -> None:
    nothing = View(Facts())
    assert nothing.store is None
    assert nothing.runs() == ()
    assert nothing.status(RUN) == "gone"
    assert nothing.current(RUN) is nothing.version(vid(1)) is nothing.claim(vid(1)) is None
    assert not nothing.settled(vid(1))
    claimed = view(facts(Claim(vid(1), (P1,))))
    assert not claimed.settled(vid(1))
    assert claimed.needed_packs() == frozenset()


def test_twenty_thousand_runs_are_a_matter_of_a_second() -> None:
    runs = [f"{number:032x}" for number in range(20_000)]
    found = view(*(push(1, P1, run=run) for run in runs))
    assert all(found.status(run) == "live" and found.fields(run) == {} for run in found.runs())


# Sequences and names -----------------------------------------------------------------------------------------------


def test_the_next_sequence_is_above_names_and_above_stamps_inside_checkpoints() -> None:
    names = [f"{5:016d}-{commit_id(1)}"]
    assert next_sequence(Facts(), []) == 1
    assert next_sequence(Facts(), names) == 6
    assert next_sequence(mark("live", 8, 1), names) == 9
    assert next_sequence(edit(1, "label", "x", 12), names) == 13
    with pytest.raises(Damaged):
        next_sequence(mark("live", 10**16 - 1, 1), names)


@pytest.mark.parametrize(
    "name", ["", "x", "5-" + commit_id(1), f"{0:016d}-{commit_id(1)}", f"{1:016d}-{commit_id(1)}\n"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(Damaged):
        split_name(name)


# The codec ---------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(kit.commits)
def test_what_is_written_is_read(commit: Commit) -> None:
    data = encode(commit)
    assert decode(commit.name, data) == commit
    assert split_name(commit.name) == (commit.sequence, commit.id)
    assert commit.state == join([commit.facts, Facts(stores=frozenset([commit.store]))])
    first, frame = data.split(b"\n", 1)
    assert first == b"guildsync-journal 1 " + hashlib.sha256(frame).hexdigest().encode()


SMALL = Commit(STORE, 3, commit_id(3), join([push(3, P1), mark("live", 3, 3), edit(3, "label", "ä", 3)]))


def test_every_flipped_byte_is_noticed() -> None:
    data = encode(SMALL)
    for place in range(len(data)):
        for mask in (*(1 << bit for bit in range(8)), 0xFF):
            with pytest.raises(Damaged):
                decode(SMALL.name, data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])


def test_every_truncation_and_any_addition_is_noticed() -> None:
    data = encode(SMALL)
    for place in range(len(data)):
        with pytest.raises(Damaged):
            decode(SMALL.name, data[:place])
    with pytest.raises(Damaged):
        decode(SMALL.name, data + b"\0")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_raise_damaged_only(data: bytes) -> None:
    for attempt in (data, sealed(data), sealed(zstandard.ZstdCompressor().compress(data))):
        with pytest.raises(Damaged):
            decode(SMALL.name, attempt)


def sealed(frame: bytes, major: int = 1) -> bytes:
    """Bytes with a digest that is right."""
    return f"guildsync-journal {major} {hashlib.sha256(frame).hexdigest()}\n".encode() + frame


def said(value) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return sealed(zstandard.ZstdCompressor().compress(text))


def small() -> dict:
    frame = encode(SMALL).split(b"\n", 1)[1]
    return json.loads(zstandard.ZstdDecompressor().decompress(frame))


def test_the_hostile_inputs_below_are_hostile_by_one_thing_only() -> None:
    assert decode(SMALL.name, said(small())) == SMALL


def test_an_entry_under_another_name_is_refused() -> None:
    for name in (f"{4:016d}-{SMALL.id}", f"{3:016d}-{commit_id(4)}", "../" + SMALL.name, ""):
        with pytest.raises(Damaged):
            decode(name, encode(SMALL))


def test_a_frame_must_be_one_and_declare_a_bounded_size() -> None:
    text = json.dumps(small()).encode()
    undeclared = zstandard.ZstdCompressor(write_content_size=False).compress(text)
    with pytest.raises(Damaged, match="say its size"):
        decode(SMALL.name, sealed(undeclared))
    frame = zstandard.ZstdCompressor().compress(text)
    for bad in (frame + frame, frame + b"x", frame[:-1], b"", zstandard.ZstdCompressor().compress(b"")):
        with pytest.raises(Damaged):
            decode(SMALL.name, sealed(bad))
    bomb = b"\x28\xb5\x2f\xfd" + b"\xe0" + (MAX_DECODED + 1).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(Damaged, match="larger"):
        decode(SMALL.name, sealed(bomb))
    lying = b"\x28\xb5\x2f\xfd" + b"\xe0" + (5).to_bytes(8, "little") + (1000 << 3 | 3).to_bytes(3, "little") + b"x"
    with pytest.raises(Damaged):
        decode(SMALL.name, sealed(lying))


def test_what_a_newer_guildsync_wrote_is_not_decided_upon() -> None:
    frame = encode(SMALL).split(b"\n", 1)[1]
    for attempt in (sealed(frame, 2), b"guildsync-journal 3 and now for something else"):
        with pytest.raises(Damaged, match="newer guildsync") as caught:
            decode(SMALL.name, attempt)
        assert caught.value.hint
    value = small()
    for changed in ({**value, "also": 1}, {**value, "facts": {**value["facts"], "wishes": []}}):
        with pytest.raises(Damaged, match="newer guildsync"):
            decode(SMALL.name, said(changed))


E, V = eid(3), vid(3)
HOSTILE_ROWS = [
    ("stores", "0" * 31),
    ("stores", "G" * 32),
    ("stores", ["0" * 32]),
    ("adds", [P1, 100, 50]),
    ("adds", "abcd"),
    ("adds", [P1[:-1], 100, 50, P1]),
    ("adds", [P1, 100, 100, P1]),
    ("adds", [P1, 100, 0, P1]),
    ("adds", [P1, True, False, P1]),
    ("adds", [P1, 1 << 63, 50, P1]),
    ("adds", [P1, 100.5, 50, P1]),
    ("adds", [P1, 100, 50, P1.replace("1", "A")]),
    ("versions", [V, kit.RUNS[1], SAME, SAME, "{}", []]),
    ("versions", [V, RUN, "x", SAME, "{}", []]),
    ("versions", [V, RUN, SAME, None, "{}", []]),
    ("versions", [V, RUN, SAME, SAME, "[]", []]),
    ("versions", [V, RUN, SAME, SAME, "{", []]),
    ("versions", [V, RUN, SAME, SAME, {}, []]),
    ("versions", [V, RUN, SAME, SAME, '{"a":"\ud800"}', []]),
    ("versions", [V, RUN, SAME, SAME, "[" * 100_000, []]),
    ("versions", [V, RUN, SAME, SAME, "{}", ["x"]]),
    ("versions", [V, RUN, SAME, SAME, "{}", [vid(2), vid(1)]]),
    ("versions", [V, RUN, SAME, SAME, "{}", [vid(1), vid(1)]]),
    ("versions", [V + "\n", RUN, SAME, SAME, "{}", []]),
    ("versions", ["../" + V, RUN, SAME, SAME, "{}", []]),
    ("claims", [V, [P2, P1]]),
    ("claims", [V, P1]),
    ("claims", [V, ["x"]]),
    ("claims", [V]),
    ("claims", [commit_id(1), [P1]]),
    ("condemned", P1 + "0"),
    ("condemned", None),
    ("dropped", "../" + P1[3:]),
    ("purged", RUN),
    ("purged", {}),
    ("marks", [RUN, "gone", 1, commit_id(1)]),
    ("marks", [RUN, [], 1, commit_id(1)]),
    ("marks", [RUN, "live", 0, commit_id(1)]),
    ("marks", [RUN, "live", 10**16, commit_id(1)]),
    ("marks", [RUN, "live", True, commit_id(1)]),
    ("marks", [RUN, "live", "1", commit_id(1)]),
    ("marks", [RUN.upper(), "live", 1, commit_id(1)]),
    ("marks", [RUN, "live", 1, commit_id(1) + "\n"]),
    ("edits", [E, RUN, "", "1", [], 1, commit_id(3)]),
    ("edits", [E, RUN, 5, "1", [], 1, commit_id(3)]),
    ("edits", [E, RUN, "tag:\udc00", "1", [], 1, commit_id(3)]),
    ("edits", [E, RUN, "label", "NaN", [], 1, commit_id(3)]),
    ("edits", [E, RUN, "label", "1e999", [], 1, commit_id(3)]),
    ("edits", [E, RUN, "label", ' "x"', [], 1, commit_id(3)]),
    ("edits", [E, RUN, "label", "[" * 9 + "]" * 9, [], 1, commit_id(3)]),
    ("edits", [E, RUN, "label", '{"a":' * 900 + "1" + "}" * 900, [], 1, commit_id(3)]),
    ("edits", [E, RUN, "label", 1, [], 1, commit_id(3)]),
    ("edits", [E, RUN, "label", "1", ["x"], 1, commit_id(3)]),
    ("edits", [E, RUN, "label", "1", [], 1, commit_id(4)]),
    ("edits", [E, RUN, "label", "1", [], -1, commit_id(3)]),
    ("edits", [E, RUN, "label", "1", [], 1]),
]


@pytest.mark.parametrize(("kind", "row"), HOSTILE_ROWS)
def test_hostile_facts_are_refused(kind: str, row) -> None:
    value = small()
    value["facts"].setdefault(kind, []).append(row)
    with pytest.raises(Damaged):
        decode(SMALL.name, said(value))


@pytest.mark.parametrize(
    "change",
    [
        {"store": "x"},
        {"store": None},
        {"sequence": 0},
        {"sequence": 10**16},
        {"sequence": 3.0},
        {"commit": commit_id(3).upper() + "x"},
        {"facts": []},
        {"facts": {"marks": {}}},
        {"facts": {"marks": None}},
    ],
)
def test_hostile_commits_are_refused(change: dict) -> None:
    with pytest.raises(Damaged):
        decode(SMALL.name, said({**small(), **change}))


ENTRIES = [f"{1:016d}-{commit_id(9)}", f"{2:016d}-{commit_id(1)}", f"{3:016d}-{commit_id(2)}"]


def test_a_checkpoint_is_read_as_it_was_written_and_other_commits_are_written_as_ever() -> None:
    made = replace(SMALL, sums=tuple(ENTRIES), tables=(P1, P2))
    assert decode(made.name, encode(made)) == made
    assert made.state == SMALL.state
    text = zstandard.ZstdDecompressor().decompress(encode(made).split(b"\n", 1)[1])
    assert json.loads(text) == {**small(), "sums": ENTRIES, "tables": [P1, P2]}
    assert small().keys() == {"store", "sequence", "commit", "facts"}


@pytest.mark.parametrize(
    "change",
    [
        {"sums": None},
        {"sums": {}},
        {"sums": "x"},
        {"sums": [5]},
        {"sums": ["x"]},
        {"sums": [f"{0:016d}-{commit_id(1)}"]},
        {"sums": [ENTRIES[0] + "\n"]},
        {"sums": ["../" + ENTRIES[0]]},
        {"sums": [ENTRIES[0], ENTRIES[0]]},
        {"sums": [ENTRIES[1], ENTRIES[0]]},
        {"sums": [SMALL.name]},
        {"sums": [ENTRIES[0], f"{3:016d}-{commit_id(4)}"]},
        {"sums": [f"{4:016d}-{commit_id(1)}"]},
        {"tables": None},
        {"tables": [P1[:-1]]},
        {"tables": ["../" + P1[3:]]},
        {"tables": [P2, P1]},
        {"tables": [P1, P1]},
    ],
)
def test_what_a_checkpoint_cannot_sum_up_is_refused(change: dict) -> None:
    with pytest.raises(Damaged):
        decode(SMALL.name, said({**small(), **change}))
    made = replace(SMALL, **{key: tuple(names or ["x"]) for key, names in change.items()})
    with pytest.raises(Damaged):
        encode(made)


@pytest.mark.parametrize("missing", ["store", "sequence", "commit", "facts"])
def test_an_incomplete_commit_is_refused(missing: str) -> None:
    value = small()
    del value[missing]
    with pytest.raises(Damaged):
        decode(SMALL.name, said(value))


@pytest.mark.parametrize("text", [b"[]", b"null", b"1" * 5000, b"[" * 100_000, b"{", b"\xff", b'"x"', b"{}" * 2])
def test_what_is_no_commit_at_all_is_refused(text: bytes) -> None:
    with pytest.raises(Damaged):
        decode(SMALL.name, said(text))


@pytest.mark.parametrize(
    "state",
    [
        facts(Edit(eid(3), RUN, "tag:\ud800", "true", (), 3, commit_id(3))),
        facts(Edit(eid(3), RUN, "label", "true ", (), 3, commit_id(3))),
        facts(Mark(RUN, "live", 0, commit_id(3))),
        facts(Claim(vid(3), (P2, P1))),
        facts(purged=["x"]),
        facts(condemned=[Digest("x")]),
    ],
)
def test_nothing_is_written_that_nobody_could_read(state: Facts) -> None:
    with pytest.raises(Damaged):
        encode(Commit(STORE, 3, commit_id(3), state))


def test_a_commit_with_a_bad_name_is_not_written() -> None:
    for store, sequence, id_ in (("x", 1, commit_id(1)), (STORE, 0, commit_id(1)), (STORE, 1, "x")):
        with pytest.raises(Damaged):
            encode(Commit(store, sequence, id_, Facts()))
