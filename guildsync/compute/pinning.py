"""From the host key that a machine was made with to its own, and what it does once after that: over ssh.

A machine is made with a host key that stands in its user data, which whoever is on it can read. So that key is
believed only by a client that starts it, until its own key is proved; that one is made there, and read over a
connection that the first one proves. `first_hosts` says both while it is open which of them is shown, `known_hosts`,
which all other commands go by, never says the first one. Interrupted anywhere, the same is done again.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from guildsync.compute.firstboot import SCRIPT, public_key
from guildsync.compute.instances import Row
from guildsync.compute.memory import Memory
from guildsync.compute.patience import Patience
from guildsync.compute.ssh import UnknownKey
from guildsync.errors import GuildsyncError, NotFound, Refused, Unreachable
from guildsync.model.machine import Reach, Say

_MADE = 30.0


class Provider(NamedTuple):
    """What the provider does for one machine: `shown` answers the own key, where another client proved it or its
    console shows it; `prove` has other clients of the owner learn it."""

    shown: Callable[[], Sequence[str]]
    prove: Callable[[str], None]


@dataclass(frozen=True)
class Pinning:
    """One machine that runs, and how it is talked to. `is_root`: root logs in, who needs no sudo."""

    row: Row
    memory: Memory
    patience: Patience
    reach: Reach
    provider: Provider
    is_root: bool = False

    def pin(self, say: Say) -> None:
        """Afterwards the machine answers, shows its own key, and this client knows that one alone."""
        machine = self.row.instance.id
        say(f"waiting until {machine} answers at {self.row.instance.address}")
        own = self._told() if self.row.host_key else self._switched(say)
        if self._own_key(self.memory.known_hosts) != own:
            raise Refused(f"{machine} told two host keys as its own", "`remote stop --terminate` destroys it")
        if not self.row.host_key:
            self.provider.prove(own)
        self.memory.forget_first(self.row.instance.token)

    def _told(self) -> str:
        """The own key, as another client proved it."""
        machine, own = self.row.instance.id, self.row.host_key
        known = self.memory.pinned(machine)
        if known is None:
            self.memory.pin(machine, own)
        elif known != own:
            hint = f"ask whoever uses it; to believe the provider, remove {self.memory.known_hosts}"
            raise Refused(f"{machine} had another host key than the provider now tells", hint)
        return own

    def _switched(self, say: Say) -> str:
        """The own key, which the machine shows from now on."""
        machine, keys = self.row.instance.id, self._expected()
        self.memory.expect(machine, keys)
        try:
            own = self._own_key(self.memory.first_hosts)
        except UnknownKey:
            # It shows neither: another client had it show its own, and did not get to tell the provider.
            own = self._learnt(say)
        self.memory.expect(machine, [*keys, own])
        self._run(self.memory.first_hosts, "switch")
        self.memory.pin(machine, own)
        return own

    def begin(self, lines: str, seconds: float, say: Say) -> None:
        """What is to be done once, done: by this client or another. Raises GuildsyncError where it failed, with what it
        printed last."""
        state, said = self._state()
        if state == "waiting":
            say("init runs on the machine")
            self._run(self.memory.known_hosts, "init", lines.encode() + b"\n")

        def look() -> tuple[str, str] | None:
            found = self._state()
            return None if found[0] in ("waiting", "running") else found

        if state != "done":
            state, said = self.patience.until(look, seconds, "init did not end")
        if state != "done":
            log = "/var/lib/guildsync/log"
            words = "was cut: the machine went down" if state == "failed cut" else f"{state} (exit status)"
            hint = f"its output is there, in {log}; mend it by hand, then `echo 0 | sudo tee /var/lib/guildsync/ended`"
            raise GuildsyncError(f"init {words}: {said.strip()[-500:] or 'it printed nothing'}", hint)

    def _expected(self) -> list[str]:
        first = [key for key in (public_key(self.row.first_key),) if key]
        return list(dict.fromkeys([*first, *self.memory.expected(self.row.instance.id)]))

    def _learnt(self, say: Say) -> str:
        say("waiting until the provider shows the machine's host key; its console may take minutes")
        return self.patience.until(
            lambda: next(iter(self.provider.shown()), None), self.patience.console, "no host key was shown"
        )

    def _own_key(self, known_hosts: str) -> str:
        key = public_key(self._run(known_hosts, "key").decode(errors="replace"))
        if key is None:
            raise GuildsyncError(f"{self.row.instance.id} did not tell its host key", "look at it: `ssh -v`")
        return key

    def _state(self) -> tuple[str, str]:
        first, _, rest = self._run(self.memory.known_hosts, "state").decode(errors="replace").partition("\n")
        return first.strip(), rest

    def _run(self, known_hosts: str, verb: str, given: bytes = b"") -> bytes:
        """What the script on the machine prints; a machine that boots does not answer at once, or has no script yet."""
        run = self.reach(self.row.instance, known_hosts)
        command = [*([] if self.is_root else ["sudo", "-n"]), SCRIPT, verb]
        last: list[GuildsyncError] = []

        def look() -> bytes | None:
            try:
                return run(command, given, None)
            except (NotFound, Unreachable) as exc:
                last[:] = [exc]
                return None

        try:
            return self.patience.until(look, self.patience.answered, "it did not answer")
        except Unreachable as exc:
            if last and isinstance(last[0], NotFound):
                hint = "does its image run cloud-init, and may `user` use sudo there without a password?"
                raise GuildsyncError(f"{self.row.instance.id} did not do what it was made with", hint) from last[0]
            raise (last[0] if last else exc) from exc


def new_key() -> tuple[str, str]:
    """A new Ed25519 key: private, public."""
    with tempfile.TemporaryDirectory(prefix="guildsync-key-") as directory:
        file = Path(directory) / "key"
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "guildsync", "-f", str(file)]
        try:
            subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_MADE, check=True)
        except FileNotFoundError as exc:
            raise NotFound("there is no program `ssh-keygen` here", "install OpenSSH's client") from exc
        except (subprocess.SubprocessError, OSError) as exc:
            raise GuildsyncError(f"ssh-keygen made no key: {exc}") from exc
        public = public_key(file.with_suffix(".pub").read_text())
        assert public is not None
        return file.read_text(), public
