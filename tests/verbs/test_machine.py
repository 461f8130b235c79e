"""Machines: who is asked, in which order things are done, and what is at stake."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from guildsync.errors import Declined, NotFound, Stopped, Unreachable
from guildsync.model.machine import Instance, Reach
from guildsync.model.ports import Step
from guildsync.model.run import COMPLETED, RUNNING, Metadata, Record, RunId, Summary
from guildsync.model.standing import BOTH_CHANGED, LOCAL_NEWER, ONLY_HERE, ONLY_THERE, REMOTE_NEWER, SAME
from guildsync.verbs.machine import everything, stakes, start, stop
from guildsync.verbs.survey import Found, Survey, Trouble, nothing_at
from tests.kit.trees import run_ids


def instance(state: str = "running", name: str = "i-1", region: str = "here") -> Instance:
    return Instance(name, state, "t3.nano", "192.0.2.7", "", "trainer", "me", region, "token")


@dataclass
class Fake:
    """Does at once what it is told, and writes it down."""

    now: Instance | None = None
    hidden: Instance | None = None
    """What `stop` finds, and `state` does not."""
    done: list[str] = field(default_factory=list)

    def state(self) -> Instance | None:
        return self.now

    def start(self, reach: Reach, say: Callable[[str], None]) -> Instance:
        self.done.append("start")
        self.now = instance()
        return self.now

    def stop(self, terminate: bool, say: Callable[[str], None]) -> Instance | None:
        self.done.append("terminate" if terminate else "stop")
        found = self.now or self.hidden
        self.now = found._replace(state="terminated" if terminate else "stopped") if found else None
        return self.now

    def admit(self) -> bool:
        return False

    def all(self, say: Callable[[str], None]) -> Sequence[Instance]:
        return [instance(), instance(name="i-2"), instance(region="there")]

    def check(self) -> Iterator[Step]:
        yield from ()


def no(_: Instance | None) -> None:
    raise Declined("nothing was done")


def reach(*_: object) -> Any:
    raise AssertionError("nobody talks to it")


def quiet(_: str) -> None:
    pass


@pytest.mark.parametrize("now", [None, instance("stopped"), instance("stopping"), instance("pending")])
def test_whoever_declines_starts_nothing(now: Instance | None) -> None:
    fake, asked = Fake(now), list[Instance | None]()
    with pytest.raises(Declined):
        start(fake, reach, no, quiet)
    assert not fake.done
    start(fake, reach, asked.append, quiet)
    assert (asked, fake.done) == ([now], ["start"])


def test_nobody_is_asked_where_it_runs_and_what_was_begun_is_finished() -> None:
    fake = Fake(instance())
    assert start(fake, reach, no, quiet) == instance()
    assert fake.done == ["start"]


def test_stopping() -> None:
    fake, asked = Fake(instance()), list[Instance | None]()
    with pytest.raises(Declined):
        stop(fake, False, no, quiet)
    assert not fake.done
    found = stop(fake, False, asked.append, quiet)
    assert found is not None
    assert found.is_stopped
    assert (asked, fake.done) == ([instance()], ["stop"])


def test_nobody_is_asked_whether_what_is_stopped_may_be_stopped() -> None:
    fake = Fake(instance("stopped"))
    assert stop(fake, False, no, quiet) == instance("stopped")
    with pytest.raises(Declined):
        stop(fake, True, no, quiet)
    assert fake.done == ["stop"]
    found = stop(fake, True, lambda _: None, quiet)
    assert found is not None
    assert found.state == "terminated"


@pytest.mark.parametrize("terminate", [False, True])
def test_where_there_is_none_a_half_start_is_undone(terminate: bool) -> None:
    fake = Fake()
    assert stop(fake, terminate, no, quiet) is None
    assert fake.done == ["stop"]


def test_what_shows_only_then_is_not_destroyed_without_a_word() -> None:
    fake = Fake(hidden=instance())
    with pytest.raises(Declined):
        stop(fake, True, no, quiet)
    assert fake.done == ["stop"]


class Silent(Fake):
    """Cannot be asked."""

    def all(self, say: Callable[[str], None]) -> Sequence[Instance]:
        raise Unreachable("no answer")


def test_everything_is_listed_once() -> None:
    said: list[str] = []
    found = everything({"one": Fake(), "other": Fake(), "silent": Silent()}, said.append)
    assert [(each.region, each.id) for each in found] == [("here", "i-1"), ("here", "i-2"), ("there", "i-1")]
    assert said == ["silent: no answer"]
    assert everything({}, quiet) == []
    with pytest.raises(Unreachable):
        everything({"silent": Silent()}, quiet)


def found_run(run: RunId, standing: str | None, status: str = COMPLETED, place: str = "trainer") -> Found:
    return Found(place, 1, Record(run, Summary("train.py", status), Metadata()), standing)


def test_what_is_at_stake() -> None:
    runs = run_ids(8)
    standings = [SAME, LOCAL_NEWER, REMOTE_NEWER, BOTH_CHANGED, ONLY_THERE, None]
    listed = [found_run(run, standing) for run, standing in zip(runs, standings, strict=False)]
    live = found_run(runs[6], ONLY_THERE, RUNNING)
    elsewhere = found_run(runs[7], ONLY_HERE, place="local")
    survey = Survey((*listed, live, elsewhere), 8)
    found = stakes(lambda: survey, "trainer")
    assert (found.running, found.not_here, found.error) == ([live], [*listed[2:], live], None)
    found = stakes(lambda: survey, "trainer", compared=False)
    assert (found.running, found.not_here, found.error) == ([live], [], None)


def test_what_cannot_be_told_is_no_comfort() -> None:
    stopped = Stopped("trainer is stopped")

    def fails() -> Survey:
        raise stopped

    assert stakes(fails, "trainer").error is stopped
    survey = Survey((found_run(run_ids(1)[0], ONLY_HERE, place="local"),), 1, (Trouble("trainer", stopped),))
    assert stakes(lambda: survey, "trainer").error is stopped


def test_a_home_that_was_never_made_there_holds_nothing() -> None:
    trouble = Trouble("trainer", nothing_at("there"))
    assert isinstance(trouble.error, NotFound)
    assert stakes(lambda: Survey((), 0, (trouble,)), "trainer").error is None
