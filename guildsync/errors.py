"""What went wrong, in words for people; each class owns its exit code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterable, Optional


class GuildsyncError(Exception):
    """The operation failed: what happened and why, and with `hint` what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: Optional[str] = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Usage(GuildsyncError):
    """The command or the configuration cannot be understood."""

    exit_code = 2


class Declined(GuildsyncError):
    """The person was asked, and said no."""


class NotFound(GuildsyncError):
    """A remote, a run or a path that was named does not exist."""

    exit_code = 3


class Refused(GuildsyncError):
    """The other side refused: authentication, permission, host key."""

    exit_code = 4


class Unreachable(GuildsyncError):
    """The other side did not answer in time; trying again may help."""

    exit_code = 5


class NoRoom(GuildsyncError):
    """The other side has no room left; no trying again helps before there is some."""

    exit_code = 5


class Stopped(GuildsyncError):
    """A machine that must be started first; no trying again helps before."""

    exit_code = 5


class SafetyStop(GuildsyncError):
    """Going on could destroy something, so nothing was sent."""

    exit_code = 6


class Damaged(GuildsyncError):
    """Bytes do not match their digest, or what must be there is not."""

    exit_code = 8


class Interrupted(GuildsyncError):
    """The person asked to stop."""

    exit_code = 130


DAMAGED = "damaged"  # bytes do not match their digest
MISSING = "missing"  # an object that a manifest names is not there
CONFLICT = "conflict"  # both sides changed it, differently
TORN = "torn"  # it changed while it was being read
UNREADABLE = "unreadable"  # the operating system would not let us read or write it
NOT_KEPT = "not-kept"  # a kind of file that no replica keeps (socket, device, pipe)
CHANGED = "changed"  # it changed at the target after the plan was made
ALIVE = "alive"  # its process is running there
INCOMPLETE = "incomplete"  # an earlier sync of this run did not end
MOVED = "moved"  # what a commit relied on was moved meanwhile; another round mends it
TRASHED = "in-trash"  # delivered, but the run was deleted there meanwhile
PURGED = "purged"  # the run was purged there meanwhile
UNSETTLED = "unsettled"  # it is being rewritten: it waits until it rests

REASONS = frozenset(
    {
        DAMAGED,
        MISSING,
        CONFLICT,
        TORN,
        UNREADABLE,
        NOT_KEPT,
        CHANGED,
        ALIVE,
        INCOMPLETE,
        MOVED,
        TRASHED,
        PURGED,
        UNSETTLED,
    }
)


@dataclass(frozen=True)
class Problem:
    """One path, or one run (`path` is None), could not be handled; the operation went on."""

    run: str
    path: Optional[bytes]
    reason: str
    detail: str


def without_secrets(url: str) -> str:
    """`url` for people: without the user and password it may hold."""
    return re.sub(r"(?<=://)[^/@]*@", "***@", url)


def exit_code_of(problems: Iterable[Problem]) -> int:
    """8 where something is damaged, else 7 where anything failed, else 0; what is only noted counts as done."""
    reasons = {problem.reason for problem in problems} - {NOT_KEPT, TRASHED}
    if reasons & {DAMAGED, MISSING}:
        return 8
    return 7 if reasons else 0
