"""Machines on EC2: made, found by their tags, started, stopped, destroyed, and never two where one was asked for.

What can be lost on the way, and what holds then: before anything is made, an intent with its token is durable here, and
what is made carries tags from its first moment on. So a client that died asks once more with the same token, which
makes nothing twice; and any client of the owner finds a machine by its tags, whatever it remembers.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from guildsync.compute.account import Account
from guildsync.compute.aws import Aws, code_of
from guildsync.compute.firstboot import console_keys
from guildsync.compute.group import Groups, own_network
from guildsync.compute.instances import HOST_KEY, Row, Settings, chosen, is_live, surplus
from guildsync.compute.memory import Intent, Memory
from guildsync.compute.patience import Patience
from guildsync.compute.pinning import Pinning, Provider, new_key
from guildsync.compute.ready import Readiness
from guildsync.compute.request import request
from guildsync.errors import GuildsyncError, Unreachable
from guildsync.model.machine import Instance, Reach, Say
from guildsync.model.ports import Step

__all__ = ["Ec2Machine", "Memory", "Patience", "Settings"]

OPEN = 600.0
"""Seconds after which a listing proves that nothing was made of an intent: no call is on its way any more."""
_NOT_NOW = ("IncorrectInstanceState", "InvalidInstanceID.NotFound")
_OTHER_WORDS = "IdempotentParameterMismatch"


class Ec2Machine:
    """The machine of a remote (see `model.machine.Machine`). `memory` is this remote's alone."""

    def __init__(
        self, settings: Settings, memory: Memory, patience: Patience = Patience(), now: Callable[[], float] = time.time
    ) -> None:
        self._settings, self._memory, self._patience, self._now = settings, memory, patience, now
        self._aws = Aws(settings.profile, settings.region)
        self._account = Account(self._aws, settings)

    # -- what is there

    def state(self) -> Instance | None:
        row = chosen(self._account.rows())
        return None if row is None else row.instance

    def all(self, say: Say) -> Sequence[Instance]:
        return self._account.everything(say)

    # -- start

    def start(self, reach: Reach, say: Say) -> Instance:
        with self._memory.locked(self._patience.clock, self._patience.sleep):
            network = "" if self._settings.security_group else own_network()
            self._find_or_make(say)
            # Once more when it runs: what another client made meanwhile may not have been listed at first.
            self._running(self._one(say)[0], say)
            row, others = self._one(say)
            for other in others:
                say(f"warning: {other.instance.id} is a second machine of this remote; `remote stop` stops both")
            row = self._running(row, say)
            if network:
                self._groups.admit(row.groups, network, self._memory.client(), alone=True)
            pinning = Pinning(
                row, self._memory, self._patience, reach, self._provider(row), self._settings.user == "root"
            )
            pinning.pin(say)
            if self._settings.init:
                pinning.begin(self._settings.init, self._settings.init_timeout, say)
            return row.instance

    def _find_or_make(self, say: Say) -> None:
        rows = self._account.rows()
        intent = self._open_intent(rows)
        if chosen(rows) is None:
            intent = intent or self._intend()
            self._make(intent, say)
            self._listed(intent)

    def _listed(self, intent: Intent) -> None:
        what = "EC2 does not list what was made"
        self._patience.until(lambda: self._account.rows_with(intent.token), self._patience.listed, what)

    def _open_intent(self, rows: Sequence[Row]) -> Intent | None:
        """The one of which something may have been made that still lives. Where another machine is used instead, it
        stays until a listing proves that nothing comes of it any more: what does come is found and given up."""
        intent = self._memory.intent()
        if intent is None:
            return None
        made = _of(rows, intent.token)
        gone = not is_live(made) if made else self._now() - intent.begun > OPEN
        if gone:
            self._memory.forget_intent()
        return None if gone else intent

    def _intend(self) -> Intent:
        token = uuid.uuid4().hex
        made = request(self._settings, self._account.owner, token, self._account.image, new_key())
        intent = Intent(token, self._now(), made)
        self._memory.intend(intent)
        return intent

    def _make(self, intent: Intent, say: Say) -> None:
        """The machine of an intent, once, however often it is asked for."""
        say(f"making a machine: {intent.request['InstanceType']} in {self._settings.region}")
        try:
            group = self._settings.security_group or self._groups.made()
            self._aws.call("run_instances", **intent.request, SecurityGroupIds=[group])
        except Unreachable:
            raise  # it may have been made: the intent stays
        except GuildsyncError as exc:
            if code_of(exc) == _OTHER_WORDS:
                return  # it was made, in a group that is there no more: it gets listed
            if not self._account.rows_with(intent.token):
                self._memory.forget_intent()
            raise

    def _one(self, say: Say) -> tuple[Row, list[Row]]:
        """The machine that is the remote's, after this client's own newer one was given up where another was faster;
        and those that live beside it, which are others' to give up."""
        rows, intent = self._account.rows(), self._memory.intent()
        mine = surplus(rows, intent.token if intent else None)
        if mine is not None:
            say(f"another client was faster: {mine.instance.id}, just made here, is destroyed")
            self._end(mine, say)
            self._memory.forget_intent()
            rows = self._account.rows()
        row = chosen(rows)
        if row is None:
            raise self._ended(_of(rows, intent.token if intent else ""))
        return row, [other for other in rows if is_live(other) and other is not row]

    def _running(self, row: Row, say: Say) -> Row:
        machine, said = row.instance.id, [""]

        def look() -> Row | None:
            found = self._account.row(machine)
            if found is None:
                return None
            if not is_live(found):
                raise self._ended(found)
            if found.instance.state != said[0]:
                said[0] = found.instance.state
                if said[0] != "running":
                    say(f"{machine} is {said[0]}")
            if found.instance.state == "stopped":
                self._ask("start_instances", machine)
            return found if found.instance.is_running and found.instance.address else None

        return self._patience.until(look, self._patience.running, f"{machine} is not running")

    def _ended(self, row: Row | None) -> GuildsyncError:
        self._memory.forget()
        why = f": {row.reason}" if row and row.reason else ""
        return GuildsyncError(f"EC2 ended the machine of {self._settings.remote}{why}", "start it again")

    def _provider(self, row: Row) -> Provider:
        machine = row.instance.id

        def shown() -> Sequence[str]:
            now = self._account.row(machine)
            if now and now.host_key:
                return [now.host_key]  # another client has just proved it
            # The newest of the console, where this kind of machine can show that, else what it showed after it booted.
            try:
                answer = self._aws.call("get_console_output", InstanceId=machine, Latest=True)
            except Unreachable:
                raise
            except GuildsyncError:
                answer = self._aws.call("get_console_output", InstanceId=machine)
            return console_keys(answer.get("Output", ""), row.first_key)

        def prove(key: str) -> None:
            self._aws.call("create_tags", Resources=[machine], Tags=[{"Key": HOST_KEY, "Value": key}])

        return Provider(shown, prove)

    # -- stop

    def stop(self, terminate: bool, say: Say) -> Instance | None:
        with self._memory.locked(self._patience.clock, self._patience.sleep):
            rows = self._made_so_far(say)
            row = chosen(rows)
            if row is not None and not terminate:
                for each in filter(is_live, rows):
                    self._halt(each, say)
                row = self._account.row(row.instance.id)
            elif row is not None:
                row = self._end(row, say)
                self._memory.forget()
            if terminate and not any(map(is_live, self._account.rows())) and not self._groups.remove():
                say("its security group is still in use; it costs nothing")
            return None if row is None else row.instance

    def _made_so_far(self, say: Say) -> list[Row]:
        """What there is, and what a start that was interrupted may have made and EC2 does not list yet."""
        rows = self._account.rows()
        intent = self._open_intent(rows)
        if intent and not _of(rows, intent.token):
            say("a start was interrupted: looking for what it made")
            try:
                self._listed(intent)
            except Unreachable:
                self._memory.forget_intent()
        return self._account.rows()

    def _halt(self, row: Row, say: Say) -> None:
        def look() -> Row | None:
            found = self._account.row(row.instance.id)
            if found and found.instance.is_running:
                say(f"stopping {row.instance.id}")
                self._ask("stop_instances", row.instance.id)
            return found if found and (found.instance.is_stopped or not is_live(found)) else None

        self._patience.until(look, self._patience.ended, f"{row.instance.id} is not stopped")

    def _end(self, row: Row, say: Say) -> Row:
        machine, seen = row.instance.id, [False]

        def look() -> Row | None:
            found = self._account.row(machine)
            if found and is_live(found):
                if not seen[0]:
                    say(f"destroying {machine}")
                seen[0] = True
                self._ask("terminate_instances", machine)
            return found if found and found.instance.state == "terminated" else None

        return self._patience.until(look, self._patience.ended, f"{machine} is not destroyed")

    def _ask(self, operation: str, machine: str) -> None:
        """Where it is in no state for it yet, it is asked again."""
        try:
            self._aws.call(operation, InstanceIds=[machine])
        except GuildsyncError as exc:
            if code_of(exc) not in _NOT_NOW:
                raise

    # -- the client's address

    def admit(self) -> bool:
        row = chosen(self._account.rows())
        if row is None or self._settings.security_group:
            return False
        return self._groups.admit(row.groups, own_network(), self._memory.client(), alone=False)

    # -- check

    def check(self) -> Iterator[Step]:
        return Readiness(self._account, lambda: self._groups, self._settings).steps()

    @cached_property
    def _groups(self) -> Groups:
        return Groups(self._aws, self._settings, self._account.owner, self._patience)


def _of(rows: Sequence[Row], token: str) -> Row | None:
    return next((row for row in rows if row.instance.token == token), None)
