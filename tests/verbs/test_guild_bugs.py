"""What the remotes of Guild AI got wrong, each as a test of what is right, at every type of place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from guildsync import api
from guildsync.cli import main
from guildsync.errors import CHANGED, Refused
from guildsync.model import edits
from guildsync.model.ports import Update
from guildsync.model.run import COMPLETED, INCOMPLETE, Comment, RunId
from guildsync.store.store import Store
from tests.kit import dying
from tests.kit.dying import Command, Server
from tests.kit.model import Person
from tests.kit.places import FEW, THERE, Place, in_every_remote, in_stores, in_trees, kinds, new_place
from tests.kit.sshd import Client, Sshd
from tests.kit.trees import EPOCH_NS, differences, put, run_ids, snapshot, ugly_run, write_run

RUN, OTHER, THIRD = run_ids(3)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "guild"
    for number, run in enumerate((RUN, OTHER)):
        write_run(home, run, label=f"run {number}")
    return home


@pytest.fixture(params=FEW)
def place(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Place:
    return new_place(request.param, tmp_path, home, request)


@pytest.fixture
def person(home: Path, place: Place) -> Person:
    """Somebody whose runs lie at the place (of which there may be only one: the local home)."""
    someone = somebody(home, place)
    assert place.kind == "local" or someone.push().problems == []
    return someone


def somebody(home: Path, place: Place) -> Person:
    return Person(home, place.name, os.environ.get("GUILDSYNC_CONFIG"))


def listed(person: Person, deleted: bool = False) -> dict[str, api.Record]:
    records = person.context().runs(person.remote, deleted=deleted)
    found = {record.run: record for record in records}
    assert len(found) == len(records)
    return found


def ends(person: Person) -> tuple[set[str], set[str]]:
    """The ids of the runs that live there, and of those in the trash."""
    return set(listed(person)), set(listed(person, deleted=True))


# -- an interrupted push or pull lists as completed; an interrupted delete splits the run


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with dying.server() as found:
        yield found


def deaths(server: Server, person: Person, verb: str, **arguments: object) -> Iterator[None]:
    """The command dies before some of its storage calls in turn, until it is through; each time one may look.
    `test_kill_lifecycle` looks at all of them."""
    command = Command(person, verb, str(person.home.parent), arguments)
    for at in count(step=3 if verb == "delete" else 5):
        end = server.run(command, at)
        assert end.killed or end.exit_code == 0, end.text
        yield
        if not end.killed:
            assert at > 0
            return


def contents(person: Person, run: str) -> dict[bytes, str | None]:
    """The digests of all that a run holds there, by path."""
    with person.context().look(person.remote, api.Choice((run,))) as files:
        return {entry.path: entry.digest for entry in files.manifest.entries}


def digests(run: Path) -> dict[bytes, str | None]:
    return {path: row[3] for path, row in snapshot(run).items()}


@pytest.mark.parametrize("place", ["disk", "folder"], indirect=True)
def test_what_did_not_arrive_whole_is_not_called_completed(person: Person, place: Place, server: Server) -> None:
    """A run that is called completed is the old one or the new one, whole; and the same push goes on."""
    run = person.run(RUN)
    before = digests(run)
    for name in ("train.py", "checkpoints/model.pt", "new"):
        put(run, name, b"another")
    write_run(person.home, THIRD)
    for _ in deaths(server, person, "push"):
        found = listed(person)
        assert {record.summary.status for record in found.values()} <= {COMPLETED, INCOMPLETE}
        if found[RUN].summary.status == COMPLETED:
            assert contents(person, RUN) in (before, digests(run))
        if THIRD in found:
            assert contents(person, THIRD) == digests(person.run(THIRD))
    assert contents(person, RUN) == digests(run)


@pytest.mark.parametrize("place", ["local", "disk", "folder"], indirect=True)
@pytest.mark.parametrize("verb", ["delete", "restore", "purge"])
def test_an_interrupted_delete_never_splits_a_run(person: Person, place: Place, server: Server, verb: str) -> None:
    """It lives, or lies in the trash, or is gone: one of them, and whole. The same command goes on."""
    whole, other = digests(person.run(RUN)), digests(person.run(OTHER))
    if verb != "delete":
        assert person.delete([RUN]).problems == []
    for _ in deaths(server, person, verb, runs=[] if verb != "delete" else [RUN]):
        alive, trashed = ends(person)
        assert alive - {RUN} == {OTHER}
        assert not trashed - {RUN}
        assert not alive & trashed
        assert RUN in alive | trashed or verb == "purge"
        assert contents(person, OTHER) == other
        if RUN in trashed:
            assert person.restore([RUN]).problems == []
        if RUN in alive | trashed:
            assert contents(person, RUN) == whole
            assert verb == "delete" or person.delete([RUN]).problems == []
        elif place.kind != "local":
            assert person.revive("push", [RUN]).problems == []
            assert contents(person, RUN) == whole
            assert person.delete([RUN]).problems == []
        else:
            write_run(person.home, RUN, label="run 0")
            assert person.delete([RUN]).problems == []


# -- label edits on both sides: one is silently lost


def edited(person: Person, change: edits.MetadataEdit, remote: str) -> None:
    request = api.Request(api.Choice((RUN,)))
    assert person.context().edit(remote, request, change).problems == []


def test_of_labels_set_on_both_sides_the_loser_is_told(person: Person, place: Place) -> None:
    edited(person, edits.set_label("theirs"), place.name)
    edited(person, edits.set_label("ours"), api.LOCAL)
    outcome = person.push()
    assert (outcome.problems, outcome.runs) == ([], 1)
    assert outcome.notes == [f"run {RUN[:8]}: the label there was replaced"]
    assert listed(person)[RUN].metadata.label == person.record(RUN).metadata.label == "ours"
    assert person.pull().notes == []
    assert person.record(RUN).metadata.label == "ours"


def test_a_label_of_one_side_is_nobodys_loss(person: Person, place: Place) -> None:
    """Neither direction undoes what only the other side said."""
    edited(person, edits.set_label("theirs"), place.name)
    assert person.push().notes == []
    assert listed(person)[RUN].metadata.label == "theirs"
    assert person.pull().problems == []
    assert person.record(RUN).metadata.label == "theirs"
    edited(person, edits.set_label(None), api.LOCAL)
    assert person.pull().problems == []
    assert person.record(RUN).metadata.label is None
    assert person.push().problems == []
    assert listed(person)[RUN].metadata.label is None


def test_tags_and_comments_of_both_sides_are_kept(person: Person, place: Place) -> None:
    for remote, word in ((place.name, "theirs"), (api.LOCAL, "ours")):
        edited(person, edits.change_tags([word]), remote)
        edited(person, edits.add_comment(Comment(word, 1 if word == "ours" else 2)), remote)
    edited(person, edits.change_tags(["both"]), place.name)
    edited(person, edits.change_tags(["both"]), api.LOCAL)
    assert person.push().notes == []
    assert person.pull().notes == []
    for metadata in (listed(person)[RUN].metadata, person.record(RUN).metadata):
        assert metadata.tags == {"ours", "theirs", "both"}
        assert [comment.body for comment in metadata.comments] == ["ours", "theirs"]


@in_stores
def test_a_store_keeps_what_two_writers_said_at_once(person: Person, place: Place) -> None:
    """They did not see each other. One label shows, the other is kept beside it until somebody says a third."""
    remote = person.context().remote(place.name)
    with remote.opened(person.context().home) as one, remote.opened(person.context().home) as other:
        was, _ = (next(r.metadata for r in list(replica.runs()) if r.run == RUN) for replica in (one, other))
        for replica, word in ((one, "one"), (other, "other")):
            update = Update(RunId(RUN), None, None, None, replace(was, label=word), was)
            assert replica.commit([update]) == []
    with remote.opened(person.context().home) as store:
        assert isinstance(store, Store)
        view = store._read().view
        labels = {listed(person)[RUN].metadata.label, *view.overruled(RUN)["label"]}
        assert labels == {"one", "other"}
    edited(person, edits.set_label("third"), place.name)
    with remote.opened(person.context().home) as store:
        assert isinstance(store, Store)
        assert store._read().view.overruled(RUN) == {}


# -- push copies LOCK, and `stop` then kills an unrelated process of that id


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        yield child.pid
        child.kill()


@in_every_remote
def test_no_lock_travels(person: Person, place: Place, sleeper: int, tmp_path: Path) -> None:
    for lock in (b"%d" % sleeper, b"999999999"):
        put(person.run(RUN), ".guild/LOCK", lock)
        put(person.run(RUN), "news", lock)
        assert person.push().problems == []
        reader = somebody(tmp_path / f"reader {len(lock)}", place)
        assert reader.pull().problems == []
        assert not (reader.run(RUN) / ".guild/LOCK").exists()
        if place.is_tree:
            assert not (place.home / "runs" / RUN / ".guild/LOCK").exists()
        assert (person.run(RUN) / ".guild/LOCK").read_bytes() == lock


# -- push resurrects deleted runs; restore then yields two runs with one id


@in_every_remote
def test_nothing_comes_back_unasked_and_nothing_twice(person: Person, place: Place) -> None:
    assert person.delete([RUN]).problems == []
    put(person.run(RUN), "news", b"written after it was deleted there")
    for _ in range(2):
        outcome = person.push()
        assert (outcome.problems, outcome.runs, outcome.skipped) == ([], 0, 1)
        assert ends(person) == ({OTHER}, {RUN})
    assert person.restore([RUN]).problems == []
    assert ends(person) == ({RUN, OTHER}, set())
    assert person.push().runs == 1
    assert ends(person) == ({RUN, OTHER}, set())
    assert person.delete([RUN], permanent=True).problems == []
    assert person.push().skipped == 1
    assert ends(person) == ({OTHER}, set())
    assert person.revive("push", [RUN]).runs == 1
    assert ends(person) == ({RUN, OTHER}, set())
    assert person.restore([]).runs == []
    assert ends(person) == ({RUN, OTHER}, set())


@in_trees
def test_a_namesake_in_the_trash_is_not_overwritten_by_a_restore(person: Person, place: Place) -> None:
    assert person.delete([RUN]).problems == []
    write_run(place.home, RUN, {"other": b"x"})
    before = snapshot(place.home / "runs" / RUN), snapshot(place.home / "trash/runs" / RUN)
    for acted in (person.restore([RUN]), person.delete([RUN])):
        assert [problem.reason for problem in acted.problems] == [CHANGED]
        assert (snapshot(place.home / "runs" / RUN), snapshot(place.home / "trash/runs" / RUN)) == before


# -- same size and mtime: changed content is not sent


def test_changed_bytes_of_the_same_size_and_time_are_sent(person: Person, place: Place, tmp_path: Path) -> None:
    for data in (b"print('HELLO')\n", b"print('hEllo')\n"):
        info = (person.run(RUN) / "train.py").stat()
        put(person.run(RUN), "train.py", data, mtime_ns=info.st_mtime_ns)
        assert (person.run(RUN) / "train.py").stat().st_size == info.st_size
        assert info.st_mtime_ns == EPOCH_NS
        assert person.push().runs == 1
        with person.context().look(place.name, api.Choice((RUN,))) as files:
            assert b"".join(files.read(b"train.py")) == data
    reader = somebody(tmp_path / "reader", place)
    assert reader.pull().problems == []
    put(person.run(RUN), "train.py", b"print('HELLO')\n")
    assert person.push().problems == []
    assert reader.pull().runs == 1
    assert reader.read(RUN, "train.py") == b"print('HELLO')\n"


# -- `remote stop` of a bucket deletes the whole bucket


@in_every_remote
def test_nothing_of_anybody_else_is_ever_removed(person: Person, place: Place) -> None:
    """Beside the place, in it, and under names that look like ours."""
    foreign = ["../beside", "README", "data/file", "runs/README", "trash/runs/README", "meta-id", ".hidden"]
    foreign += ["index/README", "journal.old/x"] if not place.is_tree else ["cache/x", "trash/other/x"]
    for name in foreign:
        place.put(name, b"not ours")
    person.delete([RUN])
    person.purge([])
    person.delete([], permanent=True)
    for grace in (None, 0.0, 0.0):
        person.collect(grace)
    assert ends(person) == (set(), set())
    for name in foreign:
        assert place.get(name) == b"not ours", name


@in_stores
def test_a_foreign_file_among_the_packs_is_in_nobodys_way(person: Person, place: Place) -> None:
    place.put("packs/README", b"not ours")
    place.put("packs/aa/notes.txt", b"not ours")
    person.delete([RUN], permanent=True)
    person.collect(0.0)
    assert person.verify().problems == []
    assert set(listed(person)) == {OTHER}
    assert place.get("packs/README") == place.get("packs/aa/notes.txt") == b"not ours"


# -- `runs list --json` is ignored with -r


@in_every_remote
def test_json_is_json_with_a_remote(
    person: Person, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUILDSYNC_HOME", str(person.home))
    capsys.readouterr()
    for words in (["runs", "list"], ["runs"], ["runs", "list", "--deleted"], ["runs", "info"]):
        assert main.run([*words, "--json", "-r", THERE] if len(words) % 2 else ["-r", THERE, *words, "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        document = json.loads(out)
        rows = document if isinstance(document, list) else [document]
        assert [row["remote"] for row in rows] == [THERE] * (0 if "--deleted" in words else len(rows))


# -- S3 loses modes, symlinks, empty directories


@in_every_remote
def test_modes_links_and_empty_directories_come_back(home: Path, place: Place, tmp_path: Path) -> None:
    person, reader = somebody(home, place), somebody(tmp_path / "reader", place)
    ugly_run(home, THIRD)
    before = snapshot(person.run(THIRD))
    assert person.push().problems == []
    assert person.delete([THIRD]).problems == []
    assert person.restore([THIRD]).problems == []
    assert reader.pull().problems == []
    assert differences(before, snapshot(reader.run(THIRD))) == []


# -- API keys stay in attrs/env and are pushed

CANARY = b"sk-canary-8d1f5c"


@in_every_remote
def test_secrets_of_the_environment_stay_at_home(home: Path, place: Place, tmp_path: Path) -> None:
    captured = b"HOME: /home/u\nOPENAI_API_KEY: " + CANARY + b"\nWANDB_API_KEY: " + CANARY + b"\n"
    write_run(home, THIRD, env=captured)
    person, reader = somebody(home, place), somebody(tmp_path / "reader", place)
    assert person.push().problems == []
    assert reader.pull().problems == []
    for path in [*reader.home.rglob("*"), *(place.top.rglob("*") if place.top is not None else ())]:
        assert not path.is_file() or CANARY not in path.read_bytes()
    assert (person.run(THIRD) / ".guild/attrs/env").read_bytes() == captured
    assert b"OPENAI_API_KEY: redacted" in (reader.run(THIRD) / ".guild/attrs/env").read_bytes()


# -- one ssh handshake per run; unknown hosts are let in; shells read what is theirs to pass on


@pytest.mark.parametrize("place", kinds("ssh"), indirect=True)
def test_twenty_runs_cost_one_session(person: Person, place: Place, ssh_host: Sshd) -> None:
    for run in run_ids(20):
        write_run(person.home, run)
    assert person.push().problems == []
    acts: list[Callable[[], object]] = [
        person.push,
        lambda: person.label([], "x"),
        lambda: person.delete([]),
        lambda: person.restore([]),
        lambda: person.delete([], permanent=True),
    ]
    for act_ in acts:
        before = ssh_host.log.count("Starting session: command")
        act_()
        assert ssh_host.log.count("Starting session: command") == before + 1
    assert ends(person) == (set(), set())


@pytest.mark.parametrize("place", kinds("ssh"), indirect=True)
def test_a_host_that_nobody_knows_is_told_nothing(
    person: Person, place: Place, ssh_user: Client, ssh_host: Sshd
) -> None:
    ssh_user.end_masters()
    ssh_user.known_hosts.write_text("")
    before = place.state()
    acts: list[Callable[[], object]] = [
        lambda: person.delete([RUN]),
        lambda: person.restore([RUN]),
        lambda: person.purge([]),
        lambda: person.label([RUN], "x"),
        person.collect,
        person.push,
    ]
    for act_ in acts:
        with pytest.raises(Refused) as caught:
            act_()
        assert caught.value.exit_code == 4
    assert place.state() == before


@pytest.mark.parametrize("place", kinds("ssh"), indirect=True)
@pytest.mark.parametrize(
    "payload", ["$(touch {0})", "`touch {0}`", "; touch {0} #", "' ; touch {0} ; '", "\n touch {0}\n"]
)
def test_no_word_of_a_label_reaches_a_shell(person: Person, place: Place, payload: str, tmp_path: Path) -> None:
    word = payload.format(tmp_path / "canary")
    edited(person, edits.set_label(word), place.name)
    edited(person, edits.change_tags([word]), place.name)
    edited(person, edits.add_comment(Comment(word)), place.name)
    metadata = listed(person)[RUN].metadata
    assert (metadata.label, metadata.tags, metadata.comments[0].body) == (word, {word}, word)
    assert not (tmp_path / "canary").exists()
