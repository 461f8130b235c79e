"""When a mirror looks next, from times alone."""

from __future__ import annotations

from guildsync.model.run import RunId
from guildsync.verbs.agenda import ASLEEP, LATEST, RECONCILE, SETTLE, Agenda, Look
from tests.kit.trees import run_ids

ONE, OTHER = map(RunId, run_ids(2))


def begun(every: float = 0.0) -> Agenda:
    """After its first look at everything, which took no time, at 0."""
    agenda = Agenda(0.0, every)
    assert agenda.due(0.0) == Look(None, 0.0)
    agenda.looked(0.0, 0.0)
    return agenda


def test_a_first_change_goes_out_after_a_moment() -> None:
    agenda = begun()
    assert agenda.next_at == RECONCILE
    agenda.hinted(frozenset([ONE]), 10.0)
    assert agenda.due(10.0) is None
    assert agenda.next_at == 10.0 + SETTLE
    assert agenda.due(10.0 + SETTLE) == Look(frozenset([ONE]), 10.0)
    assert agenda.due(20.0) is None


def test_steady_change_is_never_late() -> None:
    """However long looks take, and however often something moves."""
    agenda, now = begun(), 0.0
    for _ in range(20):
        heard = now
        while (look := agenda.due(now)) is None:
            agenda.hinted(frozenset([ONE]), now)
            now += 0.01
        assert now - heard <= LATEST
        began, now = now, now + 3.0
        agenda.looked(began, now)
        assert look.since >= heard


def test_hints_that_come_meanwhile_come_together() -> None:
    agenda = begun()
    agenda.looked(0.0, 1.0)
    agenda.hinted(frozenset([ONE]), 1.1)
    agenda.hinted(frozenset([OTHER]), 1.5)
    assert agenda.due(1.9) is None
    assert agenda.due(2.0) == Look(frozenset([ONE, OTHER]), 1.1)


def test_everything_takes_all_along() -> None:
    agenda = begun()
    agenda.hinted(frozenset([ONE]), 4.0)
    agenda.hinted(None, 5.0)
    assert agenda.due(5.0) == Look(None, 4.0)
    assert agenda.due(6.0) is None
    assert agenda.due(5.0 + RECONCILE) == Look(None, 5.0 + RECONCILE)


def test_who_slept_looks_at_everything() -> None:
    agenda = begun()
    agenda.awake(ASLEEP - 1)
    assert agenda.due(ASLEEP) is None
    agenda.awake(2 * ASLEEP)
    assert agenda.due(2 * ASLEEP) == Look(None, 2 * ASLEEP)


def test_what_was_put_off_keeps_its_time() -> None:
    agenda = begun()
    agenda.again([ONE], 1.0, 30.0, since=0.5)
    assert agenda.due(30.0) is None
    assert not agenda.is_near(1.0)
    agenda.hinted(frozenset([OTHER]), 2.0)
    assert agenda.is_near(2.0)
    assert agenda.due(3.0) == Look(frozenset([OTHER]), 2.0)
    assert agenda.due(31.0) == Look(frozenset([ONE]), 0.5)


def test_looks_begin_so_far_apart() -> None:
    agenda = begun(every=5.0)
    agenda.hinted(frozenset([ONE]), 0.1)
    assert agenda.due(4.9) is None
    assert agenda.due(5.0) == Look(frozenset([ONE]), 0.1)
