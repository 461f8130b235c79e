"""Eight processes push overlapping runs into one store at once: nothing is lost, mixed or hidden (promise P8)."""

from __future__ import annotations

import json
import multiprocessing
import traceback
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from guildsync import api
from guildsync.errors import CONFLICT
from guildsync.remotes import open_remote
from guildsync.store.store import Store
from tests.conftest import new_bucket
from tests.kit.model import Contents, Person, contents_of
from tests.kit.servers import REGION, S3Server
from tests.kit.trees import noise, run_ids, write_run

HOMES = 8
PATIENCE = 120
IDS = run_ids(3 + HOMES)
EVERYWHERE, DIFFERENT, PARTED, OWN = IDS[0], IDS[1], IDS[2], IDS[3:]
"""A run that is equal in all homes, one that differs in each, one whose paths are disjoint; and one of each home."""


def make_home(home: Path, number: int) -> None:
    write_run(home, EVERYWHERE, {"shared": noise(1, 30_000)})
    write_run(home, DIFFERENT, {"which": b"%d" % number, "shared": noise(1, 30_000), "also": noise(number, 500)})
    for near in (number, (number + 1) % HOMES):  # every one of these is in two homes
        write_run(home, OWN[near], {"of": b"%d" % near, "large": noise(100 + near, 200_000)})


@pytest.fixture(params=["seaweed", "rclone_server", "folder"])
def people(request: pytest.FixtureRequest, tmp_path: Path) -> list[Person]:
    """Eight homes, and a configuration that names their store `bucket`."""
    config = tmp_path / "config.yml"
    remote: dict[str, Any] = {"type": "fsspec", "url": f"file://{tmp_path}/store"}
    if request.param != "folder":
        server: S3Server = request.getfixturevalue(request.param)
        credentials = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
        remote = {"type": "s3", "bucket": new_bucket(server), "root": "team", "endpoint-url": server.endpoint}
        remote |= {"region": REGION, "local-env": credentials}
    config.write_text(json.dumps({"remotes": {"bucket": remote}}))
    return [Person(tmp_path / f"home{number}", "bucket", str(config)) for number in range(HOMES)]


def _at_once(person: Person, verb: str, resolve: str | None, barrier: Barrier, answer: Connection) -> None:
    """One process: whatever is slow about starting comes before the barrier."""
    try:
        context = person.context()
        with context.remote(person.remote).opened(context.home) as store:
            assert isinstance(store, Store)
            _ = store.is_there
        barrier.wait(PATIENCE)
        outcome = getattr(person, verb)(resolve)
        answer.send((outcome.exit_code, outcome.problems))
    except BaseException:  # noqa: BLE001 (the parent tells)
        barrier.abort()
        answer.send(traceback.format_exc())


Answers = list[tuple[int, list[Any]]]


def at_once(people: list[Person], verb: str, resolve: str | None = None) -> Answers:
    """The exit code and problems of one command, given at the same moment in every home."""
    server = multiprocessing.get_context("forkserver")  # each process is a child of one that never had a thread
    server.set_forkserver_preload([__name__, "guildsync.store.store", "s3fs"])
    barrier = server.Barrier(len(people))
    started = []
    try:
        for person in people:
            ours, theirs = server.Pipe(duplex=False)
            process = server.Process(target=_at_once, args=(person, verb, resolve, barrier, theirs), daemon=True)
            process.start()
            theirs.close()
            started.append((process, ours))
        found: Answers = []
        for process, ours in started:
            assert ours.poll(PATIENCE), "a process does not answer"
            answer = ours.recv()
            assert not isinstance(answer, str), answer
            found.append(answer)
            process.join(PATIENCE)
        return found
    finally:
        for process, _ in started:
            if process.is_alive():
                process.kill()


def fresh_heads(person: Person) -> tuple[str, dict[str, list[Contents]]]:
    """The store's id and what every head holds, as a client without any cache finds it."""
    context = person.context()
    with open_remote(context.config.remote(person.remote), context.home).opened(context.home, fresh=True) as store:
        assert isinstance(store, Store)
        view = store._read().view
        return store.replica, {run: [contents_of(store, h.id) for h in view.heads(run)] for run in view.runs()}


def in_conflict(problems: list[Any]) -> set[str]:
    assert {problem.reason for problem in problems} <= {CONFLICT}
    return {problem.run for problem in problems}


