"""Signals to a process that is proven to be the one that was meant, and to all it left in its group and session."""

from __future__ import annotations

import os
import signal
import time
from typing import Callable, Dict, NamedTuple, Tuple

from guildsync.procinfo import Identity, Stat, boot_id, is_there, processes

GONE = "gone"  # nothing of it ran: nothing was signalled
TERMINATED = "terminated"  # it ended when it was asked to
KILLED = "killed"  # it had to be killed
LEFT = "left"  # something of it is still there, killed as it is

PATIENCE = 10.0
"""Seconds between asking and killing."""
_KILL_PATIENCE = 5.0
_POLL, _SLOWEST_POLL = 0.02, 0.2


class Stopped(NamedTuple):
    """What became of it; with LEFT, the ids of the processes that are still there (a dead disk may hold them)."""

    outcome: str
    left: Tuple[int, ...] = ()


def signal_group(leader: Identity, number: int) -> bool:
    """Signals the process group that `leader` leads. False, and nothing is signalled, unless its id stands for it."""
    if leader.boot != boot_id() or not is_there(leader):
        return False
    try:
        os.killpg(leader.pid, number)
    except ProcessLookupError:
        return False
    return True


def stop(
    leader: Identity,
    patience: float = PATIENCE,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Stopped:
    """TERM to all that is in the group or session of `leader`, KILL after `patience` seconds to what is left; returns
    when nothing is. A process that made a session of its own is nobody's of ours. Raises PermissionError."""
    family = _Family(leader)
    if not family.living():
        return Stopped(GONE)
    for number, outcome, seconds in (
        (signal.SIGTERM, TERMINATED, patience),
        (signal.SIGKILL, KILLED, _KILL_PATIENCE),
    ):
        deadline, pause = clock() + seconds, _POLL
        family.signal(number)
        if number != signal.SIGKILL:
            family.signal(signal.SIGCONT)  # what is suspended would not hear it
        while family.living():
            if clock() >= deadline:
                break
            if number == signal.SIGKILL:
                family.signal(number)  # whoever was born meanwhile
            sleep(min(pause, max(0.0, deadline - clock())))
            pause = min(2 * pause, _SLOWEST_POLL)
        else:
            return Stopped(outcome)
    return Stopped(LEFT, tuple(sorted(family.living())))


class _Family:
    """What is in the group or session of a leader.

    An id is not given away while it stands for a group or a session that has a member. So the leader's id means the
    same group as long as, from one look to the next, the leader or somebody who was seen in it is still there.
    """

    def __init__(self, leader: Identity) -> None:
        self._leader = leader
        self._seen: Dict[int, Stat] = {}

    def living(self) -> Dict[int, Stat]:
        """Zombies have ended."""
        return {pid: found for pid, found in self._look().items() if not found.zombie}

    def signal(self, number: int) -> None:
        signal_group(self._leader, number)
        for pid, found in self.living().items():
            if found.group == self._leader.pid and is_there(self._leader):
                continue  # has it already
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def _look(self) -> Dict[int, Stat]:
        if self._leader.boot != boot_id():
            return {}
        mine = self._leader.pid
        now = {found.pid: found for found in processes() if mine in (found.group, found.session, found.pid)}
        leader = now.get(mine)
        proven = leader is not None and leader.start == self._leader.start
        if not proven and leader is not None:
            return {}  # the id is somebody else's by now
        if not proven and not any(_same(self._seen.get(pid), found) for pid, found in now.items()):
            return {}
        self._seen = now
        return now


def _same(was: object, now: Stat) -> bool:
    return isinstance(was, Stat) and was.start == now.start
