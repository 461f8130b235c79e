"""Machines that a remote is executed on, as ports: what is said of them, and what can be asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from guildsync.model.ports import Step


class Instance(NamedTuple):
    """A machine as its provider lists it. `state` is the provider's word; `address` is empty while it has none;
    `since`: ISO 8601, the last start. `remote`, `owner`, `token`: what it was tagged with when it was made."""

    id: str
    state: str
    kind: str
    address: str
    since: str
    remote: str
    owner: str
    region: str
    token: str

    @property
    def is_running(self) -> bool:
        return self.state == "running"

    @property
    def is_stopped(self) -> bool:
        return self.state == "stopped"


Say = Callable[[str], None]
"""Takes one line of what goes on, for people."""


Reach = Callable[[Instance, str], Callable[[Sequence[str], bytes, float | None], bytes]]
"""How a machine is talked to over ssh: at its address, with its id as the name whose key this one known-hosts file (a
path) says. What it answers runs a command there: its words, its stdin, seconds (as `compute.ssh.Ssh.run`)."""


class Machine(Protocol):
    """Where a remote's runs are executed, if that can be started and stopped. It is found by what it is tagged with,
    whoever made it; nothing else of the account is touched. Raise Refused, Unreachable, Usage; whatever was
    interrupted anywhere is made good by calling it again."""

    def state(self) -> Instance | None:
        """The machine as it is now, None where there is none. It only asks."""

    def start(self, reach: Reach, say: Say) -> Instance:
        """Make it or start it. Comes back when it runs, lets this client in, is known to it by its own host key alone,
        and what was to be done at its first boot has ended well. Twice is once: there is never a second one."""

    def stop(self, terminate: bool, say: Say) -> Instance | None:
        """Stop it, its data kept, or `terminate`: destroy it with its data. Comes back when the provider says that it
        is so, with what the provider said; None: there was none."""

    def admit(self) -> bool:
        """Let this client in from where it is now, and no longer from where it was. False: nothing had to change, or
        it is not ours to change."""

    def all(self, say: Say) -> Sequence[Instance]:
        """Everything of ours that costs money in the account, of whatever owner, remote and region; what the local
        state says does not matter. A region that cannot be asked is said."""

    def check(self) -> Iterator[Step]:
        """Could it be started? Ends after the first step that failed; nothing is made or changed."""
