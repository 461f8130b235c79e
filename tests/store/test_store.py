"""The protocol's rules, with what others do to a store written into its journal by hand."""

from __future__ import annotations

import itertools
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from guildsync import api
from guildsync.api import Context, Outcome
from guildsync.errors import CONFLICT, DAMAGED, MOVED, PURGED, TRASHED, Damaged, Unreachable
from guildsync.model.manifest import Digest, Manifest, digest_of
from guildsync.model.ports import Piece, Update, Want
from guildsync.model.run import RunId, Summary
from guildsync.store.draft import Draft
from guildsync.store.fs import Absent, Files, open_url
from guildsync.store.journal import HIDDEN, Claim, Commit, Facts, Mark, decode, encode, join
from guildsync.store.pack import pack_path
from guildsync.store.reading import Journal
from guildsync.store.store import Store
from guildsync.store.view import View
from tests.kit.trees import assert_same, put, run_ids, write_run

RUN = RunId(run_ids(1)[0])
OTHERS = "f" * 32
_numbers = itertools.count(1)


class Place:
    """A store in a folder, and what others do to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = path.as_uri()

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in (self.path / "journal").iterdir())

    @property
    def view(self) -> View:
        states = (decode(name, (self.path / "journal" / name).read_bytes()).state for name in self.names)
        return View(join(states))

    def say(self, store: str = OTHERS, **facts) -> None:
        """Another client commits these facts."""
        sequence = 1 + int(self.names[-1][:16])
        commit = Commit(store, sequence, str(uuid.uuid4()), Facts(**{k: frozenset(v) for k, v in facts.items()}))
        (self.path / "journal" / commit.name).write_bytes(encode(commit))

    def hide(self, run: RunId = RUN) -> None:
        self.say(marks=[Mark(run, HIDDEN, 1 + int(self.names[-1][:16]), str(uuid.uuid4()))])

    def packs(self, version: str) -> set[Digest]:
        return {pack for claim in self.view.claims(version) for pack in claim.packs}

    def drop(self, packs: set[Digest]) -> None:
        """What a collector does in the end."""
        self.say(condemned=packs)
        self.say(dropped=packs)
        for pack in packs:
            (self.path / pack_path(pack)).unlink(missing_ok=True)

    def sum_up(self) -> None:
        """A checkpoint takes the place of all entries."""
        old, facts = self.names, self.view.facts
        self.say(**{kind: getattr(facts, kind) for kind in Facts.__dataclass_fields__})
        for name in old:
            (self.path / "journal" / name).unlink()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "store")


@pytest.fixture
def here(tmp_path: Path) -> Context:
    write_run(tmp_path / "home", RUN)
    return client(tmp_path, "home")


def client(tmp_path: Path, name: str, said: list[str] | None = None) -> Context:
    return api.open_context(
        str(tmp_path / name), environ={}, cwd=str(tmp_path), warn=said.append if said is not None else lambda _: None
    )


def pulled(place: Place, tmp_path: Path) -> Path:
    """What a client that knows nothing gets."""
    name = f"pulled{next(_numbers)}"
    outcome = client(tmp_path, name).pull(place.url)
    assert outcome.problems == []
    return tmp_path / name / "runs" / RUN


def grow(tmp_path: Path, data: bytes = b"more\n" * 50) -> None:
    put(tmp_path / "home/runs" / RUN, ".guild/output", data)


def ok(outcome: Outcome) -> Outcome:
    assert (outcome.problems, outcome.exit_code) == ([], 0)
    return outcome


def after_the_commit(patch: pytest.MonkeyPatch, act: Callable[[Commit], None], times: int = 1) -> None:
    """Something happens between a writer's commit and its next reading."""
    real, left = Journal.put, iter(range(times))

    def put(self: Journal, commit: Commit) -> None:
        real(self, commit)
        if next(left, None) is not None:
            act(commit)

    patch.setattr(Journal, "put", put)


# Condemned, dropped, void


