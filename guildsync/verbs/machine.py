"""Machines: started when somebody needs them, and stopped with nothing lost that nobody agreed to lose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from guildsync.errors import GuildsyncError
from guildsync.model.machine import Instance, Machine, Reach, Say
from guildsync.model.run import RUNNING
from guildsync.model.standing import LOCAL_NEWER, SAME
from guildsync.verbs.survey import Found, Survey

Agree = Callable[[Instance | None], None]
"""Is asked before the machine (None: a new one) is started or stopped, and raises to stop."""


@dataclass(frozen=True)
class Stakes:
    """What a machine's runs have to do with its end: those that `run` there, those that are not `here` as they are
    there. `error`: why they cannot be told."""

    running: Sequence[Found] = ()
    not_here: Sequence[Found] = ()
    error: GuildsyncError | None = None


def stakes(asked: Callable[[], Survey], place: str, compared: bool = True) -> Stakes:
    """`asked` lists the runs of `place`; `compared`: with how each compares with this home's."""
    try:
        survey = asked()
    except GuildsyncError as exc:
        return Stakes(error=exc)
    for trouble in survey.troubles:
        if trouble.place == place and trouble.is_failure:
            return Stakes(error=trouble.error)
    found = [each for each in survey.found if each.place == place]
    return Stakes(
        [each for each in found if each.record.summary.status == RUNNING],
        [each for each in found if compared and each.standing not in (SAME, LOCAL_NEWER)],
    )


def start(machine: Machine, reach: Reach, agree: Agree | None, say: Say) -> Instance:
    """Have the machine run, ready to be used. Nobody is asked where it runs already: what was begun is finished."""
    now = machine.state()
    if agree is not None and (now is None or not now.is_running):
        agree(now)
    return machine.start(reach, say)


def stop(machine: Machine, terminate: bool, agree: Agree | None, say: Say) -> Instance | None:
    """Have the machine stopped, or (`terminate`) destroyed; None: there was none. Nobody is asked where it is stopped
    already, unless it is to be destroyed."""
    now = machine.state() or machine.stop(False, say)  # which also undoes a start that never ended
    if now is None:
        return None
    if agree is not None and (terminate or not now.is_stopped):
        agree(now)
    return machine.stop(terminate, say)


def everything(machines: Mapping[str, Machine], say: Say) -> list[Instance]:
    """All that is ours in the accounts of these machines, each once. What cannot be asked is said; raises what went
    wrong where nothing could be."""
    found: dict[tuple[str, str], Instance] = {}
    errors: list[GuildsyncError] = []
    for name, machine in machines.items():
        try:
            found.update({(each.region, each.id): each for each in machine.all(say)})
        except GuildsyncError as exc:
            errors.append(exc)
            say(f"{name}: {exc.message}")
    if errors and len(errors) == len(machines):
        raise errors[0]
    return list(found.values())