def every_version_is_somewhere(
    people: list[Person], before: list[dict[str, Contents]], answers: Answers, run: str
) -> list[Contents]:
    """Each home's version is a head, or its push said that it is not and the home still has it. Answers the heads."""
    held = fresh_heads(people[0])[1][run]
    versions = [each[run] for each in before]
    for head in held:
        assert versions.count(head) == 1, "a mixture"
    for person, version, (code, problems) in zip(people, versions, answers, strict=True):
        assert person.contents(run) == version
        told = run in in_conflict(problems)
        assert code in ((6, 7) if told else (0,))
        assert version in held or told
    return held


@pytest.mark.servers
def test_eight_homes_push_at_once(people: list[Person], tmp_path: Path) -> None:
    for number, person in enumerate(people):
        make_home(person.home, number)
    before = [{run: person.contents(run) for run in person.runs()} for person in people]
    first = at_once(people, "push")

    store_ids = {fresh_heads(person)[0] for person in people}
    assert len(store_ids) == 1
    found = fresh_heads(people[0])[1]
    assert found.keys() == {run for each in before for run in each}
    for each in before:
        for run in each.keys() - {DIFFERENT}:
            assert found[run]
            assert all(head == each[run] for head in found[run])
    held = every_version_is_somewhere(people, before, first, DIFFERENT)
    assert sum(code == 0 for code, _ in first) <= 1, "more than one thinks that its version is the only one"
    assert people[0].verify().problems == []
    newcomer = Person(tmp_path / "newcomer", people[0].remote, people[0].config_file)
    told = newcomer.pull()
    assert newcomer.contents(DIFFERENT) in held
    assert in_conflict(told.problems) == ({DIFFERENT} if len(held) > 1 else set())

    # once more: nothing is left to do but to say again what is in conflict
    again = at_once(people, "push")
    assert every_version_is_somewhere(people, before, again, DIFFERENT) == held
    for _, problems in again:
        assert in_conflict(problems) <= {DIFFERENT}
    assert fresh_heads(people[0])[0] == store_ids.pop()

    # a side is taken, and everybody has everything
    chosen = people[3]
    assert chosen.push("source", choose=api.Choice((DIFFERENT,))).problems == []
    assert fresh_heads(people[0])[1][DIFFERENT] == [before[3][DIFFERENT]]
    assert newcomer.pull().problems == []
    assert {run: newcomer.contents(run) for run in newcomer.runs()} == {
        **{run: contents for each in before for run, contents in each.items()},
        DIFFERENT: before[3][DIFFERENT],
    }
    assert at_once(people, "pull", "source") == [(0, [])] * HOMES
    for person in people:
        assert person.runs() == newcomer.runs()
        assert person.contents(DIFFERENT) == before[3][DIFFERENT]
    assert at_once(people, "push") == [(0, [])] * HOMES
    assert people[0].verify().problems == []


@pytest.mark.servers
def test_eight_homes_edit_one_run_at_once(people: list[Person]) -> None:
    """All begin with the same run; each changes a path of its own, and one that is everybody's."""
    write_run(people[0].home, PARTED)
    write_run(people[0].home, DIFFERENT, {"which": b"nobody's"})
    assert people[0].push().exit_code == 0
    for person in people[1:]:
        assert person.pull().exit_code == 0
    for number, person in enumerate(people):
        person.write(PARTED, f"of {number}", noise(number, 1000))
        person.write(DIFFERENT, "which", b"%d" % number)
    before = [{run: person.contents(run) for run in person.runs()} for person in people]
    answers = at_once(people, "push")
    every_version = every_version_is_somewhere_of(people, before, answers)
    assert people[0].verify().problems == []
    assert all(head["which"] != b"nobody's" for head in every_version)


def every_version_is_somewhere_of(
    people: list[Person], before: list[dict[str, Contents]], answers: Answers
) -> list[Contents]:
    found = fresh_heads(people[0])[1]
    for number, (person, (code, problems)) in enumerate(zip(people, answers, strict=True)):
        assert {run: person.contents(run) for run in person.runs()} == before[number]
        told = in_conflict(problems)
        assert code in ((6, 7) if told else (0,))
        assert DIFFERENT in told or before[number][DIFFERENT] in found[DIFFERENT]
        mine = f"of {number}"
        stored = [head for head in found[PARTED] if head.get(mine) == before[number][PARTED][mine]]
        assert stored or PARTED in told
    for head in found[DIFFERENT]:
        assert [each[DIFFERENT] for each in before].count(head) == 1, "a mixture"
    return found[DIFFERENT]