def test_a_version_on_condemned_packs_is_not_up_to_date(here: Context, place: Place, tmp_path: Path) -> None:
    """The store keeps it only if the writer stages it anew: a collector may drop these packs at any time (E2)."""
    ok(here.push(place.url))
    (version,) = place.view.heads(RUN)
    condemned = place.packs(version.id)
    place.say(condemned=condemned)
    assert not place.view.settled(version.id)
    done = ok(here.push(place.url))
    assert (done.runs, done.same) == (1, 0)
    assert [head.id for head in place.view.heads(RUN)] == [version.id]
    assert place.view.settled(version.id)
    place.drop(condemned)
    assert_same(pulled(place, tmp_path), tmp_path / "home/runs" / RUN)
    assert (ok(here.push(place.url)).same, here.verify(place.url).problems) == (1, [])


def test_another_client_with_the_same_run_mends_it_too(here: Context, place: Place, tmp_path: Path) -> None:
    ok(here.push(place.url))
    shutil.copytree(tmp_path / "home/runs", tmp_path / "other/runs")
    condemned = place.packs(place.view.heads(RUN)[0].id)
    place.say(condemned=condemned)
    ok(client(tmp_path, "other").push(place.url))
    place.drop(condemned)
    assert_same(pulled(place, tmp_path), tmp_path / "home/runs" / RUN)


def test_nothing_relies_on_a_condemned_pack(here: Context, place: Place, tmp_path: Path) -> None:
    """An object that lies in none but condemned packs is not there (W1)."""
    ok(here.push(place.url))
    condemned = place.packs(place.view.heads(RUN)[0].id)
    place.say(condemned=condemned)
    grow(tmp_path)
    ok(here.push(place.url))
    (head,) = place.view.heads(RUN)
    assert place.packs(head.id).isdisjoint(condemned)
    place.drop(condemned)
    assert_same(pulled(place, tmp_path), tmp_path / "home/runs" / RUN)


def test_a_version_whose_packs_were_dropped_is_void_and_the_old_one_shows(
    here: Context, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer died before it could see the condemnation; when it runs again, it is stored after all."""
    ok(here.push(place.url))
    (old,) = place.view.heads(RUN)
    shutil.copytree(tmp_path / "home/runs" / RUN, tmp_path / "old")
    grow(tmp_path)

    def die(commit: Commit) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        after_the_commit(patch, die)
        with pytest.raises(KeyboardInterrupt):
            here.push(place.url)
    (new,) = place.view.heads(RUN)
    assert new.replaces == (old.id,)
    place.drop(place.packs(new.id) - place.packs(old.id))
    assert place.view.is_void(new.id)
    (record,) = here.runs(place.url)
    assert record.content == old.content
    assert_same(pulled(place, tmp_path), tmp_path / "old")
    assert here.verify(place.url).problems == []
    assert ok(here.push(place.url)).runs == 1
    assert_same(pulled(place, tmp_path), tmp_path / "home/runs" / RUN)


@pytest.mark.parametrize("nth", [0, 1])
def test_objects_that_moved_while_they_were_read_are_found_again(
    nth: int, here: Context, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collector rescues them into another pack, drops and deletes the first: before its index is read (0), or
    after (1) (V2)."""
    ok(here.push(place.url))
    (head,) = place.view.heads(RUN)
    old = place.packs(head.id)
    rescued: list[str] = []
    real = Files.read

    def read(self: Files, name: str, start: int, stop: int) -> bytes:
        rescued.append(name)
        if len(rescued) == nth + 1:
            place.say(condemned=old)
            ok(here.push(place.url))
            place.drop(old)
        return real(self, name, start, stop)

    monkeypatch.setattr(Files, "read", read)
    assert_same(pulled(place, tmp_path), tmp_path / "home/runs" / RUN)
    assert len(rescued) > nth + 1


# Between a commit and the reading that proves it (W4)


def test_a_condemnation_that_comes_after_the_commit_is_mended_by_another_round(
    here: Context, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proofs = []
    real = Draft.proof
    monkeypatch.setattr(Draft, "proof", lambda *args: proofs.append(found := real(*args)) or found)
    condemned: set[Digest] = set()

    def condemn(commit: Commit) -> None:
        condemned.update(pack for claim in commit.facts.claims for pack in claim.packs)
        place.say(condemned=condemned)

    after_the_commit(monkeypatch, condemn)
    assert ok(here.push(place.url)).runs == 1
    assert [[problem.reason for problem in problems] for problems in proofs] == [[MOVED], []]
    (head,) = place.view.heads(RUN)
    assert len(place.view.claims(head.id)) == 2
    assert place.view.settled(head.id)
    place.drop(condemned)
    assert_same(pulled(place, tmp_path), tmp_path / "home/runs" / RUN)


def test_a_collector_that_never_rests_is_reported(here: Context, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def condemn(commit: Commit) -> None:
        place.say(condemned={pack for claim in commit.facts.claims for pack in claim.packs})

    after_the_commit(monkeypatch, condemn, times=1000)
    outcome = here.push(place.url)
    assert ([problem.reason for problem in outcome.problems], outcome.exit_code, outcome.runs) == ([MOVED], 7, 0)


def test_purged_meanwhile(here: Context, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    after_the_commit(monkeypatch, lambda c: place.say(purged={version.id for version in c.facts.versions}))
    outcome = here.push(place.url)
    assert ([problem.reason for problem in outcome.problems], outcome.exit_code, outcome.runs) == ([PURGED], 7, 0)


def test_hidden_meanwhile(here: Context, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    after_the_commit(monkeypatch, lambda _: place.hide())
    outcome = here.push(place.url)
    assert ([problem.reason for problem in outcome.problems], outcome.exit_code, outcome.runs) == ([TRASHED], 0, 1)
    assert [record.run for record in here.runs(place.url, deleted=True)] == [RUN]


def test_pushed_by_another_meanwhile(
    here: Context, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok(here.push(place.url))
    ok(client(tmp_path, "other").pull(place.url))
    grow(tmp_path)
    put(tmp_path / "other/runs" / RUN, ".guild/output", b"something else\n")
    ours = _push_while_other_pushes(here, place, tmp_path, monkeypatch)
    assert [problem.reason for problem in ours.problems] == [CONFLICT]
    assert len(place.view.heads(RUN)) == 2
    for name in ("home", "other", "third"):
        outcome = client(tmp_path, name).pull(place.url)
        assert CONFLICT in {problem.reason for problem in outcome.problems}


def _push_while_other_pushes(here: Context, place: Place, tmp_path: Path, patch: pytest.MonkeyPatch) -> Outcome:
    """The other's whole push lies between our reading and our commit."""
    real, done = Store.commit, []

    def commit(self: Store, updates):
        if not done:
            done.append(True)
            ok(client(tmp_path, "other").push(place.url))
        return real(self, updates)

    patch.setattr(Store, "commit", commit)
    return here.push(place.url)


# Two first writers


def _update(store: Store, run: str) -> Update:
    manifest = Manifest(())
    data = manifest.encode()
    store.stage([Piece(Want(digest_of(data), len(data), RunId(run), b"", 0), data)])
    return Update(RunId(run), None, manifest, Summary())


def test_two_first_writers_agree_on_the_smaller_id(place: Place) -> None:
    one, other = (Store(open_url(place.url)) for _ in range(2))
    try:
        made = {one.replica, other.replica}
        assert len(made) == 2
        updates = [_update(one, "a" * 32), _update(other, "b" * 32)]
        assert one.commit(updates[:1]) == []
        assert other.commit(updates[1:]) == []
        assert len(place.view.facts.stores) == 2
        third = Store(open_url(place.url))
        list(one.runs()), list(one.runs())  # the second one reads anew
        for store in (one, other, third):
            assert store.replica == min(made)
            assert store.aliases == made
        third.close()
    finally:
        one.close()
        other.close()


# Entries that cannot be read, that go away, that were never there


@pytest.mark.parametrize("name", [f"{9:016d}-{uuid.UUID(int=1 << 76 | 2 << 62)}", "hello", "0" * 16])
def test_an_unreadable_entry_stops_writers_only(here: Context, place: Place, tmp_path: Path, name: str) -> None:
    ok(here.push(place.url))
    (place.path / "journal" / name).write_bytes(b"not an entry")
    outcome = client(tmp_path, "reader").pull(place.url)
    assert outcome.runs == 1
    assert [(problem.reason, problem.path) for problem in outcome.problems] == [(DAMAGED, f"journal/{name}".encode())]
    assert outcome.exit_code == 8
    assert_same(tmp_path / "reader/runs" / RUN, tmp_path / "home/runs" / RUN)
    grow(tmp_path)
    before = sorted(place.path.rglob("*"))
    with pytest.raises(Damaged, match="nothing is written") as caught:
        here.push(place.url)
    assert caught.value.exit_code == 8
    assert sorted(place.path.rglob("*")) == before


def test_who_has_an_entry_in_the_cache_needs_it_no_more(here: Context, place: Place, tmp_path: Path) -> None:
    ok(here.push(place.url))
    (place.path / "journal" / place.names[0]).write_bytes(b"damaged")
    grow(tmp_path)
    assert ok(here.push(place.url)).runs == 1
    found = here.verify(place.url)  # reads as a client without a cache
    assert found.exit_code == 8


def test_an_entry_that_goes_away_after_the_listing_was_summed_up(
    here: Context, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok(here.push(place.url))
    grow(tmp_path)
    ok(here.push(place.url))
    real, listings = Journal._list, []

    def listed(self: Journal) -> frozenset[str]:
        names = real(self)
        if not listings:
            place.sum_up()
        listings.append(names)
        return names

    monkeypatch.setattr(Journal, "_list", listed)
    assert_same(pulled(place, tmp_path), tmp_path / "home/runs" / RUN)
    assert [len(names) for names in listings[:2]] == [2, 1]


def test_a_journal_that_never_holds_still(here: Context, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ok(here.push(place.url))

    def get(self: Files, name: str) -> bytes:
        raise Absent(name)

    monkeypatch.setattr(Files, "get", get)
    store = Store(open_url(place.url))
    try:
        with pytest.raises(Unreachable, match="changes each time"):
            list(store.runs())
    finally:
        store.close()


def test_a_checkpoint_changes_nothing(here: Context, place: Place, tmp_path: Path) -> None:
    ok(here.push(place.url))
    grow(tmp_path)
    ok(here.push(place.url))
    before = here.runs(place.url)
    place.sum_up()
    said: list[str] = []
    again = client(tmp_path, "home", said)
    assert again.runs(place.url) == before == client(tmp_path, "other").runs(place.url)
    assert ok(again.push(place.url)).same == 1
    assert said == []


# A store that is not what it was


def test_a_store_that_went_back_in_time_is_a_warning(here: Context, place: Place, tmp_path: Path) -> None:
    ok(here.push(place.url))
    shutil.copytree(place.path, tmp_path / "backup")
    grow(tmp_path)
    ok(here.push(place.url))
    shutil.rmtree(place.path)
    shutil.copytree(tmp_path / "backup", place.path)
    said: list[str] = []
    client(tmp_path, "home", said).runs(place.url)
    (warning,) = said
    assert "went back in time" in warning
    assert place.url in warning


def test_another_store_at_the_same_place_is_a_warning(here: Context, place: Place, tmp_path: Path) -> None:
    ok(here.push(place.url))
    shutil.rmtree(place.path)
    write_run(tmp_path / "other", "b" * 32)
    ok(client(tmp_path, "other").push(place.url))
    said: list[str] = []
    client(tmp_path, "home", said).runs(place.url)
    (warning,) = said
    assert "another store" in warning


def test_a_claim_is_no_license_to_lie(here: Context, place: Place, tmp_path: Path) -> None:
    """A claim over packs that do not hold the objects is reported, whatever else says that all is well."""
    ok(here.push(place.url))
    (head,) = place.view.heads(RUN)
    old = place.packs(head.id)
    place.say(claims=[Claim(head.id, ())])
    place.drop(old)
    assert here.verify(place.url).exit_code == 8
    outcome = client(tmp_path, "reader").pull(place.url)
    assert (outcome.runs, outcome.exit_code) == (0, 8)
